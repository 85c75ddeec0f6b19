//! What a job keeps in its folder: how far it has come, and what it has finished.

use std::{fs, io, path::Path};

use atelier_domain::protocol::Finished;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{durable, upscale::tiles::Grid};

const CHECKPOINT: &str = "checkpoint.json";
const FINISHED: &str = "finished.json";

/// What a result depends on, hashed: the same fingerprint means the same bytes.
pub fn fingerprint(parts: &Value) -> String {
    // serde_json keeps an object's keys sorted.
    format!("{:x}", Sha256::digest(parts.to_string()))
}

/// The tiles before `step` are in `rows.raw`, durably.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub fingerprint: String,
    pub grid: Grid,
    pub step: u32,
}

impl Checkpoint {
    /// `rows.raw` must be durable by now.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        durable::replace(folder, CHECKPOINT, &serde_json::to_vec(self)?)
    }

    /// The checkpoint in `folder`, if it is about this very work.
    pub fn load(folder: &Path, fingerprint: &str) -> Option<Self> {
        let found: Self = read(folder, CHECKPOINT)?;
        let fits = found.fingerprint == fingerprint && found.step <= found.grid.count();
        if !fits {
            tracing::info!(folder = %folder.display(), "a checkpoint of other work was discarded");
        }
        fits.then_some(found)
    }
}

/// The output is in the folder, durably.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Of the request, not of the work: known before anything is decoded.
    pub fingerprint: String,
    pub steps: u32,
    /// The weights that made it: the model's id and the file's sha256.
    pub weights: Vec<(String, String)>,
    pub finished: Finished,
}

impl Done {
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        durable::replace(folder, FINISHED, &serde_json::to_vec(self)?)
    }

    /// What `folder` says, if it is about this very request and every output is as it was.
    pub fn load(folder: &Path, fingerprint: &str) -> Option<Self> {
        let found: Self = read(folder, FINISHED)?;
        let whole = |output: &atelier_domain::protocol::OutputFile| {
            sha256(&folder.join(&output.file)).is_ok_and(|sha256| sha256 == output.sha256)
        };
        (found.fingerprint == fingerprint && found.finished.outputs.iter().all(whole)).then_some(found)
    }
}

/// Removes what only a running job needs.
pub fn clear(folder: &Path) -> io::Result<()> {
    durable::remove(&folder.join(CHECKPOINT))?;
    durable::remove(&folder.join(super::rows::NAME))
}

/// Removes what an earlier run left half written, and its result, which is not this one's.
pub fn sweep(folder: &Path) -> io::Result<()> {
    durable::remove(&folder.join(FINISHED))?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "part") {
            durable::remove(&path)?;
        }
    }
    Ok(())
}

fn read<T: for<'de> Deserialize<'de>>(folder: &Path, name: &str) -> Option<T> {
    let bytes = fs::read(folder.join(name)).ok()?;
    serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(folder = %folder.display(), %error, "{name} does not parse; it is ignored"))
        .ok()
}

/// Of a file, in hexadecimal digits.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut fs::File::open(path)?, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}
