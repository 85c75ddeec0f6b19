//! Files that a client sends ahead of the predictions that use them: `<data>/files/<id>.<sha256>.<name>`.
//!
//! They go after a day, whether they were used or not; a prediction has a copy of its own. All that is known of a file
//! is in its name, so there is nothing to keep in step. Blocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use atelier_domain::Timestamp;
use ulid::Ulid;

use super::super::super::{intake::Received, media};

/// How long a file is kept.
pub(super) const KEPT: Duration = Duration::from_hours(24);
/// How many are kept at the same time.
pub(super) const MAX_FILES: usize = 500;

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) id: Ulid,
    pub(super) sha256: String,
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) path: PathBuf,
}

impl Stored {
    pub(super) fn created_at(&self) -> Timestamp {
        Timestamp(i64::try_from(self.id.timestamp_ms()).unwrap_or(0))
    }

    fn of(path: PathBuf) -> Option<Self> {
        let file_name = path.file_name()?.to_str()?;
        let (id, rest) = file_name.split_once('.')?;
        let (sha256, name) = rest.split_once('.')?;
        let bytes = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?.len();
        Some(Self { id: id.parse().ok()?, sha256: sha256.to_owned(), name: name.to_owned(), bytes, path })
    }
}

fn folder(data: &Path) -> PathBuf {
    data.join("files")
}

/// All files, newest first; those that are too old go.
pub(super) fn list(data: &Path) -> io::Result<Vec<Stored>> {
    let entries = match fs::read_dir(folder(data)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let oldest = Timestamp::now().plus_millis(-i64::try_from(KEPT.as_millis()).unwrap_or(0));
    let mut files = Vec::new();
    for stored in entries.filter_map(|entry| Stored::of(entry.ok()?.path())) {
        if stored.created_at() < oldest {
            // Another request may have been quicker.
            let _ = fs::remove_file(&stored.path);
        } else {
            files.push(stored);
        }
    }
    files.sort_by_key(|stored| std::cmp::Reverse(stored.id));
    Ok(files)
}

/// The file with this id. An id is compared, never made into a path.
pub(super) fn find(data: &Path, id: Ulid) -> io::Result<Option<Stored>> {
    Ok(list(data)?.into_iter().find(|stored| stored.id == id))
}

/// Keeps what was received, durably.
pub(super) fn keep(data: &Path, received: &Received, sha256: &str) -> io::Result<Stored> {
    let folder = folder(data);
    fs::create_dir_all(&folder)?;
    let id = Ulid::generate();
    let name = received.name.as_deref().map_or_else(|| "file".into(), media::file_name);
    let path = folder.join(format!("{id}.{sha256}.{name}"));
    fs::File::open(received.path())?.sync_all()?;
    fs::rename(received.path(), &path)?;
    fs::File::open(&folder)?.sync_all()?;
    Stored::of(path).ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_files_go_and_strangers_are_left_alone() {
        let data = tempfile::tempdir().expect("temp dir");
        assert_eq!(list(data.path()).expect("nothing"), []);
        fs::create_dir(folder(data.path())).expect("mkdir");
        let old = Ulid::from_parts(1_000_000, 7);
        let new = Ulid::generate();
        for name in [format!("{old}.00.a.png"), format!("{new}.11.b.c.png"), "readme.txt".into(), format!("{new}")] {
            fs::write(folder(data.path()).join(name), "12345").expect("written");
        }
        let found = list(data.path()).expect("lists");
        let [stored] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((stored.id, stored.name.as_str(), stored.bytes), (new, "b.c.png", 5));
        assert_eq!(find(data.path(), old).expect("looks"), None);
        assert_eq!(fs::read_dir(folder(data.path())).expect("dir").count(), 3, "the old one is gone");
    }
}
