//! The stand-in misbehaves exactly as it is told: the daemon's containment tests build on this.

use std::{fs, os::unix::process::ExitStatusExt as _, process::Command, time::Duration};

use atelier_domain::{
    ErrorCode, JobId, JobKind, OutputFormat, Params,
    model::Family,
    protocol::{
        Event, Finished, GpsPolicy, Hello, ModelRef, Offload, OutputSpec, PROTOCOL_VERSION, Request, Run, Stop,
    },
};
use atelier_testkit::driver::{DriverError, Worker};
use rustix::process::Signal;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_mins(1);

struct Bench {
    root: TempDir,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(root.path().join("model")).expect("made");
        fs::write(root.path().join("model/config.json"), "{}").expect("written");
        Self { root }
    }

    fn job(&self, folder: &str, prompt: &str) -> Run {
        let work_dir = self.root.path().join(folder);
        fs::create_dir(&work_dir).expect("made");
        Run {
            job: "01JD0000000000000000000000".parse::<JobId>().expect("a ULID"),
            attempt: 1,
            crashes: 0,
            kind: JobKind::Generate,
            models: vec![ModelRef {
                id: "fake".into(),
                family: Family::Fake,
                path: self.root.path().join("model").into(),
            }],
            model_given: false,
            parts: Vec::new(),
            params: Params { prompt: Some(prompt.into()), seed: Some(7), ..Params::default() },
            inputs: Vec::new(),
            mask: None,
            work_dir: work_dir.into(),
            checkpoint_interval_ms: 0,
            output: OutputSpec { format: OutputFormat::Png, quality: 90, gps: GpsPolicy::Keep },
            max_pixels: 1_000_000,
        }
    }
}

fn hello() -> Hello {
    Hello { protocol: PROTOCOL_VERSION, device: "auto".into(), threads: 0, memory_budget: None, offload: Offload::Auto }
}

fn start(args: &[&str]) -> Worker {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier-fake-worker"));
    command.args(args);
    Worker::spawn(command).expect("it starts")
}

fn ready(args: &[&str]) -> Worker {
    let mut worker = start(args);
    worker.greet(hello(), PATIENCE).expect("ready");
    worker
}

fn finish(worker: &mut Worker, run: &Run) -> Finished {
    match worker.run(run, PATIENCE).expect("events").pop() {
        Some(Event::Finished(finished)) => *finished,
        other => panic!("it should have finished: {other:?}"),
    }
}

/// The last checkpoint that was told before the stream ended.
fn last_checkpoint(worker: &mut Worker) -> Option<u32> {
    let mut last = None;
    loop {
        match worker.receive(PATIENCE) {
            Ok(Event::Checkpointed { step, .. }) => last = Some(step),
            Ok(event) => assert_eq!(atelier_testkit::driver::ended_job(&event), None),
            Err(DriverError::Closed) => return last,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn it_dies_as_told_at_the_step_it_was_told() {
    let bench = Bench::new();
    let killed_by = |signal: Signal| (Some(signal.as_raw()), None);
    for (clause, expected) in [
        ("segv", killed_by(Signal::SEGV)),
        ("abort", killed_by(Signal::ABORT)),
        ("kill", killed_by(Signal::KILL)),
        ("oom", killed_by(Signal::KILL)),
        ("exit", (None, Some(7))),
    ] {
        let value = if clause == "exit" { "=7" } else { "" };
        let run = bench.job(clause, &format!("fake:{clause}@3{value}"));
        let mut worker = ready(&[]);
        worker.send(&Request::Run(Box::new(run))).expect("sent");
        assert_eq!(last_checkpoint(&mut worker), Some(3), "{clause}");
        let status = worker.wait(PATIENCE).expect("ends");
        assert_eq!((status.signal(), status.code()), expected, "{clause}");
    }
}

#[test]
fn a_crash_for_one_try_leaves_the_next_the_picture_of_a_quiet_run() {
    let bench = Bench::new();
    let quiet = bench.job("quiet", "a house");
    let quiet = finish(&mut ready(&[]), &quiet);
    let mut run = bench.job("troubled", "fake:kill@3*1|a house");
    let mut worker = ready(&[]);
    worker.send(&Request::Run(Box::new(run.clone()))).expect("sent");
    last_checkpoint(&mut worker);
    run.crashes = 1;
    let troubled = finish(&mut ready(&[]), &run);
    assert_eq!(troubled.outputs, quiet.outputs);
    let other = bench.job("other", "another house");
    assert_ne!(finish(&mut ready(&[]), &other).outputs[0].sha256, quiet.outputs[0].sha256);
}

#[test]
fn it_crashes_again_when_it_goes_on_from_a_later_step() {
    let bench = Bench::new();
    let run = bench.job("job", "fake:kill@3");
    for _ in 0..3 {
        let mut worker = ready(&[]);
        worker.send(&Request::Run(Box::new(run.clone()))).expect("sent");
        last_checkpoint(&mut worker);
        assert_eq!(worker.wait(PATIENCE).expect("ends").signal(), Some(Signal::KILL.as_raw()));
    }
}

#[test]
fn a_hanging_worker_answers_nothing_but_ends_with_the_stream() {
    let bench = Bench::new();
    let run = bench.job("job", "fake:hang@3");
    let mut worker = ready(&[]);
    worker.send(&Request::Run(Box::new(run.clone()))).expect("sent");
    worker.receive_until(PATIENCE, |event| matches!(event, Event::Checkpointed { step: 3, .. })).expect("step 3");
    worker.stop(run.job, Stop::Cancel).expect("sent");
    // Long enough for a worker that listens; a slow machine cannot make this fail.
    let silence = worker.receive(Duration::from_millis(300));
    assert!(matches!(silence, Err(DriverError::Timeout(_))), "{silence:?}");
    worker.hang_up();
    worker.wait(PATIENCE).expect("ends");
}

#[test]
fn garbage_on_the_socket_is_no_frame() {
    let bench = Bench::new();
    let run = bench.job("job", "fake:garbage@3");
    let outcome = ready(&[]).run(&run, PATIENCE);
    assert!(matches!(outcome, Err(DriverError::Frame(_))), "{outcome:?}");
}

#[test]
fn noise_goes_to_the_log_and_the_job_goes_on() {
    let bench = Bench::new();
    let run = bench.job("job", "fake:noise@3");
    let mut worker = ready(&[]);
    finish(&mut worker, &run);
    let log = worker.log().expect("readable");
    assert_eq!(log.matches("not UTF-8").count(), 2, "once on each stream");
    assert!(log.lines().any(|line| line.len() >= 100_000));
}

#[test]
fn without_noise_every_line_of_the_log_is_json_and_names_the_job() {
    let bench = Bench::new();
    let run = bench.job("job", "fake:fail@3=disk_full");
    let mut worker = ready(&[]);
    match worker.run(&run, PATIENCE).expect("events").pop() {
        Some(Event::Failed { error, .. }) => assert_eq!(error.code, ErrorCode::DiskFull),
        other => panic!("told to fail, it answered {other:?}"),
    }
    let log = worker.log().expect("readable");
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert!(!lines.is_empty());
    for line in lines {
        assert_eq!(line["job"], run.job.to_string(), "{line}");
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}

#[test]
fn a_misspelt_clause_fails_the_job() {
    let bench = Bench::new();
    let run = bench.job("job", "fake:sgev@3");
    match ready(&[]).run(&run, PATIENCE).expect("events").pop() {
        Some(Event::Failed { error, .. }) => assert_eq!(error.code, ErrorCode::InvalidParams),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_that_ignores_stop_goes_on_to_its_end() {
    let bench = Bench::new();
    let run = bench.job("job", "fake:ignore-cancel");
    let mut worker = ready(&[]);
    let stop = Request::Stop { job: run.job, how: Stop::Cancel };
    worker.send_all(&[Request::Run(Box::new(run.clone())), stop]).expect("sent");
    let events = worker.receive_to_end(run.job, PATIENCE).expect("events");
    assert!(matches!(events.last(), Some(Event::Finished(_))), "{events:?}");
}

#[test]
fn a_slow_job_takes_its_time_at_every_step() {
    let bench = Bench::new();
    let run =
        Run { params: Params { steps: Some(4), ..bench.job("unused", "fake:slow=50").params }, ..bench.job("job", "") };
    let before = std::time::Instant::now();
    finish(&mut ready(&[]), &run);
    assert!(before.elapsed() >= Duration::from_millis(200));
}

#[test]
fn several_pictures_differ_and_repeat() {
    let bench = Bench::new();
    let mut run = bench.job("job", "a house");
    run.params.num_images = Some(3);
    let outputs = finish(&mut ready(&[]), &run).outputs;
    assert_eq!(
        outputs.iter().map(|o| o.file.as_str()).collect::<Vec<_>>(),
        ["output-0.png", "output-1.png", "output-2.png"]
    );
    assert!(outputs.iter().all(|output| (output.width, output.height) == (64, 64)));
    let pixels = outputs.iter().map(|output| {
        let path = run.work_dir.as_path().join(&output.file);
        image::open(path).expect("a picture").to_rgb8().into_raw()
    });
    assert_eq!(pixels.collect::<std::collections::BTreeSet<_>>().len(), 3);
    let again = Run { params: run.params.clone(), ..bench.job("again", "") };
    assert_eq!(finish(&mut ready(&[]), &again).outputs, outputs);
}

#[test]
fn the_command_line_makes_it_fail_before_any_job() {
    let mut worker = start(&["--fail-to-start"]);
    assert_eq!(worker.wait(PATIENCE).expect("ends").code(), Some(1));

    let ready = start(&["--wrong-protocol"]).greet(hello(), PATIENCE).expect("an answer");
    assert_ne!(ready.protocol, PROTOCOL_VERSION);

    let mut worker = start(&["--hang-at-hello"]);
    worker.send(&Request::Hello(hello())).expect("sent");
    let silence = worker.receive(Duration::from_millis(300));
    assert!(matches!(silence, Err(DriverError::Timeout(_))), "{silence:?}");
    worker.hang_up();
    worker.wait(PATIENCE).expect("ends");
}

#[test]
fn it_dies_when_idle_or_after_so_many_jobs() {
    let bench = Bench::new();
    let killed = |worker: &mut Worker| worker.wait(PATIENCE).expect("ends").signal() == Some(Signal::KILL.as_raw());
    assert!(killed(&mut ready(&["--die-idle-after-ms", "20"])));

    let mut worker = ready(&["--die-after-jobs", "2"]);
    finish(&mut worker, &bench.job("first", "a house"));
    finish(&mut worker, &bench.job("second", "a house"));
    assert!(killed(&mut worker));
}

#[test]
fn the_probe_prints_one_line_of_json() {
    let output = Command::new(env!("CARGO_BIN_EXE_atelier-fake-worker")).arg("--probe").output().expect("it runs");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(text.lines().count(), 1);
    let probe: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(probe["device"]["name"], "cpu");
}
