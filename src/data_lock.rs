//! One daemon a data folder.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How often a lock that is held is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// Held for the daemon's life; the kernel releases it however that ends.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another daemon (pid {pid}) uses the data folder {}: stop it, or give this one a folder of its own with --data", data.display())]
    Held { pid: String, data: PathBuf },
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

/// Takes the lock on a data folder that exists.
///
/// # Errors
/// Another process holds it, or the file cannot be made.
pub fn acquire(data: &Path) -> Result<DataLock, LockError> {
    let path = data.join("atelier.lock");
    let io = |error| LockError::Io { path: path.clone(), error };
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = match pid.trim() {
                "" => "unknown".to_owned(),
                pid => pid.to_owned(),
            };
            return Err(LockError::Held { pid, data: data.to_owned() });
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(io(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
    Ok(DataLock { _file: file })
}

/// As [`acquire`], trying for so long: a daemon that was killed holds its lock until the kernel has cleared it away, which
/// whoever starts the next one at once would meet.
///
/// # Errors
/// As [`acquire`], after that time.
pub fn acquire_within(data: &Path, patience: Duration) -> Result<DataLock, LockError> {
    let end = Instant::now() + patience;
    loop {
        match acquire(data) {
            Err(LockError::Held { .. }) if Instant::now() < end => thread::sleep(AGAIN),
            other => return other,
        }
    }
}

/// The pid of the daemon that holds a data folder, if one does.
pub fn holder(data: &Path) -> Option<String> {
    match acquire(data) {
        Err(LockError::Held { pid, .. }) => Some(pid),
        Ok(_) | Err(LockError::Io { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_the_pid_of_the_first() {
        let dir = tempfile::tempdir().expect("temp dir");
        let first = acquire(dir.path()).expect("free");
        let error = acquire(dir.path()).expect_err("held").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert_eq!(holder(dir.path()), Some(std::process::id().to_string()));
        drop(first);
        assert_eq!(holder(dir.path()), None);
        acquire(dir.path()).expect("free again");
    }

    #[test]
    fn a_lock_that_is_about_to_be_free_is_waited_for() {
        let dir = tempfile::tempdir().expect("temp dir");
        let first = acquire(dir.path()).expect("free");
        assert!(matches!(acquire_within(dir.path(), AGAIN), Err(LockError::Held { .. })));
        let ending = thread::spawn(move || {
            thread::sleep(AGAIN * 3);
            drop(first);
        });
        acquire_within(dir.path(), Duration::from_mins(1)).expect("free in a moment");
        ending.join().expect("it ends");
    }
}
