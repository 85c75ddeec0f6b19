//! Whether somebody has a file open for writing, as the kernel knows it.
//!
//! A read lease is granted only on a file that nobody has open for writing. The question is put by taking one and
//! giving it back at once.

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// What the kernel says about a file's writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    None,
    Some,
    /// It does not say: another user's file, or a file system without leases.
    Unknown,
}

/// Chooses the signal of a file descriptor; missing in `libc`. From `asm-generic/fcntl.h`.
const F_SETSIG: libc::c_int = 10;

/// Asks about the writers of `file`, which is open for reading only.
#[expect(unsafe_code, reason = "no safe wrapper offers F_SETLEASE")]
pub fn writers(file: BorrowedFd<'_>) -> Writers {
    let fd = file.as_raw_fd();
    // A program that opens the file for writing while we hold the lease makes the kernel send us a signal. Its default,
    // SIGIO, would end this process; SIGURG is ignored by default.
    // SAFETY: `fd` is open for as long as `file` is borrowed; both commands take an int and touch no memory of ours.
    let taken = unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) } == 0
        && unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) } == 0;
    if taken {
        // SAFETY: as above.
        unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
        return Writers::None;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Writers::Some,
        _ => Writers::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd as _};

    use super::*;

    #[test]
    fn a_writer_is_seen_for_as_long_as_it_holds_the_file() {
        let temp = tempfile::tempdir().expect("a folder");
        let path = temp.path().join("a");
        let writer = File::create(&path).expect("made");
        let reader = File::open(&path).expect("opens");
        assert_eq!(writers(reader.as_fd()), Writers::Some);
        drop(writer);
        assert_eq!(writers(reader.as_fd()), Writers::None);
        let other_reader = File::open(&path).expect("opens");
        assert_eq!(writers(reader.as_fd()), Writers::None, "readers do not count");
        drop(other_reader);
        let _writer = File::options().append(true).open(&path).expect("the lease was given back");
        assert_eq!(writers(reader.as_fd()), Writers::Some);
    }

    #[test]
    fn a_writer_that_comes_while_we_ask_does_not_end_the_process() {
        let temp = tempfile::tempdir().expect("a folder");
        let path = temp.path().join("a");
        std::fs::write(&path, "x").expect("written");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let reader = File::open(&path).expect("opens");
                    writers(reader.as_fd());
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                drop(File::options().append(true).open(&path).expect("opens"));
            }
        });
    }

    #[test]
    fn a_thing_without_leases_is_unknown() {
        let null = File::open("/dev/null").expect("opens");
        assert_eq!(writers(null.as_fd()), Writers::Unknown);
    }
}
