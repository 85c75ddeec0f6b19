//! A copy of everything that Atelier answers for, made while the daemon works: the database as it is at one moment, the
//! pictures of jobs that still need them, and the outputs of those that have ended.
//!
//! The daemon is not asked and not held up. A job may end while it is copied, and take its picture away; so pictures
//! are copied before the database and once more after it, and where one is still missing the whole of it is done again.
//!
//! Not in a backup: checkpoints (a job that runs starts from its beginning), logs, and the owner's pictures in the
//! inbox, `done/` and `failed/`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use atelier_domain::{JobStatus, Timestamp};
use serde::{Deserialize, Serialize};

use super::copies::{copy, copy_tree, files_below, sync_folders};
use crate::{
    config::Config,
    inbox::names::PROCESSING,
    store::{JobFiles, StoreError, job_files, schema_of, snapshot},
};

pub(super) const DATABASE: &str = "atelier.db";
pub(super) const SPOOL: &str = "spool";
pub(super) const INBOX: &str = "inbox";
pub(super) const OUTBOX: &str = "outbox";
const MANIFEST: &str = "backup.json";

/// How often it is begun anew before it is given up.
const TRIES: u32 = 5;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of Atelier that made it.
    pub version: String,
    pub schema: i64,
    pub made_at: String,
    pub jobs: u64,
    pub outputs: u64,
    pub bytes: u64,
    /// Outputs that rows speak of and that were gone.
    pub missing_outputs: u64,
    /// Whether outputs were to be copied.
    pub with_outputs: bool,
    /// The folders that it was made of: rows name files in them.
    pub data: PathBuf,
    pub inbox: PathBuf,
    pub outbox: PathBuf,
}

impl Manifest {
    /// # Errors
    /// The folder is no backup.
    pub(super) fn read(backup: &Path) -> Result<Self, BackupError> {
        let path = backup.join(MANIFEST);
        let bytes =
            fs::read(&path).map_err(|error| BackupError::NoBackup { path: path.clone(), what: error.to_string() })?;
        serde_json::from_slice(&bytes).map_err(|error| BackupError::NoBackup { path, what: error.to_string() })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} is there already; a backup is a folder of its own", _0.display())]
    Exists(PathBuf),
    #[error("there is nothing to copy: {} does not exist", _0.display())]
    NoDatabase(PathBuf),
    #[error("{} is no backup of Atelier: {what}", path.display())]
    NoBackup { path: PathBuf, what: String },
    #[error("{}: {error}", path.display())]
    Files { path: PathBuf, error: io::Error },
    #[error("pictures of waiting jobs vanished each of {TRIES} times; {} is the last", _0.display())]
    Restless(PathBuf),
    #[error("about {need} bytes are needed in {}, and {free} are free", folder.display())]
    Room { folder: PathBuf, need: u64, free: u64 },
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Lock(#[from] crate::data_lock::LockError),
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> BackupError + '_ {
    move |error| BackupError::Files { path: path.to_owned(), error }
}

/// Copies everything into `folder`, which must not exist. It appears there once it is complete.
///
/// # Errors
/// What cannot be read or written. Nothing of an unfinished copy is left.
pub async fn backup(config: &Config, folder: &Path, with_outputs: bool) -> Result<Manifest, BackupError> {
    let database = config.paths.data.join(DATABASE);
    if !database.exists() {
        return Err(BackupError::NoDatabase(database));
    }
    if folder.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(folder.to_owned()));
    }
    let mut name = std::ffi::OsString::from(".");
    name.push(folder.file_name().ok_or_else(|| BackupError::Exists(folder.to_owned()))?);
    name.push(".unfinished");
    let unfinished = folder.with_file_name(name);
    let made = fill(config, &unfinished, with_outputs).await.and_then(|manifest| {
        fs::rename(&unfinished, folder).map_err(at(folder))?;
        Ok(manifest)
    });
    if made.is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    made
}

async fn fill(config: &Config, into: &Path, with_outputs: bool) -> Result<Manifest, BackupError> {
    let mut vanished = PathBuf::new();
    for _ in 0..TRIES {
        // What one that was cut off has left, or the try before.
        if into.exists() {
            fs::remove_dir_all(into).map_err(at(into))?;
        }
        fs::create_dir_all(into).map_err(at(into))?;
        copy_inputs(config, into)?;
        let copied = into.join(DATABASE);
        snapshot(&config.paths.data.join(DATABASE), &copied).await?;
        let jobs = job_files(&copied).await?;
        copy_inputs(config, into)?;
        if let Some(missing) = missing_input(config, into, &jobs) {
            vanished = missing;
            continue;
        }
        prune_inputs(into, &jobs)?;
        let mut manifest = Manifest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schema: schema_of(&copied).await?,
            made_at: Timestamp::now().to_string(),
            jobs: jobs.len() as u64,
            outputs: 0,
            bytes: 0,
            missing_outputs: 0,
            with_outputs,
            data: config.paths.data.clone(),
            inbox: config.inbox.dir.clone(),
            outbox: config.outbox.dir.clone(),
        };
        if with_outputs {
            copy_outputs(config, into, &jobs, &mut manifest)?;
        }
        manifest.bytes =
            files_below(into).map_err(at(into))?.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| at(into)(error.into()))?;
        crate::outbox::write_durably(&into.join(MANIFEST), &text).map_err(at(into))?;
        sync_folders(into).map_err(at(into))?;
        return Ok(manifest);
    }
    Err(BackupError::Restless(vanished))
}

/// All that may be a live job's: uploads, and files that were claimed from the inbox.
fn copy_inputs(config: &Config, into: &Path) -> Result<(), BackupError> {
    let spool = config.paths.data.join(SPOOL);
    copy_tree(&spool, &into.join(SPOOL)).map_err(at(&spool))?;
    let claimed = config.inbox.dir.join(PROCESSING);
    copy_tree(&claimed, &into.join(INBOX).join(PROCESSING)).map_err(at(&claimed))?;
    Ok(())
}

/// A picture that a live job needs and that the copy lacks. One that is gone for good fails its job, as it would there.
fn missing_input(config: &Config, into: &Path, jobs: &[JobFiles]) -> Option<PathBuf> {
    let live = jobs.iter().filter(|job| !job.status.is_ended());
    live.flat_map(|job| &job.inputs)
        .find(|path| copied_input(config, into, path).is_some_and(|copy| !copy.exists()))
        .cloned()
}

/// Where the copy of an input lies, if inputs of its folder are copied.
fn copied_input(config: &Config, into: &Path, path: &Path) -> Option<PathBuf> {
    if let Ok(rest) = path.strip_prefix(config.paths.data.join(SPOOL)) {
        return Some(into.join(SPOOL).join(rest));
    }
    let rest = path.strip_prefix(config.inbox.dir.join(PROCESSING)).ok()?;
    Some(into.join(INBOX).join(PROCESSING).join(rest))
}

/// Uploads of jobs that the copied database does not know, or no longer needs.
fn prune_inputs(into: &Path, jobs: &[JobFiles]) -> Result<(), BackupError> {
    let spool = into.join(SPOOL);
    for entry in fs::read_dir(&spool).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let known = jobs.iter().any(|job| job.status != JobStatus::Succeeded && *name == *job.id.to_string());
        if !known {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(at(&path))?;
        }
    }
    Ok(())
}

fn copy_outputs(config: &Config, into: &Path, jobs: &[JobFiles], manifest: &mut Manifest) -> Result<(), BackupError> {
    let outputs: Vec<&PathBuf> = jobs.iter().flat_map(|job| &job.outputs).collect();
    let need = outputs.iter().filter_map(|path| fs::metadata(path).ok()).map(|about| about.len()).sum();
    if let Ok(about) = rustix::fs::statvfs(into) {
        let free = about.f_bavail.saturating_mul(about.f_frsize);
        if free < need {
            return Err(BackupError::Room { folder: into.to_owned(), need, free });
        }
    }
    for path in outputs {
        let Ok(rest) = path.strip_prefix(&config.outbox.dir) else {
            manifest.missing_outputs += 1;
            continue;
        };
        match copy(path, &into.join(OUTBOX).join(rest)) {
            Ok(_) => manifest.outputs += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => manifest.missing_outputs += 1,
            Err(error) => return Err(at(path)(error)),
        }
    }
    Ok(())
}
