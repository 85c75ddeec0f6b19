//! sha256 of weights, computed beside the work: a fingerprint and a manifest need them, the first step does not.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use serde_json::json;

use crate::{
    error::JobError,
    models::{ModelError, Stamp},
    upscale::checkpoint::{fingerprint, sha256},
};

/// Of this process, so that a loaded model's files are read once.
static KNOWN: Mutex<BTreeMap<PathBuf, (Stamp, String)>> = Mutex::new(BTreeMap::new());

/// The hashes of some files, on their way.
pub enum Hashes {
    Coming(JoinHandle<io::Result<Vec<String>>>),
    There(Vec<String>),
}

impl Hashes {
    /// Begins to read the files, unless all are known.
    pub fn begin(files: Vec<PathBuf>) -> Self {
        let known: Option<Vec<String>> = files.iter().map(known).collect();
        known.map_or_else(|| Self::Coming(thread::spawn(move || files.iter().map(hash).collect())), Self::There)
    }

    /// Whether [`Self::get`] answers at once.
    pub fn are_there(&self) -> bool {
        match self {
            Self::There(_) => true,
            Self::Coming(thread) => thread.is_finished(),
        }
    }

    /// All of them, in the files' order.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn get(&mut self) -> io::Result<&[String]> {
        if let Self::Coming(_) = self
            && let Self::Coming(thread) = std::mem::replace(self, Self::There(Vec::new()))
        {
            let hashes =
                thread.join().map_err(|_| io::Error::other("the thread that reads the weights panicked"))??;
            *self = Self::There(hashes);
        }
        match self {
            Self::There(hashes) => Ok(hashes),
            Self::Coming(_) => Ok(&[]),
        }
    }
}

/// Of a request and its weights: what a checkpoint is about.
pub struct Fingerprint<'a> {
    pub request: &'a str,
    pub weights: Hashes,
}

impl Fingerprint<'_> {
    /// # Errors
    /// A file that cannot be read.
    pub fn get(&mut self) -> Result<String, JobError> {
        let weights = self
            .weights
            .get()
            .map_err(|error| ModelError::Config { path: "the model's weights".into(), detail: error.to_string() })?;
        Ok(fingerprint(&json!({ "request": self.request, "weights": weights })))
    }
}

fn known(path: &PathBuf) -> Option<String> {
    let stamp = Stamp::of(path).ok()?;
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.get(path).filter(|(of, _)| *of == stamp).map(|(_, sha256)| sha256.clone())
}

fn hash(path: &PathBuf) -> io::Result<String> {
    if let Some(sha256) = known(path) {
        return Ok(sha256);
    }
    let stamp = Stamp::of(path)?;
    let sha256 = sha256(path)?;
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone(), (stamp, sha256.clone()));
    Ok(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed_once_and_again_when_it_was_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights");
        std::fs::write(&path, "abc").expect("written");
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let mut first = Hashes::begin(vec![path.clone()]);
        assert!(matches!(first, Hashes::Coming(_)));
        assert_eq!(first.get().expect("readable"), [abc]);
        assert!(first.are_there());
        assert!(matches!(Hashes::begin(vec![path.clone()]), Hashes::There(_)));
        std::fs::write(folder.path().join("new"), "abcd").expect("written");
        std::fs::rename(folder.path().join("new"), &path).expect("replaced");
        assert_ne!(Hashes::begin(vec![path.clone()]).get().expect("readable"), [abc]);
        std::fs::remove_file(&path).expect("removed");
        assert!(Hashes::begin(vec![path]).get().is_err());
    }
}
