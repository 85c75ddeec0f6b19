//! Progress: every step for those who watch, at most one write per interval for the database.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atelier_domain::{Job, JobId, JobStatus, Progress, Timestamp};
use tokio::sync::watch;

use crate::store::Store;

/// How far a running job has come, newer than its row.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) progress: Progress,
    pub(super) model: Option<String>,
    pub(super) resumed_from_step: Option<u32>,
    /// The last preview's file in the job's folder.
    pub(super) preview: Option<String>,
}

/// What runs right now. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct LiveJobs(Arc<Mutex<HashMap<JobId, Live>>>);

impl LiveJobs {
    pub(super) fn get(&self, id: JobId) -> Option<Live> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(super) fn set(&self, id: JobId, live: Live) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, live);
    }

    pub(super) fn remove(&self, id: JobId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Puts into a job from the database what is known better.
    pub(super) fn overlay(&self, job: &mut Job) {
        if job.status != JobStatus::Running {
            return;
        }
        if let Some(live) = self.get(job.id) {
            if live.progress.updated_at >= job.progress.updated_at {
                job.progress = live.progress;
            }
            job.model = live.model.or(job.model.take());
            job.resumed_from_step = live.resumed_from_step.or(job.resumed_from_step);
        }
    }
}

/// Writes one job's progress now and then, for as long as it lives.
///
/// The start of a job and its end are written with its status; this writes what lies between, first one interval
/// after the start. A write that fails is tried again with newer progress: it may be lost, the job may not.
pub(super) struct ProgressWriter {
    latest: watch::Sender<Option<Live>>,
    task: tokio::task::JoinHandle<()>,
}

impl ProgressWriter {
    pub(super) fn start(store: Store, id: JobId, interval: Duration) -> Self {
        let (latest, mut changes) = watch::channel(None::<Live>);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                if changes.changed().await.is_err() {
                    break;
                }
                let Some(live) = changes.borrow_and_update().clone() else { continue };
                let chosen = live.model.map(|model| (model, live.resumed_from_step));
                metrics::counter!("atelier_progress_writes_total").increment(1);
                if let Err(error) = store.progress(id, live.progress, chosen).await {
                    tracing::warn!(job = %id, %error, "progress was not written");
                }
            }
        });
        Self { latest, task }
    }

    pub(super) fn update(&self, live: Live) {
        self.latest.send_replace(Some(live));
    }
}

impl Drop for ProgressWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn now(phase: &str, step: u32, steps: u32, fraction: f64, text: Option<String>) -> Progress {
    let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 };
    Progress { phase: phase.to_owned(), step, steps, fraction, text, updated_at: Timestamp::now() }
}
