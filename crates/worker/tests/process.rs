//! The worker's process, beyond what the conformance suite asks of every worker.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use atelier_domain::{
    ErrorCode, JobId, JobKind, OutputFormat, Params,
    model::Family,
    protocol::{Event, GpsPolicy, Hello, ModelRef, Offload, OutputSpec, PROTOCOL_VERSION, Request, Run},
};
use atelier_testkit::{driver::Worker, pictures};
use image::RgbImage;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

const SPAN: (&str, Family) = ("span-x2", Family::Span);
/// Its layers are so large that malloc maps them one by one, so that what a limit leaves can be foretold.
const WAIFU2X: (&str, Family) = ("waifu2x-photo", Family::UpConv7);
const PATIENCE: Duration = Duration::from_mins(2);

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_atelier-worker"))
}

fn hello(device: &str) -> Hello {
    Hello { protocol: PROTOCOL_VERSION, device: device.into(), threads: 1, memory_budget: None, offload: Offload::Auto }
}

fn pid(worker: &Worker) -> Pid {
    Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap()
}

fn upscale(root: &Path, side: u32, (pack, family): (&str, Family)) -> Run {
    let input = root.join("input.png");
    fs::write(&input, pictures::png(&pictures::photo_like(side, side, 1))).unwrap();
    let work_dir = root.join("job");
    fs::create_dir_all(&work_dir).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(pack);
    Run {
        job: JobId::from_ulid(1_u128.into()),
        attempt: 1,
        crashes: 0,
        kind: JobKind::Upscale,
        models: vec![ModelRef { id: pack.into(), family, path: model.into() }],
        model_given: true,
        parts: Vec::new(),
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
    let run = upscale(root.path(), 24, SPAN);
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
    let run = Run { kind: JobKind::Caption, ..upscale(root.path(), 24, SPAN) };
    let events = worker.run(&run, PATIENCE).unwrap();
    let Some(Event::Failed { error, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.code.as_str(), "kind_not_supported");
}

/// Lets the process have so many bytes of its own more than it has now.
fn limit_memory(worker: &Worker, more: u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    let data: u64 = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    // Not the address space: of that malloc holds more in reserve than these tests ask for.
    set_limit(worker, Some(data + more));
}

fn set_limit(worker: &Worker, bytes: Option<u64>) {
    prlimit(Some(pid(worker)), Resource::Data, Rlimit { current: bytes, maximum: None }).unwrap();
}

#[test]
fn too_little_memory_means_smaller_tiles_and_the_same_picture() {
    let (columns, plenty) = with_limit(None).expect("memory suffices");
    assert_eq!(columns, 1);
    // How much is enough for tiles of 96 pixels and too little for one of 192 depends on the processor's kernels.
    let limits = [85, 75, 95, 65, 105, 55, 115, 135];
    let scarce = limits.into_iter().find_map(|mebibytes| {
        with_limit(Some(mebibytes << 20)).filter(|(columns, _)| *columns == 2).map(|(_, picture)| picture)
    });
    let scarce = scarce.expect("there is a limit that smaller tiles keep");
    assert!(plenty.iter().zip(scarce.iter()).all(|(a, b)| a.abs_diff(*b) <= 1));
}

/// Columns of tiles and the picture, or `None` where the job was out of memory with smaller tiles too.
fn with_limit(limit: Option<u64>) -> Option<(u64, RgbImage)> {
    let root = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(command()).unwrap();
    worker.greet(hello("cpu"), PATIENCE).unwrap();
    if let Some(more) = limit {
        // What only the first job takes comes before the limit.
        worker.run(&upscale(root.path(), 16, WAIFU2X), PATIENCE).unwrap();
        limit_memory(&worker, more);
    }
    let run = upscale(root.path(), 192, WAIFU2X);
    let events = worker.run(&run, PATIENCE).unwrap();
    match events.last() {
        Some(Event::Finished(finished)) => {
            let columns = finished.manifest["tiles"]["columns"].as_u64().unwrap();
            Some((columns, image::open(run.work_dir.as_path().join("output-0.png")).unwrap().into_rgb8()))
        }
        Some(Event::Failed { error, .. }) if error.code == ErrorCode::OutOfMemory => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn far_too_little_memory_fails_the_job_with_a_hint_and_the_worker_lives_on() {
    let root = tempfile::tempdir().unwrap();
    let mut worker = Worker::spawn(command()).unwrap();
    worker.greet(hello("cpu"), PATIENCE).unwrap();
    let small = upscale(root.path(), 16, WAIFU2X);
    worker.run(&small, PATIENCE).unwrap();
    limit_memory(&worker, 8 << 20);
    let events = worker.run(&upscale(root.path(), 250, WAIFU2X), PATIENCE).unwrap();
    let Some(Event::Failed { error, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.code.as_str(), "out_of_memory", "{error}");
    assert!(!error.hint.is_empty() && !error.message.contains("frame #"), "{error:?}");
    set_limit(&worker, None);
    let events = worker.run(&upscale(root.path(), 16, WAIFU2X), PATIENCE).unwrap();
    assert!(matches!(events.last(), Some(Event::Finished(_))), "{events:?}");
}
