//! What is written beside a source that failed (`<name>.error.json`) or was a duplicate (`<name>.duplicate.json`).

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read as _, Write as _},
    os::fd::BorrowedFd,
};

use atelier_domain::{ErrorCode, ErrorInfo, JobId, Timestamp};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{dirs, names};

/// Why a source lies in `failed/`. Its JSON is the contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorFile {
    /// `null` where the file never became a job.
    pub job: Option<JobId>,
    pub code: String,
    pub message: String,
    pub hint: String,
    /// How often it was tried, over all its returns to the inbox.
    pub attempts: u32,
    pub first_failed_at: Timestamp,
    pub last_failed_at: Timestamp,
}

/// A failure that is to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub job: Option<JobId>,
    pub code: String,
    pub message: String,
    pub hint: String,
    pub attempts: u32,
    /// The first of these attempts.
    pub first_at: Timestamp,
    pub at: Timestamp,
}

impl Failure {
    /// A file that is refused before it becomes a job.
    pub fn refused(error: ErrorInfo, at: Timestamp) -> Self {
        Self::of(None, error.code.as_str(), error.message, error.hint, 1, at)
    }

    /// A job that failed for good at `at`, after `attempts` starts.
    pub fn of_job(job: JobId, error: Option<ErrorInfo>, attempts: u32, at: Timestamp) -> Self {
        let error = error.unwrap_or_else(|| ErrorInfo::new(ErrorCode::Internal, "failed without saying why"));
        Self::of(Some(job), error.code.as_str(), error.message, error.hint, attempts, at)
    }

    /// A job that somebody called off.
    pub fn cancelled(job: JobId, attempts: u32, at: Timestamp) -> Self {
        let hint = "move the file back into the inbox to run it after all".to_owned();
        Self::of(Some(job), "cancelled", "the job was cancelled".to_owned(), hint, attempts, at)
    }

    fn of(job: Option<JobId>, code: &str, message: String, hint: String, attempts: u32, at: Timestamp) -> Self {
        Self { job, code: code.to_owned(), message, hint, attempts, first_at: at, at }
    }

    /// What stands in the file: `earlier` tells of failures before the file was moved back into the inbox.
    fn after(self, earlier: Option<ErrorFile>) -> ErrorFile {
        let (first_failed_at, attempts) = match earlier {
            // The same failure, written again after a crash.
            Some(earlier) if self.job.is_some() && earlier.job == self.job => {
                (earlier.first_failed_at.min(self.first_at), earlier.attempts.max(self.attempts))
            }
            Some(earlier) => {
                (earlier.first_failed_at.min(self.first_at), earlier.attempts.saturating_add(self.attempts))
            }
            None => (self.first_at, self.attempts),
        };
        ErrorFile {
            job: self.job,
            code: self.code,
            message: self.message,
            hint: self.hint,
            attempts,
            first_failed_at,
            last_failed_at: self.at,
        }
    }
}

/// Writes `<name>.error.json`, durably and at once visible as a whole.
pub fn write(dir: BorrowedFd<'_>, name: &OsStr, failure: Failure) -> Result<(), Errno> {
    let report = failure.after(read(dir, name));
    write_json(dir, &names::suffixed(name, names::ERROR_SUFFIX), &report)
}

/// The report beside `name`, where there is one that can be read.
pub fn read(dir: BorrowedFd<'_>, name: &OsStr) -> Option<ErrorFile> {
    let file = dirs::open_file(dir, &names::suffixed(name, names::ERROR_SUFFIX)).ok()?;
    let mut text = Vec::new();
    File::from(file).take(1 << 20).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Removes the report beside `name`; fine where there is none.
pub fn remove(dir: BorrowedFd<'_>, name: &OsStr, suffix: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, names::suffixed(name, suffix), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Which job a duplicate repeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateFile {
    /// The job that has the same content and parameters; its outputs are this file's too.
    pub job: JobId,
    pub found_at: Timestamp,
}

pub fn write_duplicate(dir: BorrowedFd<'_>, name: &OsStr, report: &DuplicateFile) -> Result<(), Errno> {
    write_json(dir, &names::suffixed(name, names::DUPLICATE_SUFFIX), report)
}

fn write_json(dir: BorrowedFd<'_>, name: &OsStr, report: &impl Serialize) -> Result<(), Errno> {
    let mut text = serde_json::to_vec_pretty(report).map_err(|_| Errno::INVAL)?;
    text.push(b'\n');
    // The same name each time, so that what a crash leaves behind is overwritten when the step is done again.
    let mut temporary = OsString::from(".");
    temporary.push(names::suffixed(name, ".tmp"));
    let temporary = names::suffixed(&temporary, "");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, &temporary, flags, Mode::from_raw_mode(0o666))?);
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Nothing is gained by an error about the removal of a file that could not be written.
        let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    rustix::fs::renameat(dir, &temporary, dir, name)?;
    dirs::sync(dir)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn id(last: char) -> JobId {
        format!("01JD000000000000000000000{last}").parse().expect("an id")
    }

    fn failure(job: Option<JobId>, at: i64) -> Failure {
        Failure { job, ..Failure::refused(ErrorInfo::new(ErrorCode::ImageCorrupt, "broken"), Timestamp(at)) }
    }

    #[test]
    fn the_file_has_the_fields_of_the_contract() {
        let temp = tempfile::tempdir().expect("a folder");
        let dir = File::open(temp.path()).expect("opens");
        let error = ErrorInfo::new(ErrorCode::SidecarInvalid, "a.toml: line 1").with_hint("mend it");
        write(dir.as_fd(), OsStr::new("a.jpg"), Failure::refused(error, Timestamp(0))).expect("written");
        let text = std::fs::read_to_string(temp.path().join("a.jpg.error.json")).expect("there");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let expected = serde_json::json!({
            "job": null, "code": "sidecar_invalid", "message": "a.toml: line 1", "hint": "mend it", "attempts": 1,
            "first_failed_at": "1970-01-01T00:00:00.000Z", "last_failed_at": "1970-01-01T00:00:00.000Z",
        });
        assert_eq!(value, expected);
        assert_eq!(std::fs::read_dir(temp.path()).expect("lists").count(), 1, "no temporary file stays");
    }

    #[test]
    fn failures_add_up_over_retries_but_not_over_crashes() {
        let temp = tempfile::tempdir().expect("a folder");
        let dir = File::open(temp.path()).expect("opens");
        let name = OsStr::new("a.jpg");
        let report = |failure| {
            write(dir.as_fd(), name, failure).expect("written");
            let read = read(dir.as_fd(), name).expect("reads back");
            (read.attempts, read.first_failed_at.0, read.last_failed_at.0)
        };
        assert_eq!(report(failure(Some(id('1')), 10)), (1, 10, 10));
        assert_eq!(report(failure(Some(id('1')), 10)), (1, 10, 10), "the same again after a crash");
        assert_eq!(report(failure(Some(id('2')), 20)), (2, 10, 20));
        assert_eq!(report(failure(None, 30)), (3, 10, 30));
        remove(dir.as_fd(), name, names::ERROR_SUFFIX).expect("removed");
        remove(dir.as_fd(), name, names::ERROR_SUFFIX).expect("twice is fine");
        assert_eq!(report(failure(None, 40)), (1, 40, 40));
    }
}
