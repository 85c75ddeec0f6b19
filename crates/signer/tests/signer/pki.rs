//! An authority of the test's own and certificates by it, made with the `openssl` program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use atelier_domain::signing::{Credentials, SignatureAlgorithm};
use tempfile::TempDir;

/// What a certificate for C2PA has.
pub(crate) const PROFILE: &str = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
                                  extendedKeyUsage=emailProtection\nsubjectKeyIdentifier=hash\n\
                                  authorityKeyIdentifier=keyid\n";

pub(crate) struct Pki {
    folder: TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let pki = Self { folder: tempfile::tempdir().unwrap() };
        let authority = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 30 \
                         -subj /O=Tests/CN=Authority -addext keyUsage=critical,keyCertSign";
        pki.openssl(authority);
        pki
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    #[track_caller]
    pub(crate) fn openssl(&self, arguments: &str) {
        let output =
            Command::new("openssl").args(arguments.split_whitespace()).current_dir(self.folder.path()).output();
        let output = output.unwrap_or_else(|error| panic!("the tests need the program openssl: {error}"));
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A key of this kind, with a certificate as `extensions` say, valid from and to so many days from now.
    #[track_caller]
    pub(crate) fn certify(
        &self,
        name: &str,
        algorithm: SignatureAlgorithm,
        extensions: &str,
        days: (i64, i64),
    ) -> Credentials {
        let kind = match algorithm {
            SignatureAlgorithm::Es256 => "EC -pkeyopt ec_paramgen_curve:P-256",
            SignatureAlgorithm::Es384 => "EC -pkeyopt ec_paramgen_curve:P-384",
            SignatureAlgorithm::Es512 => "EC -pkeyopt ec_paramgen_curve:P-521",
            SignatureAlgorithm::Ps256 | SignatureAlgorithm::Ps384 | SignatureAlgorithm::Ps512 => {
                "RSA -pkeyopt rsa_keygen_bits:2048"
            }
            SignatureAlgorithm::Ed25519 => "ED25519",
        };
        fs::write(self.path("extensions"), extensions).unwrap();
        // An authority's book, which is the only way to choose the dates.
        fs::write(
            self.path("ca.cnf"),
            "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nserial=serial\nnew_certs_dir=.\n\
            default_md=sha256\npolicy=any\nunique_subject=no\n[any]\norganizationName=supplied\ncommonName=supplied\n",
        )
        .unwrap();
        fs::write(self.path("index"), "").unwrap();
        let date = |days: i64| {
            let at = atelier_domain::Timestamp::now().plus_millis(days * 86_400_000).to_string();
            let digits: String = at.chars().take(19).filter(char::is_ascii_digit).collect();
            format!("{digits}Z")
        };
        self.openssl(&format!("genpkey -algorithm {kind} -out {name}.key"));
        self.openssl(&format!("req -new -key {name}.key -subj /O=Tests/CN={name} -out {name}.csr"));
        self.openssl(&format!(
            "ca -batch -config ca.cnf -cert ca.pem -keyfile ca.key -rand_serial -in {name}.csr -out {name}.pem -notext \
             -startdate {} -enddate {} -extfile extensions",
            date(days.0),
            date(days.1)
        ));
        Credentials {
            certificate_file: self.path(&format!("{name}.pem")).into(),
            key_file: self.path(&format!("{name}.key")).into(),
            algorithm,
        }
    }

    /// A certificate as it should be.
    #[track_caller]
    pub(crate) fn good(&self, algorithm: SignatureAlgorithm) -> Credentials {
        self.certify(algorithm.as_str(), algorithm, PROFILE, (-1, 20))
    }

    /// The certificate that all others hang on.
    pub(crate) fn anchor(&self) -> String {
        fs::read_to_string(self.path("ca.pem")).unwrap()
    }
}
