//! The traps of apalis 1.0, each shown to be closed. The numbers are those of docs/adr/0002-apalis.md.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use atelier::store::Store;
use atelier_domain::{ErrorCode, JobStatus};
use serde_json::json;
use sqlx::{Connection as _, Row as _};
use support::{PATIENCE, Scene};

/// Trap 1: ten tasks are claimed ahead by default, and an urgent job waits for all of them.
#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_job_overtakes_everything_that_has_not_started() {
    let parts = Scene::new().start().await;
    let first = parts.submit("fake:slow=30", json!({"params": {"steps": 20}})).await;
    parts.until(first, JobStatus::Running).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(parts.submit("x", json!({})).await);
    }
    let urgent = parts.submit("x", json!({"priority": 10})).await;
    for id in ids.iter().chain([&urgent]) {
        parts.ended(*id).await;
    }
    let mut jobs = parts.store.list(&atelier::store::JobFilter { limit: 50, ..Default::default() }).await.unwrap().jobs;
    jobs.sort_by_key(|job| job.started_at);
    let order: Vec<_> = jobs.iter().map(|job| job.id).collect();
    assert_eq!(order[..2], [first, urgent]);
    assert_eq!(order[2..], ids[..], "equal priorities run in the order of their arrival");
    parts.stop().await;
}

/// Traps 2 and 3: a handler that panics or times out inside apalis leaves its row `Running` for ever. Ours never ends
/// inside apalis, and no delivery outlives its job.
#[tokio::test(flavor = "multi_thread")]
async fn no_delivery_outlives_its_job_however_that_ends() {
    let parts = Scene::new().with(|config| config.worker.stall_timeout = Duration::from_millis(400)).start().await;
    for (prompt, status) in [
        ("fine", JobStatus::Succeeded),
        ("fake:fail@2=invalid_params", JobStatus::Failed),
        ("fake:segv@2", JobStatus::Failed),
        ("fake:hang@2", JobStatus::Failed),
        ("fake:garbage@2", JobStatus::Failed),
    ] {
        let id = parts.submit(prompt, json!({})).await;
        assert_eq!(parts.ended(id).await.status, status, "{prompt}");
    }
    let mut foreign = parts.foreign().await;
    let rows = sqlx::query("SELECT * FROM Jobs").fetch_all(&mut foreign).await.unwrap();
    assert!(rows.is_empty(), "{} deliveries are left", rows.len());
    parts.stop().await;
}

/// Traps 4 and 5: a failed task is run again at once, or never. Ours waits for a time that is in the database.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_waits_for_its_back_off_and_the_database_knows_until_when() {
    let scene = Scene::new().with(|config| {
        config.queue.backoff = Duration::from_secs(3600);
        config.queue.backoff_max = Duration::from_secs(3600);
    });
    let parts = scene.start().await;
    let id = parts.submit("fake:fail@2=device_error*1", json!({})).await;
    let job = parts.until(id, JobStatus::Retrying).await;
    assert_eq!(job.error.unwrap().code, ErrorCode::DeviceError);
    let run_at = parts.store.record(id).await.unwrap().unwrap().run_at.unwrap();
    let mut foreign = parts.foreign().await;
    let delivery = sqlx::query("SELECT status, run_at, lock_by FROM Jobs WHERE id = ?1")
        .bind(id.to_string())
        .fetch_one(&mut foreign)
        .await
        .unwrap();
    assert_eq!(delivery.get::<String, _>("status"), "Pending");
    assert_eq!(delivery.get::<Option<String>, _>("lock_by"), None);
    assert!(delivery.get::<i64, _>("run_at") * 1000 >= run_at.0, "not before the back-off ends");
    // Others run meanwhile.
    let other = parts.submit("x", json!({})).await;
    assert_eq!(parts.ended(other).await.status, JobStatus::Succeeded);
    assert_eq!(parts.store.job(id).await.unwrap().unwrap().status, JobStatus::Retrying);
    parts.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_once_succeeds_at_its_second_attempt() {
    let parts = Scene::new().start().await;
    let id = parts.submit("fake:fail@2=device_error*1", json!({})).await;
    let job = parts.ended(id).await;
    assert_eq!((job.status, job.attempt, job.crashes), (JobStatus::Succeeded, 2, 0), "{job:?}");
    let id = parts.submit("fake:fail@2=device_error", json!({})).await;
    let job = parts.ended(id).await;
    assert_eq!((job.status, job.attempt), (JobStatus::Failed, job.max_attempts), "{job:?}");
    parts.stop().await;
}

/// Trap 6: a worker of the same name may not register again for 30 s after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_the_queue_runs_again_at_once() {
    let scene = Scene::new();
    let (config, dir) = (scene.config.clone(), scene.dir.path().to_owned());
    let parts = scene.start().await;
    let id = parts.submit("fake:slow=50", json!({"params": {"steps": 40}})).await;
    parts.until(id, JobStatus::Running).await;
    // As a SIGKILL leaves it: the row of apalis's worker is fresh, the task is claimed, the job runs.
    let copy = tempfile::tempdir().unwrap();
    let mut foreign = parts.foreign().await;
    std::fs::create_dir_all(copy.path().join("data")).unwrap();
    sqlx::query("VACUUM INTO ?1")
        .bind(copy.path().join("data/atelier.db").display().to_string())
        .execute(&mut foreign)
        .await
        .unwrap();
    let mut next = Scene::new();
    next.config = config;
    next.config.paths.data = copy.path().join("data");
    next.config.paths.models = vec![dir.join("models")];
    next.config.outbox.dir = copy.path().join("outbox");
    let after = next.start().await;
    let job = after.ended(id).await;
    assert_eq!((job.status, job.attempt), (JobStatus::Succeeded, 1), "an interruption spends no attempt");
    let age = sqlx::query_scalar::<_, i64>("SELECT strftime('%s','now') - last_seen FROM Workers")
        .fetch_one(&mut after.foreign().await)
        .await
        .unwrap();
    assert!(age < 28, "the worker registered again, {age} s ago");
    after.stop().await;
    let _ = parts.queue.cancel(id).await;
    parts.stop().await;
}

/// Trap 7: apalis re-enqueues without looking at attempts, so that a job that kills its process does so for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_takes_the_worker_down_fails_after_three_crashes_and_the_next_runs() {
    let parts = Scene::new().start().await;
    let poison = parts.submit("fake:segv@3", json!({})).await;
    let next = parts.submit("x", json!({})).await;
    let job = parts.ended(poison).await;
    assert_eq!((job.status, job.crashes), (JobStatus::Failed, 3));
    let error = job.error.unwrap();
    assert_eq!(error.code, ErrorCode::CrashedRepeatedly);
    assert!(error.message.contains("segmentation fault"), "{}", error.message);
    assert_eq!(parts.ended(next).await.status, JobStatus::Succeeded);
    parts.stop().await;
}

/// Trap 8: any SQLITE_BUSY or other error of the database ends apalis's worker for good.
#[tokio::test(flavor = "multi_thread")]
async fn the_queue_lives_through_a_database_that_is_locked_or_broken_for_a_while() {
    let parts = Scene::new().start().await;
    let mut foreign = parts.foreign().await;
    // Held while a job is claimed and runs.
    sqlx::query("BEGIN IMMEDIATE").execute(&mut foreign).await.unwrap();
    let queue = parts.queue.clone();
    let new = parts.new_job("x", json!({}));
    let id = new.id;
    let enqueued = tokio::spawn(async move { queue.enqueue(new).await });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    sqlx::query("ROLLBACK").execute(&mut foreign).await.unwrap();
    enqueued.await.unwrap().unwrap();
    assert_eq!(parts.ended(id).await.status, JobStatus::Succeeded);
    // Broken: every fetch fails until the table is back, and each failure ends apalis's worker.
    sqlx::query("ALTER TABLE Jobs RENAME TO Elsewhere").execute(&mut foreign).await.unwrap();
    tokio::time::sleep(Duration::from_millis(6500)).await;
    sqlx::query("ALTER TABLE Elsewhere RENAME TO Jobs").execute(&mut foreign).await.unwrap();
    let id = parts.submit("x", json!({})).await;
    assert_eq!(parts.ended(id).await.status, JobStatus::Succeeded);
    parts.stop().await;
}

/// Trap 9: with `run_with_signal` a stop hangs when apalis's worker is dead, and an error is taken for success.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_whatever_state_the_queue_is_in() {
    let parts = Scene::new().start().await;
    let mut foreign = parts.foreign().await;
    sqlx::query("ALTER TABLE Jobs RENAME TO Elsewhere").execute(&mut foreign).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5500)).await;
    tokio::time::timeout(PATIENCE, parts.stop()).await.expect("stops while the worker is down");
}

/// Trap 10: `SqliteStorage::setup()` leaves connections with `synchronous = OFF` and a cache of 250 MB.
#[tokio::test(flavor = "multi_thread")]
async fn no_connection_of_the_daemon_is_careless() {
    let parts = Scene::new().start().await;
    let id = parts.submit("x", json!({})).await;
    parts.ended(id).await;
    let pool = parts.store.delivery_pool();
    let mut held = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        let mut conn = pool.acquire().await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *conn).await.unwrap();
        let cache: i64 = sqlx::query_scalar("PRAGMA cache_size").fetch_one(&mut *conn).await.unwrap();
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *conn).await.unwrap();
        let timeout: i64 = sqlx::query_scalar("PRAGMA busy_timeout").fetch_one(&mut *conn).await.unwrap();
        assert!(synchronous >= 1, "synchronous = {synchronous}");
        assert!((-4000..4000).contains(&cache), "cache_size = {cache}");
        assert_eq!((mode.as_str(), timeout), ("wal", 30_000));
        held.push(conn);
    }
    drop(held);
    assert_eq!(parts.store.writer_synchronous().await.unwrap(), 2, "what is acknowledged is written with FULL");
    parts.stop().await;
}

/// Trap 11: an acknowledgement costs time in proportion to all rows that ever ran, by an index that is never cleared.
#[tokio::test(flavor = "multi_thread")]
async fn the_index_that_makes_every_acknowledgement_slow_is_gone_and_stays_gone() {
    let scene = Scene::new();
    let database = scene.database();
    let parts = scene.start().await;
    let count = "SELECT count(*) FROM sqlite_master WHERE name = 'LIdx'";
    let n: i64 = sqlx::query_scalar(count).fetch_one(&mut parts.foreign().await).await.unwrap();
    assert_eq!(n, 0);
    parts.stop().await;
    let again = Store::open(&database).await.unwrap();
    let n: i64 = sqlx::query_scalar(count).fetch_one(again.delivery_pool()).await.unwrap();
    assert_eq!(n, 0);
    again.close().await;
}

/// Trap 12: `vacuum_before(1 h)` deletes what finished a second ago.
#[tokio::test(flavor = "multi_thread")]
async fn cleanup_keeps_what_is_younger_than_it_says() {
    let parts = Scene::new().start().await;
    let id = parts.submit("x", json!({})).await;
    let job = parts.ended(id).await;
    let report = atelier::maintenance::cleanup::run(&parts.store, &parts.config, false).await.unwrap();
    assert_eq!(report.jobs, 0, "{report:?}");
    assert!(parts.store.job(id).await.unwrap().is_some());
    parts.output(&job);
    parts.stop().await;
}

/// Trap 13: a task that is killed in the table after it was fetched runs all the same, and its end overwrites the kill.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_stays_cancelled_whenever_that_was() {
    let parts = Scene::new().start().await;
    let running = parts.submit("fake:slow=20", json!({"params": {"steps": 200}})).await;
    let queued = parts.submit("x", json!({})).await;
    parts.until_step(running, 2).await;
    assert_eq!(parts.queue.cancel(queued).await.unwrap().status, JobStatus::Cancelled);
    parts.queue.cancel(running).await.unwrap();
    assert_eq!(parts.ended(running).await.status, JobStatus::Cancelled);
    // In the very moment of the claim: whatever wins, the job ends cancelled or done, and only once.
    for _ in 0..30 {
        let id = parts.submit("x", json!({"params": {"steps": 1}})).await;
        let _ = parts.queue.cancel(id).await;
        let job = parts.ended(id).await;
        assert!(matches!(job.status, JobStatus::Cancelled | JobStatus::Succeeded), "{job:?}");
    }
    let last = parts.submit("x", json!({})).await;
    assert_eq!(parts.ended(last).await.status, JobStatus::Succeeded, "the queue goes on");
    parts.stop().await;
}

/// Trap 14: several first connections on a new file fight over the change to WAL.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_database_can_be_used_by_many_at_once() {
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("new.db")).await.unwrap();
        let reads = (0..16).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.counts().await })
        });
        for read in reads.collect::<Vec<_>>() {
            read.await.unwrap().unwrap();
        }
        store.close().await;
    }
}

/// A crash between our end of a job and apalis's knowledge of it: the delivery comes again, and nothing runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_of_an_ended_job_does_nothing() {
    let parts = Scene::new().start().await;
    let id = parts.submit("x", json!({})).await;
    let before = parts.ended(id).await;
    sqlx::query(
        "INSERT INTO Jobs (job, id, job_type, status, attempts, max_attempts, run_at, priority, metadata)
         VALUES (?1, ?2, 'gpu', 'Pending', 0, 25, 0, 200, '{}')",
    )
    .bind(format!("{{\"job_id\":\"{id}\"}}").into_bytes())
    .bind(id.to_string())
    .execute(&mut parts.foreign().await)
    .await
    .unwrap();
    let next = parts.submit("x", json!({})).await;
    parts.ended(next).await;
    assert_eq!(parts.store.job(id).await.unwrap().unwrap(), before);
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM Jobs").fetch_one(&mut parts.foreign().await).await.unwrap();
    assert_eq!(left, 0, "the stray delivery is gone");
    parts.stop().await;
}

/// The two migrators leave each other alone, also at the second start.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_opens_again_and_an_older_program_refuses_a_newer_one() {
    let scene = Scene::new();
    let database = scene.database();
    for _ in 0..2 {
        Store::open(&database).await.unwrap().close().await;
    }
    let mut foreign = sqlx::SqliteConnection::connect(&format!("sqlite://{}", database.display())).await.unwrap();
    sqlx::query("PRAGMA user_version = 99").execute(&mut foreign).await.unwrap();
    foreign.close().await.unwrap();
    let error = Store::open(&database).await.expect_err("newer").to_string();
    assert!(error.contains("newer Atelier"), "{error}");
}

/// The enqueue writes apalis's row with a statement of its own, for speed: it must be the row that apalis would write.
#[tokio::test(flavor = "multi_thread")]
async fn the_delivery_of_an_enqueue_is_the_row_that_apalis_writes() {
    let parts = Scene::new().open().await;
    let new = parts.new_job("x", json!({"priority": 7}));
    parts.queue.enqueue(new).await.unwrap();
    let mut foreign = parts.foreign().await;
    let mut rows = Vec::new();
    for _ in 0..2 {
        let sql = "SELECT job, typeof(job), id, job_type, status, attempts, max_attempts, abs(run_at - unixepoch()) < 60,
                   typeof(run_at), last_result, lock_at, lock_by, done_at, priority, metadata, idempotency_key FROM Jobs";
        let all = sqlx::query(sql).fetch_all(&mut foreign).await.unwrap();
        let [row] = &all[..] else { panic!("{} rows", all.len()) };
        let columns: Vec<Option<Vec<u8>>> = (0..row.len()).map(|at| row.get_unchecked(at)).collect();
        rows.push(columns);
        sqlx::query("DELETE FROM Jobs").execute(&mut foreign).await.unwrap();
        // Finds a job without its delivery, and lets apalis write one.
        assert_eq!(parts.store.recover().await.unwrap().undelivered, 1);
    }
    assert_eq!(rows[0], rows[1]);
    parts.stop().await;
}
