//! Whatever the worker does, the daemon goes on, the job is retried or failed with a clear code, and nothing is
//! published twice.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{path::Path, time::Duration};

use atelier::engine::EngineState;
use atelier_domain::{ErrorCode, JobStatus};
use serde_json::json;
use support::{PATIENCE, Parts, Scene};

fn files_below(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            names.extend(files_below(&entry.path()));
        } else {
            names.push(entry.file_name().into_string().unwrap());
        }
    }
    names
}

async fn still_works(parts: &Parts) {
    let id = parts.submit("and now a good one", json!({})).await;
    assert_eq!(parts.ended(id).await.status, JobStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_once_costs_nothing_but_time() {
    for how in ["segv", "abort", "kill", "oom", "garbage"] {
        let parts = Scene::new().start().await;
        let undisturbed = parts.submit("undisturbed", json!({})).await;
        let undisturbed = parts.ended(undisturbed).await;
        let id = parts.submit(&format!("fake:{how}@3*1"), json!({})).await;
        let job = parts.ended(id).await;
        assert_eq!((job.status, job.crashes, job.attempt), (JobStatus::Succeeded, 1, 1), "{how}: {job:?}");
        assert_eq!(job.outputs.len(), undisturbed.outputs.len());
        let published = files_below(&parts.config.outbox.dir);
        assert_eq!(published.len(), 2, "{how}: {published:?}");
        assert_eq!(parts.engine.status().lost, 1, "{how}");
        still_works(&parts).await;
        parts.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_exits_by_itself_is_named_with_its_code() {
    let parts = Scene::new().with(|config| config.queue.max_crashes = 1).start().await;
    let id = parts.submit("fake:exit@2=7", json!({})).await;
    let error = parts.ended(id).await.error.unwrap();
    assert_eq!(error.code, ErrorCode::CrashedRepeatedly);
    assert!(error.message.contains("exited with code 7"), "{}", error.message);
    still_works(&parts).await;
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_is_killed_after_the_stall_timeout() {
    let parts = Scene::new().with(|config| config.worker.stall_timeout = Duration::from_millis(500)).start().await;
    let id = parts.submit("fake:hang@3*1", json!({})).await;
    let job = parts.ended(id).await;
    assert_eq!((job.status, job.crashes), (JobStatus::Succeeded, 1), "{job:?}");
    let id = parts.submit("fake:hang@3", json!({})).await;
    let error = parts.ended(id).await.error.unwrap();
    assert!(error.message.contains("no sign of life for 0.5 s"), "{}", error.message);
    still_works(&parts).await;
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_on_the_workers_output_is_only_logged() {
    let parts = Scene::new().start().await;
    let id = parts.submit("fake:noise@3", json!({})).await;
    let job = parts.ended(id).await;
    assert_eq!((job.status, job.crashes), (JobStatus::Succeeded, 0));
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_idle_is_replaced_and_no_job_pays_for_it() {
    let parts = Scene::new().worker(&["--die-idle-after-ms", "50"]).start().await;
    for _ in 0..3 {
        let id = parts.submit("x", json!({})).await;
        let job = parts.ended(id).await;
        assert_eq!((job.status, job.crashes, job.attempt), (JobStatus::Succeeded, 0, 1), "{job:?}");
        let gone = async {
            while parts.engine.status().state != EngineState::Stopped {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("its death is noticed");
    }
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_start_fails_its_jobs_after_their_attempts_and_says_what_to_do() {
    for args in [["--fail-to-start"], ["--wrong-protocol"]] {
        let parts = Scene::new().worker(&args).start().await;
        let id = parts.submit("x", json!({})).await;
        let job = parts.ended(id).await;
        assert_eq!((job.status, job.attempt), (JobStatus::Failed, 3), "{args:?}");
        let error = job.error.unwrap();
        let expected =
            if args[0] == "--wrong-protocol" { ErrorCode::WorkerProtocol } else { ErrorCode::WorkerUnavailable };
        assert_eq!(error.code, expected, "{error:?}");
        assert!(!error.hint.is_empty());
        parts.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_cancelled_at_its_next_step_or_the_worker_is_killed() {
    let parts = Scene::new().with(|config| config.worker.cancel_grace = Duration::from_millis(500)).start().await;
    for prompt in ["fake:slow=20", "fake:slow=20;ignore-cancel", "fake:hang@5"] {
        let id = parts.submit(prompt, json!({"params": {"steps": 1000}})).await;
        parts.until_step(id, 4).await;
        parts.queue.cancel(id).await.unwrap();
        let job = parts.ended(id).await;
        assert_eq!((job.status, job.crashes), (JobStatus::Cancelled, 0), "{prompt}: {job:?}");
        assert!(files_below(&parts.config.outbox.dir).is_empty(), "{prompt}");
        let checkpoint = parts.config.paths.data.join("checkpoints").join(id.to_string());
        let removed = async {
            while checkpoint.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, removed).await.expect("its folder is removed");
    }
    still_works(&parts).await;
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_ends_after_its_keep_alive_and_comes_back_for_the_next_job() {
    let parts = Scene::new().with(|config| config.worker.keep_alive = Duration::from_millis(100)).start().await;
    let mut pids = Vec::new();
    for _ in 0..2 {
        let id = parts.submit("x", json!({})).await;
        parts.until(id, JobStatus::Running).await;
        let ended = async {
            loop {
                let status = parts.engine.status();
                pids.extend(status.pid);
                if status.state == EngineState::Stopped && !pids.is_empty() && parts.queue.running().is_none() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("the worker ends");
        assert_eq!(parts.ended(id).await.status, JobStatus::Succeeded);
    }
    pids.dedup();
    assert_eq!(pids.len(), 2, "{pids:?}");
    assert_eq!(parts.engine.status().lost, 0);
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_stop_spends_no_attempt_and_the_job_goes_on_from_its_checkpoint_to_the_same_bytes() {
    let scene = Scene::new();
    let config = scene.config.clone();
    let parts = scene.start().await;
    let spec = json!({"params": {"steps": 60, "seed": 11}});
    let undisturbed = parts.submit("fake:slow=5", spec.clone()).await;
    let undisturbed = parts.ended(undisturbed).await;
    let expected = parts.output(&undisturbed);
    let id = parts.submit("fake:slow=5", spec).await;
    parts.until_step(id, 10).await;
    let dir = parts.dir.path().to_owned();
    parts.stop().await;

    let mut scene = Scene::new();
    scene.config = config;
    assert!(dir.exists());
    let again = scene.start().await;
    let job = again.ended(id).await;
    assert_eq!((job.status, job.attempt, job.crashes), (JobStatus::Succeeded, 1, 0), "{job:?}");
    assert!(job.resumed_from_step.is_some_and(|step| step >= 10), "{job:?}");
    assert_eq!(again.output(&job), expected);
    again.stop().await;
    drop(parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_written_at_most_once_an_interval_and_every_step_is_told() {
    let parts = Scene::new().with(|config| config.progress.write_interval = Duration::from_millis(300)).start().await;
    let mut messages = parts.queue.subscribe();
    let id = parts.submit("fake:slow=10", json!({"params": {"steps": 100}})).await;
    // Every write of progress changes `progress_at` in the row; look far more often than they may come.
    let mut foreign = parts.foreign().await;
    let mut written: Vec<i64> = Vec::new();
    parts.until(id, JobStatus::Running).await;
    let begun = std::time::Instant::now();
    loop {
        let (status, at): (String, i64) = sqlx::query_as("SELECT status, progress_at FROM image_jobs WHERE id = ?1")
            .bind(id.to_string())
            .fetch_one(&mut foreign)
            .await
            .unwrap();
        if status == "running" && written.last() != Some(&at) {
            written.push(at);
        }
        if status == "succeeded" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    // The start is the first of them.
    let most = 1 + begun.elapsed().as_millis() / 300;
    assert!((2..=most).contains(&(written.len() as u128)), "{} writes, at most {most}: {written:?}", written.len());
    let mut steps = 0;
    while let Ok(message) = messages.try_recv() {
        steps += usize::from(message.event.name() == "job.progress");
    }
    assert!(steps >= 100, "{steps} steps were told");
    let job = parts.ended(id).await;
    assert!((job.progress.fraction - 1.0).abs() < f64::EPSILON && job.progress.phase == "done");
    parts.stop().await;
}
