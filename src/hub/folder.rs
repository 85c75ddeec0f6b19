//! The hidden folder that a pull works in: one puller at a time, a note for whoever wants to know, and the step by
//! which a model becomes visible.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};

use super::{HubError, Progress, RepoId};
use crate::outbox::{create_dir_durably, sync_dir};

const PREFIX: &str = ".pull-";
const LOCK: &str = "lock";
const NOTE: &str = "progress.json";

/// How far a pull is, for other processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullNote {
    /// `ORG/NAME`.
    pub id: String,
    pub revision: String,
    #[serde(flatten)]
    pub progress: Progress,
}

/// Whether anybody works at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PullState {
    Pulling,
    /// The next pull goes on with it.
    Interrupted,
}

impl PullState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pulling => "pulling",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Held while pulling; the kernel lets go of it however that ends.
#[derive(Debug)]
pub(super) struct PullFolder {
    path: PathBuf,
    _lock: File,
}

impl PullFolder {
    pub(super) fn open(models: &Path, id: &RepoId) -> Result<Self, HubError> {
        let path = models.join(format!("{PREFIX}{}", id.flat()));
        // Whoever only looks holds the lock for an instant; whoever has finished removes the folder under our hands.
        for _ in 0..20 {
            fs::create_dir_all(path.join("files")).map_err(HubError::io(&path))?;
            let lock_path = path.join(LOCK);
            let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&lock_path);
            let mut lock = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(HubError::io(&lock_path))?,
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
                Err(TryLockError::Error(error)) => return Err(HubError::Io { path: lock_path, error }),
            }
            let is_ours = match (lock.metadata(), lock_path.metadata()) {
                (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
                (Err(_), _) | (_, Err(_)) => false,
            };
            if is_ours {
                let noted = lock.set_len(0).and_then(|()| lock.rewind());
                noted.and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(HubError::io(&lock_path))?;
                return Ok(Self { path, _lock: lock });
            }
        }
        let mut pid = String::new();
        let _ = File::open(path.join(LOCK)).and_then(|mut lock| lock.read_to_string(&mut pid));
        Err(HubError::Taken { id: id.to_string(), pid: pid.trim().to_owned() })
    }

    pub(super) fn files(&self) -> PathBuf {
        self.path.join("files")
    }

    /// For others to read; that it is not written does not matter.
    pub(super) fn note(&self, note: &PullNote) {
        let temp = self.path.join(".progress.tmp");
        let written = serde_json::to_vec(note)
            .map_err(io::Error::other)
            .and_then(|text| fs::write(&temp, text))
            .and_then(|()| fs::rename(&temp, self.path.join(NOTE)));
        if let Err(error) = written {
            tracing::debug!(%error, "a pull's progress was not noted");
        }
    }

    /// Removes what an earlier pull of another revision has left and this one has no use for.
    pub(super) fn keep_only(&self, wanted: &BTreeSet<String>) -> Result<(), HubError> {
        let files = self.files();
        for path in files_below(&files, 6) {
            let below = path.strip_prefix(&files).unwrap_or(&path).to_string_lossy().into_owned();
            let of = below.strip_suffix(".journal").unwrap_or(&below);
            let of = of.strip_suffix(".part").unwrap_or(of);
            if !wanted.contains(of) {
                fs::remove_file(&path).map_err(HubError::io(&path))?;
            }
        }
        Ok(())
    }

    /// Makes the files the model at `target`, all at once, and ends the pull.
    pub(super) fn publish(self, target: &Path) -> Result<(), HubError> {
        let io = |path: &Path| HubError::io(path);
        let parent = target.parent().unwrap_or(target);
        create_dir_durably(parent).map_err(io(parent))?;
        let files = self.files();
        sync_tree(&files, 6).map_err(io(&files))?;
        crate::failpoint::hit("hub.before_publish");
        if target.symlink_metadata().is_ok() {
            exchange(&files, target).map_err(io(target))?;
        } else {
            fs::rename(&files, target).map_err(io(target))?;
        }
        sync_dir(parent).map_err(io(parent))?;
        crate::failpoint::hit("hub.after_publish");
        // What was there before now lies where the new files were.
        fs::remove_dir_all(&self.path).map_err(io(&self.path))
    }

    /// Gives up a pull that has nothing to do.
    pub(super) fn remove(self) -> Result<(), HubError> {
        fs::remove_dir_all(&self.path).map_err(HubError::io(&self.path))
    }
}

/// The two change places in one step; where the file system cannot do that, in two.
fn exchange(files: &Path, target: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, files, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            let aside = files.with_file_name("before");
            fs::rename(target, &aside)?;
            fs::rename(files, target)
        }
        Err(error) => Err(error.into()),
    }
}

fn files_below(dir: &Path, depth: u32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() && depth > 0 => found.extend(files_below(&path, depth - 1)),
            Ok(_) | Err(_) => found.push(path),
        }
    }
    found
}

/// The names in every folder, put on the disk; the files themselves are there already.
fn sync_tree(dir: &Path, depth: u32) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && depth > 0 {
            sync_tree(&path, depth - 1)?;
        }
    }
    sync_dir(dir)
}

/// Removes what a pull that was cut short has left.
///
/// # Errors
/// Somebody pulls, or a file cannot be removed.
pub fn discard(dirs: &[PathBuf], id: &RepoId) -> Result<(), HubError> {
    for dir in dirs.iter().filter(|dir| dir.join(format!("{PREFIX}{}", id.flat())).is_dir()) {
        PullFolder::open(dir, id)?.remove()?;
    }
    Ok(())
}

/// The pulls in these models directories: those under way, in this process or another, and those that were cut short.
pub fn pulls_in(dirs: &[PathBuf]) -> Vec<(PullNote, PullState)> {
    let mut found: Vec<(PullNote, PullState)> = Vec::new();
    for dir in dirs {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(RepoId::from_flat) else {
                continue;
            };
            if let Some((note, state)) = look(&entry.path(), &id)
                && !found.iter().any(|(known, _)| known.id == note.id)
            {
                found.push((note, state));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
    found
}

fn look(folder: &Path, id: &RepoId) -> Option<(PullNote, PullState)> {
    let lock = File::open(folder.join(LOCK)).ok()?;
    if !folder.join("files").is_dir() {
        // Published; only the removal of this folder is missing, and the next pull makes up for it.
        return None;
    }
    // Ours for an instant, where nobody pulls; let go of when the file is closed.
    let state = match lock.try_lock_shared() {
        Err(TryLockError::WouldBlock) => PullState::Pulling,
        Ok(()) | Err(TryLockError::Error(_)) => PullState::Interrupted,
    };
    let note = fs::read(folder.join(NOTE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let empty = || PullNote { id: id.to_string(), revision: String::new(), progress: Progress::default() };
    let note = note.filter(|note: &PullNote| note.id == id.to_string()).unwrap_or_else(empty);
    Some((note, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> RepoId {
        "org/name".parse().expect("a name")
    }

    #[test]
    fn one_pulls_and_others_see_how_far_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let dirs = [dir.path().to_owned()];
        let folder = PullFolder::open(dir.path(), &id()).expect("free");
        let error = PullFolder::open(dir.path(), &id()).expect_err("taken");
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        let progress = Progress { bytes: 1, total_bytes: 2, files: 3, total_files: 4 };
        let note = PullNote { id: "org/name".into(), revision: "main".into(), progress };
        folder.note(&note);
        assert_eq!(pulls_in(&dirs), [(note.clone(), PullState::Pulling)]);
        drop(folder);
        assert_eq!(pulls_in(&dirs), [(note, PullState::Interrupted)]);
        PullFolder::open(dir.path(), &id()).expect("free again").remove().expect("removed");
        assert_eq!(pulls_in(&dirs), []);
    }

    #[test]
    fn a_model_appears_at_once_and_takes_the_place_of_another() {
        let dir = tempfile::tempdir().expect("a folder");
        let target = dir.path().join("org/name");
        for text in ["first", "second"] {
            let folder = PullFolder::open(dir.path(), &id()).expect("free");
            fs::create_dir(folder.files().join("unet")).expect("made");
            fs::write(folder.files().join("unet/w"), text).expect("written");
            folder.publish(&target).expect("published");
            assert_eq!(fs::read_to_string(target.join("unet/w")).expect("read"), text);
            assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1, "nothing is left beside it");
        }
    }

    #[test]
    fn what_another_revision_has_left_goes() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = PullFolder::open(dir.path(), &id()).expect("free");
        for name in ["a", "b.part", "b.part.journal", "old", "old.part"] {
            fs::write(folder.files().join(name), "").expect("written");
        }
        folder.keep_only(&BTreeSet::from(["a".to_owned(), "b".to_owned()])).expect("removed");
        let left: BTreeSet<_> =
            files_below(&folder.files(), 2).iter().map(|path| path.file_name().expect("named").to_owned()).collect();
        assert_eq!(left, ["a", "b.part", "b.part.journal"].map(Into::into).into());
    }
}
