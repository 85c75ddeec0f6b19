//! What the daemon costs as a whole: the program itself, over HTTP and its inbox, with the stand-in worker. Prints the
//! tables of docs/PERFORMANCE.md; ratios are within one run.
//!
//! `cargo build --release && cargo bench --bench daemon [-- start|http|inbox|idle]`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for developers")]

#[path = "../tests/support/plain.rs"]
mod plain;

use std::{
    fs,
    time::{Duration, Instant},
};

use atelier_testkit::{
    daemon::{Daemon, Setup},
    pictures,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let asked = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == name);
    if asked("start") {
        start();
    }
    if asked("inbox") {
        inbox();
    }
    if asked("http") {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(http());
    }
    if asked("idle") {
        idle();
    }
}

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier"))
}

fn table(title: &str, unit: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!("\n| {title}, n = {} | {unit} |\n|---|---|", times.len());
    for (name, percent) in [("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)] {
        println!("| {name} | {:.1} |", times[(times.len() - 1) * percent / 100]);
    }
}

/// From the start of the program to its line "ready", as it says itself, on a database with a thousand ended jobs.
fn start() {
    let mut daemon = setup().start();
    for n in 0..1000 {
        daemon.submit(&json!({"kind": "generate", "params": {"prompt": format!("picture {n}"), "steps": 1}}));
    }
    let patience = Duration::from_mins(5);
    let begun = Instant::now();
    while daemon.get("/api/v1/queue").json()["counts"]["succeeded"] != 1000 {
        assert!(begun.elapsed() < patience, "{}", daemon.get("/api/v1/queue").text());
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut times = Vec::new();
    for _ in 0..20 {
        daemon.restart();
        // The line may be a moment behind the port.
        std::thread::sleep(Duration::from_millis(200));
        let log = daemon.log();
        let ms = log.rsplit("ms=").next().and_then(|rest| rest.split(' ').next()).unwrap();
        times.push(ms.parse().unwrap());
    }
    table("start to ready, database with 1000 ended jobs", "ms", times);
}

/// From the rename of a photo into the inbox until its job is running, as its row says.
fn inbox() {
    let daemon = setup().set("inbox.duplicates", "run").start();
    let photo = pictures::png(&pictures::photo_like(64, 64, 1));
    let mut times = Vec::new();
    for n in 0..200 {
        let outside = daemon.root().join("outside.png");
        fs::write(&outside, &photo).unwrap();
        let began = std::time::SystemTime::now();
        fs::rename(&outside, daemon.inbox().join(format!("{n}.png"))).unwrap();
        let id = daemon.wait_for_source(&format!("{n}.png"), Duration::from_mins(1));
        let job = daemon.wait_for_status(&id, "succeeded", Duration::from_mins(1));
        let started: jiff::Timestamp = job["started_at"].as_str().unwrap().parse().unwrap();
        let began = jiff::Timestamp::try_from(began).unwrap();
        times.push((started - began).total(jiff::Unit::Millisecond).unwrap());
    }
    table("rename into the inbox to running", "ms", times);
}

/// Eight clients that post jobs, each on a connection that it keeps, beside plain inserts by as many connections.
async fn http() {
    const CLIENTS: usize = 8;
    const TIME: Duration = Duration::from_secs(2);
    let (mut rows, mut posts) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        rows.push(plain::inserts(CLIENTS, TIME).await);
        let daemon = setup().set("queue.max_queued", 10_000_000).start();
        daemon.post("/api/v1/queue/pause", &json!({})).expect(200);
        posts.push(post(&daemon, CLIENTS, TIME).await);
    }
    for rates in [&mut rows, &mut posts] {
        rates.sort_by(f64::total_cmp);
    }
    let (rows, posts) = (rows[2], posts[2]);
    println!("\n| a second, FULL, median of 5 | rate | to plain |\n|---|---|---|");
    println!("| plain single-row inserts, {CLIENTS} connections | {rows:.0} | 1 |");
    println!("| `POST /api/v1/jobs`, {CLIENTS} clients | {posts:.0} | {:.2} |", posts / rows);
}

/// Jobs a second that `clients` post. They run on the server's cores, so they are as cheap as those of a load generator:
/// one thread for all, requests that are written out but for a number, answers of which status and length are read.
async fn post(daemon: &Daemon, clients: usize, time: Duration) -> f64 {
    let url = daemon.http().url("/api/v1/jobs");
    let address = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap().to_owned();
    let load = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let begun = Instant::now();
            let clients = (0..clients).map(|client| client_of(&address, client, begun + time));
            let posted: u32 = futures::future::join_all(clients).await.into_iter().sum();
            f64::from(posted) / begun.elapsed().as_secs_f64()
        })
    };
    tokio::task::spawn_blocking(load).await.unwrap()
}

/// One client with a connection that it keeps.
async fn client_of(address: &str, client: usize, deadline: Instant) -> u32 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answer = Vec::with_capacity(4096);
    let mut n = 0;
    while Instant::now() < deadline {
        let job = format!(r#"{{"kind":"generate","params":{{"prompt":"{client} {n:08}"}}}}"#);
        let request = format!(
            "POST /api/v1/jobs HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{job}",
            job.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        answer.clear();
        while !is_whole(&answer) {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "the server closed the connection");
        }
        assert!(answer.starts_with(b"HTTP/1.1 202 "), "{}", String::from_utf8_lossy(&answer));
        n += 1;
    }
    n
}

/// Whether an answer has arrived with all of the body that it announces.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let length = std::str::from_utf8(&answer[..head]).unwrap().split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
    });
    answer.len() - head - 4 == length.expect("the server says how long its answers are")
}

/// Processor time and bytes written of a daemon that has nothing to do.
fn idle() {
    const TIME: Duration = Duration::from_mins(3);
    let daemon = setup().set("inbox.rescan", "30s").set("worker.keep_alive", "1s").start();
    let id = daemon.submit(&json!({"kind": "generate", "params": {"prompt": "one before the rest", "steps": 1}}));
    daemon.wait_for_status(&id, "succeeded", Duration::from_mins(1));
    std::thread::sleep(Duration::from_secs(20));
    let before = (cpu_seconds(daemon.pid()), written(daemon.pid()));
    std::thread::sleep(TIME);
    let after = (cpu_seconds(daemon.pid()), written(daemon.pid()));
    let share = 100.0 * (after.0 - before.0) / TIME.as_secs_f64();
    let kib = (after.1 - before.1) / 1024.0 / TIME.as_secs_f64() * 60.0;
    println!("\n| idle for {} s | |\n|---|---|", TIME.as_secs());
    println!("| of a core | {share:.3} % |\n| written a minute | {kib:.1} KiB |");
}

/// Of all threads, exact to the nanosecond (the clock ticks of /proc/PID/stat are too coarse).
fn cpu_seconds(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| {
            let schedstat = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            schedstat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
        })
        .sum()
}

fn written(pid: u32) -> f64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    line.parse().unwrap()
}
