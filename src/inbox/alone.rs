//! Sidecars without a picture: one whose picture is on its way, was claimed a moment ago, or will never come; or a job
//! by itself.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs::File,
    io::Read as _,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    dirs::Root,
    intake::Judge,
    ladder::{Step, Times, kind, open, wait},
    names::{self, NameKind},
    recent::Late,
    scan,
    scout::{Findings, Scout},
    settle::Waits,
    sidecar,
};

/// The names in folders that are asked about, read once for each folder.
pub(super) type Companions = HashMap<OsString, HashSet<Vec<u8>>>;

impl<J: Judge> Scout<J> {
    /// A sidecar that no ready picture has taken along.
    pub(super) fn sidecar(
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
    pub(super) fn companions(root: &Root, alone: &[OsString]) -> Companions {
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

/// The names that a sidecar of this file, or of the file that it is going to become, may have as its base.
fn bases_in(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let start = name.iter().position(|b| *b != b'.').unwrap_or(0);
    let name = &name[start..];
    let dots = name.iter().enumerate().filter(|(_, b)| **b == b'.').map(|(at, _)| &name[..at]);
    dots.chain([name])
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
