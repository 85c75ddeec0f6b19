//! Start-up: what lies on the disk is compared with what the database says, and finished where a crash cut it short.
//!
//! Every step may itself be cut short and is done again at the next start.

use std::path::Path;

use atelier_domain::{JobId, JobStatus};

use crate::{
    outbox,
    store::{Store, StoreError},
};

/// What was found to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Jobs whose outputs were out already, or were moved out now.
    pub published: Vec<JobId>,
    /// Folders that belong to no live job, removed.
    pub removed: u64,
}

/// To be called with the data folder's lock held, before anything is delivered or received.
///
/// # Errors
/// The database cannot be read or written. Trouble with single files is logged, and tried again at the next start.
pub async fn run(store: &Store, data: &Path) -> Result<Reconciled, StoreError> {
    let mut done = Reconciled::default();
    for id in store.ids_with(JobStatus::Running).await? {
        let dir = data.join("checkpoints").join(id.to_string());
        match tokio::task::spawn_blocking(move || outbox::resume(&dir)).await {
            Ok(Ok(Some(published))) => {
                store.succeed(id, published).await?;
                tracing::info!(job = %id, "was finished before the restart; published");
                done.published.push(id);
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(job = %id, %error, "its publication cannot be finished; it runs again"),
            Err(error) => tracing::error!(job = %id, %error, "looking at its folder panicked"),
        }
    }
    let uploads = data.join("spool").join(".uploads");
    remove_all_in(&uploads);
    for (folder, needs) in [("checkpoints", Needs::Live), ("spool", Needs::Known)] {
        for id in ids_in(&data.join(folder)) {
            let job = store.job(id).await?;
            let needed = match (&job, needs) {
                (None, _) => false,
                (Some(job), Needs::Live) => !job.status.is_ended(),
                // A failed or cancelled job may be tried again with its uploads.
                (Some(job), Needs::Known) => job.status != JobStatus::Succeeded,
            };
            if !needed {
                match std::fs::remove_dir_all(data.join(folder).join(id.to_string())) {
                    Ok(()) => done.removed += 1,
                    Err(error) => tracing::warn!(job = %id, %error, "a folder without use could not be removed"),
                }
            }
        }
    }
    Ok(done)
}

#[derive(Clone, Copy)]
enum Needs {
    Live,
    Known,
}

/// Sub-folders named like a job; others are not ours and stay.
fn ids_in(dir: &Path) -> Vec<JobId> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn remove_all_in(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok) {
        let _ = std::fs::remove_file(entry.path());
    }
}
