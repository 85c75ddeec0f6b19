//! The operator's certificate and key: read, and held to what C2PA asks of them, so that what is wrong is said in words.

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use atelier_domain::signing::{About, Certificate, Credentials, Refusal, SignatureAlgorithm};
use c2pa::{BoxedSigner, SigningAlg, create_signer, crypto::raw_signature::validator_for_signing_alg};
use sha2::{Digest as _, Sha256};
use x509_parser::{
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
        OID_PKCS1_RSASSAPSS, OID_SIG_ED25519,
    },
    pem::Pem,
    prelude::{FromDer as _, X509Certificate},
};

/// Files of keys and certificates are small.
const MAX_BYTES: u64 = 1 << 20;

/// What signs.
pub(crate) struct Loaded {
    pub(crate) signer: BoxedSigner,
    pub(crate) certificate: Certificate,
}

/// Reads both files and makes sure that they belong together.
///
/// # Errors
/// Whatever is wrong with either, and what to do about it.
pub(crate) fn load(credentials: &Credentials) -> Result<Loaded, Refusal> {
    let path = credentials.certificate_file.as_path();
    let chain = read(path, About::Certificate, "the certificate")?;
    let ders = certificates(path, &chain)?;
    let mut parsed = Vec::new();
    for der in &ders {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| {
            wrong(About::Certificate, format!("{}: no X.509 certificate: {error}", path.display()), CHAIN_HINT)
        })?;
        parsed.push(certificate);
    }
    let [own, others @ ..] = parsed.as_slice() else { return Err(no_certificate(path)) };
    dates(path, &parsed)?;
    in_order(path, own, others)?;
    suits_a_signer(path, own)?;
    fits(path, own, credentials.algorithm)?;
    let signer = key(credentials, &chain)?;
    belongs(credentials, &signer, own)?;
    let certificate = Certificate {
        subject: own.subject().to_string(),
        issuer: own.issuer().to_string(),
        not_after: own.validity().not_after.timestamp(),
        sha256: ders.first().map(|der| hex(&Sha256::digest(der))).unwrap_or_default(),
    };
    Ok(Loaded { signer, certificate })
}

const CHAIN_HINT: &str = "a PEM file with the signer's own certificate first, then those that lead to the root";
const KEY_HINT: &str = "a PEM file that begins with \"-----BEGIN PRIVATE KEY-----\"; `openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW` makes one";
const PROFILE_HINT: &str = "C2PA asks for a certificate that is no authority's own, with the key usage digitalSignature, \
                            an extended key usage such as emailProtection or documentSigning, and an authority key \
                            identifier";

fn wrong(about: About, message: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal { about, message: message.into(), hint: hint.into() }
}

fn no_certificate(path: &Path) -> Refusal {
    wrong(About::Certificate, format!("{} holds no certificate", path.display()), CHAIN_HINT)
}

fn read(path: &Path, about: About, what: &str) -> Result<Vec<u8>, Refusal> {
    let length = |path: &Path| fs::metadata(path).map(|meta| meta.len());
    match length(path).and_then(|bytes| if bytes > MAX_BYTES { Ok(None) } else { fs::read(path).map(Some) }) {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(wrong(about, format!("{} is too large for {what}", path.display()), "is it another file?")),
        Err(error) => Err(wrong(
            about,
            format!("{what} {} cannot be read: {error}", path.display()),
            "the daemon's user must be able to read it; under systemd use LoadCredential= and \"<credentials>/NAME\"",
        )),
    }
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut ders = Vec::new();
    for block in Pem::iter_from_buffer(text) {
        let block = block
            .map_err(|error| wrong(About::Certificate, format!("{} is no PEM: {error}", path.display()), CHAIN_HINT))?;
        if block.label != "CERTIFICATE" {
            let what = format!("{} holds a {:?} beside certificates", path.display(), block.label);
            return Err(wrong(About::Certificate, what, CHAIN_HINT));
        }
        ders.push(block.contents);
    }
    if ders.is_empty() { Err(no_certificate(path)) } else { Ok(ders) }
}

fn dates(path: &Path, chain: &[X509Certificate]) -> Result<(), Refusal> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
    for certificate in chain {
        let (validity, subject) = (certificate.validity(), certificate.subject());
        if now > validity.not_after.timestamp() {
            let what = format!("{}: the certificate of {subject} expired on {}", path.display(), validity.not_after);
            return Err(wrong(About::Certificate, what, "renew it and put the new one in its place"));
        }
        if now < validity.not_before.timestamp() {
            let from = validity.not_before;
            let what = format!("{}: the certificate of {subject} is valid from {from} on", path.display());
            return Err(wrong(About::Certificate, what, "is this machine's clock right?"));
        }
    }
    Ok(())
}

fn in_order(path: &Path, own: &X509Certificate, others: &[X509Certificate]) -> Result<(), Refusal> {
    let mut issuer = own.issuer();
    for certificate in others {
        if certificate.subject() != issuer {
            let what = format!("{}: {} follows where {issuer} should", path.display(), certificate.subject());
            return Err(wrong(About::Certificate, what, CHAIN_HINT));
        }
        issuer = certificate.issuer();
    }
    Ok(())
}

/// What C2PA's profile asks that people most often miss; the rest is found when a signature is tried.
fn suits_a_signer(path: &Path, own: &X509Certificate) -> Result<(), Refusal> {
    let refuse = |what: &str| {
        let what = format!("{}: the certificate of {} {what}", path.display(), own.subject());
        Err(wrong(About::Certificate, what, PROFILE_HINT))
    };
    if own.is_ca() {
        return refuse("is an authority's, or signed by itself");
    }
    if own.extended_key_usage().ok().flatten().is_none() {
        return refuse("has no extended key usage");
    }
    if !own.key_usage().ok().flatten().is_some_and(|usage| usage.value.digital_signature()) {
        return refuse("is not for digital signatures");
    }
    Ok(())
}

/// The algorithms that the certificate's kind of key can do.
fn possible(own: &X509Certificate) -> &'static [SignatureAlgorithm] {
    use SignatureAlgorithm::{Ed25519, Es256, Es384, Es512, Ps256, Ps384, Ps512};
    let algorithm = &own.public_key().algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        match curve {
            Some(curve) if curve == OID_EC_P256 => &[Es256],
            Some(curve) if curve == OID_NIST_EC_P384 => &[Es384],
            Some(curve) if curve == OID_NIST_EC_P521 => &[Es512],
            Some(_) | None => &[],
        }
    } else if [OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS].contains(&algorithm.algorithm) {
        &[Ps256, Ps384, Ps512]
    } else if algorithm.algorithm == OID_SIG_ED25519 {
        &[Ed25519]
    } else {
        &[]
    }
}

fn fits(path: &Path, own: &X509Certificate, algorithm: SignatureAlgorithm) -> Result<(), Refusal> {
    let possible = possible(own);
    if possible.contains(&algorithm) {
        return Ok(());
    }
    let names: Vec<_> = possible.iter().map(|algorithm| format!("{:?}", algorithm.as_str())).collect();
    let what = format!("{}: the certificate's key cannot sign with {:?}", path.display(), algorithm.as_str());
    let hint = if names.is_empty() {
        "C2PA knows keys of ECDSA (P-256, P-384, P-521), RSA and Ed25519".to_owned()
    } else {
        format!("it is one for {}", names.join(", "))
    };
    Err(wrong(About::Algorithm, what, hint))
}

const fn c2pas(algorithm: SignatureAlgorithm) -> SigningAlg {
    match algorithm {
        SignatureAlgorithm::Es256 => SigningAlg::Es256,
        SignatureAlgorithm::Es384 => SigningAlg::Es384,
        SignatureAlgorithm::Es512 => SigningAlg::Es512,
        SignatureAlgorithm::Ps256 => SigningAlg::Ps256,
        SignatureAlgorithm::Ps384 => SigningAlg::Ps384,
        SignatureAlgorithm::Ps512 => SigningAlg::Ps512,
        SignatureAlgorithm::Ed25519 => SigningAlg::Ed25519,
    }
}

fn key(credentials: &Credentials, chain: &[u8]) -> Result<BoxedSigner, Refusal> {
    let path = credentials.key_file.as_path();
    let text = read(path, About::Key, "the private key")?;
    let has = |label: &str| text.windows(label.len()).any(|window| window == label.as_bytes());
    if has("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        let what =
            format!("{}: the private key is encrypted, and nobody is there to type its password", path.display());
        return Err(wrong(About::Key, what, KEY_HINT));
    }
    if !has("-----BEGIN PRIVATE KEY-----") {
        return Err(wrong(About::Key, format!("{} holds no private key as PKCS#8", path.display()), KEY_HINT));
    }
    create_signer::from_keys(chain, &text, c2pas(credentials.algorithm), None).map_err(|error| {
        let what = format!("{}: no key for {:?}: {error}", path.display(), credentials.algorithm.as_str());
        wrong(About::Key, what, KEY_HINT)
    })
}

/// The key is the certificate's.
fn belongs(credentials: &Credentials, signer: &BoxedSigner, own: &X509Certificate) -> Result<(), Refusal> {
    const WORDS: &[u8] = b"is this key the certificate's?";
    let validator = validator_for_signing_alg(c2pas(credentials.algorithm));
    let signature = signer.sign(WORDS);
    if let (Some(validator), Ok(signature)) = (validator, signature)
        && validator.validate(&signature, WORDS, own.public_key().raw).is_ok()
    {
        return Ok(());
    }
    let (key, certificate) = (credentials.key_file.as_path(), credentials.certificate_file.as_path());
    let what = format!("{} is not the key of the first certificate in {}", key.display(), certificate.display());
    Err(wrong(About::Key, what, "the signer's own certificate must come first, and its key belong to it"))
}

/// What is wrong with the credentials where only a signature shows it.
pub(crate) fn unfit(error: &c2pa::Error) -> Refusal {
    wrong(About::Certificate, format!("no C2PA signature can be made with the certificate: {error}"), PROFILE_HINT)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
