//! The ladder that a file climbs until it is ready: renamed in, or left alone by all writers and standing still; its
//! sidecars complete; its content whole.
//!
//! A file that is not ready waits; only one that is wrong, or stays unfinished beyond `inbox.give_up`, is refused.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    time::{Duration, Instant},
};

use atelier_domain::{ErrorCode, ErrorInfo, JobSpec, Timestamp};
use rustix::io::Errno;

use super::{
    dirs::{self, Fingerprint, Root, is_regular},
    error_file::Failure,
    intake::Judge,
    lease::{self, Writers},
    names::{self, NameKind},
    place::{self, Bundle, Here, Target},
    scout::{Findings, Ready, Scout},
    settle::{Entry, Waits},
};

/// So many files are judged before events are heard again.
const JUDGED_AT_ONCE: usize = 256;

/// What a step of the ladder says.
pub(super) enum Step {
    /// Ready to be claimed, with these sidecars.
    Ready(Vec<OsString>),
    Wait {
        waits: Waits,
        until: Instant,
        /// What somebody should know about it.
        problem: Option<&'static str>,
    },
    /// Something that is not the file's fault, or that somebody may mend.
    Trouble(String),
    /// It will never do.
    Refuse(ErrorInfo, Vec<OsString>),
    Gone,
}

enum Sidecars {
    Ready(Vec<OsString>),
    NotYet(Instant),
}

/// Why an opened file is not to be judged yet.
pub(super) enum Held {
    Writer,
    Changed,
    Gone,
    Trouble(String),
}

impl<J: Judge> Scout<J> {
    pub(super) fn judge_due(&mut self, now: Instant, budget: usize, findings: &mut Findings) {
        let due = self.table.due(now);
        if due.is_empty() {
            return;
        }
        let Some(root) = self.root() else { return };
        let mut alone = Vec::new();
        for (judged, rel) in due.into_iter().enumerate() {
            if findings.ready.len() >= budget || judged >= JUDGED_AT_ONCE {
                findings.more = true;
                break;
            }
            if kind(&rel) != NameKind::Picture {
                alone.push(rel);
                continue;
            }
            let step = self.picture(&root, &rel, now);
            self.apply(&root, &rel, step, now, findings);
        }
        // A sidecar that goes with a picture found ready just now needs no judgement.
        let taken: HashSet<_> = findings.ready.iter().flat_map(|ready| ready.sidecars.iter().cloned()).collect();
        alone.retain(|rel| !taken.contains(rel));
        let companions = Self::companions(&root, &alone);
        for rel in alone {
            let step = self.sidecar(&root, &rel, &companions, now, findings);
            self.apply(&root, &rel, step, now, findings);
        }
    }

    fn apply(&mut self, root: &Root, rel: &OsStr, step: Step, now: Instant, findings: &mut Findings) {
        match step {
            Step::Ready(sidecars) => {
                let Some(entry) = self.table.get(rel) else { return };
                self.problems.solved(rel);
                findings.ready.push(Ready {
                    rel: rel.to_owned(),
                    kind: kind(rel),
                    print: entry.print,
                    sidecars,
                    since: entry.since,
                    sidecars_until: entry.since + self.settings.sidecar_wait,
                });
            }
            Step::Wait { waits, until, problem } => {
                match problem {
                    Some(problem) => self.problems.report(rel, problem),
                    None => self.problems.solved(rel),
                }
                self.table.update(rel, |entry| {
                    entry.waits = waits;
                    entry.look_at = until;
                    entry.troubles = 0;
                });
            }
            Step::Trouble(problem) => self.trouble(rel, problem, now),
            Step::Refuse(error, sidecars) => self.refuse(root, rel, &sidecars, error, now),
            Step::Gone => self.forget(rel),
        }
    }

    /// Moves a file that will never be a job to `failed/`.
    fn refuse(&mut self, root: &Root, rel: &OsStr, sidecars: &[OsString], error: ErrorInfo, now: Instant) {
        tracing::warn!(path = %rel.to_string_lossy(), code = %error.code, "inbox: to failed/: {error}");
        let target = Target::Failed(Failure::refused(error, Timestamp::now()));
        match place::place(root, &Bundle::new(rel, sidecars), &Here::Inbox, &target) {
            Ok(_) => {
                metrics::counter!("atelier_inbox_failed_total").increment(1);
                self.forget(rel);
                for sidecar in sidecars {
                    self.forget(sidecar);
                }
            }
            Err(error) => self.trouble(rel, format!("cannot be moved to failed/: {error}"), now),
        }
    }

    /// Takes a fresh look at a due file.
    pub(super) fn fresh(&mut self, root: &Root, rel: &OsStr, now: Instant) -> Result<Entry, Step> {
        match root.stat(rel) {
            Ok(stat) if is_regular(&stat) => {
                self.table.observe(rel, Fingerprint::of(&stat), now, false, true);
                self.table.get(rel).cloned().ok_or(Step::Gone)
            }
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Err(Step::Gone),
            Err(error) => Err(Step::Trouble(format!("cannot be looked at: {error}"))),
        }
    }

    fn picture(&mut self, root: &Root, rel: &OsStr, now: Instant) -> Step {
        let entry = match self.fresh(root, rel, now) {
            Ok(entry) => entry,
            Err(step) => return step,
        };
        let sidecars = self.sidecars(root, rel, now);
        let Times { settle, sidecar_wait, give_up } = self.times();
        let quiet = match (&sidecars, entry.moved_in) {
            (_, true) => Duration::ZERO,
            // Who writes in place waits anyway, so a sidecar has the time that it was promised.
            (Sidecars::Ready(names), false) if names.is_empty() => settle.max(sidecar_wait),
            (Sidecars::Ready(_) | Sidecars::NotYet(_), false) => settle,
        };
        if now < entry.since + quiet {
            return wait(Waits::Settling, entry.since + quiet);
        }
        let (file, writers) = match open(root, rel, &entry) {
            Ok(opened) => opened,
            Err(held) => return self.held(held, &entry, now),
        };
        let sidecars = match sidecars {
            Sidecars::Ready(sidecars) => sidecars,
            Sidecars::NotYet(until) => return wait(Waits::Sidecar, until),
        };
        let sidecars_until = entry.since + sidecar_wait;
        if sidecars.is_empty() && now < sidecars_until && self.judge.check(&self.folder_spec(rel), 1).is_err() {
            // Without a sidecar nothing can come of it.
            return wait(Waits::Sidecar, sidecars_until);
        }
        let shown = rel.to_string_lossy();
        let Err(error) = self.judge.probe(&root.path.join(rel), &shown) else { return Step::Ready(sidecars) };
        match unfinished_or_wrong(&error, &file, writers) {
            Wrong::Unfinished if now < entry.since + give_up => wait(Waits::Incomplete(error), entry.since + give_up),
            Wrong::NotItsFault => Step::Trouble(error.message),
            Wrong::Unfinished | Wrong::ForEver => Step::Refuse(error, sidecars),
        }
    }

    pub(super) fn held(&self, held: Held, entry: &Entry, now: Instant) -> Step {
        match held {
            Held::Writer => {
                let long = now >= entry.since + self.settings.give_up;
                let problem = long.then_some("a program has had it open for writing for a long time");
                Step::Wait { waits: Waits::Writer, until: now + self.step(), problem }
            }
            Held::Changed => wait(Waits::Settling, now + self.step()),
            Held::Gone => Step::Gone,
            Held::Trouble(problem) => Step::Trouble(problem),
        }
    }

    /// How long to wait before asking again what no event tells.
    pub(super) fn step(&self) -> Duration {
        self.settings.settle.clamp(Duration::from_millis(50), Duration::from_secs(1))
    }

    pub(super) fn times(&self) -> Times {
        let settings = &self.settings;
        Times { settle: settings.settle, sidecar_wait: settings.sidecar_wait, give_up: settings.give_up }
    }

    /// What a file's folder alone asks for.
    pub(super) fn folder_spec(&self, rel: &OsStr) -> JobSpec {
        let route = names::route(rel, |name| self.judge.is_preset(name));
        JobSpec { preset: route.preset, ..JobSpec::default() }
    }

    /// The sidecars beside a picture, when all of them are complete.
    fn sidecars(&mut self, root: &Root, picture: &OsStr, now: Instant) -> Sidecars {
        let mut ready = Vec::new();
        for rel in names::sidecars_of(picture) {
            let entry = match self.fresh(root, &rel, now) {
                Ok(entry) => entry,
                Err(Step::Gone) => continue,
                Err(_) => return Sidecars::NotYet(now + self.step()),
            };
            let settled = if entry.moved_in { entry.since } else { entry.since + self.settings.settle };
            if now < settled {
                return Sidecars::NotYet(settled);
            }
            match open(root, &rel, &entry) {
                Ok(_) => ready.push(rel),
                Err(Held::Gone) => {}
                Err(Held::Writer | Held::Changed) => return Sidecars::NotYet(now + self.step()),
                Err(Held::Trouble(problem)) => {
                    self.trouble(&rel, problem, now);
                    return Sidecars::NotYet(now + self.settings.settle.max(Duration::from_secs(1)));
                }
            }
        }
        Sidecars::Ready(ready)
    }
}

pub(super) fn wait(waits: Waits, until: Instant) -> Step {
    Step::Wait { waits, until, problem: None }
}

pub(super) struct Times {
    pub(super) settle: Duration,
    pub(super) sidecar_wait: Duration,
    pub(super) give_up: Duration,
}

pub(super) fn kind(rel: &OsStr) -> NameKind {
    names::kind_of(names::split(rel).1.as_bytes())
}

/// Opens a file that seems ready, and makes sure that it is the one we looked at and that nobody writes to it.
pub(super) fn open(root: &Root, rel: &OsStr, entry: &Entry) -> Result<(File, Writers), Held> {
    let (folder, name) = names::split(rel);
    let opened: Result<OwnedFd, Errno> = root.folder(folder).and_then(|dir| dirs::open_file(dir.as_fd(), name));
    let fd = opened.map_err(|error| match error {
        // LOOP: the name became a link in the meantime, which the next scan reports.
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Held::Gone,
        Errno::BUSY | Errno::TXTBSY | Errno::AGAIN => Held::Writer,
        Errno::ACCESS | Errno::PERM => {
            Held::Trouble("may not be read by the daemon; give its user the right to read it".into())
        }
        error => Held::Trouble(format!("cannot be opened: {error}")),
    })?;
    let print = rustix::fs::fstat(&fd).map(|stat| Fingerprint::of(&stat));
    if print != Ok(entry.print) {
        return Err(Held::Changed);
    }
    match lease::writers(fd.as_fd()) {
        Writers::Some => Err(Held::Writer),
        writers @ (Writers::None | Writers::Unknown) => Ok((File::from(fd), writers)),
    }
}

pub(super) enum Wrong {
    /// The beginning of something that may still become a picture.
    Unfinished,
    ForEver,
    /// The file may be fine.
    NotItsFault,
}

pub(super) fn unfinished_or_wrong(error: &ErrorInfo, file: &File, writers: Writers) -> Wrong {
    use ErrorCode as E;
    let code = error.code;
    // A writer that cannot be asked about may be at it still, and space may be set aside before it is filled.
    let perhaps = matches!(code, E::ImageCorrupt) && writers == Writers::Unknown
        || matches!(code, E::ImageCorrupt | E::ImageUnsupported) && begins_with_nothing(file);
    if perhaps || matches!(code, E::ImageTruncated | E::ImageEmpty) {
        Wrong::Unfinished
    } else if matches!(
        code,
        E::PermissionDenied | E::IoError | E::DiskFull | E::InputMissing | E::Internal | E::NotAvailable
    ) {
        Wrong::NotItsFault
    } else {
        Wrong::ForEver
    }
}

/// Whether the file begins with zeros, as one does whose space was set aside and not written yet.
fn begins_with_nothing(file: &File) -> bool {
    let mut head = [0xff; 32];
    matches!(file.read_at(&mut head, 0), Ok(read) if read > 0 && head[..read].iter().all(|b| *b == 0))
}
