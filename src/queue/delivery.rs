//! apalis as the engine of the queue: it claims the next job, by priority and age, and hands it over.
//!
//! What is closed off here, because it would lose, strand or repeat jobs (each is pinned by a test in
//! `tests/queue_traps.rs`): batches of one, so that nothing is claimed that does not run; no acknowledgement by apalis
//! (`lock_tasks` and `persist_results` off), since the transaction that ends a job removes its delivery; none of its
//! layers for retries, time-outs or panics, which leave rows behind that never run again; a name that may register
//! again at once; and a supervisor, because its worker ends for good at the first error of the database.

use std::{
    sync::PoisonError,
    task::{Context, Poll},
    time::Duration,
};

use apalis::{
    layers::WorkerBuilderExt as _,
    prelude::{BoxDynError, Data, Monitor, WorkerBuilder},
};
use apalis_core::backend::ext::{
    BackendExt as _,
    poll_strategy::{IntervalStrategy, PollSnapshot, PollStrategy},
};
use apalis_sqlite::{Config as ApalisConfig, SqliteStorage};
use atelier_domain::{JobId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Queue;
use crate::{
    failpoint,
    liveness::Beat,
    store::{QUEUE, Recovered, StoreError},
};

const WORKER: &str = "gpu-0";

/// A missed wake-up costs this much.
const POLL: Duration = Duration::from_secs(5);

/// How long apalis's worker may be silent: many polls, and a database that somebody holds for as long as we wait.
const FETCHER_PATIENCE: Duration = Duration::from_mins(2);

/// What apalis carries: everything else is in the job's row.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct JobRef {
    job_id: String,
}

/// Polls at an interval, and shows with every poll that somebody does.
#[derive(Clone, Debug)]
struct Watched {
    interval: IntervalStrategy,
    beat: Beat,
}

impl PollStrategy for Watched {
    fn poll_drive(&mut self, cx: &mut Context<'_>, snapshot: &PollSnapshot) -> Poll<Option<()>> {
        self.interval.poll_drive(cx, snapshot)
    }

    fn on_poll(&mut self, _: &PollSnapshot) {
        failpoint::stall("queue.fetch");
        self.beat.alive(failpoint::patience("liveness.fetcher", FETCHER_PATIENCE));
    }
}

async fn handle(task: JobRef, queue: Data<Queue>) -> Result<(), BoxDynError> {
    let queue: Queue = (*queue).clone();
    let Ok(id) = task.job_id.parse::<JobId>() else {
        tracing::error!(job = %task.job_id, "a delivery names no job");
        return Ok(());
    };
    // In a task of its own: should apalis drop this future, the job still comes to its end, and a panic ends here.
    if let Err(error) = tokio::spawn(async move { queue.deliver(id).await }).await {
        tracing::error!(job = %id, %error, "running the job panicked");
    }
    Ok(())
}

impl Queue {
    /// Repairs what a crash has left, then delivers until [`Self::stop`].
    ///
    /// # Errors
    /// The database cannot be repaired: nothing may run then.
    pub async fn start(&self) -> Result<Recovered, StoreError> {
        let recovered = self.recover().await?;
        for (id, run_at) in self.inner.store.retry_times().await? {
            self.wake_at(id, run_at);
        }
        let queue = self.clone();
        let supervisor = tokio::spawn(async move { queue.supervise().await });
        self.inner
            .supervisor
            .get_or_init(Default::default)
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(supervisor);
        let aging = self.clone();
        tokio::spawn(async move { aging.age().await });
        Ok(recovered)
    }

    async fn recover(&self) -> Result<Recovered, StoreError> {
        let recovered = self.inner.store.recover().await?;
        if recovered != Recovered::default() {
            tracing::info!(
                interrupted = recovered.interrupted.len(),
                cancelled = recovered.cancelled.len(),
                stray = recovered.stray,
                undelivered = recovered.undelivered,
                "repaired the queue"
            );
        }
        for id in &recovered.cancelled {
            self.after_end(*id).await;
        }
        self.recount().await?;
        Ok(recovered)
    }

    async fn supervise(&self) {
        let mut gate = self.inner.gate.watch();
        let mut failures = 0;
        let mut fresh = true;
        let beat = &self.inner.fetcher;
        let _watched = beat.while_alive(failpoint::patience("liveness.fetcher", FETCHER_PATIENCE));
        loop {
            // A queue that somebody has paused fetches nothing, for as long as that takes.
            let excused = beat.excuse();
            match gate.wait_for(|state| state.is_open() || state.stopping).await {
                Ok(state) if state.stopping => return,
                Ok(_) => {}
                Err(_) => return,
            }
            drop(excused);
            if !fresh {
                // Whoever held a job has ended with it. What apalis may have claimed last goes back.
                let _one = self.inner.one_at_a_time.lock().await;
                if let Err(error) = self.recover().await {
                    tracing::error!(%error, "the queue could not be repaired");
                    beat.alive(failpoint::patience("liveness.fetcher", FETCHER_PATIENCE));
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    continue;
                }
            }
            fresh = false;
            let begun = Instant::now();
            let monitor = self.monitor();
            let context = monitor.context();
            *self.inner.monitor.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.clone());
            let mut gate_closing = self.inner.gate.watch();
            let closing = tokio::spawn(async move {
                if gate_closing.wait_for(|state| !state.is_open()).await.is_ok() {
                    let _ = context.shutdown();
                }
            });
            // Not `run_with_signal`, which swallows errors and waits for a signal when the worker is dead.
            let ended = monitor.run().await;
            closing.abort();
            *self.inner.monitor.lock().unwrap_or_else(PoisonError::into_inner) = None;
            if let Err(error) = ended {
                failures = if begun.elapsed() > Duration::from_secs(60) { 1 } else { failures + 1 };
                let pause = Duration::from_millis(250 << failures.min(6));
                tracing::error!(%error, ?pause, "the queue's worker ended; starting it again");
                beat.alive(failpoint::patience("liveness.fetcher", FETCHER_PATIENCE));
                tokio::time::sleep(pause).await;
            }
        }
    }

    fn monitor(&self) -> Monitor {
        let config = ApalisConfig::default()
            .queue(QUEUE)
            .batch_size(1)
            // Each is a write of some 20 KiB, and nobody else asks whether this worker lives.
            .heartbeat_interval(Duration::from_mins(1))
            .lock_tasks(false)
            .persist_results(false);
        let storage = SqliteStorage::<JobRef>::new(self.inner.store.delivery_pool()).with_config(config);
        let queue = self.clone();
        let watched = Watched { interval: IntervalStrategy::new(POLL), beat: self.inner.fetcher.clone() };
        Monitor::new().register(move |_| {
            WorkerBuilder::new(WORKER)
                .backend(storage.clone().poll_with_strategy(watched.clone()))
                .data(queue.clone())
                .concurrency(1)
                .build(handle)
        })
    }

    /// Tells the worker to look for a job now.
    pub(super) fn wake(&self) {
        if let Some(monitor) = &*self.inner.monitor.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = monitor.wake_worker(WORKER);
        }
    }

    /// Ends a job's back-off when its time has come.
    pub(super) fn wake_at(&self, id: JobId, run_at: Timestamp) {
        let queue = self.clone();
        tokio::spawn(async move {
            // The delivery is due at the next whole second.
            let due = run_at.0.div_euclid(1000) * 1000 + 1000;
            let wait = u64::try_from(due - Timestamp::now().0).unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(wait + 5)).await;
            if let Err(error) = queue.inner.store.retry_due(id).await {
                tracing::warn!(job = %id, %error, "the end of a back-off was not written");
            }
            queue.wake();
        });
    }

    async fn age(&self) {
        let mut gate = self.inner.gate.watch();
        loop {
            let step = self.config().queue.aging;
            let pause = if step.is_zero() {
                Duration::from_secs(60)
            } else {
                step.clamp(Duration::from_millis(100), Duration::from_secs(60))
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = gate.wait_for(|state| state.stopping) => return,
            }
            if step.is_zero() || self.free_places() == self.config().queue.max_queued {
                continue;
            }
            if let Err(error) = self.inner.store.age(i64::try_from(step.as_millis()).unwrap_or(i64::MAX)).await {
                tracing::warn!(%error, "waiting jobs could not be raised");
            }
        }
    }

    /// Stops softly: the running job writes a checkpoint and waits for the next start, with no attempt spent.
    pub async fn stop(&self) {
        self.inner.gate.stop();
        if let Some(id) = self.running() {
            tracing::info!(job = %id, "stopping; the running job writes a checkpoint");
            self.stop_running(id, atelier_domain::protocol::Stop::Checkpoint);
        }
        let supervisor =
            self.inner.supervisor.get().and_then(|handle| handle.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(supervisor) = supervisor {
            let patience = self.config().worker.stop_timeout + Duration::from_secs(5);
            if tokio::time::timeout(patience, supervisor).await.is_err() {
                tracing::warn!("the queue did not stop in time; the next start repairs it");
            }
        }
        let _one = tokio::time::timeout(Duration::from_secs(5), self.inner.one_at_a_time.lock()).await;
    }
}
