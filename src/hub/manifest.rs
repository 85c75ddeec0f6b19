//! What a pull has written down about a model, in the model's own folder: where it is from, and what each file was.

use std::path::Path;

use atelier_domain::Timestamp;
use serde::{Deserialize, Serialize};

/// Its name in a model's folder; hidden, since it is not the model's.
pub const MANIFEST: &str = ".atelier-pull.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `ORG/NAME`.
    pub id: String,
    /// Scheme and host of the hub.
    pub source: String,
    /// As it was asked for.
    pub revision: String,
    /// What that was then.
    pub commit: String,
    pub pulled_at: Timestamp,
    pub files: Vec<ManifestFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Below the model's folder.
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
}

impl Manifest {
    /// Of a model's folder; `None` where it was not pulled.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>, String> {
        let path = folder.join(MANIFEST);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("{}: {error}", path.display()))
    }
}
