//! One worker process: started, spoken to, killed.
//!
//! The worker asks the kernel to be killed when its parent dies, and for the kernel the parent is the *thread* that
//! forked. So all workers are started by one thread that lives as long as the daemon.

use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    time::Duration,
};

use atelier_domain::{
    ErrorCode, ErrorInfo,
    protocol::{Decoder, Event, FrameError, Hello, PROTOCOL_VERSION, Ready, Request, encode},
};
use rustix::process::{PidfdFlags, Signal};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{oneshot, watch},
    time::timeout,
};

use super::logs::{self, CurrentJob};

/// Loading libtorch takes a fifth of a second; a driver that wakes up may take many.
const READY_TIMEOUT: Duration = Duration::from_mins(2);

/// Why a worker cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("it {0}")]
    Ended(String),
    #[error("it speaks no protocol of ours: {0}")]
    Protocol(#[from] FrameError),
    #[error("its socket failed: {0}")]
    Socket(#[from] io::Error),
}

pub(super) struct Worker {
    pub(super) pid: u32,
    pub(super) ready: Ready,
    stream: UnixStream,
    decoder: Decoder,
    /// On the heap, or every future that waits for an event would hold it.
    buffer: Vec<u8>,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<ExitStatus>>,
    pub(super) current_job: CurrentJob,
}

type SpawnRequest = (Command, oneshot::Sender<io::Result<Child>>);

fn spawner() -> &'static mpsc::Sender<SpawnRequest> {
    static SPAWNER: OnceLock<mpsc::Sender<SpawnRequest>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (requests, receiver) = mpsc::channel::<SpawnRequest>();
        std::thread::Builder::new()
            .name("worker-parent".into())
            .spawn(move || {
                for (mut command, answer) in receiver {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a thread can be started");
        requests
    })
}

/// How to start a worker.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) command: Vec<OsString>,
    pub(super) hello: Hello,
}

impl Worker {
    /// Starts a worker and greets it.
    ///
    /// # Errors
    /// A program that cannot be started, ends before it is ready, or speaks another version.
    pub(super) async fn start(launch: &Launch) -> Result<Self, ErrorInfo> {
        let (program, arguments) = launch.command.split_first().ok_or_else(|| {
            ErrorInfo::new(ErrorCode::WorkerUnavailable, "worker.command is empty")
                .with_hint("name the worker's program")
        })?;
        let unavailable = |what: String| {
            ErrorInfo::new(ErrorCode::WorkerUnavailable, format!("the worker {} {what}", program.to_string_lossy()))
                .with_hint("`atelier doctor` checks the worker; its own lines are in the daemon's log")
        };
        let io_error = |error: io::Error| unavailable(format!("cannot be started: {error}"));
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(io_error)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("--daemon-pid")
            .arg(std::process::id().to_string())
            // Only the daemon speaks with systemd.
            .env_remove("NOTIFY_SOCKET")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (answer, spawned) = oneshot::channel();
        spawner().send((command, answer)).map_err(|_| unavailable("cannot be started: its thread has ended".into()))?;
        let mut child = spawned.await.map_err(|_| unavailable("cannot be started".into()))?.map_err(io_error)?;
        let pid = child.id();
        let pidfd = rustix::process::Pid::from_raw(pid.cast_signed())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|errno| io_error(errno.into()))?;

        let current_job = CurrentJob::default();
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            logs::follow(stdout.into(), "stdout", current_job.clone());
            logs::follow(stderr.into(), "stderr", current_job.clone());
        }
        let (exited, exit) = watch::channel(None);
        tokio::task::spawn_blocking(move || {
            let status = child.wait().ok();
            let _ = exited.send(status);
        });
        ours.set_nonblocking(true).map_err(io_error)?;
        let stream = UnixStream::from_std(ours).map_err(io_error)?;
        let mut worker = Self {
            pid,
            ready: Ready {
                protocol: 0,
                worker_version: String::new(),
                libtorch: None,
                device: atelier_domain::protocol::Device::default(),
            },
            stream,
            decoder: Decoder::default(),
            buffer: vec![0; 16 << 10],
            pidfd,
            exit,
            current_job,
        };
        match timeout(READY_TIMEOUT, worker.greet(launch.hello.clone())).await {
            Ok(Ok(ready)) => {
                worker.ready = ready;
                Ok(worker)
            }
            Ok(Err(error)) => {
                worker.kill();
                Err(error.unwrap_or_else(|lost| unavailable(format!("is of no use: {lost}"))))
            }
            Err(_) => {
                worker.kill();
                Err(unavailable(format!("was not ready within {} s", READY_TIMEOUT.as_secs())))
            }
        }
    }

    async fn greet(&mut self, hello: Hello) -> Result<Ready, Result<ErrorInfo, Lost>> {
        self.send(&Request::Hello(hello)).await.map_err(Err)?;
        #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else it says first, it is no worker of ours")]
        match self.receive().await.map_err(Err)? {
            Event::Ready(ready) if ready.protocol == PROTOCOL_VERSION => Ok(ready),
            Event::Ready(ready) => Err(Ok(ErrorInfo::new(
                ErrorCode::WorkerProtocol,
                format!("the worker speaks protocol {}, this daemon {PROTOCOL_VERSION}", ready.protocol),
            )
            .with_hint("install atelier and atelier-worker of the same version"))),
            other => {
                Err(Ok(ErrorInfo::new(ErrorCode::WorkerProtocol, format!("the worker's first word is {other:?}"))))
            }
        }
    }

    pub(super) async fn send(&mut self, request: &Request) -> Result<(), Lost> {
        let frame = encode(request)?;
        self.stream.write_all(&frame).await?;
        Ok(())
    }

    /// The next event. Safe to drop and call again: nothing that was read is lost.
    pub(super) async fn receive(&mut self) -> Result<Event, Lost> {
        loop {
            if let Some(event) = self.decoder.next()? {
                return Ok(event);
            }
            let n = match self.stream.read(&mut self.buffer).await {
                Ok(n) => n,
                // A worker that was killed with requests unread resets the connection.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                Err(error) => return Err(error.into()),
            };
            if n == 0 {
                return Err(Lost::Ended(self.how_it_ended().await));
            }
            self.decoder.push(&self.buffer[..n]);
        }
    }

    async fn how_it_ended(&mut self) -> String {
        use std::os::unix::process::ExitStatusExt as _;
        let ended = timeout(Duration::from_secs(2), self.exit.wait_for(Option::is_some)).await;
        let status = match ended {
            Ok(Ok(status)) => *status,
            Ok(Err(_)) | Err(_) => None,
        };
        match status {
            Some(status) => match (status.signal(), status.code()) {
                (Some(9), _) => "was killed (signal 9; the kernel does that when memory runs out)".into(),
                (Some(signal), _) => format!("was ended by signal {signal}{}", signal_name(signal)),
                (None, Some(code)) => format!("exited with code {code}"),
                (None, None) => "ended".into(),
            },
            None => "closed its socket".into(),
        }
    }

    /// Whether the process has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some() || self.exit.has_changed().is_err()
    }

    /// A receiver that tells when the process ends.
    pub(super) fn exit(&self) -> watch::Receiver<Option<ExitStatus>> {
        self.exit.clone()
    }

    /// Ends the process at once. By its pidfd, so that a recycled pid is never hit.
    pub(super) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits until the kernel has taken the process away, so that its memory is free.
    pub(super) async fn gone(&mut self) {
        let _ = timeout(Duration::from_secs(10), self.exit.wait_for(Option::is_some)).await;
    }

    /// Bytes of the worker's memory that are resident.
    pub(super) fn rss_bytes(pid: u32) -> u64 {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/statm")) else { return 0 };
        let pages: u64 = text.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        pages * rustix::param::page_size() as u64
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its stream ends a worker; one that hangs needs more than a word.
        self.kill();
    }
}

const fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        6 => " (abort)",
        7 => " (bus error)",
        8 => " (arithmetic)",
        11 => " (segmentation fault)",
        15 => " (terminated)",
        _ => "",
    }
}
