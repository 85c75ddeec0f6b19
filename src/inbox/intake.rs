//! What the inbox needs from the rest of the daemon: a judgement of files, and a way to make jobs of them.
//!
//! The one implementation over store and queue is an adapter; tests have one in memory. Nothing here touches the inbox.

use std::{
    collections::HashSet,
    ffi::OsString,
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use atelier_domain::{ErrorInfo, Input, JobId, JobSpec};

use super::error_file::Failure;
pub use crate::store::InboxClaim;

/// Looks at files and wishes. Blocking.
pub trait Judge: Send + Sync + 'static {
    /// Reads headers only: is it a whole picture that is allowed?
    fn probe(&self, path: &Path, name: &str) -> Result<(), ErrorInfo>;

    /// Reads all of it.
    fn inspect(&self, path: &Path, name: &str) -> Result<Input, ErrorInfo>;

    /// Whether `spec` with so many pictures is a job that can run.
    fn check(&self, spec: &JobSpec, images: usize) -> Result<(), ErrorInfo>;

    /// Whether a folder's name is a preset's.
    fn is_preset(&self, name: &str) -> bool;
}

/// Makes jobs.
pub trait Intake: Judge {
    /// Ids grow, so that jobs keep the order of their claims.
    fn new_id(&self) -> JobId;

    /// How many jobs the queue takes before it is full.
    fn free_places(&self) -> u64;

    /// Writes down, in one transaction, what is about to be claimed.
    fn claim_begin(&self, claims: Vec<InboxClaim>) -> impl Future<Output = Result<(), IntakeError>> + Send;

    /// What was written down and neither admitted nor ended.
    fn claims(&self) -> impl Future<Output = Result<Vec<InboxClaim>, IntakeError>> + Send;

    /// Forgets claims that came to nothing.
    fn claim_end(&self, ids: Vec<JobId>) -> impl Future<Output = Result<(), IntakeError>> + Send;

    /// Makes a job and forgets its claim, in one transaction. Durable when it returns.
    fn admit(&self, file: NewFile) -> impl Future<Output = Result<Admitted, IntakeError>> + Send;

    /// Which of these ids are jobs', living or ended.
    fn known(&self, ids: Vec<JobId>) -> impl Future<Output = Result<HashSet<JobId>, IntakeError>> + Send;

    /// Calls a job off where it still lives; fine where it has ended.
    fn cancel(&self, id: JobId) -> impl Future<Output = Result<(), IntakeError>> + Send;
}

/// A claimed file that is to become a job.
#[derive(Clone, Debug)]
pub struct NewFile {
    pub id: JobId,
    /// What its sidecars and its folder ask for.
    pub spec: JobSpec,
    /// Where it lay, below the inbox.
    pub rel_path: PathBuf,
    /// Where they lay, below the inbox.
    pub sidecars: Vec<PathBuf>,
    /// The picture and where it is now; none for a job that is only a sidecar.
    pub input: Option<(Input, PathBuf)>,
    /// Below the outbox.
    pub output_dir: Option<PathBuf>,
    pub output_stem: OsString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    New,
    /// That job has the same content and parameters.
    DuplicateOf(JobId),
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum IntakeError {
    /// Trying again cannot help: the source goes to `failed/`.
    #[error("{0}")]
    Refused(ErrorInfo),
    #[error("the queue is full")]
    QueueFull { retry_after: Duration },
    #[error("the disk is full")]
    DiskFull,
    /// The database did not answer, or not as it should.
    #[error("{0}")]
    Unavailable(String),
}

/// A job that has ended, as far as its source is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedSource {
    pub id: JobId,
    pub rel_path: PathBuf,
    pub sidecars: Vec<PathBuf>,
    /// `None`: it succeeded.
    pub failure: Option<Failure>,
}
