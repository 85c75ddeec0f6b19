//! Jobs that are called off, and the worker's own soft end.

use atelier_domain::protocol::{Event, Request, Stop};

use super::{Bench, WorkerUnderTest, check_events, finished, new_job, output_bytes, output_like, step_done};

pub fn a_job_cancelled_at_once_never_gets_beyond_its_first_step(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let run = bench.long("job");
    // In one write, so that the wish to stop is there before the first step.
    let requests = [Request::Run(Box::new(run.clone())), Request::Stop { job: run.job, how: Stop::Cancel }];
    process.send_all(&requests).expect("the worker takes requests");
    let events = process.receive_to_end(run.job, worker.patience).expect("a terminal event");
    check_events(&run, &events);
    match events.last() {
        Some(Event::Stopped { how: Stop::Cancel, step, .. }) => assert!(*step <= 1, "stopped at step {step}"),
        other => panic!("cancelled, it answered {other:?}"),
    }
    assert!(events.iter().filter_map(step_done).all(|step| step <= 1));
    assert_eq!(output_like(&run), Vec::<&str>::new());
}

pub fn a_job_cancelled_on_the_way_is_stopped_and_the_worker_lives_on(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let run = bench.long("cancelled");
    let seen = bench.run_into_the_middle(&mut process, &run);
    process.stop(run.job, Stop::Cancel).expect("the worker takes requests");
    let events = process.receive_to_end(run.job, worker.patience).expect("a terminal event");
    match events.last() {
        Some(Event::Stopped { how: Stop::Cancel, step, .. }) => assert!(*step >= seen, "{step} after {seen}"),
        other => panic!("cancelled, it answered {other:?}"),
    }
    assert_eq!(output_like(&run), Vec::<&str>::new());
    let next = bench.short("next");
    output_bytes(&next, &bench.finish(&mut process, &next));
}

pub fn a_stop_for_another_job_changes_nothing(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    process.stop(new_job(), Stop::Cancel).expect("the worker takes requests");
    let first = bench.short("first");
    bench.finish(&mut process, &first);
    // A stop that comes too late, as it does when the job ends while the daemon writes it.
    process.stop(first.job, Stop::Checkpoint).expect("the worker takes requests");
    let long = bench.long("long");
    bench.run_into_the_middle(&mut process, &long);
    process.stop(first.job, Stop::Cancel).expect("the worker takes requests");
    let events = process.receive_to_end(long.job, worker.patience).expect("a terminal event");
    output_bytes(&long, &finished(events));
}

pub fn shutdown_waits_for_the_running_job(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let run = bench.short("job");
    process.send_all(&[Request::Run(Box::new(run.clone())), Request::Shutdown]).expect("the worker takes requests");
    let events = process.receive_to_end(run.job, worker.patience).expect("a terminal event");
    output_bytes(&run, &finished(events));
    let status = process.wait(worker.patience).expect("it ends");
    assert!(status.success(), "{status}");
}
