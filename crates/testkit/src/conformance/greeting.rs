//! The first frames.

use atelier_domain::{
    JobId,
    protocol::{Hello, PROTOCOL_VERSION, Request, Stop},
};

use super::{Bench, WorkerUnderTest, new_job};
use crate::driver::{DriverError, Worker};

pub fn it_answers_with_its_version_and_device(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let ready = bench.greet(&mut bench.start());
    assert_eq!(ready.protocol, PROTOCOL_VERSION);
    assert!(!ready.worker_version.is_empty());
    assert!(ready.device.name == "cpu" || ready.device.name.starts_with("cuda:"), "{:?}", ready.device);
    assert!(ready.device.threads > 0);
    assert!(ready.device.memory_bytes > 0);
    assert!(!ready.device.reason.is_empty());
}

pub fn another_version_of_the_protocol_ends_it_without_an_answer(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let hello = Hello { protocol: PROTOCOL_VERSION + 1, ..bench.hello() };
    refuses(&bench, &Request::Hello(hello));
}

pub fn a_first_frame_that_is_no_greeting_ends_it(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let job: JobId = new_job();
    refuses(&bench, &Request::Stop { job, how: Stop::Cancel });
}

fn refuses(bench: &Bench<'_>, first: &Request) {
    let mut worker = bench.start();
    worker.send(first).expect("sent before it can have ended");
    let answer = worker.receive(bench.worker.patience);
    assert!(matches!(answer, Err(DriverError::Closed)), "{answer:?}");
    let status = worker.wait(bench.worker.patience).expect("it ends");
    assert!(!status.success(), "{status} tells nobody that something is wrong");
}

pub fn a_parent_that_is_not_the_one_it_was_told_ends_it(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut command = bench.command();
    command.args(["--daemon-pid", "1"]);
    let mut worker = Worker::spawn_as_given(command).expect("it starts");
    let status = worker.wait(bench.worker.patience).expect("it ends");
    assert!(!status.success(), "{status}");
}
