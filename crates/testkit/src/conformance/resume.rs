//! Going on after an interruption: bit for bit, or from the beginning, never wrongly.

use std::{fs, path::Path};

use atelier_domain::protocol::{Event, Request, Run};

use super::{Bench, Task, WorkerUnderTest, again, finished, output_bytes, output_like, resumed_from, step_done};
use crate::pictures;

pub fn a_job_stopped_with_a_checkpoint_goes_on_bit_for_bit(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let run = bench.long("job");
    let step = bench.stop_with_checkpoint(&mut bench.ready(), &run);
    assert_eq!(output_like(&run), Vec::<&str>::new());
    let events = bench.events(&mut bench.ready(), &run);
    assert_eq!(resumed_from(&events), Some(step));
    assert!(events.iter().filter_map(step_done).all(|told| told >= step), "progress fell back below step {step}");
    assert_same_bytes(&output_bytes(&run, &finished(events)), &bench.undisturbed(&worker.long));
}

pub fn a_killed_job_goes_on_bit_for_bit(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let run = Run { checkpoint_interval_ms: 1, ..bench.long("job") };
    let step = kill_after_a_checkpoint(&bench, &run);
    let events = bench.events(&mut bench.ready(), &again(&run));
    let resumed = resumed_from(&events);
    assert!(resumed.is_some_and(|resumed| resumed >= step), "{resumed:?}, though step {step} was durable");
    assert_same_bytes(&output_bytes(&run, &finished(events)), &bench.undisturbed(&worker.long));
}

/// Kills the worker as soon as it has told of a checkpoint, and gives the step of that.
fn kill_after_a_checkpoint(bench: &Bench<'_>, run: &Run) -> u32 {
    let mut process = bench.ready();
    process.send(&Request::Run(Box::new(run.clone()))).expect("the worker takes requests");
    let events = process
        .receive_until(bench.worker.patience, |event| {
            assert_ne!(crate::driver::ended_job(event), Some(run.job), "the job is too short to be killed");
            matches!(event, Event::Checkpointed { step, .. } if *step > 0)
        })
        .expect("a checkpoint");
    process.kill().expect("killed");
    match events.last() {
        Some(Event::Checkpointed { step, .. }) => *step,
        other => panic!("{other:?}"),
    }
}

pub fn a_job_goes_on_twice_bit_for_bit(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let run = Run { checkpoint_interval_ms: 1, ..bench.long("job") };
    let first = kill_after_a_checkpoint(&bench, &run);
    let second = kill_after_a_checkpoint(&bench, &again(&run));
    assert!(second > first, "it came no further: {first}, then {second}");
    let events = bench.events(&mut bench.ready(), &again(&again(&run)));
    assert!(resumed_from(&events).is_some_and(|resumed| resumed >= second));
    assert_same_bytes(&output_bytes(&run, &finished(events)), &bench.undisturbed(&worker.long));
}

pub fn a_checkpoint_of_other_parameters_is_left_aside(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let run = bench.long("job");
    bench.stop_with_checkpoint(&mut bench.ready(), &run);
    let other = Run { params: worker.other_params.clone(), ..run };
    let events = bench.events(&mut bench.ready(), &other);
    assert_eq!(resumed_from(&events), None);
    let task = Task { params: worker.other_params.clone(), ..worker.long.clone() };
    assert_same_bytes(&output_bytes(&other, &finished(events)), &bench.undisturbed(&task));
}

pub fn a_checkpoint_of_another_picture_is_left_aside(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let run = bench.long("job");
    bench.stop_with_checkpoint(&mut bench.ready(), &run);
    // Same name, same size in pixels, another content.
    let other = pictures::png(&pictures::photo_like(worker.long.width, worker.long.height, 2));
    fs::write(run.inputs[0].as_path(), &other).expect("written");
    let events = bench.events(&mut bench.ready(), &run);
    assert_eq!(resumed_from(&events), None);
    let bytes = output_bytes(&run, &finished(events));
    let fresh = bench.long("fresh");
    fs::write(fresh.inputs[0].as_path(), &other).expect("written");
    assert_same_bytes(&bytes, &output_bytes(&fresh, &bench.finish(&mut bench.ready(), &fresh)));
}

pub fn a_checkpoint_that_is_rubbish_is_left_aside(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let run = bench.long("job");
    bench.stop_with_checkpoint(&mut bench.ready(), &run);
    let checkpoint = run.work_dir.as_path().join("checkpoint.json");
    let whole = fs::read(&checkpoint).expect("the checkpoint is a file of this name");
    fs::write(&checkpoint, &whole[..whole.len() / 2]).expect("written");
    let events = bench.events(&mut bench.ready(), &run);
    assert_eq!(resumed_from(&events), None);
    assert_same_bytes(&output_bytes(&run, &finished(events)), &bench.undisturbed(&worker.long));
}

pub fn finished_work_is_answered_at_once(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let run = bench.short("job");
    let first = bench.finish(&mut bench.ready(), &run);
    let written = modified(&run, &first.outputs[0].file);
    let events = bench.events(&mut bench.ready(), &again(&run));
    assert!(!events.iter().any(|event| step_done(event).is_some()), "it was computed again: {events:?}");
    let second = finished(events);
    assert_eq!(second, first);
    output_bytes(&run, &second);
    assert_eq!(modified(&run, &second.outputs[0].file), written, "the file was written again");
}

fn modified(run: &Run, file: impl AsRef<Path>) -> std::time::SystemTime {
    let metadata = fs::metadata(run.work_dir.as_path().join(file)).expect("the output is there");
    metadata.modified().expect("every Linux file system has it")
}

pub fn finished_work_of_other_parameters_is_done_anew(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let run = bench.short("job");
    let first = output_bytes(&run, &bench.finish(&mut process, &run));
    let other = Run { params: worker.other_params.clone(), ..run };
    let second = output_bytes(&other, &bench.finish(&mut process, &other));
    assert!(first != second, "other parameters gave the old file");
    let fresh = Run { params: worker.other_params.clone(), ..bench.short("fresh") };
    assert_same_bytes(&second, &output_bytes(&fresh, &bench.finish(&mut process, &fresh)));
}

pub fn finished_work_whose_file_was_damaged_is_done_anew(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let run = bench.short("job");
    let first = bench.finish(&mut process, &run);
    let bytes = output_bytes(&run, &first);
    let output = run.work_dir.as_path().join(&first.outputs[0].file);
    fs::write(&output, &bytes[..bytes.len() / 2]).expect("written");
    let second = bench.finish(&mut process, &run);
    assert_same_bytes(&output_bytes(&run, &second), &bytes);
    fs::remove_file(&output).expect("removed");
    let third = bench.finish(&mut process, &run);
    assert_same_bytes(&output_bytes(&run, &third), &bytes);
}

/// Without printing megabytes where they differ.
#[track_caller]
fn assert_same_bytes(left: &[u8], right: &[u8]) {
    let differing = left.iter().zip(right).position(|(a, b)| a != b);
    assert!(left == right, "{} and {} bytes, the first difference at {differing:?}", left.len(), right.len());
}
