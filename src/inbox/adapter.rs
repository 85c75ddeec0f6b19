//! The inbox over the daemon's own parts: admission judges, the store keeps claims, the queue takes jobs.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use atelier_domain::{ErrorInfo, Input, JobId, JobSpec, JobStatus, Source, SourceType, Timestamp};
use atelier_imaging::Limits;
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Admitted, Ended, EndedSource, Failure, Inbox, InboxClaim, InboxHandle, Intake, IntakeError, Judge, NewFile,
    Settings, WatchMode,
};
use crate::{
    admission::{self, Resolved},
    app::App,
    config::{Config, Duplicates, Watch},
    models::Registry,
    queue::{EndedHook, EnqueueError, Enqueued, NewJob, Queue, QueueError},
    store::{JobRecord, Store, StoreError},
};

/// An inbox that hears of ended jobs already and takes no files yet.
#[derive(Debug)]
pub struct Prepared {
    inbox: Inbox,
    desk: Arc<Desk>,
    settings: watch::Sender<Settings>,
}

/// Sets the inbox up and registers it for the ends of jobs.
pub fn prepare(app: &App) -> Prepared {
    let (settings, receiver) = watch::channel(settings_of(&app.config()));
    let inbox = Inbox::new(receiver);
    app.queue.on_ended(Arc::new(Hook(inbox.ended())));
    let desk = Arc::new(Desk {
        store: app.store.clone(),
        queue: app.queue.clone(),
        config: app.watch_config(),
        registry: app.watch_registry(),
    });
    Prepared { inbox, desk, settings }
}

impl Prepared {
    /// Starts to take files, until `shutdown`. New settings are taken from then on.
    pub fn start(self, shutdown: CancellationToken) -> InboxHandle {
        let mut config = self.desk.config.clone();
        let settings = self.settings;
        let ended = shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = ended.cancelled() => break,
                    changed = config.changed() => if changed.is_err() { break },
                }
                let new = settings_of(&config.borrow_and_update());
                settings.send_if_modified(|settings| std::mem::replace(settings, new.clone()) != new);
            }
        });
        self.inbox.start(self.desk, shutdown)
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

#[derive(Debug)]
struct Desk {
    store: Store,
    queue: Queue,
    config: watch::Receiver<Arc<Config>>,
    registry: watch::Receiver<Arc<Registry>>,
}

impl Desk {
    fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    fn resolve(&self, spec: JobSpec, images: usize) -> Result<Resolved, ErrorInfo> {
        let config = self.config();
        let registry = self.registry.borrow().clone();
        let resolved = admission::resolve(spec, Some(&config.inbox.default_preset), &config, &registry)?;
        admission::check_images(&resolved, images, &config)?;
        Ok(resolved)
    }
}

impl Judge for Desk {
    fn probe(&self, path: &Path, name: &str) -> Result<(), ErrorInfo> {
        let config = self.config();
        let limits = Limits { max_pixels: config.limits.pixels, max_bytes: config.limits.upload };
        atelier_imaging::probe(path, &limits).map(drop).map_err(|error| error.info(name))
    }

    fn inspect(&self, path: &Path, name: &str) -> Result<Input, ErrorInfo> {
        admission::inspect(path, name, &self.config())
    }

    fn check(&self, spec: &JobSpec, images: usize) -> Result<(), ErrorInfo> {
        self.resolve(spec.clone(), images).map(drop)
    }

    fn is_preset(&self, name: &str) -> bool {
        self.config.borrow().presets.contains_key(name)
    }
}

impl Intake for Desk {
    fn new_id(&self) -> JobId {
        self.queue.new_id()
    }

    fn free_places(&self) -> u64 {
        self.queue.free_places()
    }

    async fn claim_begin(&self, claims: Vec<InboxClaim>) -> Result<(), IntakeError> {
        Ok(self.store.claim_begin(claims).await?)
    }

    async fn claims(&self) -> Result<Vec<InboxClaim>, IntakeError> {
        Ok(self.store.claims().await?)
    }

    async fn claim_end(&self, ids: Vec<JobId>) -> Result<(), IntakeError> {
        Ok(self.store.claim_end(ids).await?)
    }

    async fn admit(&self, file: NewFile) -> Result<Admitted, IntakeError> {
        let images = usize::from(file.input.is_some());
        let resolved = self.resolve(file.spec, images).map_err(IntakeError::Refused)?;
        let skips = self.config().inbox.duplicates == Duplicates::Skip;
        let dedupe_key = skips.then(|| dedupe_key(&resolved, file.input.as_ref().map(|(input, _)| input))).flatten();
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
            webhook: None,
            trace_id: None,
        };
        match self.queue.enqueue(new).await {
            Ok(Enqueued::Duplicate(job)) if job.id != file.id => Ok(Admitted::DuplicateOf(job.id)),
            Ok(Enqueued::New(_) | Enqueued::Duplicate(_) | Enqueued::Replayed(_)) => Ok(Admitted::New),
            Err(EnqueueError::QueueFull { retry_after_s, .. }) => {
                Err(IntakeError::QueueFull { retry_after: Duration::from_secs(retry_after_s) })
            }
            Err(EnqueueError::DiskFull) => Err(IntakeError::DiskFull),
            Err(error @ (EnqueueError::IdempotencyMismatch | EnqueueError::Store(_))) => {
                Err(IntakeError::Unavailable(error.to_string()))
            }
        }
    }

    async fn known(&self, ids: Vec<JobId>) -> Result<HashSet<JobId>, IntakeError> {
        let mut known = HashSet::new();
        for id in ids {
            if self.store.job(id).await?.is_some() {
                known.insert(id);
            }
        }
        Ok(known)
    }

    async fn cancel(&self, id: JobId) -> Result<(), IntakeError> {
        match self.queue.cancel(id).await {
            Ok(_) | Err(QueueError::NotFound | QueueError::Conflict { .. }) => Ok(()),
            Err(error) => Err(IntakeError::Unavailable(error.to_string())),
        }
    }
}

impl From<StoreError> for IntakeError {
    fn from(error: StoreError) -> Self {
        if error.is_disk_full() { Self::DiskFull } else { Self::Unavailable(error.to_string()) }
    }
}

/// Equal for files of equal content that ask for the same. A wish without a picture whose seed was drawn equals no
/// other: dropped twice, it is meant to give two pictures.
fn dedupe_key(resolved: &Resolved, input: Option<&Input>) -> Option<String> {
    let content = match input {
        Some(input) => input.sha256.as_str(),
        None if resolved.seed_drawn => return None,
        None => "",
    };
    let mut hasher = Sha256::new();
    hasher.update(content);
    hasher.update([0]);
    hasher.update(resolved.fingerprint());
    Some(admission::hex(&hasher.finalize()))
}

/// Puts sources away when their jobs have ended.
struct Hook(Arc<Ended>);

impl EndedHook for Hook {
    fn job_ended<'a>(&'a self, record: &'a JobRecord) -> BoxFuture<'a, Result<Option<PathBuf>, String>> {
        Box::pin(async move {
            let Some(source) = ended_source(record) else { return Ok(None) };
            let ended = Arc::clone(&self.0);
            let moved = tokio::task::spawn_blocking(move || ended.end(&source));
            let now_at = moved.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            // A job that is only a sidecar has no input whose place could change.
            Ok(now_at.filter(|_| !record.input_paths.is_empty()))
        })
    }
}

fn ended_source(record: &JobRecord) -> Option<EndedSource> {
    let job = &record.job;
    let at = job.finished_at.unwrap_or_else(Timestamp::now);
    let failure = match job.status {
        JobStatus::Succeeded => None,
        JobStatus::Cancelled => Some(Failure::cancelled(job.id, job.attempt, at)),
        JobStatus::Failed => {
            let failure = Failure::of_job(job.id, job.error.clone(), job.attempt, at);
            Some(Failure { first_at: record.first_failed_at.unwrap_or(at), ..failure })
        }
        JobStatus::Queued | JobStatus::Running | JobStatus::Retrying => return None,
    };
    Some(EndedSource { id: job.id, rel_path: record.source_path.clone()?, sidecars: record.sidecars.clone(), failure })
}

#[cfg(test)]
mod tests {
    use atelier_domain::{JobKind, Params};

    use super::*;

    fn resolved(seed: Option<u64>, seed_drawn: bool) -> Resolved {
        let params = Params { seed, scale: Some(2), ..Params::default() };
        Resolved { kind: JobKind::Upscale, model: None, priority: 0, name: None, params, seed_drawn }
    }

    fn input(sha256: &str) -> Input {
        let media_type = String::from("image/png");
        Input { name: "a.png".into(), media_type, bytes: 1, width: 1, height: 1, sha256: sha256.into() }
    }

    #[test]
    fn content_and_what_was_asked_for_make_a_duplicate_and_names_and_drawn_seeds_do_not() {
        let key = |resolved: &Resolved, sha256| dedupe_key(resolved, Some(&input(sha256)));
        assert_eq!(key(&resolved(Some(1), true), "a"), key(&resolved(Some(2), true), "a"));
        assert_ne!(key(&resolved(Some(1), false), "a"), key(&resolved(Some(2), false), "a"));
        assert_ne!(key(&resolved(None, false), "a"), key(&resolved(None, false), "b"));
        let other_kind = Resolved { kind: JobKind::Caption, ..resolved(None, false) };
        assert_ne!(key(&resolved(None, false), "a"), key(&other_kind, "a"));
        let named = Resolved { name: Some("x".into()), priority: 9, ..resolved(None, false) };
        assert_eq!(key(&resolved(None, false), "a"), key(&named, "a"));
        assert_eq!(dedupe_key(&resolved(Some(1), true), None), None);
        assert!(dedupe_key(&resolved(Some(1), false), None).is_some());
    }
}
