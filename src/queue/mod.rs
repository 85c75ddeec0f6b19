//! Every change of a job, and the delivery of jobs to the worker one at a time.
//!
//! Over `store` (what is true) and apalis (what is next). Knows neither HTTP nor the inbox: whoever wants to act on a
//! job's end gives it a hook.

mod affinity;
mod delivery;
mod gate;
mod progress;
mod run;
mod wanted;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use atelier_domain::{
    ErrorCode, ErrorInfo, Input, Job, JobEvent, JobId, JobStatus, Progress, Source, Timestamp, Webhook, protocol::Stop,
};
use futures::future::BoxFuture;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

use self::{gate::Gate, progress::LiveJobs};
pub use self::{
    gate::GateState,
    wanted::{FetchModels, Wanted},
};
pub use crate::store::{JobMessage, Message};
use crate::{
    admission::Resolved,
    config::Config,
    engine::Engine,
    liveness::Beat,
    models::Registry,
    store::{CancelOutcome, Insert, Inserted, JobRecord, MetaKey, Refusal, Store, StoreError},
};

/// A job to be made.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub id: JobId,
    pub resolved: Resolved,
    pub source: Source,
    /// Below the inbox.
    pub source_path: Option<PathBuf>,
    /// Files that are on the disk, in the order of the request.
    pub inputs: Vec<(Input, PathBuf)>,
    pub mask: Option<(Input, PathBuf)>,
    /// Below the outbox.
    pub output_dir: Option<PathBuf>,
    pub output_stem: Option<std::ffi::OsString>,
    /// Below the inbox.
    pub sidecars: Vec<PathBuf>,
    pub dedupe_key: Option<String>,
    pub idempotency: Option<Idempotency>,
    pub webhook: Option<Webhook>,
    /// Of the request, for the log.
    pub trace_id: Option<String>,
}

/// A client's promise that the same key means the same request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    pub key: String,
    pub fingerprint: String,
}

#[derive(Clone, Debug)]
pub enum Enqueued {
    New(Job),
    /// A live or succeeded job does just this.
    Duplicate(Job),
    /// The answer to the first request with this key.
    Replayed(Job),
}

impl Enqueued {
    pub fn into_job(self) -> Job {
        match self {
            Self::New(job) | Self::Duplicate(job) | Self::Replayed(job) => job,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    #[error("{max} jobs are waiting, which is all that queue.max_queued allows")]
    QueueFull { max: u64, retry_after_s: u64 },
    #[error("this Idempotency-Key was used for another request")]
    IdempotencyMismatch,
    #[error("the disk is full")]
    DiskFull,
    #[error("{0}")]
    Store(StoreError),
}

impl From<StoreError> for EnqueueError {
    fn from(error: StoreError) -> Self {
        if error.is_disk_full() { Self::DiskFull } else { Self::Store(error) }
    }
}

impl EnqueueError {
    pub fn info(&self) -> ErrorInfo {
        let (code, hint) = match self {
            Self::QueueFull { .. } => (ErrorCode::QueueFull, "send it again later, or raise queue.max_queued"),
            Self::IdempotencyMismatch => (ErrorCode::IdempotencyMismatch, "use a new key for a new request"),
            Self::DiskFull => (ErrorCode::DiskFull, "free some space on the data folder's disk"),
            Self::Store(_) => (ErrorCode::Internal, "the daemon's log says more"),
        };
        ErrorInfo::new(code, self.to_string()).with_hint(hint)
    }
}

/// Why a job was not changed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("there is no such job")]
    NotFound,
    #[error("the job is {status}, which {what} does not allow")]
    Conflict { status: JobStatus, what: &'static str },
    #[error("job {0} does the same and is not to be done twice")]
    Duplicate(JobId),
    #[error("the job did not stop in time")]
    StillRunning,
    #[error("{0}")]
    Files(#[from] std::io::Error),
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl QueueError {
    fn refused(refusal: Refusal, what: &'static str) -> Self {
        match refusal {
            Refusal::NotFound => Self::NotFound,
            Refusal::Status(status) => Self::Conflict { status, what },
            Refusal::Duplicate(id) => Self::Duplicate(id),
        }
    }

    pub fn info(&self) -> ErrorInfo {
        let code = match self {
            Self::NotFound => ErrorCode::NotFound,
            Self::Conflict { .. } | Self::Duplicate(_) | Self::StillRunning => ErrorCode::Conflict,
            Self::Files(_) => ErrorCode::IoError,
            Self::Store(error) if error.is_disk_full() => ErrorCode::DiskFull,
            Self::Store(_) => ErrorCode::Internal,
        };
        ErrorInfo::new(code, self.to_string())
    }
}

/// Acts on a job's end. Called after the end is committed, and again later where that failed or was cut short: it must
/// be idempotent.
pub trait EndedHook: Send + Sync {
    /// Returns where the job's first input lies now, if it was moved: a retry reads it from there.
    ///
    /// # Errors
    /// Why it could not be done now.
    fn job_ended<'a>(&'a self, record: &'a JobRecord) -> BoxFuture<'a, Result<Option<PathBuf>, String>>;
}

struct Inner {
    store: Store,
    engine: Engine,
    config: watch::Receiver<Arc<Config>>,
    registry: watch::Receiver<Arc<Registry>>,
    gate: Gate,
    live: LiveJobs,
    /// The job that runs, and how to stop it.
    running: Mutex<Option<(JobId, watch::Sender<Option<Stop>>)>>,
    /// Held while a job runs, whatever becomes of apalis's worker meanwhile.
    one_at_a_time: tokio::sync::Mutex<()>,
    /// Held while a job's source is put away.
    endings: tokio::sync::Mutex<()>,
    monitor: Mutex<Option<apalis::prelude::MonitorContext>>,
    hook: RwLock<Option<Arc<dyn EndedHook>>>,
    puller: OnceLock<Arc<dyn FetchModels>>,
    overtaken: Mutex<affinity::Overtaken>,
    ids: Mutex<ulid::Generator>,
    /// Waiting jobs, about; exact numbers are the database's.
    waiting: AtomicU64,
    supervisor: OnceLock<Mutex<Option<tokio::task::JoinHandle<()>>>>,
    /// apalis's worker, while no job runs.
    fetcher: Beat,
    /// The running job, while the worker is at it.
    step: Beat,
}

/// A handle on the queue. Cloning is cheap.
#[derive(Clone)]
pub struct Queue {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    /// Over an open database; nothing is delivered before [`Self::start`].
    pub async fn new(
        store: Store,
        engine: Engine,
        config: watch::Receiver<Arc<Config>>,
        registry: watch::Receiver<Arc<Registry>>,
    ) -> Result<Self, StoreError> {
        let paused = store.meta(MetaKey::Paused).await?.as_deref() == Some("1");
        let queue = Self {
            inner: Arc::new(Inner {
                store,
                engine,
                config,
                registry,
                gate: Gate::new(paused),
                live: LiveJobs::default(),
                running: Mutex::default(),
                one_at_a_time: tokio::sync::Mutex::default(),
                endings: tokio::sync::Mutex::default(),
                monitor: Mutex::default(),
                hook: RwLock::default(),
                puller: OnceLock::new(),
                overtaken: Mutex::default(),
                ids: Mutex::new(ulid::Generator::new()),
                waiting: AtomicU64::new(0),
                supervisor: OnceLock::new(),
                fetcher: Beat::new("fetcher"),
                step: Beat::new("running step"),
            }),
        };
        queue.recount().await?;
        Ok(queue)
    }

    fn config(&self) -> Arc<Config> {
        self.inner.config.borrow().clone()
    }

    async fn recount(&self) -> Result<(), StoreError> {
        let counts = self.inner.store.counts().await?;
        let waiting = counts.get(&JobStatus::Queued).unwrap_or(&0) + counts.get(&JobStatus::Retrying).unwrap_or(&0);
        self.inner.waiting.store(waiting, Ordering::Relaxed);
        Ok(())
    }

    /// An id that sorts after all that were given out before.
    pub fn new_id(&self) -> JobId {
        let mut ids = self.inner.ids.lock().unwrap_or_else(PoisonError::into_inner);
        JobId::from_ulid(ids.generate().unwrap_or_else(|_| ulid::Ulid::generate()))
    }

    /// Adds a job. Durable when this returns; calls at the same time share a commit.
    pub async fn enqueue(&self, new: NewJob) -> Result<Enqueued, EnqueueError> {
        let config = self.config();
        let now = Timestamp::now();
        let (inputs, input_paths) = new.inputs.into_iter().unzip();
        let job = Job {
            id: new.id,
            kind: new.resolved.kind,
            model: new.resolved.model,
            status: JobStatus::Queued,
            priority: new.resolved.priority,
            progress: Progress::queued(now),
            attempt: 0,
            max_attempts: config.queue.max_attempts,
            crashes: 0,
            resumed_from_step: None,
            source: new.source,
            params: new.resolved.params,
            inputs,
            outputs: Vec::new(),
            result: None,
            error: None,
            created_at: now,
            started_at: None,
            finished_at: None,
        };
        let max = config.queue.max_queued;
        let inserted = self
            .inner
            .store
            .insert(Insert {
                job,
                input_paths,
                mask: new.mask,
                output_dir: new.output_dir,
                output_stem: new.output_stem.map(PathBuf::from),
                source_path: new.source_path,
                sidecars: new.sidecars,
                dedupe_key: new.dedupe_key,
                idempotency: new.idempotency.map(|i| (i.key, i.fingerprint)),
                max_queued: max,
                webhook: new.webhook,
                trace_id: new.trace_id,
            })
            .await;
        match inserted {
            Ok(Inserted::New(job)) => {
                self.inner.waiting.fetch_add(1, Ordering::Relaxed);
                tracing::info!(job = %job.id, kind = %job.kind, source = job.source.r#type.as_str(), "queued");
                self.wake();
                Ok(Enqueued::New(*job))
            }
            Ok(Inserted::Duplicate(job)) => Ok(Enqueued::Duplicate(self.overlaid(*job))),
            Ok(Inserted::Replayed(job)) => Ok(Enqueued::Replayed(self.overlaid(*job))),
            Ok(Inserted::IdempotencyMismatch) => Err(EnqueueError::IdempotencyMismatch),
            Ok(Inserted::QueueFull) => Err(EnqueueError::QueueFull { max, retry_after_s: 30 }),
            Err(error) => {
                if error.is_disk_full() {
                    self.block("the disk with the database is full");
                }
                Err(error.into())
            }
        }
    }

    /// Calls a job off: one that waits at once, one that runs at its next step.
    pub async fn cancel(&self, id: JobId) -> Result<Job, QueueError> {
        match self.inner.store.cancel(id).await?.map_err(|refusal| QueueError::refused(refusal, "cancelling"))? {
            CancelOutcome::Cancelled(job) => {
                tracing::info!(job = %id, "cancelled before it ran");
                self.recount().await?;
                self.after_end(id).await;
                Ok(*job)
            }
            CancelOutcome::Requested(job) => {
                tracing::info!(job = %id, "asked to stop");
                self.stop_running(id, Stop::Cancel);
                Ok(self.overlaid(*job))
            }
        }
    }

    fn stop_running(&self, id: JobId, how: Stop) {
        let running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, stop)) = running.as_ref().filter(|(running, _)| *running == id) {
            stop.send_replace(Some(how));
        }
    }

    /// Tries a failed or cancelled job again from the beginning.
    pub async fn retry(&self, id: JobId) -> Result<Job, QueueError> {
        // Whoever is quick finds the source still on its way to where this try will read it.
        self.after_end(id).await;
        let record = self.inner.store.record(id).await?.ok_or(QueueError::NotFound)?;
        if record.job.status.after(JobEvent::Resubmit).is_none() {
            return Err(QueueError::Conflict { status: record.job.status, what: "retrying" });
        }
        if let Some(missing) = record.input_paths.iter().find(|path| !path.exists()) {
            let what = format!("{} is gone; drop or send the picture again", missing.display());
            return Err(QueueError::Files(std::io::Error::new(std::io::ErrorKind::NotFound, what)));
        }
        let job = self.inner.store.resubmit(id).await?.map_err(|refusal| QueueError::refused(refusal, "retrying"))?;
        self.inner.waiting.fetch_add(1, Ordering::Relaxed);
        self.wake();
        Ok(job)
    }

    /// Removes a job with its files; calls it off first where it is live.
    pub async fn delete(&self, id: JobId) -> Result<(), QueueError> {
        match self.cancel(id).await {
            Ok(_) | Err(QueueError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
        let grace = self.config().worker.cancel_grace + Duration::from_secs(15);
        let ended = self.wait_ended(id, grace).await?.ok_or(QueueError::NotFound)?;
        if !ended.status.is_ended() {
            return Err(QueueError::StillRunning);
        }
        let record = self.inner.store.record(id).await?.ok_or(QueueError::NotFound)?;
        let data = self.config().paths.data.clone();
        // Files first: a row without files can be removed again, files without a row would stay for ever.
        tokio::task::spawn_blocking(move || {
            crate::maintenance::files::remove_job_files(&data, id, &record.output_paths)
        })
        .await
        .map_err(|error| std::io::Error::other(error.to_string()))??;
        self.inner.store.remove(vec![id]).await?;
        Ok(())
    }

    /// Lets the running job end and starts no other, until somebody resumes; survives a restart.
    pub async fn pause(&self) -> Result<(), StoreError> {
        self.inner.store.set_meta(MetaKey::Paused, "1".into()).await?;
        self.inner.gate.set_paused(true);
        tracing::info!("the queue is paused");
        Ok(())
    }

    pub async fn resume(&self) -> Result<(), StoreError> {
        self.inner.store.set_meta(MetaKey::Paused, "0".into()).await?;
        self.inner.gate.set_paused(false);
        tracing::info!("the queue goes on");
        Ok(())
    }

    pub fn gate(&self) -> GateState {
        self.inner.gate.state()
    }

    fn block(&self, why: &str) {
        let config = self.config();
        self.inner.gate.block_until_writable(why, vec![config.paths.data.clone(), config.outbox.dir.clone()]);
    }

    /// How many more jobs the queue takes, about.
    pub fn free_places(&self) -> u64 {
        match self.config().queue.max_queued {
            0 => u64::MAX,
            max => max.saturating_sub(self.inner.waiting.load(Ordering::Relaxed)),
        }
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Message> {
        self.inner.store.subscribe()
    }

    /// The file that shows how far a running job is, if its worker has told of one.
    pub fn preview(&self, id: JobId) -> Option<std::path::PathBuf> {
        let file = self.inner.live.get(id)?.preview?;
        // A plain name: what the worker says stays within the job's folder.
        let name = std::path::Path::new(&file).file_name()?.to_owned();
        Some(run::work_dir(&self.config(), id).join(name))
    }

    /// The progress of a running job, newer than the database's.
    pub fn live_progress(&self, id: JobId) -> Option<Progress> {
        self.inner.live.get(id).map(|live| live.progress)
    }

    /// A job from the database with what is known better.
    #[must_use]
    pub fn overlaid(&self, mut job: Job) -> Job {
        self.inner.live.overlay(&mut job);
        job
    }

    /// The job that runs.
    pub fn running(&self) -> Option<JobId> {
        self.inner.running.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(id, _)| *id)
    }

    /// The job once it has ended, or as it is after `timeout`; `None` where there is no such job.
    pub async fn wait_ended(&self, id: JobId, timeout: Duration) -> Result<Option<Job>, StoreError> {
        let deadline = Instant::now() + timeout;
        let mut messages = self.subscribe();
        loop {
            let Some(job) = self.inner.store.job(id).await? else { return Ok(None) };
            if job.status.is_ended() {
                return Ok(Some(job));
            }
            loop {
                match tokio::time::timeout_at(deadline, messages.recv()).await {
                    Err(_) => return Ok(Some(self.overlaid(job))),
                    Ok(Ok(message)) => match message.event {
                        JobMessage::Updated(job) if job.id == id && job.status.is_ended() => return Ok(Some(*job)),
                        JobMessage::Removed(removed) if removed == id => return Ok(None),
                        JobMessage::Updated(_) | JobMessage::Progress { .. } | JobMessage::Removed(_) => {}
                    },
                    // Too much was said meanwhile: look again.
                    Ok(Err(broadcast::error::RecvError::Lagged(_))) => break,
                    Ok(Err(broadcast::error::RecvError::Closed)) => return Ok(Some(job)),
                }
            }
        }
    }

    fn hook(&self) -> Option<Arc<dyn EndedHook>> {
        self.inner.hook.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has `hook` called at every job's end, and now for the ends that were missed.
    pub fn on_ended(&self, hook: Arc<dyn EndedHook>) {
        *self.inner.hook.write().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }

    /// Calls the hook for every ended job that still waits for it.
    pub async fn run_due_hooks(&self) -> Result<(), StoreError> {
        for record in self.inner.store.hooks_due().await? {
            self.after_end(record.job.id).await;
        }
        Ok(())
    }

    /// What the watchdog listens to: that jobs are fetched, and that the one that runs makes progress.
    pub fn beats(&self) -> [Beat; 2] {
        [self.inner.fetcher.clone(), self.inner.step.clone()]
    }

    /// How many jobs wait, about.
    pub fn waiting(&self) -> u64 {
        self.inner.waiting.load(Ordering::Relaxed)
    }
}
