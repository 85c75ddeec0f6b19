//! The inbox as open directories: every step below it goes through file descriptors and follows no symbolic link.
//!
//! Knows nothing of candidates and claims; [`super::scan`] lists, [`super::claim`] and [`super::ended`] move.

use std::{
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat},
    io::Errno,
};

use super::names;

/// Which file a name stands for, wherever it is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
}

/// What changes when somebody writes to a file or puts another in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    pub id: FileId,
    pub size: u64,
    /// Seconds and nanoseconds; compared for change, never with a clock.
    pub mtime: (i64, i64),
    pub ctime: (i64, i64),
}

impl Fingerprint {
    pub fn of(stat: &Stat) -> Self {
        Self {
            id: FileId { dev: stat.st_dev, ino: stat.st_ino },
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            ctime: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
        }
    }

    /// The same content as far as can be seen; a rename moves only the ctime.
    pub fn same_content(&self, other: &Self) -> bool {
        self.id == other.id && self.size == other.size && self.mtime == other.mtime
    }
}

/// The opened inbox with its three folders.
#[derive(Debug)]
pub struct Root {
    pub fd: OwnedFd,
    pub id: FileId,
    pub path: PathBuf,
}

impl Root {
    /// Opens the inbox and makes `done/`, `failed/` and `.processing/` where they are missing.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let fd = rustix::fs::open(path, DIR_FLAGS.difference(OFlags::NOFOLLOW), Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        let root = Self { fd, id: Fingerprint::of(&stat).id, path: path.to_owned() };
        for (name, mode) in [(names::DONE, 0o777), (names::FAILED, 0o777), (names::PROCESSING, 0o700)] {
            // Others may drop files and fetch results; what is claimed is nobody else's to change.
            make_dir(root.fd.as_fd(), OsStr::new(name), mode)?;
        }
        Ok(root)
    }

    /// Whether the configured path still leads to this very directory: not after it was replaced or unmounted.
    pub fn is_current(&self) -> bool {
        rustix::fs::stat(&self.path).is_ok_and(|stat| Fingerprint::of(&stat).id == self.id)
    }

    pub fn processing(&self) -> Result<OwnedFd, Errno> {
        open_dir(self.fd.as_fd(), OsStr::new(names::PROCESSING))
    }

    /// A folder below the inbox, none of its parts a symbolic link.
    pub fn folder(&self, rel: &Path) -> Result<OwnedFd, Errno> {
        self.descend(rel, open_dir)
    }

    /// The same, made where it is missing.
    pub fn make_folder(&self, rel: &Path) -> Result<OwnedFd, Errno> {
        self.descend(rel, |dir, name| {
            make_dir(dir, name, 0o777)?;
            open_dir(dir, name)
        })
    }

    fn descend(
        &self,
        rel: &Path,
        step: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<OwnedFd, Errno>,
    ) -> Result<OwnedFd, Errno> {
        let mut dir = open_dir(self.fd.as_fd(), OsStr::new("."))?;
        for component in rel.components() {
            let Component::Normal(name) = component else { return Err(Errno::INVAL) };
            dir = step(dir.as_fd(), name)?;
        }
        Ok(dir)
    }

    /// The status of what lies at `rel`; a symbolic link's own at the end of it.
    pub fn stat(&self, rel: &OsStr) -> Result<Stat, Errno> {
        stat(self.fd.as_fd(), rel)
    }
}

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, DIR_FLAGS, Mode::empty())
}

fn make_dir(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<(), Errno> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens a file for reading. Neither follows a link nor waits for the other end of a pipe.
pub fn open_file(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

pub fn stat(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

pub fn exists(dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
    match stat(dir, name) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

pub fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// A rename that never replaces anything: `EXIST` where the new name is taken.
pub fn rename(from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE) {
        // NFS and older FUSE file systems know no NOREPLACE.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => rename_by_link(from, to),
        other => other,
    }
}

fn rename_by_link(from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> Result<(), Errno> {
    match rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()) {
        Ok(()) => rustix::fs::unlinkat(from.0, from.1, AtFlags::empty()),
        // FAT and some shares know no hard links either. The names we move to carry an id or were just found free.
        Err(Errno::PERM | Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            if exists(to.0, to.1)? {
                return Err(Errno::EXIST);
            }
            rustix::fs::renameat(from.0, from.1, to.0, to.1)
        }
        Err(error) => Err(error),
    }
}

/// Makes the names in a directory durable, where its file system can do so.
pub fn sync(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::fs::fsync(dir) {
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(()),
        other => other,
    }
}

/// How much the kernel tells about changes on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    /// Every change is seen.
    Local,
    /// Changes made through this mount are seen, changes below it are not.
    Layered,
    /// Changes made elsewhere are not seen.
    Remote,
}

impl FsKind {
    pub fn of(dir: BorrowedFd<'_>) -> Self {
        rustix::fs::fstatfs(dir).map_or(Self::Remote, |statfs| Self::from_magic(statfs.f_type))
    }

    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "the magic is 32 bits in a signed word"
    )]
    fn from_magic(magic: impl Into<i64>) -> Self {
        match magic.into() as u32 {
            // NFS, SMB 1 to 3, CIFS, AFS, Coda, NCP, 9P, Ceph, FUSE (sshfs, virtiofs), Lustre, GPFS, GFS2, OCFS2,
            // VirtualBox and VMware shares, Parallels, autofs.
            0x6969 | 0x517b | 0xfe53_4d42 | 0xff53_4d42 | 0x5346_414f | 0x6b41_4653 | 0x7375_7245 | 0x564c
            | 0x0102_1997 | 0x00c3_6400 | 0x6573_5546 | 0x0bd0_0bd0 | 0x4750_4653 | 0x0116_1970 | 0x7461_636f
            | 0x786f_4256 | 0xbacb_acbc | 0x7c7c_6673 | 0x0187 => Self::Remote,
            // overlayfs, eCryptfs, aufs.
            0x794c_7630 | 0xf15f | 0x6175_6673 => Self::Layered,
            _ => Self::Local,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn network_and_layered_file_systems_are_told_from_local_ones() {
        for (magic, kind) in [
            (0x6969, FsKind::Remote),
            (0xff53_4d42_i64, FsKind::Remote),
            (0x6573_5546, FsKind::Remote),
            (0x794c_7630, FsKind::Layered),
            (0xef53, FsKind::Local),
            (0x0102_1994, FsKind::Local),
            (0x5846_5342, FsKind::Local),
            (0x9123_683e, FsKind::Local),
        ] {
            assert_eq!(FsKind::from_magic(magic), kind, "{magic:x}");
        }
    }

    #[test]
    fn a_rename_never_replaces_with_or_without_the_kernels_help() {
        let temp = tempfile::tempdir().expect("a folder");
        let root = Root::open(temp.path()).expect("opens");
        let at = |name| (root.fd.as_fd(), OsStr::new(name));
        for (round, rename) in [rename, rename_by_link].into_iter().enumerate() {
            std::fs::write(temp.path().join("a"), "a").expect("written");
            std::fs::write(temp.path().join("b"), "b").expect("written");
            assert_eq!(rename(at("a"), at("b")), Err(Errno::EXIST));
            assert_eq!(std::fs::read(temp.path().join("b")).expect("still there"), b"b");
            let free = format!("free{round}");
            rename(at("a"), (root.fd.as_fd(), OsStr::new(&free))).expect("moved");
            assert!(!temp.path().join("a").exists() && temp.path().join(free).exists());
        }
    }

    #[test]
    fn no_part_of_a_folder_may_be_a_symbolic_link() {
        let temp = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(temp.path().join("real/deep")).expect("made");
        symlink("real", temp.path().join("link")).expect("linked");
        let root = Root::open(temp.path()).expect("opens");
        assert!(root.folder(Path::new("real/deep")).is_ok());
        assert!(root.folder(Path::new("link/deep")).is_err());
        assert!(root.make_folder(Path::new("link/other")).is_err());
        assert!(root.folder(Path::new("../x")).is_err());
        assert!(root.folder(Path::new("/real")).is_err());
    }

    #[test]
    fn claimed_files_are_for_our_own_eyes() {
        let temp = tempfile::tempdir().expect("a folder");
        Root::open(temp.path()).expect("opens");
        let mode = std::fs::metadata(temp.path().join(".processing")).expect("made").mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_replaced_inbox_is_noticed() {
        let temp = tempfile::tempdir().expect("a folder");
        let inbox = temp.path().join("inbox");
        std::fs::create_dir(&inbox).expect("made");
        let root = Root::open(&inbox).expect("opens");
        assert!(root.is_current());
        std::fs::rename(&inbox, temp.path().join("old")).expect("moved");
        assert!(!root.is_current());
        std::fs::create_dir(&inbox).expect("made");
        assert!(!root.is_current());
    }
}
