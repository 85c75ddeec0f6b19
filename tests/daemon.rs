//! The daemon's start, its signals and its end, as a user and a service manager meet them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::{fs, process::Output, time::Duration};

use atelier_testkit::{
    daemon::{Daemon, PATIENCE, Setup, send_signal, wait_until},
    pictures::{photo_like, png},
};
use rustix::process::Signal;
use serde_json::{Value, json};

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier")).set("log.format", "json")
}

/// A job of `steps` steps of `slow` ms.
fn slow_job(steps: u32, slow: u32, more: &str) -> Value {
    json!({"kind": "generate", "params": {
        "prompt": format!("fake:slow={slow}{more}|a house"), "seed": 3, "steps": steps}})
}

/// Waits until the job has done more than `step` steps.
fn wait_for_step(daemon: &Daemon, id: &str, step: u64) {
    wait_until(&format!("job {id} to pass step {step}"), PATIENCE, || {
        let job = daemon.job(id);
        assert!(job["finished_at"].is_null(), "too fast: {job:#}");
        job["progress"]["step"].as_u64().filter(|now| *now > step)
    });
}

fn output(daemon: &Daemon, id: &str) -> Vec<u8> {
    daemon.get(&format!("/api/v1/jobs/{id}/outputs/0")).expect(200).body
}

/// The log's lines of JSON.
fn lines(daemon: &Daemon) -> Vec<Value> {
    daemon.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn wait_for_line(daemon: &Daemon, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_until(&format!("a line in the log: {what}"), PATIENCE, || lines(daemon).into_iter().find(&wanted))
}

fn says(line: &Value, text: &str) -> bool {
    line["message"].as_str().is_some_and(|message| message.contains(text))
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

fn serve(daemon: &Daemon) -> Output {
    let config = daemon.config_file();
    daemon.command(["serve".as_ref(), "--config".as_ref(), config.as_os_str()]).output().expect("it starts")
}

#[test]
fn a_second_daemon_on_the_same_data_exits_2_and_names_the_first() {
    let daemon = setup().start();
    let second = serve(&daemon);
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(2), "{error}");
    assert!(error.contains(&format!("pid {}", daemon.pid())), "{error}");
    daemon.get("/readyz").expect(200);
    assert!(daemon.data().join("daemon.json").exists(), "the first one's note stays");
}

#[test]
fn a_note_of_pid_and_address_is_there_exactly_while_the_daemon_is_ready() {
    let mut daemon = setup().start();
    let note = daemon.data().join("daemon.json");
    let about: Value = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
    assert_eq!(about["pid"], daemon.pid());
    assert!(daemon.http().url("").ends_with(about["address"].as_str().unwrap()), "{about}");
    assert!(daemon.sigterm().success());
    assert!(!note.exists());
}

#[test]
fn a_soft_stop_saves_the_running_job_spends_no_attempt_and_changes_no_byte() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = setup().set("checkpoint.interval", "1h").start();
        let job = slow_job(120, 20, "");
        let undisturbed = daemon.submit(&job);
        daemon.wait_for_status(&undisturbed, "succeeded", PATIENCE);

        let id = daemon.submit(&job);
        let waiting = daemon.submit(&slow_job(4, 1, ""));
        wait_for_step(&daemon, &id, 5);
        let worker = daemon.worker_pid().expect("it is at work");
        daemon.signal(signal);
        let status = daemon.wait_exit(PATIENCE);
        assert!(status.success(), "{signal:?}: {status}");
        assert!(!is_alive(worker), "{signal:?}: the worker is still there");
        assert!(daemon.data().join("checkpoints").join(&id).join("checkpoint.json").exists(), "{signal:?}");

        daemon.start();
        let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
        assert!(job["resumed_from_step"].as_u64().is_some_and(|step| step > 5), "{signal:?}: {job:#}");
        assert_eq!((&job["attempt"], &job["crashes"]), (&json!(1), &json!(0)), "{signal:?}: {job:#}");
        assert_eq!(output(&daemon, &id), output(&daemon, &undisturbed), "{signal:?}");
        daemon.wait_for_status(&waiting, "succeeded", PATIENCE);
    }
}

#[test]
fn a_second_sigint_ends_at_once_and_the_next_start_repairs() {
    let mut daemon = setup().set("worker.stop_timeout", "10m").start();
    let id = daemon.submit(&slow_job(1000, 20, ";ignore-cancel*1"));
    wait_for_step(&daemon, &id, 2);
    daemon.signal(Signal::INT);
    wait_for_line(&daemon, "stopping", |line| says(line, "the running job writes a checkpoint"));
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(130));

    daemon.start();
    wait_for_step(&daemon, &id, 2);
    assert_eq!(daemon.job(&id)["attempt"], 1);
    daemon.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({})).expect(202);
    daemon.wait_for_status(&id, "cancelled", PATIENCE);
}

#[test]
fn a_worker_that_does_not_stop_is_killed_in_time_and_the_job_keeps_its_attempt() {
    let mut daemon = setup().set("worker.stop_timeout", "300ms").start();
    let id = daemon.submit(&slow_job(40, 20, ";hang@10*1"));
    wait_for_step(&daemon, &id, 9);
    let worker = daemon.worker_pid().expect("it is at work");
    assert!(daemon.sigterm().success());
    assert!(!is_alive(worker));
    daemon.start();
    wait_until("the job at the same place again", PATIENCE, || {
        let job = daemon.job(&id);
        (job["status"] == "running" && job["progress"]["step"].as_u64() >= Some(10)).then_some(())
    });
    // The script hangs on the first try; a try that a stop has cut short is none, so it hangs again.
    assert_eq!(daemon.job(&id)["attempt"], 1);
}

#[test]
fn the_worker_goes_with_the_daemon_however_that_ends() {
    let mut daemon = setup().start();
    let id = daemon.submit(&slow_job(1000, 20, ""));
    wait_for_step(&daemon, &id, 2);
    let worker = daemon.worker_pid().expect("it is at work");
    daemon.sigkill();
    wait_until("the worker to be gone", PATIENCE, || (!is_alive(worker)).then_some(()));
}

#[test]
fn a_reload_takes_what_can_be_taken_and_names_what_cannot() {
    let mut daemon = setup().start();
    let outbox = daemon.outbox();
    let elsewhere = daemon.root().join("elsewhere");
    daemon.set("presets.sketch.kind", "generate");
    daemon.set("limits.prompt_chars", 30);
    daemon.set("outbox.dir", elsewhere.to_str().unwrap());
    daemon.signal(Signal::HUP);
    wait_for_line(&daemon, "outbox.dir", |line| line["key"] == "outbox.dir" && says(line, "after a restart"));
    wait_for_line(&daemon, "prompt_chars", |line| line["key"] == "limits.prompt_chars" && says(line, "reloaded"));

    let sketch = |prompt: &str| json!({"preset": "sketch", "params": {"prompt": prompt, "seed": 1}});
    let id = wait_until("the new preset", PATIENCE, || {
        let answer = daemon.post("/api/v1/jobs", &sketch("a bird"));
        (answer.status == 202).then(|| answer.json()["id"].as_str().unwrap().to_owned())
    });
    assert_eq!(daemon.post("/api/v1/jobs", &sketch(&"long ".repeat(8))).status, 422);
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
    assert_eq!(daemon.published().len(), 1, "outputs go where they went before");
    assert!(!elsewhere.exists());

    daemon.restart();
    let id = daemon.submit(&sketch("a cat"));
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
    assert_eq!((fs::read_dir(&elsewhere).unwrap().count(), fs::read_dir(&outbox).unwrap().count()), (1, 1));
}

#[test]
fn a_reload_of_a_broken_configuration_changes_nothing_and_says_where_it_is_broken() {
    let daemon = setup().set("presets.sketch.kind", "generate").start();
    let good = fs::read_to_string(daemon.config_file()).unwrap();
    fs::write(daemon.config_file(), format!("{good}\n[quue]\nmax_attempts = 9\n")).unwrap();
    daemon.signal(Signal::HUP);
    let line = wait_for_line(&daemon, "what is wrong", |line| line["level"] == "ERROR");
    assert!(says(&line, "config.toml:") && says(&line, "quue") && says(&line, "stays as it was"), "{line}");
    let id = daemon.submit(&json!({"preset": "sketch", "params": {"prompt": "a bird", "seed": 1}}));
    daemon.wait_for_status(&id, "succeeded", PATIENCE);

    fs::write(daemon.config_file(), good).unwrap();
    daemon.signal(Signal::HUP);
    wait_for_line(&daemon, "nothing has changed", |line| says(line, "nothing has changed"));
}

#[test]
fn sigusr1_writes_what_goes_on_into_the_log() {
    let daemon = setup().start();
    let id = daemon.submit(&slow_job(1000, 20, ""));
    daemon.submit(&slow_job(1, 1, ""));
    wait_for_step(&daemon, &id, 1);
    daemon.signal(Signal::USR1);
    let line = wait_for_line(&daemon, "status", |line| line["message"] == "status");
    assert_eq!(line["running"], *id);
    assert_eq!(line["worker_pid"], daemon.worker_pid().unwrap());
    let jobs = line["jobs"].as_str().unwrap();
    assert!(jobs.contains("running 1") && jobs.contains("queued 1"), "{line}");
    assert!(line["uptime_s"].is_u64() && line["inbox"].is_string(), "{line}");
}

#[test]
fn every_line_about_a_job_carries_its_id_the_workers_lines_too() {
    let daemon = setup().start();
    let id = daemon.submit(&slow_job(4, 1, ";noise@2"));
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
    daemon.drop_file("photo.png", &png(&photo_like(20, 20, 1)));
    let dropped = daemon.wait_for_source("photo.png", PATIENCE);
    daemon.wait_for_status(&dropped, "succeeded", PATIENCE);
    for id in [&id, &dropped] {
        let about = |line: &Value| line["job"] == **id;
        for message in ["queued", "running", "the job begins"] {
            wait_for_line(&daemon, message, |line| about(line) && says(line, message));
        }
        wait_for_line(&daemon, "succeeded", |line| about(line) && line["status"] == "succeeded");
    }
    let worker: Vec<Value> = lines(&daemon).into_iter().filter(|line| line["target"] == "worker").collect();
    assert!(worker.iter().any(|line| says(line, "xxxx") && line["job"] == *id), "rubbish has an owner too");
    assert!(worker.iter().all(|line| line["job"].is_string()), "{worker:#?}");
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named_and_ends_the_start() {
    let mut daemon = setup().prepare();
    let blocked = daemon.root().join("a-file");
    fs::write(&blocked, "in the way").unwrap();
    daemon.set("paths.data", blocked.join("data").to_str().unwrap());
    let start = serve(&daemon);
    let error = String::from_utf8_lossy(&start.stderr);
    assert_eq!(start.status.code(), Some(1), "{error}");
    assert!(error.contains(&blocked.join("data").display().to_string()), "{error}");
}

#[test]
fn a_taken_port_is_named_and_ends_the_start() {
    let mut daemon = setup().prepare();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    daemon.set("server.listen", address.as_str());
    let start = serve(&daemon);
    let error = String::from_utf8_lossy(&start.stderr);
    assert_eq!(start.status.code(), Some(1), "{error}");
    assert!(error.contains(&address) && error.contains("server.listen"), "{error}");
    assert!(!daemon.data().join("daemon.json").exists());
}

#[test]
fn tokens_that_cannot_be_read_are_named_and_end_the_start() {
    let setup = setup();
    let absent = setup.root().join("no-such-tokens");
    let daemon = setup.set("server.tokens_file", absent.to_str().expect("UTF-8")).prepare();
    let output = serve(&daemon);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{error}");
    assert!(error.contains("no-such-tokens"), "{error}");
    assert!(!error.contains("ready"), "{error}");
}

#[test]
fn a_job_that_is_to_be_cancelled_when_the_daemon_dies_is_cancelled_by_the_next_and_leaves_nothing() {
    let mut daemon = setup().set("worker.cancel_grace", "10m").start();
    let id = daemon.submit(&slow_job(1000, 20, ";ignore-cancel"));
    wait_for_step(&daemon, &id, 10);
    daemon.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({})).expect(202);
    daemon.sigkill();
    daemon.start();
    daemon.wait_for_status(&id, "cancelled", PATIENCE);
    let folder = daemon.data().join("checkpoints").join(&id);
    wait_until("its checkpoint to go", Duration::from_secs(10), || (!folder.exists()).then_some(()));
}

#[test]
fn an_idle_worker_that_is_killed_is_replaced_for_the_next_job() {
    let daemon = setup().start();
    let first = daemon.submit(&slow_job(2, 1, ""));
    daemon.wait_for_status(&first, "succeeded", PATIENCE);
    let worker = wait_until("an idle worker", PATIENCE, || daemon.worker_pid());
    send_signal(worker, Signal::KILL);
    let second = daemon.submit(&slow_job(2, 1, ""));
    let job = daemon.wait_for_status(&second, "succeeded", PATIENCE);
    assert_eq!(job["crashes"], 0, "{job:#}");
    assert_ne!(daemon.worker_pid(), Some(worker));
}

/// Prints what an idle daemon takes; a debug build takes more than a release build.
#[test]
fn an_idle_daemon_answers_and_its_memory_is_told() {
    let daemon = setup().start();
    daemon.get("/healthz").expect(200);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    println!("idle daemon: {}, {}, {}", line("VmRSS"), line("RssAnon"), line("Threads"));
    assert!(daemon.worker_pid().is_none(), "no worker before the first job");
}
