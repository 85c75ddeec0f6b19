//! The secrets that webhooks are signed with, and the signature of Standard Webhooks.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// What a secret begins with, in front of its base64.
const PREFIX: &str = "whsec_";

/// Bytes of a secret that the daemon makes for itself; Standard Webhooks wants 24 to 64.
const BYTES: usize = 32;

/// The file of the secret that the daemon makes for itself, in the data folder.
const OWN_FILE: &str = "webhook-secret";

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{}:{line}: {what}", path.display())]
    Line { path: PathBuf, line: usize, what: &'static str },
    #[error("{} holds no secret", path.display())]
    Empty { path: PathBuf },
}

/// One or more secrets: while one takes over from another, a message is signed with both.
pub struct Secrets(Vec<Vec<u8>>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Secrets").field(&self.0.len()).finish()
    }
}

impl Secrets {
    /// Reads the configured file, or the daemon's own, which is made at the first call. Blocks.
    ///
    /// # Errors
    /// A file that cannot be read or made, or that holds anything but secrets.
    pub fn load(configured: Option<&Path>, data: &Path) -> Result<Self, SecretError> {
        let own = data.join(OWN_FILE);
        let path = configured.unwrap_or(&own);
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && configured.is_none() => make(path),
            other => other,
        };
        let text = text.map_err(|error| SecretError::File { path: path.to_owned(), error })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, SecretError> {
        let wrong = |line: usize, what| Err(SecretError::Line { path: path.to_owned(), line, what });
        let mut secrets = Vec::new();
        for (index, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some(encoded) = line.strip_prefix(PREFIX) else {
                return wrong(index, "a secret begins with whsec_, then base64");
            };
            match STANDARD.decode(encoded) {
                Ok(secret) if (24..=64).contains(&secret.len()) => secrets.push(secret),
                Ok(_) => return wrong(index, "a secret has 24 to 64 bytes"),
                Err(_) => return wrong(index, "what follows whsec_ is not base64"),
            }
        }
        if secrets.is_empty() { Err(SecretError::Empty { path: path.to_owned() }) } else { Ok(Self(secrets)) }
    }

    /// The header `webhook-signature`. `timestamp` in seconds.
    pub fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let signatures = self.0.iter().map(|secret| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
            for part in [id, ".", &timestamp.to_string(), ".", body] {
                mac.update(part.as_bytes());
            }
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

/// A new secret, in a file that only the daemon's user can read.
fn make(path: &Path) -> io::Result<String> {
    let secret: [u8; BYTES] = rand::random();
    let text = format!("{PREFIX}{}\n", STANDARD.encode(secret));
    let temp = path.with_extension("tmp");
    let _ = fs::remove_file(&temp);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temp, path)?;
    tracing::info!(file = %path.display(), "made a secret to sign webhooks with");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// The example of the specification's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn parse(text: &str) -> Result<Secrets, String> {
        Secrets::parse(Path::new("secret"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_signature_is_the_specifications() {
        let signature = parse(SECRET).expect("reads").sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_sign_twice() {
        let both = parse(&format!("# old\n{SECRET}\n\nwhsec_{}\n", STANDARD.encode([7; 24]))).expect("reads");
        let signature = both.sign("msg_1", 1, "{}");
        let parts: Vec<_> = signature.split(' ').collect();
        assert_eq!(parts.len(), 2);
        assert!(parts[0] != parts[1] && parts.iter().all(|part| part.starts_with("v1,")), "{signature}");
    }

    #[test]
    fn what_is_no_secret_is_refused_with_its_line() {
        assert_eq!(parse("# nothing\n").expect_err("empty"), "secret holds no secret");
        assert!(parse("hunter2").expect_err("plain").starts_with("secret:1: a secret begins with whsec_"));
        assert!(parse("\nwhsec_%%%").expect_err("rubbish").contains("secret:2: what follows"));
        assert!(parse("whsec_YWJj").expect_err("short").contains("24 to 64"));
    }

    #[test]
    fn the_daemons_own_secret_is_made_once_and_is_its_own() {
        let data = tempfile::tempdir().expect("temp dir");
        let first = Secrets::load(None, data.path()).expect("made");
        let again = Secrets::load(None, data.path()).expect("read");
        assert_eq!(first.0, again.0);
        let mode = fs::metadata(data.path().join(OWN_FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Secrets::load(Some(&data.path().join("none")), data.path()).is_err(), "a named file is not made");
    }
}
