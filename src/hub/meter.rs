//! How far a pull is: numbers that many transfers add to and anybody may read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes and files, of all that belong to the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    pub bytes: u64,
    pub total_bytes: u64,
    pub files: u64,
    pub total_files: u64,
}

#[derive(Debug, Default)]
pub(super) struct Meter {
    bytes: AtomicU64,
    total_bytes: AtomicU64,
    files: AtomicU64,
    total_files: AtomicU64,
    /// What came over the network; never taken back.
    received: AtomicU64,
}

impl Meter {
    pub(super) fn plan(&self, bytes: u64, files: u64) {
        self.total_bytes.store(bytes, Relaxed);
        self.total_files.store(files, Relaxed);
    }

    /// Is there, from now or from an earlier time.
    pub(super) fn have(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Has to come once more.
    pub(super) fn lose(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
    }

    pub(super) fn receive(&self, bytes: u64) {
        self.have(bytes);
        self.received.fetch_add(bytes, Relaxed);
    }

    pub(super) fn file_done(&self) {
        self.files.fetch_add(1, Relaxed);
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            bytes: self.bytes.load(Relaxed),
            total_bytes: self.total_bytes.load(Relaxed),
            files: self.files.load(Relaxed),
            total_files: self.total_files.load(Relaxed),
        }
    }
}
