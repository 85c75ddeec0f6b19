//! The worker process: kept ready, given one job at a time, replaced when it is lost.
//!
//! Knows the protocol and processes, not the database: what becomes of a job whose worker is lost is `queue`'s to say.

mod logs;
mod process;

use std::{
    ffi::OsString,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use atelier_domain::{
    ErrorCode, ErrorInfo, JobId,
    protocol::{Device, Event, Finished, Hello, LoadedModel, Offload, PROTOCOL_VERSION, Request, Run, Stop},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use self::process::{Launch, Lost, Worker};

/// What the engine takes from the configuration.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Program and arguments.
    pub command: Vec<OsString>,
    pub device: String,
    pub threads: u32,
    pub memory_budget: Option<u64>,
    pub offload: Offload,
    pub keep_alive: Duration,
    pub stall_timeout: Duration,
    pub stop_timeout: Duration,
    pub cancel_grace: Duration,
}

/// How one run ended.
#[derive(Debug)]
pub enum Outcome {
    Finished(Box<Finished>),
    /// The worker says why, and lives.
    Failed(ErrorInfo),
    Stopped(Stop),
    /// The worker died, hung or talked rubbish; a new one is started for the next run.
    Lost(ErrorInfo),
    /// No worker could be started.
    Unavailable(ErrorInfo),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineState {
    #[default]
    Stopped,
    Starting,
    Idle,
    Busy,
}

impl EngineState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
        }
    }
}

/// The worker as it is now.
#[derive(Clone, Debug, Default)]
pub struct EngineStatus {
    pub state: EngineState,
    pub pid: Option<u32>,
    /// `None` until a worker has been started once.
    pub device: Option<Device>,
    pub libtorch: Option<String>,
    pub worker_version: Option<String>,
    pub loaded: Vec<LoadedModel>,
    pub rss_bytes: u64,
    /// Workers that were lost since the daemon started.
    pub lost: u64,
}

struct Inner {
    config: Mutex<EngineConfig>,
    /// Held for as long as somebody speaks with the worker.
    slot: tokio::sync::Mutex<Option<Worker>>,
    status: Mutex<EngineStatus>,
    /// Counts uses of the slot, so that a keep-alive that was overtaken does nothing.
    uses: AtomicU64,
}

/// A handle on the one worker. Cloning is cheap.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    pub fn new(config: EngineConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                config: Mutex::new(config),
                slot: tokio::sync::Mutex::new(None),
                status: Mutex::default(),
                uses: AtomicU64::new(0),
            }),
        }
    }

    /// Takes a new configuration; a worker that is there already keeps its device until it ends.
    pub fn reconfigure(&self, config: EngineConfig) {
        *self.inner.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn config(&self) -> EngineConfig {
        self.inner.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn status(&self) -> EngineStatus {
        let mut status = self.inner.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.rss_bytes = status.pid.map_or(0, Worker::rss_bytes);
        status
    }

    fn update(&self, change: impl FnOnce(&mut EngineStatus)) {
        change(&mut self.inner.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Runs one job to its end, whatever that is.
    ///
    /// `on_event` is told of every event but the last as it comes, of `Ready` first. A value in `stop` ends the run: at
    /// the worker's next step, or by killing it after `worker.cancel_grace` or `worker.stop_timeout`.
    ///
    /// # Cancellation
    /// Dropping the future loses the worker's answer, so the worker is replaced.
    pub async fn run(
        &self,
        run: Run,
        mut stop: watch::Receiver<Option<Stop>>,
        mut on_event: impl FnMut(&Event),
    ) -> Outcome {
        let config = self.config();
        let job = run.job;
        let mut slot = self.inner.slot.lock().await;
        self.inner.uses.fetch_add(1, Ordering::Relaxed);
        // Taken out: if this future is dropped, the worker goes with it.
        let mut worker = match self.ready_worker(&mut slot, &config).await {
            Ok(worker) => worker,
            Err(error) => {
                self.update(|status| status.state = EngineState::Stopped);
                return Outcome::Unavailable(error);
            }
        };
        let request = Request::Run(Box::new(run));
        if worker.send(&request).await.is_err() {
            // It died while it was idle, just now. Nothing of this job has been done.
            tracing::warn!(%job, pid = worker.pid, "the idle worker was gone; starting another");
            drop(worker);
            let again = async {
                let mut fresh = self.start_worker(&config).await?;
                fresh.send(&request).await.map_err(|lost| {
                    ErrorInfo::new(
                        ErrorCode::WorkerUnavailable,
                        format!("the worker ended before its first job: {lost}"),
                    )
                })?;
                Ok(fresh)
            };
            worker = match again.await {
                Ok(fresh) => fresh,
                Err(error) => {
                    self.update(|status| status.state = EngineState::Stopped);
                    return Outcome::Unavailable(error);
                }
            };
        }
        worker.current_job.set(Some(job));
        on_event(&Event::Ready(worker.ready.clone()));
        self.update(|status| status.state = EngineState::Busy);
        let outcome = self.converse(&mut worker, job, &config, &mut stop, &mut on_event).await;
        worker.current_job.set(None);
        let alive = match &outcome {
            Outcome::Finished(_) | Outcome::Failed(_) => !worker.has_ended(),
            Outcome::Stopped(_) => !worker.has_ended() && !self.killed(&worker),
            Outcome::Lost(_) | Outcome::Unavailable(_) => false,
        };
        if alive {
            self.update(|status| status.state = EngineState::Idle);
            self.watch_idle(&worker, config.keep_alive);
            *slot = Some(worker);
        } else {
            worker.kill();
            worker.gone().await;
            self.update(|status| {
                status.state = EngineState::Stopped;
                status.pid = None;
                status.loaded.clear();
            });
        }
        outcome
    }

    fn killed(&self, worker: &Worker) -> bool {
        self.inner.status.lock().unwrap_or_else(PoisonError::into_inner).pid != Some(worker.pid)
    }

    async fn converse(
        &self,
        worker: &mut Worker,
        job: JobId,
        config: &EngineConfig,
        stop: &mut watch::Receiver<Option<Stop>>,
        on_event: &mut impl FnMut(&Event),
    ) -> Outcome {
        let mut stalled_at = Instant::now() + config.stall_timeout;
        let mut asked: Option<(Stop, Instant)> = None;
        let mut listening = true;
        loop {
            let wanted = *stop.borrow_and_update();
            if let Some(how) = wanted
                && asked.is_none_or(|(before, _)| before != how && how == Stop::Cancel)
            {
                let grace = match how {
                    Stop::Cancel => config.cancel_grace,
                    Stop::Checkpoint => config.stop_timeout,
                };
                asked = Some((how, Instant::now() + grace));
                // A worker that cannot be told is noticed below.
                let _ = worker.send(&Request::Stop { job, how }).await;
            }
            let deadline = asked.map_or(stalled_at, |(_, until)| until.min(stalled_at));
            tokio::select! {
                event = worker.receive() => {
                    let event = match event {
                        Ok(event) => event,
                        Err(lost) => return asked.map_or_else(|| self.lost(worker, job, &lost), |(how, _)| Outcome::Stopped(how)),
                    };
                    stalled_at = Instant::now() + config.stall_timeout;
                    match event {
                        Event::Finished(finished) if finished.job == job => return Outcome::Finished(finished),
                        Event::Failed { job: of, error } if of == job => return Outcome::Failed(error),
                        Event::Stopped { job: of, how, .. } if of == job => return Outcome::Stopped(how),
                        Event::Models { ref loaded } => {
                            self.update(|status| status.loaded.clone_from(loaded));
                            on_event(&event);
                        }
                        Event::Started { .. }
                        | Event::Progress { .. }
                        | Event::Preview { .. }
                        | Event::Checkpointed { .. } => on_event(&event),
                        Event::Ready(_) | Event::Finished(_) | Event::Failed { .. } | Event::Stopped { .. } => {
                            let lost = Lost::Ended(format!("sent {event:?} out of turn"));
                            return self.lost(worker, job, &lost);
                        }
                    }
                }
                changed = stop.changed(), if listening => listening = changed.is_ok(),
                () = sleep_until(deadline) => {
                    worker.kill();
                    self.update(|status| status.pid = None);
                    if let Some((how, _)) = asked {
                        tracing::warn!(%job, pid = worker.pid, "the worker did not stop in time and was killed");
                        return Outcome::Stopped(how);
                    }
                    self.update(|status| status.lost += 1);
                    let seconds = config.stall_timeout.as_secs_f64();
                    return Outcome::Lost(
                        ErrorInfo::new(
                            ErrorCode::WorkerStalled,
                            format!("the worker gave no sign of life for {seconds} s and was killed"),
                        )
                        .with_hint("raise worker.stall_timeout where a single step may take longer."),
                    );
                }
            }
        }
    }

    fn lost(&self, worker: &Worker, job: JobId, lost: &Lost) -> Outcome {
        self.update(|status| status.lost += 1);
        tracing::error!(%job, pid = worker.pid, "the worker is lost: {lost}");
        Outcome::Lost(
            ErrorInfo::new(ErrorCode::WorkerCrashed, format!("the worker is lost: {lost}"))
                .with_hint("The daemon starts another."),
        )
    }

    async fn ready_worker(&self, slot: &mut Option<Worker>, config: &EngineConfig) -> Result<Worker, ErrorInfo> {
        match slot.take() {
            Some(worker) if !worker.has_ended() => Ok(worker),
            Some(worker) => {
                tracing::warn!(pid = worker.pid, "the worker died while it was idle; starting another");
                self.update(|status| status.lost += 1);
                self.start_worker(config).await
            }
            None => self.start_worker(config).await,
        }
    }

    async fn start_worker(&self, config: &EngineConfig) -> Result<Worker, ErrorInfo> {
        self.update(|status| {
            status.state = EngineState::Starting;
            status.loaded.clear();
        });
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            device: config.device.clone(),
            threads: config.threads,
            memory_budget: config.memory_budget,
            offload: config.offload,
        };
        let begun = Instant::now();
        let worker = Worker::start(&Launch { command: config.command.clone(), hello }).await?;
        let ready = &worker.ready;
        tracing::info!(
            pid = worker.pid,
            device = %ready.device.name,
            libtorch = ready.libtorch.as_deref().unwrap_or("none"),
            ms = begun.elapsed().as_millis(),
            "the worker is ready: {}",
            ready.device.reason
        );
        self.update(|status| {
            status.pid = Some(worker.pid);
            status.device = Some(ready.device.clone());
            status.libtorch.clone_from(&ready.libtorch);
            status.worker_version = Some(ready.worker_version.clone());
        });
        Ok(worker)
    }

    /// Ends an idle worker after its keep-alive, and notices one that dies meanwhile.
    fn watch_idle(&self, worker: &Worker, keep_alive: Duration) {
        let (engine, pid, mut exit) = (self.clone(), worker.pid, worker.exit());
        let use_now = self.inner.uses.load(Ordering::Relaxed);
        tokio::spawn(async move {
            let died = timeout(keep_alive, exit.wait_for(Option::is_some)).await.is_ok();
            let mut slot = engine.inner.slot.lock().await;
            if engine.inner.uses.load(Ordering::Relaxed) != use_now {
                return;
            }
            if died {
                tracing::warn!(pid, "the worker died while it was idle");
                engine.update(|status| status.lost += 1);
            } else {
                tracing::info!(pid, "the worker was idle for long enough; ending it");
            }
            if let Some(worker) = slot.take() {
                engine.end(worker).await;
            }
        });
    }

    async fn end(&self, mut worker: Worker) {
        let _ = worker.send(&Request::Shutdown).await;
        if timeout(Duration::from_secs(2), worker.exit().wait_for(Option::is_some)).await.is_err() {
            worker.kill();
        }
        worker.gone().await;
        self.update(|status| {
            status.state = EngineState::Stopped;
            status.pid = None;
            status.loaded.clear();
        });
    }

    /// Drops a loaded model, or all; returns what is loaded then. Waits for a running job to end.
    ///
    /// # Errors
    /// A worker that is lost over it.
    pub async fn unload(&self, model: Option<String>) -> Result<Vec<LoadedModel>, ErrorInfo> {
        let mut slot = self.inner.slot.lock().await;
        let Some(mut worker) = slot.take() else { return Ok(Vec::new()) };
        self.inner.uses.fetch_add(1, Ordering::Relaxed);
        let answer = async {
            worker.send(&Request::Unload { model }).await?;
            loop {
                if let Event::Models { loaded } = worker.receive().await? {
                    return Ok::<_, Lost>(loaded);
                }
            }
        };
        match timeout(Duration::from_secs(30), answer).await {
            Ok(Ok(loaded)) => {
                self.update(|status| status.loaded.clone_from(&loaded));
                self.watch_idle(&worker, self.config().keep_alive);
                *slot = Some(worker);
                Ok(loaded)
            }
            Ok(Err(_)) | Err(_) => {
                self.end(worker).await;
                // Its memory is free, which is what was asked for.
                Ok(Vec::new())
            }
        }
    }

    /// Ends the worker. Called once no job runs any more.
    pub async fn shutdown(&self) {
        let mut slot = self.inner.slot.lock().await;
        self.inner.uses.fetch_add(1, Ordering::Relaxed);
        if let Some(worker) = slot.take() {
            self.end(worker).await;
        }
    }
}
