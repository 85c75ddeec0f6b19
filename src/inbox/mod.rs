//! The drop folder: files that are put into it become jobs.
//!
//! The scan decides and events only hint, so that start-up, a live event, an overflowed watch and the periodic rescan
//! are one and the same. The way of a file: [`scan`] and [`watch`] find it, [`settle`] keeps it, [`ladder`] waits until
//! it is complete, [`claim`] renames it into `.processing/`, [`take`] makes a job of it through [`intake`], and
//! [`ended`] puts it into `done/` or `failed/` when the job has ended. After a crash [`reconcile`] takes up what was
//! cut off at any point of this way.
//!
//! Knows neither SQL nor HTTP nor the worker.

mod actor;
mod adapter;
mod alone;
pub mod claim;
pub mod dirs;
pub mod ended;
pub mod error_file;
pub mod ignore;
pub mod intake;
pub mod ladder;
pub mod lease;
pub mod names;
pub mod place;
pub mod recent;
pub mod reconcile;
pub mod scan;
pub mod scout;
pub mod settings;
pub mod settle;
pub mod sidecar;
pub mod status;
pub mod take;
pub mod watch;
mod work;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::{Notify, watch as channel};
use tokio_util::sync::CancellationToken;

pub use self::{
    adapter::{Prepared, prepare},
    ended::Ended,
    error_file::{DuplicateFile, ErrorFile, Failure},
    intake::{Admitted, EndedSource, InboxClaim, Intake, IntakeError, Judge, NewFile},
    settings::{Settings, WatchMode},
    status::{InboxStatus, Problem},
};
use self::{recent::Recent, status::Shared};
use crate::liveness::Beat;

/// Asks a running inbox things.
#[derive(Clone, Debug)]
pub struct InboxHandle {
    status: Arc<Shared>,
    scan_now: Arc<Notify>,
    stopped: CancellationToken,
    beat: Beat,
}

impl InboxHandle {
    /// What the watchdog listens to: that the inbox is looked at.
    pub fn beat(&self) -> Beat {
        self.beat.clone()
    }

    /// As it was after the last look.
    pub fn status(&self) -> InboxStatus {
        self.status.get()
    }

    /// Looks at everything as soon as possible.
    pub fn scan_now(&self) {
        self.scan_now.notify_one();
    }

    /// Returns when the inbox has ended after its shutdown was asked for.
    pub async fn stopped(&self) {
        self.stopped.cancelled().await;
    }
}

/// An inbox that is set up and not started. [`Ended`] can be given to the queue before the inbox runs.
#[derive(Debug)]
pub struct Inbox {
    settings: channel::Receiver<Settings>,
    recent: Arc<Recent>,
    ended: Arc<Ended>,
}

impl Inbox {
    pub fn new(settings: channel::Receiver<Settings>) -> Self {
        let recent = Arc::new(Recent::default());
        let ended = Arc::new(Ended::new(settings.borrow().dir.clone(), Arc::clone(&recent)));
        Self { settings, recent, ended }
    }

    /// What moves sources when their jobs end.
    pub fn ended(&self) -> Arc<Ended> {
        Arc::clone(&self.ended)
    }

    /// Starts to work: first puts in order what the last run left, then looks, until `shutdown`.
    pub fn start<I: Intake>(self, intake: Arc<I>, shutdown: CancellationToken) -> InboxHandle {
        let status = Arc::new(Shared::default());
        status.set(InboxStatus { watching: "off", ..InboxStatus::default() });
        let scan_now = Arc::new(Notify::new());
        let stopped = CancellationToken::new();
        let beat = Beat::new("scanner");
        let actor = actor::Actor {
            intake,
            settings: self.settings,
            ended: self.ended,
            recent: self.recent,
            status: Arc::clone(&status),
            wake: Arc::new(Notify::new()),
            scan_now: Arc::clone(&scan_now),
            shutdown,
            _stopped: stopped.clone().drop_guard(),
            beat: beat.clone(),
        };
        tokio::spawn(actor.run());
        InboxHandle { status, scan_now, stopped, beat }
    }
}
