//! Files while they arrive, and the folder of a job's inputs.
//!
//! `<data>/spool/.uploads/` holds what is being received; nothing there survives a start of the daemon. A job's
//! inputs are moved to `<data>/spool/<job id>/` and are durable before the job is.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use atelier_domain::{ErrorCode, ErrorInfo, JobId};
use tokio::io::AsyncWriteExt as _;
use ulid::Ulid;

use crate::{
    failpoint,
    http::{media, problem::Problem},
};

/// Bytes that one file may have in flight between the socket and the disk.
const WRITE_BUFFER: usize = 128 << 10;

#[derive(Clone, Debug)]
pub(crate) struct Spool {
    root: PathBuf,
}

impl Spool {
    /// The spool below the data folder, which is made where it is missing.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let root = data.join("spool");
        fs::create_dir_all(root.join(".uploads"))?;
        Ok(Self { root })
    }

    pub(crate) fn create(&self, name: Option<&str>, max_bytes: u64) -> Result<Upload, Problem> {
        let path = self.root.join(".uploads").join(Ulid::generate().to_string());
        // Not by way of tokio's threads: a client that leaves meanwhile would leave a file that nobody knows of.
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Problem::io("opening a file for the upload", &error))?;
        let file = tokio::fs::File::from_std(file);
        let mut upload = Upload {
            received: Received { path, name: name.map(media::base_name).filter(|name| !name.is_empty()), bytes: 0 },
            file,
            max_bytes,
        };
        upload.file.set_max_buf_size(WRITE_BUFFER);
        Ok(upload)
    }

    /// Moves what was received into the job's own folder, durably. Blocks.
    pub(crate) fn keep(&self, job: JobId, files: Vec<Received>) -> io::Result<JobFolder> {
        failpoint::fails("http.spool.keep")?;
        let dir = self.root.join(job.to_string());
        fs::create_dir(&dir)?;
        let mut folder = JobFolder { dir, paths: Vec::with_capacity(files.len()), settled: false };
        for (index, file) in files.into_iter().enumerate() {
            fs::File::open(&file.path)?.sync_all()?;
            let path = folder
                .dir
                .join(format!("{index}-{}", file.name.as_deref().map_or_else(|| "image".into(), media::file_name)));
            fs::rename(&file.path, &path)?;
            folder.paths.push(path);
        }
        fs::File::open(&folder.dir)?.sync_all()?;
        fs::File::open(&self.root)?.sync_all()?;
        Ok(folder)
    }
}

/// A job's inputs. Dropped, it goes away again, unless a job has it.
#[derive(Debug)]
pub(crate) struct JobFolder {
    dir: PathBuf,
    pub(crate) paths: Vec<PathBuf>,
    settled: bool,
}

impl JobFolder {
    /// From now on the folder is the job's.
    pub(crate) fn settle(mut self) {
        self.settled = true;
    }
}

impl Drop for JobFolder {
    fn drop(&mut self) {
        if !self.settled
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "inputs that no job wants could not be removed");
        }
    }
}

/// A file that has arrived and belongs to nobody yet. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Received {
    path: PathBuf,
    /// As the client calls it, without folders and control characters.
    pub(crate) name: Option<String>,
    pub(crate) bytes: u64,
}

impl Received {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // Moved away: not found, as it should be.
        let _ = fs::remove_file(&self.path);
    }
}

/// A file that is arriving.
#[derive(Debug)]
pub(crate) struct Upload {
    received: Received,
    file: tokio::fs::File,
    max_bytes: u64,
}

impl Upload {
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.received.bytes += bytes.len() as u64;
        if self.received.bytes > self.max_bytes {
            return Err(too_large(self.received.name.as_deref(), self.max_bytes));
        }
        failpoint::fails("http.upload.write").map_err(|error| Problem::io("storing the upload", &error))?;
        self.file.write_all(bytes).await.map_err(|error| Problem::io("storing the upload", &error))
    }

    pub(crate) async fn finish(mut self) -> Result<Received, Problem> {
        self.file.flush().await.map_err(|error| Problem::io("storing the upload", &error))?;
        Ok(self.received)
    }
}

fn too_large(name: Option<&str>, max_bytes: u64) -> Problem {
    let name = name.unwrap_or("the file");
    let mib = max_bytes >> 20;
    ErrorInfo::new(ErrorCode::UploadTooLarge, format!("{name} has more than {max_bytes} bytes"))
        .with_hint(format!("limits.upload allows {mib} MiB a file"))
        .into()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn names(dir: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(dir).expect("dir").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        names
    }

    fn job_id() -> JobId {
        JobId::from_ulid(Ulid::generate())
    }

    #[tokio::test]
    async fn what_is_dropped_on_the_way_leaves_nothing() {
        let data = tempfile::tempdir().expect("temp dir");
        let spool = Spool::open(data.path()).expect("spool");
        let uploads = data.path().join("spool/.uploads");

        let mut upload = spool.create(Some("a.png"), 10).expect("create");
        upload.write(b"12345").await.expect("write");
        assert_eq!(names(&uploads).len(), 1);
        drop(upload);
        assert_eq!(names(&uploads).len(), 0);

        let received = spool.create(Some("a.png"), 10).expect("create").finish().await.expect("finish");
        let id = job_id();
        let folder = spool.keep(id, vec![received]).expect("keep");
        assert_eq!(names(&data.path().join("spool").join(id.to_string())), ["0-a.png"]);
        drop(folder);
        assert_eq!(names(&data.path().join("spool")), [".uploads"]);
        assert_eq!(names(&uploads).len(), 0);
    }

    #[tokio::test]
    async fn a_job_keeps_its_files_under_names_that_stay_in_its_folder() {
        let data = tempfile::tempdir().expect("temp dir");
        let spool = Spool::open(data.path()).expect("spool");
        let mut files = Vec::new();
        for name in [Some("../../etc/passwd"), Some("..\\evil.exe"), Some("\0"), None, Some("Grüße 你好.jpg")] {
            let mut upload = spool.create(name, 10).expect("create");
            upload.write(b"x").await.expect("write");
            files.push(upload.finish().await.expect("finish"));
        }
        let id = job_id();
        let folder = spool.keep(id, files).expect("keep");
        let dir = data.path().join("spool").join(id.to_string());
        folder.settle();
        assert_eq!(names(&dir), ["0-passwd", "1-evil.exe", "2-image", "3-image", "4-Grüße 你好.jpg"]);
    }

    #[tokio::test]
    async fn a_file_over_the_limit_is_refused_at_the_byte() {
        let data = tempfile::tempdir().expect("temp dir");
        let spool = Spool::open(data.path()).expect("spool");
        let mut upload = spool.create(None, 4).expect("create");
        upload.write(b"1234").await.expect("fits");
        assert_eq!(upload.write(b"5").await.expect_err("too large").code(), "upload_too_large");
    }
}
