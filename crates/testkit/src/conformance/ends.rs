//! Ways a worker comes to its end. It must never outlive the daemon.

use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use super::{Bench, WorkerUnderTest, output_like};
use crate::driver::{DriverError, Worker};

pub fn the_end_of_the_stream_ends_an_idle_worker(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    process.hang_up();
    process.wait(worker.patience).expect("it ends");
}

pub fn the_end_of_the_stream_ends_it_in_the_middle_of_a_job(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let run = bench.long("job");
    bench.run_into_the_middle(&mut process, &run);
    process.hang_up();
    process.wait(worker.patience).expect("it ends");
    assert_eq!(output_like(&run), Vec::<&str>::new());
}

pub fn the_death_of_its_parent_ends_it(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    // The shell is the parent; our end of the socket stays open, so that only the parent's death can end the worker.
    // A job in the background gets no standard input unless it is handed over as another descriptor.
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec 3<&0; "$@" --daemon-pid $$ <&3 3<&- & wait"#, "sh"]);
    command.arg(&worker.program).args(&worker.args);
    let mut shell = Worker::spawn_as_given(command).expect("the shell starts");
    bench.greet(&mut shell);
    let run = bench.long("job");
    bench.run_into_the_middle(&mut shell, &run);
    let shell_pid = Pid::from_raw(i32::try_from(shell.pid()).expect("process ids are small")).expect("and positive");
    kill_process(shell_pid, Signal::KILL).expect("the shell runs");
    let last = loop {
        match shell.receive(worker.patience) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    // The stream ends when nobody holds the other end any more.
    assert!(matches!(last, DriverError::Closed), "{last}");
    assert_eq!(output_like(&run), Vec::<&str>::new());
}

pub fn rubbish_ends_it(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    for rubbish in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x02\0\0\0{]", b"\x0F\0\0\0{\"type\":\"dance\"}"] {
        let mut process = bench.ready();
        process.send_bytes(rubbish).expect("the worker takes bytes");
        let answer = process.receive(worker.patience);
        assert!(matches!(answer, Err(DriverError::Closed)), "{answer:?}");
        let status = process.wait(worker.patience).expect("it ends");
        assert!(!status.success(), "{status} tells nobody that something is wrong");
    }
}

pub fn rubbish_in_the_middle_of_a_job_ends_it_without_an_output(worker: &WorkerUnderTest) {
    let bench = Bench::new(worker);
    let mut process = bench.ready();
    let run = bench.long("job");
    bench.run_into_the_middle(&mut process, &run);
    process.send_bytes(b"\xFF\xFF\xFF\xFF").expect("the worker takes bytes");
    let status = process.wait(worker.patience).expect("it ends");
    assert!(!status.success(), "{status} tells nobody that something is wrong");
    assert_eq!(output_like(&run), Vec::<&str>::new());
}
