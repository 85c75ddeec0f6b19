//! What the inbox is at between two looks, and its pace: how much may be begun, and when to look again.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{
    claim::Claimed,
    intake::Intake,
    scout::Scout,
    take::{Blocked, Context, Taken, pause, take},
};

/// Claims that are on their way to a job at once.
const MAX_TAKING: usize = 64;
/// Claims that wait for something: a writer that was still there, a database that does not answer.
const MAX_HELD: usize = 1024;
/// How often to ask for a free place while the queue is full.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// What the inbox is at.
pub(super) struct Work<I> {
    pub(super) context: Context<I>,
    pub(super) scout: Option<Scout<I>>,
    pub(super) taking: JoinSet<Taken>,
    pub(super) recalls: JoinSet<()>,
    pub(super) held: Vec<(Instant, Claimed)>,
    pub(super) rescan_at: Instant,
    /// No claims until then, and how often in a row that has happened.
    pub(super) paused: Option<Instant>,
    pub(super) pauses: u32,
    /// The last look has left something that is due.
    pub(super) more: bool,
}

impl<I: Intake> Work<I> {
    /// How many more claims may be begun.
    pub(super) fn budget(&self) -> usize {
        let under_way = self.taking.len() + self.held.len();
        // In a rush, half of the places become free before the next batch, so that batches stay large.
        if self.paused.is_some() || self.taking.len() > MAX_TAKING / 2 || self.held.len() >= MAX_HELD {
            return 0;
        }
        let places = usize::try_from(self.context.intake.free_places()).unwrap_or(usize::MAX);
        (MAX_TAKING - self.taking.len()).min(places.saturating_sub(under_way))
    }

    /// Sends claims on whose wait is over.
    pub(super) fn take_held(&mut self, now: Instant) {
        self.held.sort_by_key(|(at, _)| *at);
        let due = self.held.partition_point(|(at, _)| *at <= now);
        for (_, claimed) in self.held.drain(..due.min(MAX_TAKING.saturating_sub(self.taking.len()))) {
            self.taking.spawn(take(self.context.clone(), claimed));
        }
    }

    pub(super) fn note(&mut self, taken: Result<Taken, tokio::task::JoinError>, now: Instant) {
        match taken {
            Ok(Taken::Settled) => self.pauses = 0,
            Ok(Taken::Later { claimed, after, blocked }) => {
                self.held.push((now + after, *claimed));
                match blocked {
                    Some(Blocked::DiskFull | Blocked::Unavailable | Blocked::QueueFull) => self.pause(now),
                    None => {}
                }
            }
            Err(error) => tracing::error!("inbox: a claim has failed and waits for the next start: {error}"),
        }
    }

    /// No claims for a while, longer each time in a row.
    pub(super) fn pause(&mut self, now: Instant) {
        if self.paused.is_none() {
            self.paused = Some(now + pause(self.pauses));
            self.pauses += 1;
            metrics::counter!("atelier_inbox_pauses_total").increment(1);
        }
    }

    pub(super) fn next_round(&self, now: Instant) -> Instant {
        let mut next = self.rescan_at;
        if self.taking.len() < MAX_TAKING
            && let Some(at) = self.held.iter().map(|(at, _)| *at).min()
        {
            next = next.min(at);
        }
        let Some(scout) = &self.scout else { return now + ASK_AGAIN };
        if let Some(at) = scout.next_look() {
            let at = match self.budget() {
                // A finished claim wakes us; a queue that has room again does not.
                0 if self.taking.is_empty() => self.paused.unwrap_or(now + ASK_AGAIN).max(at),
                0 => next,
                _ => at,
            };
            next = next.min(at);
        }
        if self.more && self.budget() > 0 || scout.wants_scan() {
            return now;
        }
        next
    }
}
