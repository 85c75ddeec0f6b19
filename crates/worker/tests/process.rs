//! The worker's process, beyond what the conformance suite asks of every worker.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use atelier_domain::{
    JobId, JobKind, OutputFormat, Params,
    model::Family,
    protocol::{Event, GpsPolicy, Hello, ModelRef, OutputSpec, PROTOCOL_VERSION, Request, Run},
};
use atelier_testkit::{driver::Worker, pictures};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(2);

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_atelier-worker"))
}

fn hello(device: &str) -> Hello {
    Hello { protocol: PROTOCOL_VERSION, device: device.into(), threads: 1, memory_budget: None }
}

fn pid(worker: &Worker) -> Pid {
    Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap()
}

fn upscale(root: &Path, width: u32, height: u32) -> Run {
    let input = root.join("input.png");
    fs::write(&input, pictures::png(&pictures::photo_like(width, height, 1))).unwrap();
    let work_dir = root.join("job");
    fs::create_dir_all(&work_dir).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/span-x2");
    Run {
        job: JobId::from_ulid(1_u128.into()),
        attempt: 1,
        crashes: 0,
        kind: JobKind::Upscale,
        models: vec![ModelRef { id: "span-x2".into(), family: Family::Span, path: model.into() }],
        model_given: true,
        params: Params::default(),
        inputs: vec![input.into()],
        mask: None,
        work_dir: work_dir.into(),
        checkpoint_interval_ms: 3_600_000,
        output: OutputSpec { format: OutputFormat::Png, quality: 90, gps: GpsPolicy::Keep },
        max_pixels: 1_000_000,
    }
}

#[test]
fn a_wrong_greeting_ends_it_with_a_line_that_says_why() {
    let cases = [
        (Hello { protocol: 99, ..hello("cpu") }, "speaks protocol 99 and this worker speaks 1"),
        (hello("gpu"), "write \\\"auto\\\", \\\"cpu\\\" or \\\"cuda:N\\\""),
        (hello("cuda:99"), "cuda:99 cannot be used"),
    ];
    for (hello, text) in cases {
        let mut worker = Worker::spawn(command()).unwrap();
        worker.send(&Request::Hello(hello)).unwrap();
        assert_eq!(worker.wait(PATIENCE).unwrap().code(), Some(2));
        let log = worker.log().unwrap();
        let line: Value = serde_json::from_str(log.lines().next().unwrap()).expect("a line of JSON");
        assert_eq!(line["level"], "ERROR");
        assert!(log.contains(text), "{log}");
    }
}

#[test]
fn without_a_socket_it_says_how_it_is_started() {
    let output = command().stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("atelier serve"), "{text}");
}

#[test]
fn the_probe_prints_one_line_of_json() {
    let output = command().arg("--probe").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1);
    let facts: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(facts["libtorch"], "2.13.0");
    assert!(facts["device"]["memory_bytes"].as_u64().unwrap() > 0);
    assert!(!facts["device"]["reason"].as_str().unwrap().is_empty());
}

#[test]
fn a_terminals_interrupt_does_not_end_it_and_its_log_names_the_job() {
    let root = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(command()).unwrap();
    worker.greet(hello("cpu"), PATIENCE).unwrap();
    kill_process(pid(&worker), Signal::INT).unwrap();
    let run = upscale(root.path(), 24, 16);
    let events = worker.run(&run, PATIENCE).unwrap();
    assert!(matches!(events.last(), Some(Event::Finished(_))), "{events:?}");
    let log = worker.log().unwrap();
    let job = run.job.to_string();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("lines of JSON"));
    assert!(lines.filter(|line| line["job"] == job.as_str()).count() >= 2, "{log}");
}

#[test]
fn a_job_of_another_kind_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(command()).unwrap();
    worker.greet(hello("auto"), PATIENCE).unwrap();
    let run = Run { kind: JobKind::Caption, ..upscale(root.path(), 24, 16) };
    let events = worker.run(&run, PATIENCE).unwrap();
    let Some(Event::Failed { error, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.code.as_str(), "kind_not_supported");
}

/// Lets the process have so many bytes more than it has mapped now.
fn limit_memory(worker: &Worker, more: u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let mapped: u64 = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    let limit = Rlimit { current: Some(mapped + more), maximum: Some(mapped + more) };
    prlimit(Some(pid(worker)), Resource::As, limit).unwrap();
}

#[test]
fn too_little_memory_means_smaller_tiles_and_the_same_picture() {
    let root = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(command()).unwrap();
    worker.greet(hello("cpu"), PATIENCE).unwrap();
    let run = upscale(root.path(), 250, 250);
    let events = worker.run(&run, PATIENCE).unwrap();
    let Some(Event::Finished(plenty)) = events.last() else { panic!("{events:?}") };
    assert_eq!(plenty.manifest["tiles"]["columns"], 1);
    let expected = fs::read(run.work_dir.as_path().join("output-0.png")).unwrap();

    fs::remove_file(run.work_dir.as_path().join("finished.json")).unwrap();
    limit_memory(&worker, 60 << 20);
    let events = worker.run(&run, PATIENCE).unwrap();
    let Some(Event::Finished(scarce)) = events.last() else { panic!("{events:?}") };
    assert_eq!(scarce.manifest["tiles"]["columns"], 3, "{}", worker.log().unwrap());
    let bytes = fs::read(run.work_dir.as_path().join("output-0.png")).unwrap();
    let [a, b] = [expected, bytes].map(|bytes| image::load_from_memory(&bytes).unwrap().into_rgb8());
    assert!(a.iter().zip(b.iter()).all(|(a, b)| a.abs_diff(*b) <= 1));
}

#[test]
fn far_too_little_memory_fails_the_job_with_a_hint_and_the_worker_lives_on() {
    let root = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(command()).unwrap();
    worker.greet(hello("cpu"), PATIENCE).unwrap();
    let small = upscale(root.path(), 16, 16);
    worker.run(&small, PATIENCE).unwrap();
    limit_memory(&worker, 8 << 20);
    let events = worker.run(&upscale(root.path(), 250, 250), PATIENCE).unwrap();
    let Some(Event::Failed { error, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.code.as_str(), "out_of_memory", "{error}");
    assert!(!error.hint.is_empty() && !error.message.contains("frame #"), "{error:?}");
    fs::remove_file(root.path().join("job/finished.json")).unwrap_or_default();
    let events = worker.run(&upscale(root.path(), 16, 16), PATIENCE).unwrap();
    assert!(matches!(events.last(), Some(Event::Finished(_))), "{events:?}");
}
