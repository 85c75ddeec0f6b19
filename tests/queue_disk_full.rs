//! A disk that is full for a moment. Alone in its file: failpoints are armed for a whole process.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use atelier_domain::JobStatus;
use serde_json::json;
use support::{PATIENCE, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_the_queue_up_costs_no_attempt_and_goes_on_by_itself() {
    let parts = Scene::new().start().await;
    atelier::failpoint::arm("publish.rename=enospc@1");
    let id = parts.submit("x", json!({})).await;
    let blocked = async {
        while parts.queue.gate().blocked.is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, blocked).await.expect("the queue waits");
    let job = parts.ended(id).await;
    assert_eq!((job.status, job.attempt), (JobStatus::Succeeded, 1), "{job:?}");
    atelier::failpoint::arm("");
    parts.stop().await;
}
