//! `atelier-signer`: gives finished pictures a C2PA manifest, signed with the operator's certificate.
//!
//! A program of its own, so that neither the daemon nor the worker carries C2PA's many parsers, and so that a source
//! made to break them breaks nothing but this process. It reads one request from its standard input, writes one answer
//! to its standard output (`atelier_domain::signing`), and ends. It has no network, and never writes where something
//! lies already.
//!
//! It knows nothing of queues, folders and configuration.
#![forbid(unsafe_code)]

mod credentials;
mod manifest;
mod sign;

use std::{
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

use atelier_domain::signing::{About, Answer, Refusal, Request, SIGNING_VERSION};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// No request is longer.
const MAX_REQUEST_BYTES: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let daemon = match (arguments.next().as_deref(), arguments.next()) {
        (Some("--version"), None) => {
            let _ = writeln!(io::stdout(), "atelier-signer {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        (Some("--daemon-pid"), Some(pid)) => pid.parse::<i32>().ok(),
        _ => None,
    };
    let Some(daemon) = daemon else {
        eprintln!("atelier-signer is started by `atelier`; see [provenance] in its configuration");
        return ExitCode::from(2);
    };
    if let Err(problem) = die_with(daemon).and_then(|()| serve()) {
        eprintln!("atelier-signer: {problem}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Ties this process to the one that started it: what a daemon that was killed had wanted signed, its successor wants
/// signed anew, under the same names.
fn die_with(daemon: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the call above; then this is somebody else's child by now.
    if getppid().map(Pid::as_raw_pid) == Some(daemon) {
        Ok(())
    } else {
        Err(io::Error::other("who started it has gone"))
    }
}

fn serve() -> io::Result<()> {
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_REQUEST_BYTES).read_to_end(&mut text)?;
    let request: Request = serde_json::from_slice(&text)?;
    let answer = answer(&request).unwrap_or_else(Answer::Refused);
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, &answer)?;
    output.flush()
}

fn answer(request: &Request) -> Result<Answer, Refusal> {
    if request.version != SIGNING_VERSION {
        return Err(Refusal {
            about: About::Program,
            message: format!("it speaks version {SIGNING_VERSION}, the daemon {}", request.version),
            hint: "install atelier and atelier-signer of the same version".into(),
        });
    }
    let credentials = credentials::load(&request.credentials)?;
    let Some(work) = &request.work else {
        sign::rehearse(&credentials)?;
        return Ok(Answer::Checked(credentials.certificate));
    };
    let files = sign::all(&credentials, work)?;
    Ok(Answer::Signed { certificate: credentials.certificate, files })
}
