//! The front desk: what the reader thread and the working thread share.
//!
//! The reader takes requests at any time, in the middle of a step too; it knows which job runs and keeps what was
//! said about stopping it. It does no work itself.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::{Mutex, MutexGuard, PoisonError, mpsc::Sender},
};

use atelier_domain::{
    ErrorCode, ErrorInfo, JobId,
    protocol::{Decoder, Event, Request, Run, Stop, encode},
};
use tracing::{error, info, warn};

use crate::WRONG_PROTOCOL;

/// For the working thread, in the order of the requests.
pub(crate) enum Work {
    Run(Box<Run>),
    Unload(Option<String>),
    Shutdown,
}

pub(crate) struct Desk {
    writer: Mutex<UnixStream>,
    running: Mutex<Option<Running>>,
}

struct Running {
    job: JobId,
    stop: Option<Stop>,
}

impl Desk {
    pub(crate) fn new(writer: UnixStream) -> Self {
        Self { writer: Mutex::new(writer), running: Mutex::new(None) }
    }

    /// Ends the process where nobody listens any more.
    pub(crate) fn send(&self, event: &Event) {
        let frame = encode(event).expect("events are far below the limit");
        self.send_bytes(&frame);
    }

    /// Bytes that need not be a frame.
    pub(crate) fn send_bytes(&self, bytes: &[u8]) {
        if lock(&self.writer).write_all(bytes).is_err() {
            std::process::exit(0);
        }
    }

    /// What was said about stopping the running job.
    pub(crate) fn stop_asked(&self) -> Option<Stop> {
        lock(&self.running).as_ref().and_then(|running| running.stop)
    }

    /// Says how the running job ended. The desk is free before the other side can know it.
    pub(crate) fn end(&self, terminal: &Event) {
        *lock(&self.running) = None;
        self.send(terminal);
    }

    fn take(&self, job: JobId) -> bool {
        let mut running = lock(&self.running);
        let free = running.is_none();
        if free {
            *running = Some(Running { job, stop: None });
        }
        free
    }

    fn ask_to_stop(&self, job: JobId, how: Stop) {
        if let Some(running) = lock(&self.running).as_mut().filter(|running| running.job == job) {
            running.stop = Some(how);
        } else {
            info!(%job, "asked to stop a job that does not run");
        }
    }

    fn is_free(&self) -> bool {
        lock(&self.running).is_none()
    }
}

/// Reads requests to the end of the stream. Gives the exit code.
pub(crate) fn read_requests(mut socket: UnixStream, mut decoder: Decoder, desk: &Desk, work: &Sender<Work>) -> i32 {
    let mut buffer = [0; 16 << 10];
    loop {
        loop {
            match decoder.next::<Request>() {
                Ok(Some(request)) => {
                    if !take_request(request, desk, work) {
                        return i32::from(WRONG_PROTOCOL);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    error!("the daemon's stream is of no use: {error}");
                    return i32::from(WRONG_PROTOCOL);
                }
            }
        }
        match socket.read(&mut buffer) {
            Ok(0) => return 0,
            Ok(count) => decoder.push(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                error!("reading requests: {error}");
                return 1;
            }
        }
    }
}

/// False where no daemon of ours would say this.
fn take_request(request: Request, desk: &Desk, work: &Sender<Work>) -> bool {
    let work_item = match request {
        Request::Hello(_) => {
            error!("a second Hello");
            return false;
        }
        Request::Run(run) => {
            if !desk.take(run.job) {
                warn!(job = %run.job, "refused: another job runs");
                let error = ErrorInfo::new(ErrorCode::Conflict, "the worker runs another job");
                desk.send(&Event::Failed { job: run.job, error });
                return true;
            }
            Work::Run(run)
        }
        Request::Stop { job, how } => {
            desk.ask_to_stop(job, how);
            return true;
        }
        Request::Unload { model } => {
            if !desk.is_free() {
                return true;
            }
            Work::Unload(model)
        }
        Request::Shutdown => Work::Shutdown,
    };
    // Fails only where the working thread has ended, and the process with it.
    let _ = work.send(work_item);
    true
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
