//! `atelier-fake-worker`: speaks the worker's protocol without libtorch, and misbehaves on demand.
//!
//! The daemon's tests run it in place of `atelier-worker`; the conformance suite holds both to the same behaviour.
//! It computes real files: an upscale by repeated pixels for jobs with a picture, a small pattern for those without.
//! Each step hashes the state of the step before, and the last state is written into the file, so that a job which
//! goes on from a wrong checkpoint gives other bytes.
//!
//! What goes wrong is chosen on the command line, or by the job's prompt: see [`script`].

mod desk;
mod folder;
mod job;
mod painting;
mod script;

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::ExitCode,
    sync::{Arc, mpsc::RecvTimeoutError},
    time::Duration,
};

use atelier_domain::protocol::{Decoder, Device, Event, Hello, LoadedModel, Offload, PROTOCOL_VERSION, Ready, Request};
use clap::Parser;
use rustix::process::{Resource, Rlimit, Signal, getpid, getppid, kill_process, setrlimit};
use tracing::{error, info, warn};

use crate::desk::{Desk, Work};

/// A stand-in for `atelier-worker` without libtorch, for tests. Standard input is the protocol's socket.
#[derive(Debug, Parser)]
#[command(version)]
#[expect(clippy::struct_excessive_bools, reason = "one for each switch")]
struct Args {
    /// Ends at once where this process is not the parent.
    #[arg(long)]
    daemon_pid: Option<i32>,
    /// Prints one line of JSON about the device, and ends.
    #[arg(long)]
    probe: bool,
    /// Steps of a job that does not say how many.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// How long a step takes.
    #[arg(long, default_value_t = 1)]
    step_ms: u64,
    /// Kills itself after so long without a job.
    #[arg(long)]
    die_idle_after_ms: Option<u64>,
    /// Kills itself once so many jobs have ended.
    #[arg(long)]
    die_after_jobs: Option<u32>,
    /// Answers `Hello` with a version that nobody speaks.
    #[arg(long)]
    wrong_protocol: bool,
    /// Ends with an error before it reads anything.
    #[arg(long)]
    fail_to_start: bool,
    /// Never answers `Hello`.
    #[arg(long)]
    hang_at_hello: bool,
}

/// Exit codes: 1 could not start, 3 the other side does not speak this protocol.
const WRONG_PROTOCOL: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("cannot ask to end with the parent: {error}");
        return ExitCode::FAILURE;
    }
    // Between the fork and the line above the parent may have died already.
    if let Some(pid) = args.daemon_pid
        && getppid().map(rustix::process::Pid::as_raw_pid) != Some(pid)
    {
        eprintln!("the parent is not process {pid}");
        return ExitCode::FAILURE;
    }
    // The crashes on demand must not fill the disk with core files.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    tracing_subscriber::fmt().json().flatten_event(true).with_writer(io::stderr).init();
    match serve(&args) {
        Ok(code) => code,
        Err(error) => {
            error!(%error, "the worker cannot go on");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> io::Result<ExitCode> {
    if args.probe {
        let probe = serde_json::json!({
            "worker_version": env!("CARGO_PKG_VERSION"), "libtorch": null, "device": device(&Hello {
                protocol: PROTOCOL_VERSION, device: "auto".into(), threads: 0, memory_budget: None, offload: Offload::Auto,
            }),
        });
        writeln!(io::stdout(), "{probe}")?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.fail_to_start {
        error!("told not to start");
        return Ok(ExitCode::FAILURE);
    }
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut decoder = Decoder::default();
    let hello = match first_request(&mut socket, &mut decoder)? {
        First::Hello(hello) if hello.protocol == PROTOCOL_VERSION => hello,
        First::Hello(hello) => {
            error!("the daemon speaks version {} of the protocol, this worker {PROTOCOL_VERSION}", hello.protocol);
            return Ok(ExitCode::from(WRONG_PROTOCOL));
        }
        First::HungUp => return Ok(ExitCode::SUCCESS),
        First::Rubbish(what) => {
            error!("the first frame is no Hello: {what}");
            return Ok(ExitCode::from(WRONG_PROTOCOL));
        }
    };
    if args.hang_at_hello {
        info!("told not to answer");
        io::copy(&mut socket, &mut io::sink())?;
        return Ok(ExitCode::SUCCESS);
    }
    let desk = Arc::new(Desk::new(socket.try_clone()?));
    desk.send(&Event::Ready(Ready {
        protocol: if args.wrong_protocol { u32::MAX } else { PROTOCOL_VERSION },
        worker_version: env!("CARGO_PKG_VERSION").into(),
        libtorch: None,
        device: device(&hello),
    }));
    let (inbox, work) = std::sync::mpsc::channel();
    let reader_desk = Arc::clone(&desk);
    std::thread::Builder::new().name("reader".into()).spawn(move || {
        let code = desk::read_requests(socket, decoder, &reader_desk, &inbox);
        // In the middle of a step, too: nobody is left to answer.
        std::process::exit(code);
    })?;

    let mut loaded = BTreeMap::new();
    let mut ended = 0;
    loop {
        let next = match args.die_idle_after_ms {
            Some(ms) => work.recv_timeout(Duration::from_millis(ms)),
            None => work.recv().map_err(RecvTimeoutError::from),
        };
        match next {
            Ok(Work::Run(run)) => {
                let terminal = job::run(&run, args, &desk, &mut loaded);
                desk.end(&terminal);
                ended += 1;
                if args.die_after_jobs == Some(ended) {
                    warn!("told to die after {ended} jobs");
                    kill_myself(Signal::KILL);
                }
            }
            Ok(Work::Unload(model)) => {
                match model {
                    Some(id) => drop(loaded.remove(&id)),
                    None => loaded.clear(),
                }
                desk.send(&models(&loaded));
            }
            Ok(Work::Shutdown) => return Ok(ExitCode::SUCCESS),
            Err(RecvTimeoutError::Timeout) => {
                warn!("told to die when idle");
                kill_myself(Signal::KILL);
            }
            // The reader ends the process itself.
            Err(RecvTimeoutError::Disconnected) => std::thread::park(),
        }
    }
}

enum First {
    Hello(Hello),
    HungUp,
    Rubbish(String),
}

fn first_request(socket: &mut UnixStream, decoder: &mut Decoder) -> io::Result<First> {
    let mut buffer = [0; 4096];
    loop {
        match decoder.next::<Request>() {
            Ok(Some(Request::Hello(hello))) => return Ok(First::Hello(hello)),
            Ok(Some(other)) => return Ok(First::Rubbish(format!("{other:?}"))),
            Err(error) => return Ok(First::Rubbish(error.to_string())),
            Ok(None) => {}
        }
        match socket.read(&mut buffer)? {
            0 => return Ok(First::HungUp),
            count => decoder.push(&buffer[..count]),
        }
    }
}

fn device(hello: &Hello) -> Device {
    let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    Device {
        name: "cpu".into(),
        model: "stand-in".into(),
        threads: if hello.threads == 0 { cores } else { hello.threads },
        memory_bytes: 1 << 30,
        reason: format!("{:?} was asked for; the tests' stand-in only knows the processor", hello.device),
    }
}

fn models(loaded: &BTreeMap<String, u64>) -> Event {
    Event::Models { loaded: loaded.iter().map(|(id, bytes)| LoadedModel { id: id.clone(), bytes: *bytes }).collect() }
}

/// Ends this process by `signal`.
fn kill_myself(signal: Signal) -> ! {
    loop {
        // Twice and more: Rust's own handler takes the first SIGSEGV for a stack overflow and only then lets go.
        let _ = kill_process(getpid(), signal);
        std::thread::sleep(Duration::from_millis(1));
    }
}
