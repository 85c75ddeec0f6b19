//! One job from its delivery to its end.

use std::{
    path::{Path, PathBuf},
    sync::PoisonError,
    time::Duration,
};

use atelier_domain::{
    Disposition, ErrorCode, ErrorInfo, JobId, JobKind, JobStatus, Params, Timestamp,
    model::Family,
    protocol::{Event, Finished, ModelRef, OutputSpec, Run, Stop, WirePath},
};
use tokio::sync::watch;
use tracing::Instrument as _;

use super::{
    Queue,
    progress::{Live, ProgressWriter, now},
};
use crate::{
    config::Config,
    engine::Outcome,
    failpoint,
    models::{InstalledModel, Registry},
    outbox, signing,
    store::{JobMessage, JobRecord, StoreError},
};

/// What a worker may take to start; its steps have `worker.stall_timeout`. The engine replaces a worker that takes
/// longer. The watchdog is for an engine that does not.
const STEP_PATIENCE: Duration = Duration::from_mins(3);

impl Queue {
    /// Runs the job of one delivery. When this returns, the job has ended or waits again, and the delivery is gone or
    /// handed back.
    pub(super) async fn deliver(&self, id: JobId) {
        let _one = self.inner.one_at_a_time.lock().await;
        let _fetches_nothing = self.inner.fetcher.excuse();
        // Known before the job is marked as running, so that a cancel in between finds somebody to tell.
        let (stop, stopped) = watch::channel(None);
        *self.inner.running.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, stop));
        if let Err(error) = self.run(id, stopped).await {
            // The database refuses even after many tries. The job stays as it is; start-up puts it right.
            tracing::error!(job = %id, %error, "the job's state could not be written");
        }
        *self.inner.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.inner.live.remove(id);
        self.forget_overtaken(id);
        self.prefer_loaded().await;
        if let Err(error) = self.recount().await {
            tracing::warn!(%error, "jobs could not be counted");
        }
    }

    async fn run(&self, id: JobId, stopped: watch::Receiver<Option<Stop>>) -> Result<(), StoreError> {
        if self.inner.gate.state().stopping {
            // Taken in the moment of the stop: start-up finds the delivery and takes it back.
            return Ok(());
        }
        let Some(model) = self.model_for(id).await? else { return Ok(()) };
        let Some(started) = self.persist(|| self.inner.store.start(id)).await? else {
            tracing::debug!(job = %id, "delivered, but it has ended already");
            return Ok(());
        };
        let record = started.record;
        // Every line from here on, also of other parts, says which job it is about, and which trace.
        let span = tracing::info_span!("job", id = %id, trace_id = record.trace_id);
        self.run_started(record, model, stopped).instrument(span).await
    }

    async fn run_started(
        &self,
        record: JobRecord,
        model: Result<(), ErrorInfo>,
        stopped: watch::Receiver<Option<Stop>>,
    ) -> Result<(), StoreError> {
        let id = record.job.id;
        // It waits no longer.
        if let Err(error) = self.recount().await {
            tracing::warn!(job = %id, %error, "jobs could not be counted");
        }
        failpoint::hit("queue.after_start");
        let begun = std::time::Instant::now();
        tracing::info!(job = %id, attempt = record.job.attempt, "running");
        if record.job.attempt == 1 {
            let waited = (Timestamp::now().0 - record.job.created_at.0).max(0);
            metrics::histogram!("atelier_job_wait_seconds", "kind" => record.job.kind.as_str())
                .record(Duration::from_millis(u64::try_from(waited).unwrap_or(0)).as_secs_f64());
        }
        let config = self.config();
        let work_dir = work_dir(&config, id);
        let prepared = match model {
            Ok(()) => self.prepare(&record, &config, &work_dir).await,
            Err(error) => Err(error),
        };
        let outcome = match prepared {
            Ok(run) => {
                let _watched = self.inner.step.while_alive(step_patience(&config));
                self.inner.engine.run(run, stopped, self.listener(&record, &config)).await
            }
            Err(error) => Outcome::Failed(error),
        };
        failpoint::hit("queue.after_run");
        let ended = self.conclude(&record, outcome, &config, &work_dir).await?;
        if let Some(ended) = ended {
            let labels = [
                ("kind", ended.job.kind.as_str().to_owned()),
                ("model", ended.job.model.clone().unwrap_or_default()),
                ("status", ended.job.status.as_str().to_owned()),
            ];
            if ended.job.status.is_ended() {
                metrics::counter!("atelier_jobs_total", &labels).increment(1);
                metrics::histogram!("atelier_job_seconds", &labels).record(begun.elapsed().as_secs_f64());
                self.after_end(id).await;
            }
            let error =
                ended.job.error.as_ref().map(|error| format!("{}: {}", error.code, error.message)).unwrap_or_default();
            tracing::info!(job = %id, status = %ended.job.status, ms = begun.elapsed().as_millis(), "{error}");
        }
        Ok(())
    }

    async fn prepare(&self, record: &JobRecord, config: &Config, work_dir: &Path) -> Result<Run, ErrorInfo> {
        let job = &record.job;
        let mask = record.mask.as_ref().map(|(_, path)| path.clone());
        for path in record.input_paths.iter().chain(&mask) {
            if let Err(error) = tokio::fs::metadata(path).await {
                return Err(ErrorInfo::new(ErrorCode::InputMissing, format!("{}: {error}", path.display()))
                    .with_hint("the job's picture was moved or deleted; drop or send it again"));
            }
        }
        let registry = self.inner.registry.borrow().clone();
        let models: Vec<ModelRef> = registry
            .serving(job.kind)
            .filter(|model| record.model_asked.as_ref().is_none_or(|asked| *asked == model.id))
            .filter_map(model_ref)
            .collect();
        if models.is_empty() {
            let what = record.model_asked.as_deref().unwrap_or(job.kind.as_str());
            if let Some(model) = registry.get(what) {
                return Err(unfit(model, job.kind));
            }
            return Err(ErrorInfo::new(ErrorCode::UnknownModel, format!("no installed model serves {what} any more"))
                .with_hint("`atelier models list` shows what is installed"));
        }
        let parts = parts(&models, &job.params, &registry);
        let dir = work_dir.to_owned();
        let made = tokio::task::spawn_blocking(move || outbox::create_dir_durably(&dir)).await;
        match made {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(io_error(&error, "the job's folder cannot be made")),
            Err(error) => return Err(ErrorInfo::new(ErrorCode::Internal, error.to_string())),
        }
        Ok(Run {
            job: job.id,
            attempt: job.attempt,
            crashes: job.crashes,
            kind: job.kind,
            model_given: record.model_asked.is_some(),
            models,
            parts,
            params: job.params.clone(),
            inputs: record.input_paths.iter().cloned().map(WirePath).collect(),
            mask: mask.map(WirePath),
            work_dir: WirePath(work_dir.to_owned()),
            checkpoint_interval_ms: u64::try_from(config.checkpoint.interval.as_millis()).unwrap_or(u64::MAX),
            output: OutputSpec {
                format: job.params.format.unwrap_or(config.outbox.format),
                quality: job.params.quality.unwrap_or(config.outbox.quality),
                gps: config.outbox.gps,
            },
            max_pixels: config.limits.pixels,
        })
    }

    /// What hears the worker: keeps the newest progress in memory, tells watchers, writes now and then.
    fn listener(&self, record: &JobRecord, config: &Config) -> impl FnMut(&Event) + use<> {
        let id = record.job.id;
        let writer = ProgressWriter::start(self.inner.store.clone(), id, config.progress.write_interval);
        let (store, live_jobs) = (self.inner.store.clone(), self.inner.live.clone());
        let (step, patience) = (self.inner.step.clone(), step_patience(config));
        let mut live = Live {
            progress: now("starting", 0, 0, 0.0, None),
            model: record.job.model.clone(),
            resumed_from_step: None,
            preview: None,
        };
        live_jobs.set(id, live.clone());
        move |event| {
            step.alive(patience);
            match event {
                Event::Started { model, resumed_from_step, .. } => {
                    live.model = Some(model.clone());
                    live.resumed_from_step = *resumed_from_step;
                    if let Some(step) = resumed_from_step {
                        tracing::info!(job = %id, step, "goes on from its checkpoint");
                    }
                }
                Event::Progress { phase, step, steps, fraction, text, .. } => {
                    failpoint::stall("queue.progress");
                    live.progress = now(phase, *step, *steps, *fraction, text.clone());
                    store.announce(JobMessage::Progress { id, progress: live.progress.clone() });
                }
                Event::Checkpointed { step, .. } => {
                    failpoint::hit("queue.after_checkpoint");
                    tracing::debug!(job = %id, step, "checkpoint");
                    return;
                }
                Event::Preview { file, .. } => live.preview = Some(file.clone()),
                Event::Ready(_)
                | Event::Finished(_)
                | Event::Failed { .. }
                | Event::Stopped { .. }
                | Event::Models { .. } => return,
            }
            live_jobs.set(id, live.clone());
            writer.update(live.clone());
        }
    }

    async fn conclude(
        &self,
        record: &JobRecord,
        outcome: Outcome,
        config: &Config,
        work_dir: &Path,
    ) -> Result<Option<JobRecord>, StoreError> {
        let id = record.job.id;
        match outcome {
            Outcome::Finished(finished) => self.publish(record, *finished, config, work_dir).await,
            Outcome::Failed(error) | Outcome::Unavailable(error) => self.failed(record, error, config).await,
            Outcome::Stopped(Stop::Cancel) => self.persist(|| self.inner.store.cancelled(id)).await,
            Outcome::Stopped(Stop::Checkpoint) => self.persist(|| self.inner.store.interrupt(id, None)).await,
            Outcome::Lost(error) => {
                let crash = (error, config.queue.max_crashes);
                let record = self.persist(|| self.inner.store.interrupt(id, Some(crash.clone()))).await?;
                self.wake();
                Ok(record)
            }
        }
    }

    async fn publish(
        &self,
        record: &JobRecord,
        finished: Finished,
        config: &Config,
        work_dir: &Path,
    ) -> Result<Option<JobRecord>, StoreError> {
        let id = record.job.id;
        let resumed = self.inner.live.get(id).and_then(|live| live.resumed_from_step);
        let (owned, dir, config_now) = (record.clone(), work_dir.to_owned(), config.clone());
        let moved = tokio::task::spawn_blocking(move || {
            let finished = signing::sign(&config_now, &owned, finished, &dir)?;
            outbox::publish(&owned, &finished, resumed, &dir, &config_now.outbox.dir)
                .map_err(|error| io_error(&error, "the output cannot be published"))
        })
        .await;
        match moved {
            Ok(Ok(published)) => {
                failpoint::hit("queue.before_succeed");
                let record = self.persist(|| self.inner.store.succeed(id, published.clone())).await?;
                failpoint::hit("queue.after_succeed");
                Ok(record)
            }
            Ok(Err(error)) => self.failed(record, error, config).await,
            Err(error) => self.failed(record, ErrorInfo::new(ErrorCode::Internal, error.to_string()), config).await,
        }
    }

    async fn failed(
        &self,
        record: &JobRecord,
        error: ErrorInfo,
        config: &Config,
    ) -> Result<Option<JobRecord>, StoreError> {
        let job = &record.job;
        match error.code.disposition() {
            Disposition::Wait => {
                self.block(&error.message);
                self.persist(|| self.inner.store.interrupt(job.id, None)).await
            }
            Disposition::Retry if job.attempt < job.max_attempts => {
                let pause = back_off(job.attempt, config.queue.backoff, config.queue.backoff_max);
                let run_at = Timestamp::now().plus_millis(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX));
                let record = self.persist(|| self.inner.store.retry_later(job.id, error.clone(), run_at)).await?;
                self.wake_at(job.id, run_at);
                Ok(record)
            }
            Disposition::Retry | Disposition::Permanent => {
                self.persist(|| self.inner.store.fail(job.id, error.clone())).await
            }
        }
    }

    /// Writes a change, again and again while the disk is full or failing or the database held by somebody: the work is
    /// done, only its note is missing.
    pub(super) async fn persist<T, F, Fut>(&self, write: F) -> Result<T, StoreError>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, StoreError>>,
    {
        let mut pause = Duration::from_millis(200);
        loop {
            match write().await {
                Err(error) if error.is_disk_full() || error.is_io() || error.is_busy() => {
                    if self.inner.gate.state().stopping {
                        return Err(error);
                    }
                    self.block("the database cannot be written");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                other => return other,
            }
        }
    }

    /// After a job's end: its source goes where it belongs, and what only the job needed goes away.
    pub(super) async fn after_end(&self, id: JobId) {
        self.forget_overtaken(id);
        // The end itself and a second look at ends that were missed may meet at the same source.
        let _one = self.inner.endings.lock().await;
        match self.inner.store.record(id).await {
            // Tried again meanwhile: then all of it is needed once more.
            Ok(Some(record)) if record.job.status.is_ended() => self.put_away(&record).await,
            Ok(_) => {}
            Err(error) => tracing::warn!(job = %id, %error, "the end of the job will be tidied up later"),
        }
    }

    async fn put_away(&self, record: &JobRecord) {
        let id = record.job.id;
        if record.hooks_due {
            let Some(hook) = self.hook() else { return };
            match hook.job_ended(record).await {
                Ok(moved) => {
                    failpoint::hit("queue.before_hooks_done");
                    if let Err(error) = self.inner.store.hooks_done(id, moved).await {
                        tracing::warn!(job = %id, %error, "the end of the job will be tidied up again later");
                    }
                }
                Err(error) => {
                    tracing::warn!(job = %id, "the source could not be moved, it is tried again later: {error}");
                }
            }
        }
        let data = self.config().paths.data.clone();
        let keep_inputs = record.job.status != JobStatus::Succeeded;
        let removed = tokio::task::spawn_blocking(move || {
            crate::maintenance::files::remove_working_files(&data, id, keep_inputs)
        })
        .await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(job = %id, %error, "the job's working files could not be removed");
        }
    }
}

/// Why an installed model does not do a job: it may have come only after the job was accepted.
fn unfit(model: &InstalledModel, kind: JobKind) -> ErrorInfo {
    if let Some(problem) = &model.problem {
        let what = format!("the model {:?} cannot be used: {problem}", model.id);
        return ErrorInfo::new(ErrorCode::ModelIncomplete, what).with_hint(format!("look at {}", model.path.display()));
    }
    let kinds: Vec<_> = model.kinds.iter().map(|kind| kind.as_str()).collect();
    ErrorInfo::new(ErrorCode::KindNotSupported, format!("the model {:?} does not do {kind}", model.id))
        .with_hint(format!("it does {}", kinds.join(", ")))
}

fn model_ref(model: &InstalledModel) -> Option<ModelRef> {
    Some(ModelRef { id: model.id.clone(), family: model.family?, path: WirePath(model.path.clone()) })
}

/// What the models may need beside them: bases for bare ControlNets, and the LoRAs, of which a prompt may name any.
fn parts(models: &[ModelRef], params: &Params, registry: &Registry) -> Vec<ModelRef> {
    let mut parts = Vec::new();
    if let Some(base) = models.iter().find_map(|model| model.family.needs_base()) {
        let wanted = |model: &&InstalledModel| params.base_model.as_ref().is_none_or(|id| *id == model.id);
        parts.extend(registry.of_family(base).filter(wanted).filter_map(model_ref));
    }
    let in_prompt = params.prompt.as_ref().is_some_and(|prompt| prompt.contains("<lora:"));
    if in_prompt || params.loras.is_some() {
        parts.extend(registry.of_family(Family::Lora).filter_map(model_ref));
    }
    parts
}

/// For how long nothing may be heard of a running job.
fn step_patience(config: &Config) -> Duration {
    failpoint::patience("liveness.step", config.worker.stall_timeout.max(STEP_PATIENCE) + Duration::from_mins(1))
}

/// The folder in which a job is worked at.
pub(crate) fn work_dir(config: &Config, id: JobId) -> PathBuf {
    config.paths.data.join("checkpoints").join(id.to_string())
}

fn io_error(error: &std::io::Error, what: &str) -> ErrorInfo {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library may add kinds; these two say more than the rest")]
    let (code, hint) = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            (ErrorCode::DiskFull, "free some space; the queue goes on by itself")
        }
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            (ErrorCode::PermissionDenied, "give the daemon's user the right to write there")
        }
        _ => (ErrorCode::IoError, "the kernel's log may say more about the disk"),
    };
    ErrorInfo::new(code, format!("{what}: {error}")).with_hint(hint)
}

/// Exponential with full jitter: anything from nothing to `base` × 2^(attempt − 1), so that jobs that failed together
/// do not come back together.
fn back_off(attempt: u32, base: Duration, max: Duration) -> Duration {
    let ceiling = base.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(max);
    ceiling.mul_f64(rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_is_jittered_and_never_exceeds_its_bounds() {
        let (base, max) = (Duration::from_secs(2), Duration::from_secs(60));
        for attempt in 1..40 {
            let ceiling = base.saturating_mul(1 << (attempt - 1).min(20)).min(max);
            let pauses: Vec<_> = (0..64).map(|_| back_off(attempt, base, max)).collect();
            assert!(pauses.iter().all(|pause| *pause <= ceiling));
            assert!(pauses.iter().any(|pause| *pause > ceiling / 4), "64 draws below a quarter");
            assert!(pauses.iter().any(|pause| *pause < ceiling * 3 / 4), "64 draws above three quarters");
        }
    }
}
