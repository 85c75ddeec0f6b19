//! Removing ended jobs that are past their time, with their outputs.
//!
//! By age per status, by the outbox's total size, and never the newest `keep_last`. Touches nothing that is live, that
//! waits in the inbox, or that Atelier did not make: pictures in `done/` and `failed/` are their owner's.
//! Safe beside a running daemon: transactions are short, files go before their rows, and two cleanups exclude each
//! other.

use std::{
    collections::HashSet,
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use atelier_domain::{JobId, JobStatus, Timestamp};
use serde::Serialize;

use super::files;
use crate::{
    config::Config,
    store::{JobFilter, MetaKey, Removable, Store, StoreError},
};

/// Jobs that one transaction removes.
const PAGE: u32 = 500;

/// Events that watchers may still ask for.
const KEEP_EVENTS: u32 = 50_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CleanupReport {
    pub dry_run: bool,
    pub jobs: u64,
    pub files: u64,
    pub bytes: u64,
    /// What was or would be removed, at most 1,000 of them.
    pub items: Vec<CleanupItem>,
    /// What could not be removed, and why; tried again next time.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CleanupItem {
    pub job: JobId,
    pub paths: Vec<String>,
    pub bytes: u64,
    /// `succeeded 8d ago (cleanup.keep_succeeded)` and the like.
    pub why: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("another cleanup is at work on this data folder")]
    Busy,
    #[error("{}: {error}", path.display())]
    Lock { path: PathBuf, error: std::io::Error },
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// Removes, or with `dry_run` only lists.
///
/// # Errors
/// Another cleanup runs, or the database fails. What was removed until then stays removed.
pub async fn run(store: &Store, config: &Config, dry_run: bool) -> Result<CleanupReport, CleanupError> {
    let _lock = exclusive(&config.paths.data)?;
    let mut report = CleanupReport { dry_run, ..CleanupReport::default() };
    let now = Timestamp::now();
    let kept = newest(store, config.cleanup.keep_last).await?;
    let mut gone = HashSet::new();
    for (status, keep, key) in [
        (JobStatus::Succeeded, config.cleanup.keep_succeeded, "keep_succeeded"),
        (JobStatus::Failed, config.cleanup.keep_failed, "keep_failed"),
        (JobStatus::Cancelled, config.cleanup.keep_cancelled, "keep_cancelled"),
    ] {
        let before = now.plus_millis(-i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
        let mut after = None;
        loop {
            let page = store.removable(status, before, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some((last.finished_at, last.id));
            let why = |job: &Removable| format!("{status} {} ago (cleanup.{key})", ago(now, job.finished_at));
            let page = page.iter().filter(|job| !kept.contains(&job.id)).cloned().collect();
            remove(store, config, page, why, &mut gone, &mut report).await?;
        }
    }
    if let Some(max) = config.cleanup.max_bytes {
        by_size(store, config, max, now, &kept, &mut gone, &mut report).await?;
    }
    if !dry_run {
        while store.trim_events(KEEP_EVENTS).await? > 0 {
            breathe().await;
        }
        store.sweep_deliveries().await?;
        store.give_back_space().await?;
        store.set_meta(MetaKey::LastCleanup, now.0.to_string()).await?;
    }
    Ok(report)
}

async fn by_size(
    store: &Store,
    config: &Config,
    max: u64,
    now: Timestamp,
    kept: &HashSet<JobId>,
    gone: &mut HashSet<JobId>,
    report: &mut CleanupReport,
) -> Result<(), CleanupError> {
    let mut jobs = Vec::new();
    let mut after = None;
    loop {
        let page = store.removable(JobStatus::Succeeded, Timestamp(i64::MAX), after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some((last.finished_at, last.id));
        jobs.extend(page.into_iter().filter(|job| !gone.contains(&job.id)));
    }
    let mut total: u64 = jobs.iter().map(|job| job.output_bytes).sum();
    let mut too_much = Vec::new();
    // Oldest end first.
    for job in jobs {
        if total <= max {
            break;
        }
        if !kept.contains(&job.id) {
            total -= job.output_bytes;
            too_much.push(job);
        }
    }
    let why = |job: &Removable| {
        format!("the outbox holds too much; finished {} ago (cleanup.max_bytes)", ago(now, job.finished_at))
    };
    for page in too_much.chunks(PAGE as usize) {
        remove(store, config, page.to_vec(), why, gone, report).await?;
    }
    Ok(())
}

async fn remove(
    store: &Store,
    config: &Config,
    page: Vec<Removable>,
    why: impl Fn(&Removable) -> String,
    gone: &mut HashSet<JobId>,
    report: &mut CleanupReport,
) -> Result<(), CleanupError> {
    let mut removed = Vec::new();
    for job in page {
        if report.dry_run {
            report.files += job.output_paths.iter().filter(|path| path.exists()).count() as u64;
        } else {
            let (data, id, outputs) = (config.paths.data.clone(), job.id, job.output_paths.clone());
            let removed = tokio::task::spawn_blocking(move || files::remove_job_files(&data, id, &outputs)).await;
            match removed.map_err(std::io::Error::other).flatten() {
                Ok(n) => report.files += n,
                Err(error) => {
                    report.problems.push(format!("job {}: {error}", job.id));
                    continue;
                }
            }
        }
        report.jobs += 1;
        report.bytes += job.output_bytes;
        if report.items.len() < 1000 {
            report.items.push(CleanupItem {
                job: job.id,
                paths: job.output_paths.iter().map(|path| path.display().to_string()).collect(),
                bytes: job.output_bytes,
                why: why(&job),
            });
        }
        gone.insert(job.id);
        removed.push(job.id);
    }
    if !report.dry_run && !removed.is_empty() {
        store.remove(removed).await?;
        breathe().await;
    }
    Ok(())
}

async fn newest(store: &Store, keep_last: u64) -> Result<HashSet<JobId>, StoreError> {
    let mut kept = HashSet::new();
    let mut cursor = None;
    while (kept.len() as u64) < keep_last {
        let limit = u32::try_from(keep_last - kept.len() as u64).unwrap_or(u32::MAX).min(200);
        let filter = JobFilter { status: Some(JobStatus::Succeeded), limit, cursor, ..JobFilter::default() };
        let page = store.list(&filter).await?;
        kept.extend(page.jobs.iter().map(|job| job.id));
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    Ok(kept)
}

/// Lets the daemon's writes in between.
async fn breathe() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

fn ago(now: Timestamp, then: Timestamp) -> String {
    let seconds = u64::try_from((now.0 - then.0) / 1000).unwrap_or(0);
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

fn exclusive(data: &Path) -> Result<File, CleanupError> {
    let path = data.join("cleanup.lock");
    let open = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(|error| CleanupError::Lock { path: path.clone(), error })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CleanupError::Busy),
        Err(std::fs::TryLockError::Error(error)) => Err(CleanupError::Lock { path, error }),
    }
}
