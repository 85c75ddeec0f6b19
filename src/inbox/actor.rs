//! The inbox at work: looks when there is a reason to, claims what is ready, and sees each claim through.
//!
//! One task owns the [`Scout`]; looking and moving happen on blocking threads, jobs are made concurrently so that they
//! share the database's commits.

use std::{
    ffi::OsStr,
    sync::Arc,
    time::{Duration, Instant},
};

use atelier_domain::{JobId, Timestamp};
use rand::Rng as _;
use rustix::io::Errno;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    claim::{self, Claimed},
    dirs::Root,
    ended::Ended,
    intake::{InboxClaim, Intake},
    recent::Recent,
    reconcile::reconcile,
    scout::{Findings, Ready, Scout},
    settings::Settings,
    status::Shared,
    take::{Context, pause, take},
    work::Work,
};
use crate::{failpoint, liveness::Beat};

/// How long claims under way may take to end when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a look, a claim or putting things in order may take.
pub(super) const PATIENCE: Duration = Duration::from_mins(2);

pub(super) struct Actor<I> {
    pub(super) intake: Arc<I>,
    pub(super) settings: watch::Receiver<Settings>,
    pub(super) ended: Arc<Ended>,
    pub(super) recent: Arc<Recent>,
    pub(super) status: Arc<Shared>,
    /// Told by the watch and by whoever wants a look.
    pub(super) wake: Arc<Notify>,
    /// Told by whoever wants a look at everything.
    pub(super) scan_now: Arc<Notify>,
    pub(super) shutdown: CancellationToken,
    /// Cancelled when the inbox has ended, however it ended.
    pub(super) _stopped: DropGuard,
    /// The sign that somebody looks.
    pub(super) beat: Beat,
}

impl<I: Intake> Actor<I> {
    pub(super) async fn run(mut self) {
        let settings = self.settings.borrow_and_update().clone();
        let context =
            Context { intake: Arc::clone(&self.intake), recent: Arc::clone(&self.recent), settings: settings.clone() };
        let scout = self.scout(settings);
        let _watched = self.beat.while_alive(failpoint::patience("liveness.scanner", PATIENCE));
        let mut work = Work {
            context,
            scout: Some(scout),
            taking: JoinSet::new(),
            recalls: JoinSet::new(),
            held: Vec::new(),
            rescan_at: Instant::now(),
            paused: None,
            pauses: 0,
            more: false,
        };
        tokio::select! {
            () = self.shutdown.cancelled() => return,
            () = self.start(&mut work) => {}
        }
        while !self.shutdown.is_cancelled() {
            self.round(&mut work).await;
            self.wait(&mut work).await;
        }
        // What is cut off here is found again at the next start; a commit on its way may end for tidiness.
        let taking = async { while work.taking.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, taking).await.is_err() {
            tracing::info!("inbox: some claims go on at the next start");
        }
    }

    fn scout(&self, settings: Settings) -> Scout<I> {
        let scout = Scout::new(Arc::clone(&self.intake), settings, Arc::clone(&self.recent), Arc::clone(&self.wake));
        scout.heard_by(self.beat.clone())
    }

    /// Puts the folders in order before anything new is looked at.
    async fn start(&self, work: &mut Work<I>) {
        for tries in 0.. {
            let dir = work.context.settings.dir.clone();
            let opened = tokio::task::spawn_blocking(move || {
                // A missing inbox is made at the start, and only then: one that vanishes later may have been unmounted.
                std::fs::create_dir_all(&dir).ok();
                Root::open(&dir)
            });
            let problem = match opened.await {
                Ok(Ok(root)) => match reconcile(&*self.intake, Arc::new(root), Instant::now()).await {
                    Ok(adopted) => {
                        work.held.extend(adopted.into_iter().map(|claimed| (Instant::now(), claimed)));
                        return;
                    }
                    Err(error) => error.to_string(),
                },
                Ok(Err(error)) => format!("{}: {error}", work.context.settings.dir.display()),
                Err(error) => error.to_string(),
            };
            if tries == 0 {
                tracing::warn!("inbox: cannot start yet, and tries again: {problem}");
            }
            self.beat.alive(failpoint::patience("liveness.scanner", PATIENCE) + pause(tries));
            tokio::time::sleep(pause(tries)).await;
        }
    }

    /// Looks, claims what is ready, and hands it on.
    async fn round(&mut self, work: &mut Work<I>) {
        let now = Instant::now();
        self.beat.alive(failpoint::patience("liveness.scanner", PATIENCE));
        self.take_settings(work);
        work.paused = work.paused.filter(|until| *until > now);
        work.take_held(now);
        let budget = work.budget();
        let rescan = now >= work.rescan_at;
        let Some(mut scout) = work.scout.take() else { return };
        let all = rescan || scout.wants_scan();
        let looked = tokio::task::spawn_blocking(move || {
            failpoint::stall("inbox.look");
            let findings = scout.look(now, all, budget);
            (scout, findings)
        });
        let (scout, findings) = match looked.await {
            Ok(looked) => looked,
            Err(error) => {
                tracing::error!("inbox: a look has failed, starting afresh: {error}");
                (self.scout(work.context.settings.clone()), Findings::default())
            }
        };
        if rescan {
            work.rescan_at = now + jittered(scout.rescan_every());
        }
        work.scout = Some(scout);
        work.more = findings.more;
        for id in findings.recall {
            self.recall(work, id);
        }
        if !findings.ready.is_empty() {
            self.claim(work, findings.ready, now).await;
        }
        self.publish(work);
    }

    fn take_settings(&mut self, work: &mut Work<I>) {
        if !self.settings.has_changed().unwrap_or(false) {
            return;
        }
        let settings = self.settings.borrow_and_update().clone();
        let settings = Settings { dir: work.context.settings.dir.clone(), ..settings };
        work.context.settings = settings.clone();
        if let Some(scout) = &mut work.scout {
            scout.configure(settings);
        }
        work.rescan_at = Instant::now();
    }

    /// Claims a batch: the rows first, then the files, then all of it made durable, then each on its way to a job.
    async fn claim(&self, work: &mut Work<I>, ready: Vec<Ready>, now: Instant) {
        let Some(mut scout) = work.scout.take() else { return };
        let Some(root) = scout.root() else {
            work.scout = Some(scout);
            return;
        };
        let batch: Vec<(JobId, Ready)> = ready.into_iter().map(|ready| (self.intake.new_id(), ready)).collect();
        let rows = batch.iter().map(|(id, ready)| row(*id, ready)).collect();
        if let Err(error) = self.intake.claim_begin(rows).await {
            tracing::warn!("inbox: nothing can be claimed for now: {error}");
            work.scout = Some(scout);
            work.pause(now);
            return;
        }
        failpoint::hit("inbox.claim.begun");
        let recent = Arc::clone(&self.recent);
        let moved = tokio::task::spawn_blocking(move || {
            let moved = move_batch(&mut scout, &recent, &root, batch, now);
            (scout, moved)
        });
        let (scout, moved) = match moved.await {
            Ok(moved) => moved,
            Err(error) => {
                tracing::error!("inbox: a claim has failed: {error}");
                work.scout = Some(self.scout(work.context.settings.clone()));
                work.rescan_at = Instant::now();
                return;
            }
        };
        work.scout = Some(scout);
        if moved.disk_full {
            work.pause(now);
        }
        if !moved.failed.is_empty()
            && let Err(error) = self.intake.claim_end(moved.failed).await
        {
            tracing::warn!("inbox: rows of claims that came to nothing stay until the next start: {error}");
        }
        metrics::counter!("atelier_inbox_claimed_total").increment(moved.claimed.len() as u64);
        failpoint::hit("inbox.claim.durable");
        for claimed in moved.claimed {
            work.taking.spawn(take(work.context.clone(), claimed));
        }
    }

    /// A sidecar has come late: calls the job off and has its source go back into the inbox.
    fn recall(&self, work: &mut Work<I>, id: JobId) {
        tracing::info!(job = %id, "inbox: a sidecar came after its picture; both start again together");
        metrics::counter!("atelier_inbox_recalled_total").increment(1);
        let (intake, ended) = (Arc::clone(&self.intake), Arc::clone(&self.ended));
        let wake = Arc::clone(&self.scan_now);
        work.recalls.spawn(async move {
            // First the mark, so that the source goes the right way when the job ends.
            let marked = tokio::task::spawn_blocking(move || ended.recall(id)).await;
            if let Ok(Err(error)) = marked {
                tracing::warn!(job = %id, "inbox: the picture cannot be fetched back: {error}");
            }
            if let Err(error) = intake.cancel(id).await {
                tracing::warn!(job = %id, "inbox: the job cannot be called off: {error}");
            }
            wake.notify_one();
        });
    }

    /// Sleeps until there is something to do.
    async fn wait(&self, work: &mut Work<I>) {
        let now = Instant::now();
        let until = work.next_round(now);
        self.beat.alive(failpoint::patience("liveness.scanner", PATIENCE) + until.saturating_duration_since(now));
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = self.wake.notified() => {}
            () = self.scan_now.notified() => work.rescan_at = now,
            () = tokio::time::sleep_until(until.into()) => {}
            Some(taken) = work.taking.join_next() => {
                work.note(taken, Instant::now());
                while let Some(taken) = work.taking.try_join_next() {
                    work.note(taken, Instant::now());
                }
            }
            Some(_) = work.recalls.join_next() => {}
        }
    }

    fn publish(&self, work: &Work<I>) {
        let Some(scout) = &work.scout else { return };
        let mut status = scout.status();
        status.waiting += (work.held.len() + work.taking.len()) as u64;
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("atelier_inbox_waiting").set(status.waiting as f64);
        metrics::counter!("atelier_inbox_overflows_total").absolute(status.overflows);
        self.status.set(status);
    }
}

fn row(id: JobId, ready: &Ready) -> InboxClaim {
    InboxClaim {
        id,
        rel_path: ready.rel.clone().into(),
        sidecars: ready.sidecars.iter().map(Into::into).collect(),
        claimed_at: Timestamp::now(),
    }
}

#[derive(Default)]
struct Moved {
    claimed: Vec<Claimed>,
    failed: Vec<JobId>,
    disk_full: bool,
}

fn move_batch<I: Intake>(
    scout: &mut Scout<I>,
    recent: &Recent,
    root: &Arc<Root>,
    batch: Vec<(JobId, Ready)>,
    now: Instant,
) -> Moved {
    let mut moved = Moved::default();
    for (id, ready) in batch {
        match claim::claim(root, id, &ready) {
            Ok(claimed) => {
                scout.forget(&ready.rel);
                for sidecar in &ready.sidecars {
                    scout.forget(sidecar);
                }
                if now < ready.sidecars_until {
                    recent.claimed(ready.rel, id, ready.sidecars_until, now);
                }
                moved.claimed.push(claimed);
            }
            Err(Errno::NOENT) => {
                scout.forget(&ready.rel);
                moved.failed.push(id);
            }
            Err(error) => {
                moved.disk_full |= error == Errno::NOSPC || error == Errno::DQUOT;
                scout.trouble(&ready.rel, problem(&ready.rel, error), now);
                moved.failed.push(id);
            }
        }
    }
    if let Err(error) = claim::sync(root, &moved.claimed) {
        // The claims stand; only a power cut in the next seconds could tell the difference.
        tracing::error!("inbox: the disk does not confirm what was written: {error}");
    }
    moved
}

fn problem(rel: &OsStr, error: Errno) -> String {
    claim::trouble(error, rel).message + "; it cannot be claimed and stays where it is"
}

/// A quarter more or less, so that many inboxes on one server do not look at the same moment.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(rand::rng().random_range(0.75..=1.25))
}
