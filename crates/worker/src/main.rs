//! The worker's process: told by the daemon what to do, over the socket that is its standard input.

use std::{
    io::{IsTerminal as _, stdin},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
};

use atelier_worker::{
    device::{self, Wish},
    session, sys,
};
use clap::Parser;
use rustix::net::sockopt::socket_type;

/// Atelier's worker. `atelier serve` starts it; there is nothing to start by hand but --probe.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The process that must be the parent; without it the worker ends.
    #[arg(long, value_name = "N")]
    daemon_pid: Option<i32>,
    /// Print libtorch's version and the device as one line of JSON, and end.
    #[arg(long)]
    probe: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match sys::die_with(args.daemon_pid) {
        Ok(true) => {}
        Ok(false) => {
            eprintln!("atelier-worker: the daemon that started it has gone");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("atelier-worker: it cannot be tied to the daemon's life: {error}");
            return ExitCode::FAILURE;
        }
    }
    if args.probe {
        return probe();
    }
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .init();
    // The message reaches the daemon's log through the job that panicked.
    std::panic::set_hook(Box::new(|info| tracing::error!(error = %info, "panic")));
    sys::ignore_interrupts();
    sys::keep_freed_memory();
    let Some(stream) = daemon_socket() else {
        eprintln!(
            "atelier-worker: standard input is no socket. `atelier serve` starts this program; see also --probe."
        );
        return ExitCode::from(2);
    };
    match session::serve(stream) {
        // Not by returning from main: libtorch's destructors have nothing to save and may not end.
        Ok(()) => sys::exit_at_once(0),
        Err(error) => {
            tracing::error!(%error, "the worker ends");
            sys::exit_at_once(error.exit_code());
        }
    }
}

/// Standard input, as the daemon sets it up.
fn daemon_socket() -> Option<UnixStream> {
    let input = stdin();
    if input.is_terminal() || socket_type(input.as_fd()).is_err() {
        return None;
    }
    let descriptor: OwnedFd = input.as_fd().try_clone_to_owned().ok()?;
    Some(UnixStream::from(descriptor))
}

#[expect(clippy::print_stdout, reason = "what this is for")]
fn probe() -> ExitCode {
    match device::choose(Wish::Auto, 0) {
        Ok(chosen) => {
            println!("{}", device::probe(&chosen));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("atelier-worker: {error}");
            ExitCode::FAILURE
        }
    }
}
