//! Starts a worker the way the daemon does and talks to it, synchronously and with deadlines.
//!
//! Used by the conformance suite and by benchmarks. It judges nothing: what a worker should have answered is the
//! caller's to say.
//!
//! A worker asks the kernel to be killed when the *thread* that started it ends, so a [`Worker`] must not outlive the
//! thread that called [`Worker::spawn`].

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt as _, net::UnixStream},
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use atelier_domain::{
    JobId,
    protocol::{Decoder, Event, FrameError, Hello, Ready, Request, Run, Stop, encode},
};

/// Why no event came.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("nothing came within {0:?}")]
    Timeout(Duration),
    #[error("the worker closed its end")]
    Closed,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the worker's socket: {0}")]
    Io(#[from] io::Error),
    #[error("the worker answered {0:?}")]
    Unexpected(Box<Event>),
}

/// A running worker process and our end of its socket. Killed when dropped; its standard error is printed when the
/// test panics.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    /// `None` once hung up.
    socket: Option<UnixStream>,
    decoder: Decoder,
    stderr: File,
}

impl Worker {
    /// Starts `command` with a socket as its standard input and `--daemon-pid` of this process as its last argument.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        command.arg("--daemon-pid").arg(std::process::id().to_string());
        Self::spawn_as_given(command)
    }

    /// Starts `command` with a socket as its standard input and its arguments as they are.
    pub fn spawn_as_given(mut command: Command) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let stderr = tempfile::tempfile()?;
        let child = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(stderr.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()?;
        // The command holds the child's end of the socket: while it lives, the child's end would not be seen.
        drop(command);
        Ok(Self { child, socket: Some(ours), decoder: Decoder::default(), stderr })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn send(&mut self, request: &Request) -> Result<(), DriverError> {
        self.send_all(std::slice::from_ref(request))
    }

    /// Sends several requests in one write, so that the worker reads them at once.
    pub fn send_all(&mut self, requests: &[Request]) -> Result<(), DriverError> {
        let frames: Vec<Vec<u8>> = requests.iter().map(encode).collect::<Result<_, _>>()?;
        self.send_bytes(&frames.concat())
    }

    /// Sends bytes that need not be a frame.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), DriverError> {
        Ok(self.socket.as_mut().ok_or(DriverError::Closed)?.write_all(bytes)?)
    }

    /// The next event.
    pub fn receive(&mut self, patience: Duration) -> Result<Event, DriverError> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(event) = self.decoder.next()? {
                return Ok(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DriverError::Timeout(patience));
            }
            let socket = self.socket.as_mut().ok_or(DriverError::Closed)?;
            socket.set_read_timeout(Some(left))?;
            match socket.read(&mut buffer) {
                Ok(0) => return Err(DriverError::Closed),
                Ok(count) => self.decoder.push(&buffer[..count]),
                // A peer that ends with requests unread resets the stream.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(DriverError::Closed),
                Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// All events up to and including the first that `last` accepts. `patience` is for each of them.
    pub fn receive_until(
        &mut self,
        patience: Duration,
        mut last: impl FnMut(&Event) -> bool,
    ) -> Result<Vec<Event>, DriverError> {
        let mut events = Vec::new();
        loop {
            let event = self.receive(patience)?;
            let found = last(&event);
            events.push(event);
            if found {
                return Ok(events);
            }
        }
    }

    /// Greets the worker and waits until it is ready.
    pub fn greet(&mut self, hello: Hello, patience: Duration) -> Result<Ready, DriverError> {
        self.send(&Request::Hello(hello))?;
        let event = self.receive(patience)?;
        if let Event::Ready(ready) = event { Ok(ready) } else { Err(DriverError::Unexpected(Box::new(event))) }
    }

    /// Runs one job and gives all its events, the terminal one last.
    pub fn run(&mut self, run: &Run, patience: Duration) -> Result<Vec<Event>, DriverError> {
        self.send(&Request::Run(Box::new(run.clone())))?;
        self.receive_to_end(run.job, patience)
    }

    /// The events up to the one that ends `job`.
    pub fn receive_to_end(&mut self, job: JobId, patience: Duration) -> Result<Vec<Event>, DriverError> {
        self.receive_until(patience, |event| ended_job(event) == Some(job))
    }

    pub fn stop(&mut self, job: JobId, how: Stop) -> Result<(), DriverError> {
        self.send(&Request::Stop { job, how })
    }

    /// Closes our end.
    pub fn hang_up(&mut self) {
        self.socket = None;
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus, DriverError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(DriverError::Timeout(patience));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the worker has written to its standard output and error so far.
    pub fn log(&self) -> io::Result<String> {
        // Read at a position: the file's own offset is shared with the worker, which writes there.
        let mut bytes = vec![0; usize::try_from(self.stderr.metadata()?.len()).unwrap_or(0)];
        let count = self.stderr.read_at(&mut bytes, 0)?;
        bytes.truncate(count);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the worker's log ---\n{}", self.log().unwrap_or_default());
        }
    }
}

/// The job that `event` ends.
pub fn ended_job(event: &Event) -> Option<JobId> {
    match event {
        Event::Finished(finished) => Some(finished.job),
        Event::Failed { job, .. } | Event::Stopped { job, .. } => Some(*job),
        Event::Ready(_)
        | Event::Started { .. }
        | Event::Progress { .. }
        | Event::Preview { .. }
        | Event::Checkpointed { .. }
        | Event::Models { .. } => None,
    }
}
