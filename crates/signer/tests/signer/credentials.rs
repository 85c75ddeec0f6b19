//! What is wrong with a certificate or key is said before anything is made.

use std::fs;

use atelier_domain::signing::{
    About, Answer, Credentials,
    SignatureAlgorithm::{self, Es256, Es384, Ps256},
};

use crate::{
    pki::{PROFILE, Pki},
    run::ask,
};

#[track_caller]
fn refused(credentials: &Credentials, about: About, words: &str) {
    match ask(credentials, None) {
        Answer::Refused(refusal) => {
            assert_eq!(refusal.about, about, "{refusal:?}");
            assert!(refusal.message.contains(words), "{refusal:?}");
            assert!(!refusal.hint.is_empty(), "{refusal:?}");
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn every_algorithm_is_taken_with_its_own_key() {
    let pki = Pki::new();
    for algorithm in SignatureAlgorithm::ALL {
        match ask(&pki.good(algorithm), None) {
            Answer::Checked(certificate) => {
                assert_eq!(certificate.subject, format!("O=Tests, CN={}", algorithm.as_str()));
                assert_eq!(certificate.issuer, "O=Tests, CN=Authority");
                assert_eq!(certificate.sha256.len(), 64);
            }
            other => panic!("{algorithm:?}: {other:?}"),
        }
    }
}

#[test]
fn a_chain_in_order_is_taken_and_another_is_not() {
    let pki = Pki::new();
    let credentials = pki.good(Es256);
    let own = fs::read_to_string(pki.path("es256.pem")).unwrap();
    let with = |chain: String| {
        fs::write(pki.path("chain.pem"), chain).unwrap();
        Credentials { certificate_file: pki.path("chain.pem").into(), ..credentials.clone() }
    };
    let taken = ask(&with(format!("{own}{}", pki.anchor())), None);
    assert!(matches!(taken, Answer::Checked(_)), "{taken:?}");
    refused(&with(format!("{own}{own}")), About::Certificate, "follows where");
    refused(&with(format!("{}{own}", pki.anchor())), About::Certificate, "follows where");
    refused(&with(pki.anchor()), About::Certificate, "is an authority's");
    refused(&with(String::new()), About::Certificate, "holds no certificate");
    refused(&with(fs::read_to_string(pki.path("es256.key")).unwrap()), About::Certificate, "beside certificates");
}

#[test]
fn dates_and_purpose_are_looked_at() {
    let pki = Pki::new();
    refused(&pki.certify("old", Es256, PROFILE, (-20, -1)), About::Certificate, "expired on");
    refused(&pki.certify("new", Es256, PROFILE, (2, 20)), About::Certificate, "is valid from");
    let bare = "basicConstraints=CA:FALSE\nauthorityKeyIdentifier=keyid\n";
    refused(&pki.certify("bare", Es256, bare, (-1, 20)), About::Certificate, "no extended key usage");
    let agreement = PROFILE.replace("digitalSignature", "keyAgreement");
    refused(&pki.certify("other", Es256, &agreement, (-1, 20)), About::Certificate, "not for digital signatures");
    let server = PROFILE.replace("emailProtection", "serverAuth");
    refused(&pki.certify("server", Es256, &server, (-1, 20)), About::Certificate, "no C2PA signature can be made");
}

#[test]
fn the_key_is_the_certificates_and_of_the_algorithm() {
    let pki = Pki::new();
    let good = pki.good(Es256);
    refused(&Credentials { algorithm: Es384, ..good.clone() }, About::Algorithm, "cannot sign with \"es384\"");
    refused(&Credentials { algorithm: Ps256, ..good.clone() }, About::Algorithm, "cannot sign with \"ps256\"");
    let other = pki.certify("another", Es256, PROFILE, (-1, 20));
    refused(&Credentials { key_file: other.key_file, ..good.clone() }, About::Key, "is not the key of");
    let rsa = pki.good(Ps256);
    refused(&Credentials { key_file: rsa.key_file, ..good.clone() }, About::Key, "no key for \"es256\"");

    let with = |name: &str| Credentials { key_file: pki.path(name).into(), ..good.clone() };
    pki.openssl("pkcs8 -topk8 -in es256.key -out locked.key -passout pass:secret");
    refused(&with("locked.key"), About::Key, "is encrypted");
    pki.openssl("ec -in es256.key -out old.key");
    refused(&with("old.key"), About::Key, "no private key as PKCS#8");
    refused(&with("none.key"), About::Key, "cannot be read");
    let missing = Credentials { certificate_file: pki.path("none.pem").into(), ..good };
    refused(&missing, About::Certificate, "cannot be read");
}
