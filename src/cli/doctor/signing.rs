//! Whether outputs can be signed, by whom and for how long.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use atelier_domain::{Timestamp, signing::Certificate};

use super::Check;
use crate::{
    config::{Config, Provenance},
    signing,
};

const NAME: &str = "signature";

/// A certificate that ends sooner deserves a word.
const SOON_DAYS: i64 = 30;

pub(super) async fn check(config: &Config) -> Check {
    let provenance = config.provenance.clone();
    let looked = tokio::task::spawn_blocking({
        let provenance = provenance.clone();
        move || signing::look(&provenance)
    });
    match looked.await {
        Ok(Ok(None)) => Check::ok(NAME, "outputs are not signed (provenance.certificate_file)"),
        Ok(Ok(Some(certificate))) => judge(&provenance, &certificate, Timestamp::now()),
        Ok(Err(refusal)) => Check::fail(NAME, refusal.message, refusal.hint),
        Err(error) => Check::fail(NAME, error.to_string(), "this is a mistake of Atelier's"),
    }
}

fn judge(provenance: &Provenance, certificate: &Certificate, now: Timestamp) -> Check {
    let ends = Timestamp(certificate.not_after.saturating_mul(1000));
    let message = format!(
        "{} as {}, by {}, until {ends}",
        provenance.algorithm.as_str(),
        certificate.subject,
        certificate.issuer
    );
    if let Some(key) = provenance.key_file.as_deref().filter(|key| others_may_read(key)) {
        let what = format!("{message}\nothers on this machine may read the private key {}", key.display());
        return Check::warn(NAME, what, format!("chmod go-r {}", key.display()));
    }
    let days = (ends.0 - now.0) / 86_400_000;
    if days < SOON_DAYS {
        let hint = "renew the certificate: once it has ended, nothing is published, and the daemon does not start";
        return Check::warn(NAME, format!("{message}: {days} more days"), hint);
    }
    Check::ok(NAME, message)
}

/// A group may be the daemon's own; the world is not.
fn others_may_read(key: &Path) -> bool {
    std::fs::metadata(key).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_certificate_that_ends_soon_and_a_key_that_others_read_are_told_of() {
        let dir = tempfile::tempdir().expect("temp dir");
        let key = dir.path().join("key.pem");
        std::fs::write(&key, "a key").expect("written");
        let mode = |mode| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).expect("a mode");
        mode(0o600);
        let provenance = Provenance { key_file: Some(key.clone()), ..Config::defaults().provenance };
        let certificate = Certificate {
            subject: "CN=A".into(),
            issuer: "CN=B".into(),
            not_after: 100 * 86_400,
            sha256: String::new(),
        };
        let after = |days: i64| judge(&provenance, &certificate, Timestamp(days * 86_400_000));
        let well = after(0);
        assert_eq!(well.verdict, Verdict::Ok);
        assert_eq!(well.message, "es256 as CN=A, by CN=B, until 1970-04-11T00:00:00.000Z");
        assert_eq!(after(71).verdict, Verdict::Warn);
        mode(0o604);
        assert!(after(0).message.contains("others on this machine"));
    }
}
