//! Hashes of components, so that files which have not changed are not read again for them.

use std::{
    collections::HashMap,
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Weights;

/// More than any machine has components; reached only where files change all the time.
const MOST: usize = 1024;

/// Tells a file from the one that replaced it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileStamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    size_bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl FileStamp {
    pub(super) fn of(path: &Path, meta: &Metadata) -> Self {
        Self {
            path: path.into(),
            device: meta.dev(),
            inode: meta.ino(),
            size_bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }
}

/// What [`Weights::sha256`] gave for components that were opened before.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    by_files: HashMap<Vec<FileStamp>, String>,
}

impl Digests {
    /// The component's hash, computed only if any of its files is new or has changed.
    pub fn sha256(&mut self, weights: &Weights) -> String {
        let stamps = weights.stamps();
        if let Some(known) = self.by_files.get(&stamps) {
            return known.clone();
        }
        if self.by_files.len() >= MOST {
            self.by_files.clear();
        }
        let digest = weights.sha256();
        self.by_files.insert(stamps, digest.clone());
        digest
    }
}
