//! One run of the signer: a request in, an answer out, within its time.
//!
//! The signer asks the kernel to be killed when its parent dies, and for the kernel the parent is the *thread* that
//! forked. That thread waits here until the signer has ended.

use std::{
    ffi::OsString,
    io::{self, Read, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use atelier_domain::signing::{About, Answer, Refusal, Request};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// No answer is longer.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// Of what it complains about, as much is kept.
const MAX_COMPLAINT_BYTES: u64 = 64 << 10;

/// Runs the signer once. Blocks for up to `patience`.
///
/// # Errors
/// It cannot be started, does not end in time, or ends without an answer; what it refuses is an answer.
pub(super) fn ask(command: &[OsString], request: &Request, patience: Duration) -> Result<Answer, Refusal> {
    let shown = shown(command);
    let [program, arguments @ ..] = command else {
        return Err(refusal("provenance.command is empty".into(), "name the signer's program"));
    };
    let started = Command::new(program)
        .args(arguments)
        .arg("--daemon-pid")
        .arg(std::process::id().to_string())
        .env_remove("NOTIFY_SOCKET")
        // A terminal's Ctrl+C is the daemon's to answer.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.map_err(|error| {
        let hint = "it is installed beside `atelier`; `make` builds it, and provenance.command names another place";
        refusal(format!("{shown} cannot be started: {error}"), hint)
    })?;
    let run = converse(&mut child, request, patience);
    let Run { status, answer, complaint } = match run {
        Ok(Some(run)) => run,
        Ok(None) => {
            let what = format!("{shown} has not ended within {} s and was killed", patience.as_secs());
            return Err(refusal(what, "is the machine busy, or the disk slow?"));
        }
        Err(error) => return Err(refusal(format!("{shown} cannot be spoken to: {error}"), "try again")),
    };
    let complaint = String::from_utf8_lossy(&complaint);
    for line in complaint.lines().filter(|line| !line.trim().is_empty()) {
        tracing::warn!("signer: {line}");
    }
    if status.success()
        && let Ok(answer) = serde_json::from_slice(&answer)
    {
        return Ok(answer);
    }
    let last = complaint.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(refusal(format!("{shown} ended with {status}: {last}"), "are atelier and atelier-signer of the same version?"))
}

/// It answered something else than it was asked.
pub(super) fn nonsense(command: &[OsString]) -> Refusal {
    let what = format!("{} answers what was not asked", shown(command));
    refusal(what, "install atelier and atelier-signer of the same version")
}

fn shown(command: &[OsString]) -> String {
    command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default()
}

fn refusal(message: String, hint: &str) -> Refusal {
    Refusal { about: About::Program, message, hint: hint.into() }
}

struct Run {
    status: ExitStatus,
    answer: Vec<u8>,
    complaint: Vec<u8>,
}

/// `None` where it took too long. The child has ended and is reaped in any case.
fn converse(child: &mut Child, request: &Request, patience: Duration) -> io::Result<Option<Run>> {
    let request = serde_json::to_vec(request)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| stdout.map(|pipe| drain(pipe, MAX_ANSWER_BYTES)).unwrap_or_default());
        let complaint = scope.spawn(|| stderr.map(|pipe| drain(pipe, MAX_COMPLAINT_BYTES)).unwrap_or_default());
        // The request fits a pipe unless it names hundreds of files; one that is not read ends with the signer.
        let asked = scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(&request)));
        let in_time = ended_within(child, patience);
        if !matches!(in_time, Ok(true)) {
            let _ = child.kill();
        }
        let status = child.wait()?;
        // A signer that ends without reading says why by its end.
        let _ = asked.join();
        let (answer, complaint) = (answer.join().unwrap_or_default(), complaint.join().unwrap_or_default());
        Ok(in_time?.then_some(Run { status, answer, complaint }))
    })
}

fn ended_within(child: &Child, patience: Duration) -> io::Result<bool> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let patience = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The first `most` bytes; the rest is read and forgotten, so that nobody waits for room in the pipe.
fn drain(mut pipe: impl Read, most: u64) -> Vec<u8> {
    let mut text = Vec::new();
    let _ = pipe.by_ref().take(most).read_to_end(&mut text);
    let _ = io::copy(&mut pipe, &mut io::sink());
    text
}

#[cfg(test)]
mod tests {
    use atelier_domain::signing::{Credentials, SIGNING_VERSION, SignatureAlgorithm};

    use super::*;

    fn run(script: &str, patience: Duration) -> Result<Answer, Refusal> {
        let credentials =
            Credentials { certificate_file: "/c".into(), key_file: "/k".into(), algorithm: SignatureAlgorithm::Es256 };
        let request = Request { version: SIGNING_VERSION, credentials, work: None };
        let command = ["/bin/sh", "-c", script, "signer"].map(OsString::from);
        ask(&command, &request, patience)
    }

    #[test]
    fn an_answer_is_taken_as_it_is() {
        let checked = r#"{"type":"checked","subject":"CN=A","issuer":"CN=B","not_after":5,"sha256":"00"}"#;
        let answer = run(&format!("grep -q es256 && echo '{checked}'"), Duration::from_mins(1)).expect("an answer");
        assert_eq!(serde_json::to_value(&answer).expect("serialises")["subject"], "CN=A");
    }

    #[test]
    fn one_that_fails_says_why() {
        let refusal = run("echo what a day >&2; exit 3", Duration::from_mins(1)).expect_err("refused");
        assert_eq!(refusal.about, About::Program);
        assert!(refusal.message.ends_with("exit status: 3: what a day"), "{}", refusal.message);
        let refusal = run("kill -9 $$", Duration::from_mins(1)).expect_err("refused");
        assert!(refusal.message.contains("SIGKILL"), "{}", refusal.message);
        let refusal = run("echo hello", Duration::from_mins(1)).expect_err("refused");
        assert!(refusal.message.contains("it said nothing"), "{}", refusal.message);
    }

    #[test]
    fn one_that_hangs_is_killed() {
        let refusal = run("exec sleep 1000", Duration::from_secs(1)).expect_err("refused");
        assert!(refusal.message.contains("was killed"), "{}", refusal.message);
    }

    #[test]
    fn one_that_is_missing_is_named() {
        let credentials =
            Credentials { certificate_file: "/c".into(), key_file: "/k".into(), algorithm: SignatureAlgorithm::Es256 };
        let request = Request { version: SIGNING_VERSION, credentials, work: None };
        let refusal = ask(&["/no/signer".into()], &request, Duration::from_secs(1)).expect_err("refused");
        assert!(refusal.message.starts_with("/no/signer cannot be started"), "{}", refusal.message);
    }
}
