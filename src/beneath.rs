//! Opens files that lie below a folder, and nothing else, whatever links and dots say.
//!
//! The kernel resolves the path with the folder as its ceiling (`openat2`, `RESOLVE_BENEATH`): there is no moment between
//! a check and the opening in which somebody could put a link in the place of a folder. A kernel or a sandbox that does
//! not have that call gets the path step by step, without links.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Component, Path},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

/// Opens the file `relative` below `folder` for reading. Blocks.
///
/// # Errors
/// `NotFound` where the path leads out of the folder, by dots, by a link, or because it is absolute; else what the
/// file system says.
pub fn open(folder: &Path, relative: &Path) -> io::Result<File> {
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(&folder, relative, FLAGS, Mode::empty(), resolve) {
        Ok(file) => Ok(file.into()),
        Err(Errno::NOSYS | Errno::PERM) => by_steps(folder, relative),
        Err(Errno::XDEV | Errno::LOOP) => Err(io::ErrorKind::NotFound.into()),
        Err(error) => Err(error.into()),
    }
}

/// A pipe in the place of a file must not be waited for.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

fn by_steps(mut folder: OwnedFd, relative: &Path) -> io::Result<File> {
    let mut steps = relative.components().peekable();
    while let Some(step) = steps.next() {
        let Component::Normal(name) = step else { return Err(io::ErrorKind::NotFound.into()) };
        let is_last = steps.peek().is_none();
        let flags = if is_last { FLAGS } else { OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC };
        match openat(&folder, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(file) if is_last => return Ok(file.into()),
            Ok(next) => folder = next,
            // A link in the place of a file, or of a folder.
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(io::ErrorKind::NotFound.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_what_lies_below_is_opened_in_either_way() {
        let root = tempfile::tempdir().expect("temp dir");
        let folder = root.path().join("outbox");
        fs::create_dir_all(folder.join("sub")).expect("made");
        fs::write(folder.join("sub/a.png"), "a").expect("written");
        fs::write(root.path().join("secret"), "s").expect("written");
        symlink("../secret", folder.join("out")).expect("linked");
        symlink(root.path(), folder.join("up")).expect("linked");
        symlink("/etc/passwd", folder.join("sub/absolute")).expect("linked");
        let ways: [fn(&Path, &Path) -> io::Result<File>; 2] = [open, |folder, relative| {
            by_steps(rustix::fs::open(folder, OFlags::PATH, Mode::empty()).expect("opens"), relative)
        }];
        for way in ways {
            way(&folder, Path::new("sub/a.png")).expect("lies below");
            for outside in
                ["../secret", "sub/../../secret", "out", "up/secret", "sub/absolute", "/etc/passwd", "", "sub/none"]
            {
                let error = way(&folder, Path::new(outside)).expect_err(outside);
                assert_eq!(error.kind(), io::ErrorKind::NotFound, "{outside}: {error}");
            }
        }
        // A link that stays inside is one's own business, where the kernel can tell.
        symlink("sub/a.png", folder.join("inside")).expect("linked");
        assert!(
            by_steps(rustix::fs::open(&folder, OFlags::PATH, Mode::empty()).expect("opens"), Path::new("inside"))
                .is_err()
        );
    }
}
