//! The ladder that a file climbs until it is ready: renamed in, or left alone by all writers and standing still; its
//! sidecars complete; its content whole.
//!
//! A file that is not ready waits; only one that is wrong, or stays unfinished beyond `inbox.give_up`, is refused.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs::File,
    io::Read as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::Path,
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
    recent::Late,
    scan,
    scout::{Companions, Findings, Ready, Scout},
    settle::{Entry, Waits},
    sidecar,
};

/// So many files are judged before events are heard again.
const JUDGED_AT_ONCE: usize = 256;

/// What a step of the ladder says.
enum Step {
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
enum Held {
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
    fn fresh(&mut self, root: &Root, rel: &OsStr, now: Instant) -> Result<Entry, Step> {
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

    fn held(&self, held: Held, entry: &Entry, now: Instant) -> Step {
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
    fn step(&self) -> Duration {
        self.settings.settle.clamp(Duration::from_millis(50), Duration::from_secs(1))
    }

    fn times(&self) -> Times {
        let settings = &self.settings;
        Times { settle: settings.settle, sidecar_wait: settings.sidecar_wait, give_up: settings.give_up }
    }

    /// What a file's folder alone asks for.
    fn folder_spec(&self, rel: &OsStr) -> JobSpec {
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

    /// A sidecar that no ready picture has taken along.
    fn sidecar(
        &mut self,
        root: &Root,
        rel: &OsStr,
        companions: &Companions,
        now: Instant,
        findings: &mut Findings,
    ) -> Step {
        let entry = match self.fresh(root, rel, now) {
            Ok(entry) => entry,
            Err(step) => return step,
        };
        let Times { settle, sidecar_wait, give_up } = self.times();
        let settled = if entry.moved_in { entry.since } else { entry.since + settle };
        if now < settled {
            return wait(Waits::Settling, settled);
        }
        match self.recent.late(rel, entry.first_seen, now) {
            Late::No => {}
            Late::Later => return wait(Waits::Sidecar, now + Duration::from_millis(50)),
            Late::Recall(id) => {
                findings.recall.push(id);
                return wait(Waits::Sidecar, now + self.step());
            }
        }
        let file = match open(root, rel, &entry) {
            Ok((file, _)) => file,
            Err(held) => return self.held(held, &entry, now),
        };
        let gives_up = entry.since + give_up;
        if kind(rel) == NameKind::Prompt {
            let (until, problem) = if now < gives_up {
                (gives_up, None)
            } else {
                (now + give_up, Some("a prompt without its picture; put the picture beside it, or remove it"))
            };
            return Step::Wait { waits: Waits::Picture, until, problem };
        }
        if now < settled.max(entry.since + sidecar_wait) {
            return wait(Waits::Sidecar, entry.since + sidecar_wait);
        }
        let (folder, name) = names::split(rel);
        let with_picture = |names: &HashSet<Vec<u8>>| names.contains(names::base_of_sidecar(name.as_bytes()));
        if companions.get(folder.as_os_str()).is_some_and(with_picture) {
            return wait(Waits::Picture, now + self.settings.rescan.min(Duration::from_secs(5)));
        }
        self.job_by_itself(rel, &file, now, gives_up)
    }

    /// A `.toml` or `.json` without a picture.
    fn job_by_itself(&mut self, rel: &OsStr, file: &File, now: Instant, gives_up: Instant) -> Step {
        let name = names::split(rel).1;
        let mut text = Vec::new();
        if let Err(error) = file.take(sidecar::MAX_BYTES + 1).read_to_end(&mut text) {
            return Step::Trouble(format!("cannot be read: {error}"));
        }
        let spec = match sidecar::parse(name, &text) {
            Ok(spec) => spec.over(self.folder_spec(rel)),
            Err(error) => return Step::Refuse(error, Vec::new()),
        };
        let Err(error) = self.judge.check(&spec, 0) else { return Step::Ready(Vec::new()) };
        // It would do with a picture, so that is what it waits for.
        if now < gives_up && self.judge.check(&spec, 1).is_ok() {
            return wait(Waits::Picture, gives_up);
        }
        Step::Refuse(sidecar::refused(name, &text, &error), Vec::new())
    }

    /// Of the pictures that the sidecars `alone` could belong to, those whose file, or the beginning of it under a
    /// temporary name, is there: by name or stem. Each folder is read once, and only what was asked for is kept.
    fn companions(root: &Root, alone: &[OsString]) -> Companions {
        let mut wanted = Companions::new();
        for rel in alone.iter().filter(|rel| kind(rel) == NameKind::Spec) {
            let (folder, name) = names::split(rel);
            let base = names::base_of_sidecar(name.as_bytes()).to_vec();
            wanted.entry(folder.as_os_str().to_owned()).or_default().insert(base);
        }
        let mut buffer = Vec::new();
        for (folder, bases) in &mut wanted {
            let mut there = HashSet::new();
            let read = root.folder(Path::new(folder)).and_then(|dir| {
                scan::entries(dir.as_fd(), &mut buffer, |name, _| {
                    if names::kind_of(name) == NameKind::Picture {
                        there.extend(bases_in(name).filter(|base| bases.contains(*base)).map(<[u8]>::to_vec));
                    }
                })
            });
            // A folder that cannot be read is no proof that the picture is missing.
            if read.is_ok() {
                *bases = there;
            }
        }
        wanted
    }
}

fn wait(waits: Waits, until: Instant) -> Step {
    Step::Wait { waits, until, problem: None }
}

struct Times {
    settle: Duration,
    sidecar_wait: Duration,
    give_up: Duration,
}

/// The names that a sidecar of this file, or of the file that it is going to become, may have as its base.
fn bases_in(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let start = name.iter().position(|b| *b != b'.').unwrap_or(0);
    let name = &name[start..];
    let dots = name.iter().enumerate().filter(|(_, b)| **b == b'.').map(|(at, _)| &name[..at]);
    dots.chain([name])
}

fn kind(rel: &OsStr) -> NameKind {
    names::kind_of(names::split(rel).1.as_bytes())
}

/// Opens a file that seems ready, and makes sure that it is the one we looked at and that nobody writes to it.
fn open(root: &Root, rel: &OsStr, entry: &Entry) -> Result<(File, Writers), Held> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_name_tells_which_picture_is_on_its_way() {
        let bases =
            |name: &'static str| bases_in(name.as_bytes()).map(|b| String::from_utf8_lossy(b)).collect::<Vec<_>>();
        assert_eq!(bases("photo.jpg"), ["photo", "photo.jpg"]);
        assert!(bases(".photo.jpg.A1b2C3").contains(&"photo.jpg".into()));
        assert!(bases("photo.jpg.part").contains(&"photo".into()));
        assert_eq!(bases("photo"), ["photo"]);
    }
}
