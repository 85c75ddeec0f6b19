//! Small pictures of how far a job is, as the worker leaves them in the job's folder; each replaces the one before.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf};

use atelier_domain::JobId;

use super::super::Http;

/// The worker's name for it.
const FILE: &str = "preview.jpg";
/// A preview is a few tens of kilobytes; whatever is larger is none.
const MAX_BYTES: u64 = 4 << 20;

/// The previews of one job, each once.
#[derive(Debug)]
pub(crate) struct Previews {
    path: PathBuf,
    seen: Option<(u64, i64, i64)>,
}

impl Previews {
    pub(crate) fn of(http: &Http, id: JobId) -> Self {
        let folder = http.app.config().paths.data.join("checkpoints").join(id.to_string());
        Self { path: folder.join(FILE), seen: None }
    }

    /// The newest preview, if it is not the one that was there before. JPEG.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        let meta = tokio::fs::symlink_metadata(&self.path).await.ok()?;
        let stamp = (meta.ino(), meta.mtime(), meta.mtime_nsec());
        if !meta.is_file() || meta.len() > MAX_BYTES || self.seen == Some(stamp) {
            return None;
        }
        let bytes = tokio::fs::read(&self.path).await.ok()?;
        self.seen = Some(stamp);
        Some(bytes)
    }
}
