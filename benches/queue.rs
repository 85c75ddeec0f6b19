//! What the queue costs. Prints the tables of docs/PERFORMANCE.md; ratios are within one run.
//!
//! `cargo bench --bench queue [-- latency|million|enqueue|idle]`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

#[path = "../tests/support/plain.rs"]
mod plain;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use atelier::store::{JobFilter, Store};
use atelier_domain::JobStatus;
use serde_json::json;
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use support::{Parts, Scene};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let asked = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == name);
    if asked("latency") {
        runtime.block_on(latency());
    }
    if asked("million") {
        runtime.block_on(million());
    }
    if asked("enqueue") {
        runtime.block_on(enqueue());
    }
}

/// `percent` of a sorted list, in milliseconds.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e3
}

/// From the answer to an enqueue until the job's row says `running`, on an idle queue with a warm worker.
async fn latency() {
    let parts = Scene::new().start().await;
    let warm = parts.submit("warm", json!({})).await;
    parts.ended(warm).await;
    let mut times = Vec::new();
    for n in 0..500 {
        let mut messages = parts.queue.subscribe();
        let new = parts.new_job(&format!("job {n}"), json!({"params": {"steps": 1}}));
        let id = new.id;
        parts.queue.enqueue(new).await.unwrap();
        let answered = Instant::now();
        loop {
            let message = messages.recv().await.unwrap();
            if let atelier::store::JobMessage::Updated(job) = message.event
                && job.id == id
                && job.status == JobStatus::Running
            {
                times.push(answered.elapsed());
                break;
            }
        }
        parts.ended(id).await;
    }
    times.sort();
    println!("\n| enqueued to running, idle, n = {} | ms |\n|---|---|", times.len());
    for (name, p) in [("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)] {
        println!("| {name} | {:.2} |", percentile(&times, p));
    }
    parts.stop().await;
}

/// The same calls on a nearly empty database (a page of every status) and on one with a million finished jobs, turn by
/// turn.
async fn million() {
    let small = Scene::new();
    fill(&small.database(), 1_000).await;
    let small = small.start().await;
    let large = Scene::new();
    fill(&large.database(), 1_000_000).await;
    let large = large.start().await;
    for parts in [&small, &large] {
        for n in 0..60 {
            let id = parts.submit(&format!("warm {n}"), json!({})).await;
            parts.ended(id).await;
        }
    }
    let mut rows: Vec<(&str, Vec<Duration>, Vec<Duration>)> =
        ["list 50", "list 50 failed", "show", "enqueue", "claim to end"].map(|name| (name, vec![], vec![])).into();
    for round in 0..200 {
        for (which, parts) in [&small, &large].into_iter().enumerate() {
            let times = measure(parts, round).await;
            for (row, time) in rows.iter_mut().zip(times) {
                if which == 0 { row.1.push(time) } else { row.2.push(time) }
            }
        }
    }
    println!("\n| p50, ms | 1 k finished jobs | 1 M finished jobs | ratio |\n|---|---|---|---|");
    for (name, mut a, mut b) in rows {
        a.sort();
        b.sort();
        let (a, b) = (percentile(&a, 50), percentile(&b, 50));
        println!("| {name} | {a:.3} | {b:.3} | {:.2} |", b / a);
    }
    small.stop().await;
    large.stop().await;
}

async fn measure(parts: &Parts, round: usize) -> [Duration; 5] {
    let timed = Instant::now();
    let page = parts.store.list(&JobFilter { limit: 50, ..JobFilter::default() }).await.unwrap();
    let list = timed.elapsed();
    let timed = Instant::now();
    let failed = JobFilter { limit: 50, status: Some(JobStatus::Failed), ..JobFilter::default() };
    parts.store.list(&failed).await.unwrap();
    let list_failed = timed.elapsed();
    let timed = Instant::now();
    parts.store.job(page.jobs[0].id).await.unwrap().unwrap();
    let show = timed.elapsed();
    let new = parts.new_job(&format!("round {round}"), json!({"params": {"steps": 1}}));
    let id = new.id;
    let timed = Instant::now();
    parts.queue.enqueue(new).await.unwrap();
    let enqueue = timed.elapsed();
    let timed = Instant::now();
    parts.ended(id).await;
    [list, list_failed, show, enqueue, timed.elapsed()]
}

async fn fill(database: &Path, n: u64) {
    Store::open(database).await.unwrap().close().await;
    let mut conn = SqliteConnectOptions::new().filename(database).connect().await.unwrap();
    sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
         INSERT INTO image_jobs (id, kind, model, status, priority, progress_phase, progress_fraction, progress_at, attempt,
            max_attempts, source_type, source_name, params, inputs, input_paths, outputs, error, created_at, started_at,
            finished_at)
         SELECT printf('01AAAAAAAA%016d', i), 'upscale', 'span-x2', iif(i % 20 = 0, 'failed', 'succeeded'), 0, 'done', 1, i, 1, 3,
            iif(i % 2, 'http', 'inbox'), printf('photo-%d.jpg', i), '{\"scale\":2}', '[]', '[]', '[]',
            iif(i % 20 = 0, '{\"code\":\"image_corrupt\",\"message\":\"m\",\"hint\":\"\"}', NULL), i, i, i
         FROM n",
    )
    .bind(i64::try_from(n).unwrap())
    .execute(&mut conn)
    .await
    .unwrap();
    conn.close().await.unwrap();
}

/// Enqueues of eight tasks at once, against eight connections that insert a plain row each, both with
/// `synchronous = FULL`, turn by turn.
async fn enqueue() {
    const TASKS: usize = 8;
    let (mut plain, mut ours, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        plain.push(plain::inserts(TASKS, Duration::from_secs(2)).await);
        let parts = Scene::new().with(|config| config.queue.max_queued = 10_000_000).open().await;
        ours.push(enqueues(&parts, TASKS, Duration::from_secs(2)).await);
        alone.push(enqueues(&parts, 1, Duration::from_secs(1)).await);
        parts.stop().await;
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (plain, ours, alone) = (median(&mut plain), median(&mut ours), median(&mut alone));
    println!("\n| a second, FULL, median of 5 | rate | to plain |\n|---|---|---|");
    println!("| plain single-row inserts, {TASKS} connections | {plain:.0} | 1 |");
    println!("| `Queue::enqueue` (job, delivery, event), {TASKS} tasks | {ours:.0} | {:.2} |", ours / plain);
    println!("| `Queue::enqueue`, 1 task | {alone:.0} | {:.2} |", alone / plain);
}

async fn enqueues(parts: &Parts, tasks: usize, time: Duration) -> f64 {
    let deadline = Instant::now() + time;
    let begun = Instant::now();
    let workers = (0..tasks).map(|_| {
        let queue = parts.queue.clone();
        let template = parts.new_job("x", json!({}));
        tokio::spawn(async move {
            let mut n = 0;
            while Instant::now() < deadline {
                let new = atelier::queue::NewJob { id: queue.new_id(), ..template.clone() };
                queue.enqueue(new).await.unwrap();
                n += 1;
            }
            n
        })
    });
    let mut total = 0;
    for worker in workers.collect::<Vec<_>>() {
        total += worker.await.unwrap();
    }
    f64::from(total) / begun.elapsed().as_secs_f64()
}
