//! Jobs that run from beginning to end.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use atelier_domain::{
    ErrorCode, OutputFormat,
    protocol::{Event, ModelRef, OutputSpec, Request, Run},
};

use super::{Bench, WorkerUnderTest, finished, names, output_bytes, step_done};
use crate::driver::{Worker, ended_job};

pub fn a_job_starts_once_rises_and_ends_exactly_once(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let run = bench.short("job");
    let events = bench.events(&mut process, &run);
    let starts = events.iter().filter(|event| matches!(event, Event::Started { resumed_from_step: None, .. })).count();
    assert_eq!(starts, 1);
    let steps: Vec<(u32, u32)> = events
        .iter()
        .filter_map(|event| match event {
            Event::Progress { phase, step, steps, .. } if phase == "run" => Some((*step, *steps)),
            _ => None,
        })
        .collect();
    let (first, last) = (steps.first().expect("progress"), steps.last().expect("progress"));
    assert!(first.0 <= 1, "the first step told is {first:?}");
    assert_eq!(last.0, last.1, "the last step told");
    assert!(steps.iter().all(|(_, all)| *all == last.1), "the number of steps changes: {steps:?}");
    assert!(events.iter().any(|event| matches!(event, Event::Progress { phase, .. } if phase == "encode")));
    assert_eq!(finished(events).model, worker.model.id);

    // Nothing more is said of it: the next thing heard is the answer to the next request.
    process.send(&Request::Unload { model: None }).expect("the worker takes requests");
    let next = process.receive(worker.patience).expect("an answer");
    assert!(matches!(next, Event::Models { .. }), "{next:?}");
}

pub fn outputs_are_whole_and_lie_in_the_jobs_folder(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    // With checkpoints on the way, so that there is something to clear away.
    let run = Run { checkpoint_interval_ms: 1, ..bench.short("job") };
    let finished = bench.finish(&mut bench.ready(), &run);
    assert_eq!(finished.outputs.len(), 1);
    output_bytes(&run, &finished);
    let output = &finished.outputs[0];
    let size = (worker.short.width * worker.scale, worker.short.height * worker.scale);
    assert_eq!((output.width, output.height), size);
    assert!(finished.manifest.is_object(), "{}", finished.manifest);
    for name in names(&run) {
        let known = name == OsStr::new(&output.file) || name == "finished.json";
        assert!(known, "{} is left behind", name.display());
    }
}

pub fn two_jobs_in_a_row_give_the_same_bytes_for_the_same_work(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let bytes = ["first", "second"].map(|name| {
        let run = bench.short(name);
        output_bytes(&run, &bench.finish(&mut process, &run))
    });
    assert!(bytes[0] == bytes[1], "the same work gave other bytes");
}

pub fn the_picture_of_a_job_does_not_depend_on_the_job_before(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let alone = bench.short("alone");
    let alone = output_bytes(&alone, &bench.finish(&mut bench.ready(), &alone));
    let mut process = bench.ready();
    let mut other = bench.short("other");
    other.params = worker.other_params.clone();
    bench.finish(&mut process, &other);
    let after = bench.short("after");
    let after = output_bytes(&after, &bench.finish(&mut process, &after));
    assert!(alone == after, "the job before changed the bytes");
}

pub fn every_output_format_is_what_it_says(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    for format in [OutputFormat::Png, OutputFormat::Jpeg, OutputFormat::Webp] {
        let mut run = bench.short(format.extension());
        run.output = OutputSpec { format, ..run.output };
        let bytes = output_bytes(&run, &bench.finish(&mut process, &run));
        let found = image::guess_format(&bytes).expect("a known format").to_mime_type();
        assert_eq!(found, format.media_type());
    }
}

pub fn a_second_job_is_refused_while_one_runs(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let (first, second) = (bench.long("first"), bench.short("second"));
    bench.run_into_the_middle(&mut process, &first);
    process.send(&Request::Run(Box::new(second.clone()))).expect("the worker takes requests");
    let mut refusal = None;
    let events = process.receive_until(worker.patience, |event| match event {
        Event::Failed { job, error } if *job == second.job => {
            assert!(refusal.replace(error.code).is_none(), "refused twice");
            false
        }
        _ => ended_job(event) == Some(first.job),
    });
    let events = events.expect("the first goes on");
    assert_eq!(refusal, Some(ErrorCode::Conflict));
    output_bytes(&first, &finished(events));
    assert_eq!(names(&second), Vec::<&str>::new(), "the refused job left files");
    output_bytes(&second, &bench.finish(&mut process, &second));
}

pub fn unload_drops_the_model_and_says_so(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let loaded_by = |events: &[Event]| {
        events.iter().rev().find_map(|event| match event {
            Event::Models { loaded } => Some(loaded.clone()),
            _ => None,
        })
    };
    let first = bench.short("first");
    let loaded = loaded_by(&bench.events(&mut process, &first)).expect("loading is told");
    assert_eq!(loaded.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), [worker.model.id.as_str()]);
    assert!(loaded[0].bytes > 0);
    let unload = |process: &mut Worker, model: Option<&str>| {
        process.send(&Request::Unload { model: model.map(Into::into) }).expect("the worker takes requests");
        match process.receive(worker.patience).expect("an answer") {
            Event::Models { loaded } => loaded,
            other => panic!("asked to unload, it answered {other:?}"),
        }
    };
    assert_eq!(unload(&mut process, Some("no-such-model")), loaded);
    assert_eq!(unload(&mut process, Some(&worker.model.id)), []);
    let second = bench.short("second");
    assert_eq!(loaded_by(&bench.events(&mut process, &second)).expect("loading again is told").len(), 1);
    assert_eq!(unload(&mut process, None), []);
    assert_eq!(unload(&mut process, None), []);
}

pub fn paths_need_not_be_utf_8(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let run = bench.short(OsStr::from_bytes(b"caf\xE9 \n \xFF"));
    assert!(run.work_dir.as_path().to_str().is_none());
    assert!(run.inputs[0].as_path().to_str().is_none());
    output_bytes(&run, &bench.finish(&mut bench.ready(), &run));
}

pub fn a_model_that_is_not_there_fails_the_job_only(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let mut run = bench.short("none");
    run.models.clear();
    run.model_given = false;
    let missing = ModelRef { path: bench.root.path().join("nowhere").into(), ..worker.model.clone() };
    for (run, expected) in [
        (run, ErrorCode::UnknownModel),
        (Run { models: vec![missing], ..bench.short("missing") }, ErrorCode::ModelIncomplete),
    ] {
        let events = bench.events(&mut process, &run);
        match events.last() {
            Some(Event::Failed { error, .. }) => assert_eq!(error.code, expected, "{error}"),
            other => panic!("{expected} was to come, not {other:?}"),
        }
        assert!(!events.iter().any(|event| step_done(event).is_some()));
    }
    let good = bench.short("good");
    bench.finish(&mut process, &good);
}
