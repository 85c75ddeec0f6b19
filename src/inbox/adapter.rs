//! The drop folder over the daemon's own parts: what it asks of the rest, answered by configuration, store and queue.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use atelier_domain::{ErrorInfo, Input, JobId, JobSpec, JobStatus, Source, SourceType};
use atelier_imaging::{Limits, probe};
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::{sync::watch as channel, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Admitted, Ended, EndedSource, Failure, Inbox, InboxClaim, InboxHandle, Intake, IntakeError, JobState, Judge,
    NewFile, Settings, WatchMode,
};
use crate::{
    admission,
    app::App,
    config::{Config, Duplicates, Watch},
    queue::{EndedHook, EnqueueError, Enqueued, NewJob, QueueError},
    store::{self, JobRecord, StoreError},
};

/// An inbox that hears of jobs' ends already, and does not look for files yet.
pub struct Prepared {
    inbox: Inbox,
    app: Arc<App>,
    settings: channel::Sender<Settings>,
}

/// Sets the inbox up and has it called at the ends of jobs.
pub fn prepare(app: &Arc<App>) -> Prepared {
    let (settings, receiver) = channel::channel(settings_of(&app.config()));
    let inbox = Inbox::new(receiver);
    app.queue.on_ended(Arc::new(Hook(inbox.ended())));
    Prepared { inbox, app: app.clone(), settings }
}

impl Prepared {
    /// Starts looking for files, until `shutdown`.
    pub fn start(self, shutdown: CancellationToken) -> (InboxHandle, JoinHandle<()>) {
        let mut configs = self.app.watch_config();
        let settings = self.settings;
        tokio::spawn(async move {
            while configs.changed().await.is_ok() {
                let new = settings_of(&configs.borrow_and_update());
                settings.send_if_modified(|old| {
                    *old != new && {
                        *old = new;
                        true
                    }
                });
            }
        });
        self.inbox.start(Arc::new(Desk(self.app)), shutdown)
    }
}

fn settings_of(config: &Config) -> Settings {
    let inbox = &config.inbox;
    Settings {
        dir: inbox.dir.clone(),
        settle: inbox.settle,
        rescan: inbox.rescan,
        sidecar_wait: inbox.sidecar_wait,
        give_up: inbox.give_up,
        watch: match inbox.watch {
            Watch::Auto => WatchMode::Auto,
            Watch::Always => WatchMode::Always,
            Watch::Never => WatchMode::Never,
        },
        ignore: inbox.ignore.clone(),
    }
}

/// Moves sources when their jobs end, and fetches them back for a retry.
struct Hook(Arc<Ended>);

impl EndedHook for Hook {
    fn job_ended<'a>(&'a self, record: &'a JobRecord) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let Some(source) = ended_source(record) else { return Ok(()) };
            let (ended, id) = (self.0.clone(), source.id);
            blocking(move || ended.end(&source)).await?;
            if self.0.missed().contains(&id) { Err("its folder cannot be written".into()) } else { Ok(()) }
        })
    }

    fn reclaim<'a>(&'a self, record: &'a JobRecord) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move {
            let Some(rel_path) = record.source_path.clone() else { return Ok(true) };
            let (ended, id, sidecars) = (self.0.clone(), record.job.id, record.sidecars.clone());
            blocking(move || ended.reclaim(id, &rel_path, &sidecars)).await?.map_err(|error| error.to_string())
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// An ended job as far as its source is concerned; `None` where it lives, or came by another way.
fn ended_source(record: &JobRecord) -> Option<EndedSource> {
    let job = &record.job;
    let rel_path = record.source_path.clone()?;
    let failure = match job.status {
        JobStatus::Queued | JobStatus::Running | JobStatus::Retrying => return None,
        JobStatus::Succeeded => None,
        JobStatus::Failed => {
            let at = job.finished_at.unwrap_or(job.progress.updated_at);
            Some(Failure::of_job(job.id, job.error.clone(), job.attempt, at))
        }
        JobStatus::Cancelled => {
            let at = job.finished_at.unwrap_or(job.progress.updated_at);
            Some(Failure::cancelled(job.id, job.attempt, at))
        }
    };
    Some(EndedSource { id: job.id, rel_path, sidecars: record.sidecars.clone(), failure })
}

/// What the inbox asks, answered by the running daemon.
struct Desk(Arc<App>);

impl Judge for Desk {
    fn probe(&self, path: &Path, name: &str) -> Result<(), ErrorInfo> {
        let config = self.0.config();
        let limits = Limits { max_pixels: config.limits.pixels, max_bytes: config.limits.upload };
        probe(path, &limits).map(drop).map_err(|error| error.info(name))
    }

    fn inspect(&self, path: &Path, name: &str) -> Result<Input, ErrorInfo> {
        admission::inspect(path, name, &self.0.config())
    }

    fn check(&self, spec: &JobSpec, images: usize) -> Result<(), ErrorInfo> {
        let config = self.0.config();
        let resolved =
            admission::resolve(spec.clone(), Some(&config.inbox.default_preset), &config, &self.0.registry())?;
        admission::check_images(&resolved, images, &config)
    }

    fn is_preset(&self, name: &str) -> bool {
        self.0.config().presets.contains_key(name)
    }
}

impl Intake for Desk {
    fn new_id(&self) -> JobId {
        self.0.queue.new_id()
    }

    fn free_places(&self) -> u64 {
        self.0.queue.free_places()
    }

    async fn claim_begin(&self, claims: Vec<InboxClaim>) -> Result<(), IntakeError> {
        let claims = claims
            .into_iter()
            .map(|InboxClaim { id, rel_path, sidecars, claimed_at }| store::InboxClaim {
                id,
                rel_path,
                sidecars,
                claimed_at,
            })
            .collect();
        self.0.store.claim_begin(claims).await.map_err(unavailable)
    }

    async fn claims(&self) -> Result<Vec<InboxClaim>, IntakeError> {
        let claims = self.0.store.claims().await.map_err(unavailable)?;
        let ours = |store::InboxClaim { id, rel_path, sidecars, claimed_at }| InboxClaim {
            id,
            rel_path,
            sidecars,
            claimed_at,
        };
        Ok(claims.into_iter().map(ours).collect())
    }

    async fn claim_end(&self, ids: Vec<JobId>) -> Result<(), IntakeError> {
        self.0.store.claim_end(ids).await.map_err(unavailable)
    }

    async fn admit(&self, file: NewFile) -> Result<Admitted, IntakeError> {
        let config = self.0.config();
        let resolved = admission::resolve(file.spec, Some(&config.inbox.default_preset), &config, &self.0.registry())
            .map_err(IntakeError::Refused)?;
        let dedupe_key = match (config.inbox.duplicates, &file.input) {
            (Duplicates::Skip, Some((input, _))) => Some(dedupe_key(&resolved, input)),
            // A wish without a picture is meant each time that it is dropped.
            (Duplicates::Skip, None) | (Duplicates::Run, _) => None,
        };
        let new = NewJob {
            id: file.id,
            resolved,
            source: Source { r#type: SourceType::Inbox, name: Some(file.rel_path.to_string_lossy().into_owned()) },
            source_path: Some(file.rel_path),
            inputs: file.input.into_iter().collect(),
            mask: None,
            output_dir: file.output_dir,
            output_stem: Some(file.output_stem),
            sidecars: file.sidecars,
            dedupe_key,
            idempotency: None,
        };
        match self.0.queue.enqueue(new).await {
            Ok(Enqueued::New(_)) => Ok(Admitted::New),
            Ok(Enqueued::Duplicate(job) | Enqueued::Replayed(job)) => Ok(Admitted::DuplicateOf(job.id)),
            Err(EnqueueError::QueueFull { retry_after_s, .. }) => {
                Err(IntakeError::QueueFull { retry_after: Duration::from_secs(retry_after_s) })
            }
            Err(EnqueueError::DiskFull) => Err(IntakeError::DiskFull),
            Err(error @ EnqueueError::IdempotencyMismatch) => Err(IntakeError::Refused(error.info())),
            Err(EnqueueError::Store(error)) => Err(unavailable(error)),
        }
    }

    async fn states(&self, ids: Vec<JobId>) -> Result<HashMap<JobId, JobState>, IntakeError> {
        let mut states = HashMap::new();
        for id in ids {
            if let Some(record) = self.0.store.record(id).await.map_err(unavailable)? {
                states.insert(id, ended_source(&record).map_or(JobState::Live, JobState::Ended));
            }
        }
        Ok(states)
    }

    async fn cancel(&self, id: JobId) -> Result<(), IntakeError> {
        match self.0.queue.cancel(id).await {
            Ok(_) | Err(QueueError::NotFound | QueueError::Conflict { .. }) => Ok(()),
            Err(QueueError::Store(error)) => Err(unavailable(error)),
            Err(error) => Err(IntakeError::Unavailable(error.to_string())),
        }
    }
}

/// The same content with the same wish is the same job.
fn dedupe_key(resolved: &admission::Resolved, input: &Input) -> String {
    let mut hasher = Sha256::new();
    hasher.update(input.sha256.as_bytes());
    hasher.update(resolved.fingerprint().as_bytes());
    admission::hex(&hasher.finalize())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: StoreError) -> IntakeError {
    if error.is_disk_full() { IntakeError::DiskFull } else { IntakeError::Unavailable(error.to_string()) }
}
