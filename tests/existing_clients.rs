//! Programs that were written for other servers, against the real program: over restarts and broken connections. The
//! packages themselves run in `tests/clients`.
#![allow(clippy::unwrap_used, reason = "tests")]

use atelier_testkit::daemon::{Daemon, PATIENCE, Setup, wait_until};
use base64::Engine as _;
use serde_json::{Value, json};

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier")).worker_args(&["--steps", "6"])
}

fn body(wish: &Value) -> Vec<u8> {
    wish.to_string().into_bytes()
}

const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

/// A client that waits for its answer, on a thread of its own.
fn waiting(daemon: &Daemon, path: &'static str, wish: &Value) -> std::thread::JoinHandle<Option<u16>> {
    let (http, body) = (daemon.http().clone(), body(wish));
    std::thread::spawn(move || http.try_send("POST", path, JSON, &body).ok().map(|answer| answer.status))
}

/// Id of the only job, once it runs.
fn running(daemon: &Daemon) -> String {
    wait_until("the job to run", PATIENCE, || {
        let jobs = daemon.jobs();
        assert!(jobs.len() <= 1, "{jobs:#?}");
        let job = jobs.first()?;
        (job["status"] == "running").then(|| job["id"].as_str().unwrap().to_owned())
    })
}

/// Whether the daemon has taken a connection that is still open.
fn has_a_client(daemon: &Daemon) -> bool {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let own: Vec<_> = targets.map(|target| target.to_string_lossy().into_owned()).collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // Local address, remote address, state (01: established), …, inode.
    let is_open = |fields: &[&str]| fields[3] == "01" && own.contains(&format!("socket:[{}]", fields[9]));
    table.lines().skip(1).any(|line| is_open(&line.split_whitespace().collect::<Vec<_>>()))
}

#[test]
fn a_client_that_waits_finds_its_job_again_after_a_kill_and_after_a_restart() {
    for (path, prompt) in [
        ("/v1/images/generations", "fake:slow=400|openai"),
        ("/sdapi/v1/txt2img", "fake:slow=400|a1111"),
        ("/api/generate/sdxl", "fake:slow=400|studio"),
    ] {
        let mut daemon = setup().model("sdxl", "AtelierFake").start();
        let wish = json!({"prompt": prompt, "width": 64, "height": 64});
        let client = waiting(&daemon, path, &wish);
        let id = running(&daemon);
        daemon.sigkill();
        assert_eq!(client.join().unwrap(), None, "{path}: the connection broke");
        daemon.start();

        wait_until("the job to go on", PATIENCE, || {
            (daemon.job(&id)["status"] == "running" && daemon.worker_pid().is_some()).then_some(())
        });
        let client = waiting(&daemon, path, &wish);
        wait_until("the client to be let in", PATIENCE, || has_a_client(&daemon).then_some(()));
        daemon.sigterm();
        assert_eq!(client.join().unwrap(), Some(503), "{path}: it is told to come back");
        daemon.start();

        let answer = daemon.http().send("POST", path, JSON, &body(&wish)).expect(200);
        assert!(answer.text().contains(&id), "{path}: {}", answer.text());
        assert_eq!(daemon.jobs().len(), 1, "{path}: it is one job");
        assert_eq!(daemon.published().len(), 1, "{path}: with one output");
    }
}

#[test]
fn a_picture_comes_back_whole_through_every_door() {
    let daemon = setup().start();
    let wish = json!({"prompt": "a boat", "size": "96x64", "seed": 0});
    let answer = daemon.post("/v1/images/generations", &wish).expect(200).json();
    let id = answer["job"].as_str().unwrap();
    let file = daemon.get(&format!("/api/v1/jobs/{id}/outputs/0")).expect(200).body;
    let decoded = base64::engine::general_purpose::STANDARD.decode(answer["data"][0]["b64_json"].as_str().unwrap());
    assert_eq!(decoded.unwrap(), file);
    let name = daemon.job(id)["outputs"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(daemon.get(&format!("/api/download/{name}")).expect(200).body, file);
    assert_eq!(daemon.get(&format!("/api/jobs/{id}/download")).expect(200).body, file);
    // The download was whole, so the job is gone.
    wait_until("the job to be removed", PATIENCE, || daemon.published().is_empty().then_some(()));
}
