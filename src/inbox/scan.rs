//! Walks the inbox and says what lies there: names and kinds, streamed, nothing kept.
//!
//! Asks for no file's status: what it costs is one entry of a directory per file, however many wait. Which of them to
//! look at is for [`super::settle`] to say.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use rustix::{
    fs::{FileType, RawDir},
    io::Errno,
};

use super::{
    dirs::{self, Fingerprint, Root},
    ignore::Ignore,
    names,
};

/// Folders below folders, this deep.
const MAX_DEPTH: usize = 16;
/// Directories in one inbox; more are reported, so that a loop of bind mounts ends.
pub const MAX_FOLDERS: usize = 8192;
const BUFFER_BYTES: usize = 64 << 10;

/// What the walk comes by. Paths are relative to the inbox.
pub trait Visitor {
    /// A folder, before anything in it is read.
    fn folder(&mut self, rel: &OsStr);
    fn file(&mut self, rel: &OsStr);
    /// What is neither file nor folder.
    fn special(&mut self, rel: &OsStr, kind: FileType);
    /// A folder that cannot be read, or must not be entered.
    fn trouble(&mut self, rel: &OsStr, trouble: Trouble);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Unreadable(Errno),
    TooDeep,
    TooMany,
    /// Another file system is mounted there, so nothing in it can be claimed by a rename.
    OtherFileSystem,
}

/// Walks all folders of `root` but `done/`, `failed/` and `.processing/`.
///
/// # Errors
/// The inbox itself cannot be read.
pub fn walk(root: &Root, ignore: &Ignore, visitor: &mut impl Visitor) -> Result<(), Errno> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
    let mut folders = 1;
    while let Some(folder) = waiting.pop() {
        let rel = OsStr::from_bytes(&folder);
        visitor.folder(rel);
        let mut subfolders = Vec::new();
        if let Err(error) = list(root, &folder, ignore, &mut buffer, &mut subfolders, visitor) {
            match error {
                error if folder.is_empty() => return Err(error),
                Errno::NOENT => {}
                Errno::XDEV => visitor.trouble(rel, Trouble::OtherFileSystem),
                error => visitor.trouble(rel, Trouble::Unreadable(error)),
            }
        }
        for subfolder in subfolders {
            if Path::new(OsStr::from_bytes(&subfolder)).components().count() > MAX_DEPTH {
                visitor.trouble(OsStr::from_bytes(&subfolder), Trouble::TooDeep);
            } else if folders >= MAX_FOLDERS {
                visitor.trouble(OsStr::from_bytes(&subfolder), Trouble::TooMany);
                break;
            } else {
                folders += 1;
                waiting.push(subfolder);
            }
        }
    }
    Ok(())
}

fn list(
    root: &Root,
    folder: &[u8],
    ignore: &Ignore,
    buffer: &mut Vec<u8>,
    subfolders: &mut Vec<Vec<u8>>,
    visitor: &mut impl Visitor,
) -> Result<(), Errno> {
    let dir = root.folder(Path::new(OsStr::from_bytes(folder)))?;
    if Fingerprint::of(&rustix::fs::fstat(&dir)?).id.dev != root.id.dev {
        return Err(Errno::XDEV);
    }
    let mut rel = folder.to_vec();
    if !rel.is_empty() {
        rel.push(b'/');
    }
    let prefix = rel.len();
    entries(dir.as_fd(), buffer, |name, kind| {
        if ignore.skips(name) {
            return;
        }
        let own = folder.is_empty() && (name == names::DONE.as_bytes() || name == names::FAILED.as_bytes());
        rel.truncate(prefix);
        rel.extend_from_slice(name);
        match kind_of(dir.as_fd(), name, kind) {
            // Gone again.
            None => {}
            Some(FileType::Directory) if own || subfolders.len() > MAX_FOLDERS => {}
            Some(FileType::Directory) => subfolders.push(rel.clone()),
            Some(FileType::RegularFile) => visitor.file(OsStr::from_bytes(&rel)),
            Some(other) => visitor.special(OsStr::from_bytes(&rel), other),
        }
    })
}

fn kind_of(dir: BorrowedFd<'_>, name: &[u8], kind: FileType) -> Option<FileType> {
    // Some file systems do not say in the directory what an entry is.
    if kind != FileType::Unknown {
        return Some(kind);
    }
    let stat = dirs::stat(dir, OsStr::from_bytes(name)).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}

/// Every entry of one directory but `.` and `..`, as it is read.
pub fn entries(dir: BorrowedFd<'_>, buffer: &mut Vec<u8>, mut each: impl FnMut(&[u8], FileType)) -> Result<(), Errno> {
    buffer.clear();
    buffer.reserve(BUFFER_BYTES);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name, entry.file_type());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        ffi::OsString,
        fs,
        os::unix::{ffi::OsStringExt as _, fs::symlink},
    };

    use super::*;

    #[derive(Default)]
    struct Seen {
        folders: BTreeSet<OsString>,
        files: BTreeSet<OsString>,
        special: BTreeSet<OsString>,
        trouble: Vec<(OsString, Trouble)>,
    }

    impl Visitor for Seen {
        fn folder(&mut self, rel: &OsStr) {
            assert!(self.folders.insert(rel.to_owned()), "{rel:?} twice");
        }
        fn file(&mut self, rel: &OsStr) {
            let (folder, _) = names::split(rel);
            assert!(self.folders.contains(folder.as_os_str()), "a folder is watched before it is read");
            assert!(self.files.insert(rel.to_owned()), "{rel:?} twice");
        }
        fn special(&mut self, rel: &OsStr, _: FileType) {
            self.special.insert(rel.to_owned());
        }
        fn trouble(&mut self, rel: &OsStr, trouble: Trouble) {
            self.trouble.push((rel.to_owned(), trouble));
        }
    }

    fn walked(path: &Path) -> Seen {
        let mut seen = Seen::default();
        walk(&Root::open(path).expect("opens"), &Ignore::new(&[]), &mut seen).expect("walks");
        seen
    }

    #[test]
    fn files_of_all_folders_are_found_but_not_those_of_our_own() {
        let temp = tempfile::tempdir().expect("a folder");
        let at = |rel: &str| temp.path().join(rel);
        for folder in ["done", "failed", ".processing", "a/b", "a/done", ".git", "@eaDir"] {
            fs::create_dir_all(at(folder)).expect("made");
            fs::write(at(folder).join("x.jpg"), "").expect("written");
        }
        fs::write(at("y.jpg"), "").expect("written");
        fs::write(at("y.jpg.part"), "").expect("written");
        let odd = OsString::from_vec(b"\xffodd.jpg".to_vec());
        fs::write(temp.path().join(&odd), "").expect("written");
        let seen = walked(temp.path());
        let expected = ["a/b/x.jpg", "a/done/x.jpg", "y.jpg"].map(OsString::from).into_iter().chain([odd]);
        assert_eq!(seen.files, expected.collect());
        assert_eq!(seen.folders, ["", "a", "a/b", "a/done"].map(OsString::from).into());
        assert!(seen.trouble.is_empty());
    }

    #[test]
    fn links_are_named_and_never_followed() {
        let temp = tempfile::tempdir().expect("a folder");
        fs::create_dir(temp.path().join("real")).expect("made");
        fs::write(temp.path().join("real/x.jpg"), "").expect("written");
        symlink("real", temp.path().join("folder")).expect("linked");
        symlink("real/x.jpg", temp.path().join("file.jpg")).expect("linked");
        symlink("..", temp.path().join("real/loop")).expect("linked");
        let seen = walked(temp.path());
        assert_eq!(seen.files, ["real/x.jpg".into()].into());
        assert_eq!(seen.special, ["folder", "file.jpg", "real/loop"].map(OsString::from).into());
    }

    #[test]
    fn folders_deeper_than_the_limit_are_reported() {
        let temp = tempfile::tempdir().expect("a folder");
        let deep: std::path::PathBuf = (0..20).map(|n| n.to_string()).collect();
        fs::create_dir_all(temp.path().join(deep)).expect("made");
        let seen = walked(temp.path());
        assert_eq!(seen.folders.len(), 1 + MAX_DEPTH);
        assert_eq!(seen.trouble.len(), 1);
        assert_eq!(seen.trouble[0].1, Trouble::TooDeep);
    }

    #[test]
    fn a_directory_larger_than_the_buffer_is_read_to_its_end() {
        let temp = tempfile::tempdir().expect("a folder");
        for n in 0..3000 {
            fs::write(temp.path().join(format!("{n:0>60}.jpg")), "").expect("written");
        }
        assert_eq!(walked(temp.path()).files.len(), 3000);
    }
}
