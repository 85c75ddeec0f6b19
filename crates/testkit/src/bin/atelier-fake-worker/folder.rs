//! A job's own folder: its checkpoint, its outputs and the note that it is finished, each durable before the next.
//!
//! Knows how to write so that power loss leaves either the old or the new, and nothing of what a job computes.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use atelier_domain::protocol::Finished;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::painting::sha256_hex;

pub(crate) struct Folder<'a> {
    path: &'a Path,
    /// What this job is about: files of another fingerprint are another job's.
    fingerprint: String,
}

#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    fingerprint: String,
    content: T,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) step: u32,
    pub(crate) state: [u8; 32],
}

const CHECKPOINT: &str = "checkpoint.json";
const FINISHED: &str = "finished.json";

impl<'a> Folder<'a> {
    pub(crate) fn new(path: &'a Path, fingerprint: String) -> Self {
        Self { path, fingerprint }
    }

    /// The checkpoint of this very job. Anything else there is no error: the job begins anew.
    pub(crate) fn checkpoint(&self) -> Option<Checkpoint> {
        self.read_sealed(CHECKPOINT)
    }

    pub(crate) fn write_checkpoint(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        self.write_sealed(CHECKPOINT, checkpoint)
    }

    /// What this very job has answered before, where all its files are still whole.
    pub(crate) fn finished(&self) -> Option<Finished> {
        let finished: Finished = self.read_sealed(FINISHED)?;
        let whole = finished.outputs.iter().all(|output| {
            fs::read(self.path.join(&output.file)).is_ok_and(|bytes| sha256_hex(&bytes) == output.sha256)
        });
        whole.then_some(finished)
    }

    /// The last write of a job. What is only needed to go on is removed.
    pub(crate) fn write_finished(&self, finished: &Finished) -> io::Result<()> {
        self.write_sealed(FINISHED, finished)?;
        match fs::remove_file(self.path.join(CHECKPOINT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes `name` so that it is there as a whole or not at all.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let part: PathBuf = self.path.join(format!("{name}.part"));
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, self.path.join(name))?;
        File::open(self.path)?.sync_all()
    }

    fn read_sealed<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let bytes = fs::read(self.path.join(name)).ok()?;
        let sealed: Sealed<T> = serde_json::from_slice(&bytes).ok()?;
        if sealed.fingerprint != self.fingerprint {
            tracing::info!("{name} belongs to another job and is left aside");
            return None;
        }
        Some(sealed.content)
    }

    fn write_sealed<T: Serialize>(&self, name: &str, content: &T) -> io::Result<()> {
        let sealed = Sealed { fingerprint: self.fingerprint.clone(), content };
        self.write(name, &serde_json::to_vec(&sealed)?)
    }
}
