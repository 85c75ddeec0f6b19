//! A client that waits for its answer and repeats its request, without saying that it does: one job, not three.
//!
//! Programs made for other servers send no key. The key of such a request is what it asks for; it leads to the job
//! until the answer was delivered. So whoever comes back after a time-out, a broken connection or a restart of the
//! daemon finds the job that runs, or the answer that waits; and whoever has the answer and asks again gets a new one.

use std::{sync::Arc, time::Duration};

use atelier_domain::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{Http, problem::Problem};
use crate::admission;

/// An answer that nobody has fetched for so long is not what a new request means.
const STALE: Duration = Duration::from_hours(1);

/// The key of a request. Holds a space, which a client's own key cannot.
pub(crate) fn key(scope: &str, fingerprint: &str) -> String {
    let digest = Sha256::new_with_prefix(scope).chain_update([0]).chain_update(fingerprint).finalize();
    format!("content {}", admission::hex(&digest))
}

/// Lets go of a job that ended long ago.
pub(crate) async fn let_go_if_stale(http: &Http, key: &str) -> Result<(), Problem> {
    let stale = Timestamp::now().plus_millis(-i64::try_from(STALE.as_millis()).unwrap_or(i64::MAX));
    let job = http.app.store.job_of_key(key).await?;
    if job.and_then(|job| job.finished_at).is_some_and(|finished| finished < stale) {
        http.app.store.forget_key(key.to_owned()).await?;
    }
    Ok(())
}

/// The answer has been delivered.
pub(crate) async fn delivered(http: &Arc<Http>, key: String) {
    if let Err(error) = http.app.store.forget_key(key).await {
        tracing::warn!(%error, "a delivered answer may be given once more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_scopes_and_wishes_apart_and_is_no_clients_own() {
        let keys = [key("a", "b"), key("ab", ""), key("a", "c"), key("c", "b")];
        for (index, key) in keys.iter().enumerate() {
            assert!(key.contains(' ') && key.len() < 255);
            assert!(!keys[..index].contains(key));
        }
    }
}
