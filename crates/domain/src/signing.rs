//! What the daemon asks of `atelier-signer`, and what that answers: one [`Request`] on its standard input and one
//! [`Answer`] on its standard output, as JSON. The program ends after it.
//!
//! Paths are absolute. The key itself never crosses: only the name of its file does.

use serde::{Deserialize, Serialize};

use crate::{
    JobKind,
    protocol::{GpsPolicy, WirePath},
};

/// Raised with every change that an older peer would misread.
pub const SIGNING_VERSION: u32 = 1;

/// A signature algorithm of C2PA, under the name that COSE gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureAlgorithm {
    /// ECDSA on P-256.
    Es256,
    /// ECDSA on P-384.
    Es384,
    /// ECDSA on P-521.
    Es512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    Ed25519,
}

impl SignatureAlgorithm {
    pub const ALL: [Self; 7] =
        [Self::Es256, Self::Es384, Self::Es512, Self::Ps256, Self::Ps384, Self::Ps512, Self::Ed25519];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "es256",
            Self::Es384 => "es384",
            Self::Es512 => "es512",
            Self::Ps256 => "ps256",
            Self::Ps384 => "ps384",
            Self::Ps512 => "ps512",
            Self::Ed25519 => "ed25519",
        }
    }
}

/// Whose signature it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// PEM: the signer's own certificate, then those that lead to the root.
    pub certificate_file: WirePath,
    /// PEM: PKCS#8, not encrypted.
    pub key_file: WirePath,
    pub algorithm: SignatureAlgorithm,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    pub credentials: Credentials,
    /// `None`: the credentials are looked at and tried, nothing is written.
    pub work: Option<Work>,
}

/// One job's files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    pub kind: JobKind,
    pub files: Vec<FileToSign>,
    /// What the job was given, in its order.
    pub sources: Vec<SourceFile>,
    /// With `Strip` the sources' own C2PA manifests are left behind: they may say where a photo was taken.
    pub gps: GpsPolicy,
}

/// A whole file, and where it is to lie with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileToSign {
    pub unsigned: WirePath,
    /// Does not exist yet.
    pub signed: WirePath,
    pub media_type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    pub path: WirePath,
    pub media_type: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer {
    /// To a request without work.
    Checked(Certificate),
    Signed {
        certificate: Certificate,
        /// In the order of the request.
        files: Vec<SignedFile>,
    },
    Refused(Refusal),
}

/// The signer's own certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    /// Seconds since 1970.
    pub not_after: i64,
    pub sha256: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedFile {
    pub bytes: u64,
    pub sha256: String,
}

/// Why nothing was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub about: About,
    /// What is wrong, and with which file.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// What a refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    Certificate,
    Key,
    Algorithm,
    /// The signer itself: its program is missing, of another version, or has failed.
    Program,
    /// A picture.
    File,
    /// There is no room for the signed files.
    Disk,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_are_written_as_they_are_named() {
        for algorithm in SignatureAlgorithm::ALL {
            assert_eq!(serde_json::to_value(algorithm).expect("serialises"), algorithm.as_str());
        }
    }

    #[test]
    fn what_is_asked_and_answered_has_written_names() {
        let request = Request {
            version: SIGNING_VERSION,
            credentials: Credentials {
                certificate_file: "/c.pem".into(),
                key_file: "/k.pem".into(),
                algorithm: SignatureAlgorithm::Ed25519,
            },
            work: Some(Work {
                kind: JobKind::Upscale,
                files: vec![FileToSign {
                    unsigned: "/a.png".into(),
                    signed: "/b.png".into(),
                    media_type: "image/png".into(),
                }],
                sources: vec![SourceFile { path: "/s.jpg".into(), media_type: "image/jpeg".into() }],
                gps: GpsPolicy::Strip,
            }),
        };
        let text = serde_json::to_string(&request).expect("serialises");
        assert_eq!(
            text,
            r#"{"version":1,"credentials":{"certificate_file":"/c.pem","key_file":"/k.pem","algorithm":"ed25519"},"work":{"kind":"upscale","files":[{"unsigned":"/a.png","signed":"/b.png","media_type":"image/png"}],"sources":[{"path":"/s.jpg","media_type":"image/jpeg"}],"gps":"strip"}}"#
        );
        assert_eq!(serde_json::from_str::<Request>(&text).expect("parses"), request);
        let refused = Answer::Refused(Refusal { about: About::Key, message: "m".into(), hint: "h".into() });
        assert_eq!(
            serde_json::to_string(&refused).expect("serialises"),
            r#"{"type":"refused","about":"key","message":"m","hint":"h"}"#
        );
    }
}
