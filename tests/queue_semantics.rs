//! What the queue promises beyond running jobs: order, pauses, keys, limits, and repairs at start-up.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{sync::Arc, time::Duration};

use atelier::{
    maintenance::reconcile,
    queue::{EndedHook, EnqueueError, Enqueued, Idempotency, QueueError},
    store::JobRecord,
};
use atelier_domain::{ErrorCode, JobStatus, SourceType};
use futures::future::BoxFuture;
use serde_json::json;
use support::{PATIENCE, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_starts_nothing_also_after_a_restart_and_goes_on_when_told() {
    let scene = Scene::new();
    let config = scene.config.clone();
    let parts = scene.start().await;
    parts.queue.pause().await.unwrap();
    let id = parts.submit("x", json!({})).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(parts.store.job(id).await.unwrap().unwrap().status, JobStatus::Queued);
    parts.stop().await;
    let mut scene = Scene::new();
    scene.config = config;
    let again = scene.start().await;
    assert!(again.queue.gate().paused);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(again.store.job(id).await.unwrap().unwrap().status, JobStatus::Queued);
    again.queue.resume().await.unwrap();
    assert_eq!(again.ended(id).await.status, JobStatus::Succeeded);
    again.stop().await;
    drop(parts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_lets_the_running_job_end() {
    let parts = Scene::new().start().await;
    let id = parts.submit("fake:slow=10", json!({"params": {"steps": 40}})).await;
    let next = parts.submit("x", json!({})).await;
    parts.until_step(id, 3).await;
    parts.queue.pause().await.unwrap();
    assert_eq!(parts.ended(id).await.status, JobStatus::Succeeded);
    assert_eq!(parts.store.job(next).await.unwrap().unwrap().status, JobStatus::Queued);
    parts.queue.resume().await.unwrap();
    assert_eq!(parts.ended(next).await.status, JobStatus::Succeeded);
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_for_ever_behind_a_stream_of_urgent_jobs() {
    let parts = Scene::new().with(|config| config.queue.aging = Duration::from_millis(100)).start().await;
    let busy = parts.submit("fake:slow=10", json!({"params": {"steps": 20}})).await;
    parts.until(busy, JobStatus::Running).await;
    let humble = parts.submit("x", json!({"priority": -5})).await;
    // More urgent work than there is time for, until the humble job has run.
    let feed = async {
        loop {
            if parts.store.counts().await.unwrap()[&JobStatus::Queued] < 4 {
                parts.submit("fake:slow=5", json!({"priority": 5, "params": {"steps": 10}})).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        job = parts.ended(humble) => assert_eq!(job.status, JobStatus::Succeeded),
        () = feed => unreachable!("feeds for ever"),
    }
    assert!(parts.store.counts().await.unwrap()[&JobStatus::Queued] > 0, "urgent work was waiting all the time");
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_and_request_give_the_same_job_and_another_request_is_refused() {
    let parts = Scene::new().start().await;
    let keyed = |key: &str, fingerprint: &str| {
        let mut new = parts.new_job("x", json!({}));
        new.idempotency = Some(Idempotency { key: key.into(), fingerprint: fingerprint.into() });
        new
    };
    let Enqueued::New(first) = parts.queue.enqueue(keyed("k", "a")).await.unwrap() else { panic!("new") };
    let Enqueued::Replayed(again) = parts.queue.enqueue(keyed("k", "a")).await.unwrap() else { panic!("replayed") };
    assert_eq!(again.id, first.id);
    let refused = parts.queue.enqueue(keyed("k", "b")).await.expect_err("another request");
    assert!(matches!(refused, EnqueueError::IdempotencyMismatch));
    // Twenty at once: one job.
    let at_once = (0..20).map(|_| {
        let (queue, new) = (parts.queue.clone(), keyed("at once", "c"));
        tokio::spawn(async move { queue.enqueue(new).await.unwrap().into_job().id })
    });
    let mut ids = std::collections::BTreeSet::new();
    for id in at_once.collect::<Vec<_>>() {
        ids.insert(id.await.unwrap());
    }
    assert_eq!(ids.len(), 1);
    // The key is remembered with the job, and forgotten with it.
    parts.ended(first.id).await;
    let Enqueued::Replayed(_) = parts.queue.enqueue(keyed("k", "a")).await.unwrap() else { panic!("replayed") };
    parts.queue.delete(first.id).await.unwrap();
    let Enqueued::New(_) = parts.queue.enqueue(keyed("k", "b")).await.unwrap() else { panic!("forgotten") };
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
    let parts = Scene::new().with(|config| config.queue.max_queued = 3).start().await;
    parts.queue.pause().await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(parts.submit("x", json!({})).await);
    }
    let refused = parts.queue.enqueue(parts.new_job("x", json!({}))).await.expect_err("full");
    assert_eq!(refused.info().code, ErrorCode::QueueFull);
    assert_eq!(parts.queue.free_places(), 0);
    parts.queue.cancel(ids[0]).await.unwrap();
    parts.submit("x", json!({})).await;
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_is_one_job_while_that_is_live_or_done_and_another_once_it_has_failed() {
    let parts = Scene::new().start().await;
    let same = |prompt: &str| {
        let mut new = parts.new_job(prompt, json!({}));
        new.dedupe_key = Some("content".into());
        new
    };
    let Enqueued::New(failing) = parts.queue.enqueue(same("fake:fail@1=image_corrupt")).await.unwrap() else {
        panic!()
    };
    assert_eq!(parts.ended(failing.id).await.status, JobStatus::Failed);
    let Enqueued::New(good) = parts.queue.enqueue(same("x")).await.unwrap() else {
        panic!("a failed job is no obstacle")
    };
    let Enqueued::Duplicate(other) = parts.queue.enqueue(same("x")).await.unwrap() else { panic!("live") };
    assert_eq!(other.id, good.id);
    assert_eq!(parts.ended(good.id).await.status, JobStatus::Succeeded);
    let Enqueued::Duplicate(_) = parts.queue.enqueue(same("x")).await.unwrap() else { panic!("done") };
    let refused = parts.queue.retry(failing.id).await.expect_err("another does the same");
    assert!(matches!(refused, QueueError::Duplicate(id) if id == good.id), "{refused}");
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_job_can_be_tried_again_and_a_live_one_cannot() {
    let parts = Scene::new().start().await;
    let id = parts.submit("fake:fail@1=image_corrupt*1", json!({})).await;
    assert_eq!(parts.ended(id).await.status, JobStatus::Failed);
    parts.queue.retry(id).await.unwrap();
    let job = parts.ended(id).await;
    // The clause counts attempts, and those begin anew: it fails again, at attempt 1.
    assert_eq!((job.status, job.attempt), (JobStatus::Failed, 1));
    let done = parts.submit("x", json!({})).await;
    parts.ended(done).await;
    let refused = parts.queue.retry(done).await.expect_err("succeeded");
    assert!(matches!(refused, QueueError::Conflict { status: JobStatus::Succeeded, .. }));
    let refused = parts.queue.cancel(done).await.expect_err("ended");
    assert!(matches!(refused, QueueError::Conflict { .. }));
    let refused = parts.queue.cancel(parts.queue.new_id()).await.expect_err("unknown");
    assert!(matches!(refused, QueueError::NotFound));
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_job_removes_its_row_its_files_and_nothing_else() {
    let parts = Scene::new().start().await;
    let keep = parts.submit("x", json!({})).await;
    let keep = parts.ended(keep).await;
    let id = parts.submit("x", json!({})).await;
    let job = parts.ended(id).await;
    let output = parts.config.outbox.dir.join(&job.outputs[0].name);
    assert!(output.exists());
    parts.queue.delete(id).await.unwrap();
    assert!(!output.exists());
    assert!(parts.store.job(id).await.unwrap().is_none());
    parts.output(&keep);
    // A running job is called off first.
    let running = parts.submit("fake:slow=20", json!({"params": {"steps": 500}})).await;
    parts.until_step(running, 2).await;
    parts.queue.delete(running).await.unwrap();
    assert!(parts.store.job(running).await.unwrap().is_none());
    assert!(matches!(parts.queue.delete(running).await, Err(QueueError::NotFound)));
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_in_order_and_a_watcher_goes_on_where_it_left() {
    let parts = Scene::new().start().await;
    let mut live = parts.queue.subscribe();
    let id = parts.submit("x", json!({})).await;
    parts.ended(id).await;
    let mut seqs = Vec::new();
    while let Ok(message) = live.try_recv() {
        seqs.extend(message.seq);
    }
    assert!(seqs.len() >= 3, "queued, running, succeeded: {seqs:?}");
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
    let stored = parts.store.events_after(0, None, 100).await.unwrap();
    assert_eq!(stored.iter().map(|event| event.seq).collect::<Vec<_>>(), seqs);
    let rest = parts.store.events_after(seqs[0], Some(id), 100).await.unwrap();
    assert_eq!(rest.len(), seqs.len() - 1);
    assert_eq!(parts.store.last_seq().await.unwrap(), *seqs.last().unwrap());
    parts.stop().await;
}

/// Each state in which a SIGKILL may leave a job's folder and row.
#[tokio::test(flavor = "multi_thread")]
async fn start_up_finishes_a_publication_that_was_cut_short() {
    for cut in ["before the move", "after the move"] {
        let scene = Scene::new();
        let config = scene.config.clone();
        let parts = scene.start().await;
        let id = parts.submit("x", json!({})).await;
        let expected = parts.ended(id).await;
        let bytes = parts.output(&expected);
        // Back to the moment before the job's end was written.
        let published = json!({
            "model": expected.model, "outputs": expected.outputs, "result": null, "manifest": {},
            "output_paths": [config.outbox.dir.join(&expected.outputs[0].name)], "resumed_from_step": null,
        });
        parts.stop().await;
        let work = config.paths.data.join("checkpoints").join(id.to_string());
        std::fs::create_dir_all(&work).unwrap();
        std::fs::write(work.join("publishing.json"), json!([["output-0.png"], published]).to_string()).unwrap();
        let target = config.outbox.dir.join(&expected.outputs[0].name);
        if cut == "before the move" {
            std::fs::rename(&target, work.join("output-0.png")).unwrap();
        }
        let mut foreign = parts.foreign().await;
        sqlx::query(
            "UPDATE image_jobs SET status = 'running', finished_at = NULL, outputs = '[]', output_paths = '[]' WHERE id = ?1",
        )
        .bind(id.to_string())
        .execute(&mut foreign)
        .await
        .unwrap();

        let mut scene = Scene::new();
        scene.config = config.clone();
        let again = scene.open().await;
        let done = reconcile::run(&again.store, &config.paths.data).await.unwrap();
        assert_eq!(done.published, [id], "{cut}");
        let job = again.store.job(id).await.unwrap().unwrap();
        assert_eq!((job.status, &job.outputs), (JobStatus::Succeeded, &expected.outputs), "{cut}");
        assert_eq!(std::fs::read(&target).unwrap(), bytes, "{cut}");
        assert!(!work.exists(), "{cut}: its folder is of no use any more");
        assert_eq!(reconcile::run(&again.store, &config.paths.data).await.unwrap().published, [], "once is enough");
        again.stop().await;
        drop(parts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn start_up_removes_folders_of_no_job_and_leaves_what_is_not_ours() {
    let parts = Scene::new().open().await;
    let data = &parts.config.paths.data;
    let stray = parts.queue.new_id().to_string();
    for dir in ["spool", "checkpoints"] {
        std::fs::create_dir_all(data.join(dir).join(&stray)).unwrap();
        std::fs::create_dir_all(data.join(dir).join("somebody's")).unwrap();
    }
    std::fs::create_dir_all(data.join("spool/.uploads")).unwrap();
    std::fs::write(data.join("spool/.uploads/half"), "x").unwrap();
    let waiting = parts.submit("x", json!({})).await;
    std::fs::create_dir_all(data.join("spool").join(waiting.to_string())).unwrap();
    let done = reconcile::run(&parts.store, data).await.unwrap();
    assert_eq!(done.removed, 2);
    for dir in ["spool", "checkpoints"] {
        assert!(!data.join(dir).join(&stray).exists());
        assert!(data.join(dir).join("somebody's").exists());
    }
    assert!(!data.join("spool/.uploads/half").exists());
    assert!(data.join("spool").join(waiting.to_string()).exists());
    parts.stop().await;
}

struct Recorder(std::sync::Mutex<Vec<(JobStatus, u32)>>, std::sync::atomic::AtomicBool);

impl EndedHook for Recorder {
    fn job_ended<'a>(&'a self, record: &'a JobRecord) -> BoxFuture<'a, Result<Option<std::path::PathBuf>, String>> {
        Box::pin(async move {
            self.0.lock().unwrap().push((record.job.status, record.job.attempt));
            if self.1.swap(false, std::sync::atomic::Ordering::SeqCst) {
                return Err("not now".into());
            }
            Ok(None)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_dropped_file_is_told_until_it_has_been_dealt_with() {
    let parts = Scene::new().start().await;
    let hook = Arc::new(Recorder(std::sync::Mutex::default(), true.into()));
    parts.queue.on_ended(hook.clone());
    let mut new = parts.new_job("x", json!({}));
    new.source.r#type = SourceType::Inbox;
    let id = parts.queue.enqueue(new).await.unwrap().into_job().id;
    parts.ended(id).await;
    let told = async {
        while hook.0.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(parts.store.hooks_due().await.unwrap().len(), 1, "it failed, so it is still due");
    parts.queue.run_due_hooks().await.unwrap();
    assert_eq!(parts.store.hooks_due().await.unwrap().len(), 0);
    parts.queue.run_due_hooks().await.unwrap();
    assert_eq!(*hook.0.lock().unwrap(), [(JobStatus::Succeeded, 1); 2]);
    parts.stop().await;
}

/// Takes its time to put a source away.
#[derive(Default)]
struct Slow {
    calls: std::sync::atomic::AtomicU32,
    begun: tokio::sync::Notify,
    go_on: tokio::sync::Notify,
}

impl EndedHook for Slow {
    fn job_ended<'a>(&'a self, _: &'a JobRecord) -> BoxFuture<'a, Result<Option<std::path::PathBuf>, String>> {
        Box::pin(async {
            self.calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            self.begun.notify_one();
            self.go_on.notified().await;
            Ok(None)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_put_away_once_though_a_second_look_comes_while_it_is_under_way() {
    let parts = Scene::new().start().await;
    let hook = Arc::new(Slow::default());
    parts.queue.on_ended(hook.clone());
    let mut new = parts.new_job("x", json!({}));
    new.source.r#type = SourceType::Inbox;
    parts.queue.enqueue(new).await.unwrap();
    tokio::time::timeout(PATIENCE, hook.begun.notified()).await.expect("the job has ended");
    let queue = parts.queue.clone();
    let mut second = tokio::spawn(async move { queue.run_due_hooks().await });
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut second).await.is_err(), "it has to wait");
    hook.go_on.notify_one();
    tokio::time::timeout(PATIENCE, second).await.expect("it need not wait longer").unwrap().unwrap();
    assert_eq!(hook.calls.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(parts.store.hooks_due().await.unwrap().len(), 0);
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_removes_by_age_and_size_keeps_the_newest_and_lists_without_touching() {
    let parts = Scene::new().start().await;
    let mut jobs = Vec::new();
    for n in 0..5 {
        let id = parts.submit(&format!("picture {n}"), json!({})).await;
        jobs.push(parts.ended(id).await);
    }
    let failed = parts.submit("fake:fail@1=image_corrupt", json!({})).await;
    parts.ended(failed).await;
    let run = async |change: &dyn Fn(&mut atelier::config::Config), dry: bool| {
        let mut config = (*parts.config).clone();
        change(&mut config);
        atelier::maintenance::cleanup::run(&parts.store, &config, dry).await.unwrap()
    };
    let size = jobs[0].outputs[0].bytes;
    let by_size = |config: &mut atelier::config::Config| config.cleanup.max_bytes = Some(size * 7 / 2);
    let listed = run(&by_size, true).await;
    assert_eq!((listed.jobs, listed.files, listed.dry_run), (2, 2, true), "{listed:?}");
    assert_eq!(listed.items.iter().map(|item| item.job).collect::<Vec<_>>(), [jobs[0].id, jobs[1].id]);
    for job in &jobs {
        parts.output(job);
    }
    let removed = run(&by_size, false).await;
    assert_eq!((removed.jobs, removed.bytes), (2, listed.bytes));
    assert!(parts.store.job(jobs[1].id).await.unwrap().is_none());
    parts.output(&jobs[2]);
    let by_age = |config: &mut atelier::config::Config| {
        config.cleanup.keep_succeeded = Duration::ZERO;
        config.cleanup.keep_failed = Duration::from_secs(3600);
        config.cleanup.keep_last = 1;
    };
    // The clock counts milliseconds: let one pass.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let removed = run(&by_age, false).await;
    assert_eq!(removed.jobs, 2, "{removed:?}");
    parts.output(&jobs[4]);
    assert!(parts.store.job(failed).await.unwrap().is_some(), "failed jobs have their own time");
    let left = std::fs::read_dir(&parts.config.outbox.dir).unwrap().count();
    assert_eq!(left, 1);
    parts.stop().await;
}

/// Models `a` and `b`.
fn two_models(affinity: u32) -> Scene {
    let scene = Scene::new().with(|config| config.queue.affinity = affinity);
    for name in ["a", "b"] {
        let model = scene.dir.path().join("models").join(name);
        std::fs::create_dir_all(&model).unwrap();
        std::fs::write(model.join("config.json"), r#"{"_class_name":"AtelierFake"}"#).unwrap();
    }
    scene
}

/// Two models, jobs for them in turns, while one for the first runs. In which order they ran.
async fn order_of_two_models(affinity: u32) -> Vec<String> {
    let parts = two_models(affinity).start().await;
    let first = parts.submit("fake:slow=20", json!({"model": "a", "params": {"steps": 20}})).await;
    parts.until(first, JobStatus::Running).await;
    let mut names = std::collections::HashMap::new();
    for (n, model) in ["b", "a", "a", "a", "b"].into_iter().enumerate() {
        let id = parts.submit("x", json!({"model": model})).await;
        names.insert(id, format!("{model}{n}"));
    }
    for id in names.keys() {
        parts.ended(*id).await;
    }
    let mut jobs = parts.store.list(&atelier::store::JobFilter { limit: 50, ..Default::default() }).await.unwrap().jobs;
    jobs.sort_by_key(|job| job.started_at);
    parts.stop().await;
    jobs.iter().filter_map(|job| names.get(&job.id).cloned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_for_the_loaded_model_go_first_and_overtake_nobody_too_often() {
    assert_eq!(order_of_two_models(0).await, ["b0", "a1", "a2", "a3", "b4"]);
    // b0 is overtaken twice and then runs; then both are loaded.
    assert_eq!(order_of_two_models(2).await, ["a1", "a2", "b0", "a3", "b4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_overtaken_is_forgotten_when_it_is_called_off_or_deleted() {
    let parts = two_models(5).start().await;
    let first = parts.submit("fake:slow=20", json!({"model": "a", "params": {"steps": 10}})).await;
    parts.until(first, JobStatus::Running).await;
    let overtaken = [parts.submit("x", json!({"model": "b"})).await, parts.submit("x", json!({"model": "b"})).await];
    let second = parts.submit("fake:slow=20", json!({"model": "a", "params": {"steps": 50}})).await;
    parts.until(second, JobStatus::Running).await;
    assert_eq!(parts.queue.overtaken_jobs(), 2);
    parts.queue.cancel(overtaken[0]).await.unwrap();
    assert_eq!(parts.queue.overtaken_jobs(), 1);
    parts.queue.delete(overtaken[1]).await.unwrap();
    assert_eq!(parts.queue.overtaken_jobs(), 0);
    parts.stop().await;
}

/// They share a call to the database; what is wrong with one is its own affair.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_come_together_are_each_answered_for_themselves() {
    let parts = Scene::new().with(|config| config.queue.max_queued = 20).open().await;
    let mut news: Vec<_> = (0..30).map(|n| parts.new_job(&format!("job {n}"), json!({}))).collect();
    // No row can have this priority.
    news[3].resolved.priority = 1000;
    for n in [5, 6, 17] {
        news[n].dedupe_key = Some("the same".into());
    }
    let ids: Vec<_> = news.iter().map(|new| new.id).collect();
    let mut messages = parts.queue.subscribe();
    let answers = futures::future::join_all(news.into_iter().map(|new| parts.queue.enqueue(new))).await;
    let mut made = Vec::new();
    for (n, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(Enqueued::New(job)) => {
                assert_eq!(job.id, ids[n]);
                made.push(job.id);
            }
            Ok(Enqueued::Duplicate(job)) => assert_eq!((job.id, [6, 17].contains(&n)), (ids[5], true), "{n}"),
            Err(EnqueueError::Store(error)) => assert!(n == 3 && error.to_string().contains("CHECK"), "{n}: {error}"),
            Err(EnqueueError::QueueFull { max, .. }) => assert!(max == 20 && made.len() == 20, "{n}"),
            other => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(
        made,
        ids.iter().copied().filter(|id| ![ids[3], ids[6], ids[17]].contains(id)).take(20).collect::<Vec<_>>()
    );
    let mut last = 0;
    for id in &made {
        let message = messages.recv().await.unwrap();
        assert_eq!(message.event.job_id(), *id);
        assert!(message.seq > Some(last), "{message:?}");
        last = message.seq.unwrap();
    }
    let deliveries = parts.store.next_deliveries(100).await.unwrap();
    assert_eq!(deliveries.into_iter().map(|delivery| delivery.id).collect::<Vec<_>>(), made);
    parts.stop().await;
}
