//! What watchers are told.

use atelier_domain::{Job, JobId, Progress};

/// One happening. Durable ones carry their number, by which a watcher goes on after a break.
#[derive(Clone, Debug)]
pub struct Message {
    pub seq: Option<i64>,
    pub event: JobMessage,
}

#[derive(Clone, Debug, PartialEq)]
pub enum JobMessage {
    Updated(Box<Job>),
    Progress { id: JobId, progress: Progress },
    Removed(JobId),
}

impl JobMessage {
    /// The name on the wire.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Updated(_) => "job.updated",
            Self::Progress { .. } => "job.progress",
            Self::Removed(_) => "job.removed",
        }
    }

    pub fn job_id(&self) -> JobId {
        match self {
            Self::Updated(job) => job.id,
            Self::Progress { id, .. } | Self::Removed(id) => *id,
        }
    }
}
