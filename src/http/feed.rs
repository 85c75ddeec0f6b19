//! What happens to jobs, for one watcher: from where it left off, without a gap and without a repetition.
//!
//! A feed subscribes first, then reads what was missed from the store, then goes on live and drops what it has told
//! already. Durable events are numbered one by one, so a number that is not the next one means that something was
//! missed, and the store is asked again; so does a watcher that was too slow for the live messages. Nothing is
//! buffered without bound. How an event looks on the wire is [`super::sse`]'s and [`super::ws`]'s.

use std::{collections::VecDeque, sync::Arc};

use atelier_domain::JobId;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    app::App,
    store::{JobMessage, Message, StoreError},
};

/// Events read from the store at once.
const PAGE: u32 = 100;

pub(crate) struct Feed {
    app: Arc<App>,
    live: broadcast::Receiver<Message>,
    job: Option<JobId>,
    /// The last durable event that was told, or that lies before the beginning.
    seen: i64,
    ready: VecDeque<Message>,
    /// The store may hold events after `seen`.
    behind: bool,
    /// The watched job has ended, and that was told.
    ended: bool,
    /// The number that the watcher goes on from when it is told nothing.
    beginning: Option<i64>,
}

impl Feed {
    /// A feed of all jobs, or of one. `after` is the number of the last event that the watcher has seen; without it,
    /// a feed of one job begins with the job as it is, and a feed of all with what happens next.
    pub(crate) async fn open(app: Arc<App>, job: Option<JobId>, after: Option<i64>) -> Result<Self, StoreError> {
        let live = app.queue.subscribe();
        let newest = app.store.last_seq().await?;
        // A number from the future belongs to another database.
        let after = after.filter(|after| (0..=newest).contains(after));
        let mut feed = Self {
            app,
            live,
            job,
            seen: after.unwrap_or(newest),
            ready: VecDeque::new(),
            behind: after.is_some(),
            ended: false,
            beginning: None,
        };
        // A watcher of one job that has heard nothing yet is better off with the job as it is.
        feed.beginning = if job.is_none() { Some(feed.seen) } else { after };
        match (job, after) {
            (Some(id), None) => feed.begin_with_job(id).await?,
            (Some(_), Some(_)) => {
                feed.read_on().await?;
                feed.end_if_over().await?;
            }
            (None, _) => {}
        }
        Ok(feed)
    }

    /// The number to go on from when the connection breaks before the first event.
    pub(crate) fn beginning(&self) -> Option<i64> {
        self.beginning
    }

    /// Nothing will come any more, nor would it after another connection.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && self.ready.is_empty()
    }

    /// The next event; `None`: the watched job has ended, or the daemon has.
    ///
    /// # Cancellation
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, StoreError> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            if self.behind {
                self.read_on().await?;
                continue;
            }
            match self.live.recv().await {
                Ok(message) => self.take(message),
                Err(RecvError::Lagged(missed)) => {
                    metrics::counter!("atelier_events_dropped_total").increment(missed);
                    tracing::debug!(missed, "a watcher was too slow and reads the store again");
                    self.behind = true;
                }
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }

    fn concerns(&self, message: &JobMessage) -> bool {
        self.job.is_none_or(|job| job == message.job_id())
    }

    fn take(&mut self, message: Message) {
        match message.seq {
            Some(seq) if seq <= self.seen => return,
            Some(seq) if seq != self.seen + 1 => {
                self.behind = true;
                return;
            }
            Some(seq) => self.seen = seq,
            None => {}
        }
        if self.concerns(&message.event) {
            self.ended = self.job.is_some() && message.seq.is_some() && is_last(&message.event);
            self.ready.push_back(message);
        }
    }

    /// Reads a page of what was missed.
    async fn read_on(&mut self) -> Result<(), StoreError> {
        // Where the numbers stood before the page was read: events of other jobs count as seen up to here.
        let newest = self.app.store.last_seq().await?;
        let page = self.app.store.events_after(self.seen, self.job, PAGE).await?;
        self.behind = page.len() >= PAGE as usize;
        for stored in page {
            self.seen = stored.seq;
            self.ended = self.job.is_some() && is_last(&stored.event);
            self.ready.push_back(Message { seq: Some(stored.seq), event: stored.event });
        }
        if self.behind {
            self.ended = false;
        } else {
            self.seen = self.seen.max(newest);
        }
        Ok(())
    }

    /// The job as it is, numbered by its last event; both from one statement, so that they belong together.
    async fn begin_with_job(&mut self, id: JobId) -> Result<(), StoreError> {
        let mut last = None;
        let mut after = 0;
        loop {
            let page = self.app.store.events_after(after, Some(id), PAGE).await?;
            let full = page.len() >= PAGE as usize;
            if let Some(stored) = page.into_iter().next_back() {
                after = stored.seq;
                last = Some(Message { seq: Some(stored.seq), event: stored.event });
            }
            if !full {
                break;
            }
        }
        let first = match last {
            Some(message) => Some(message),
            // Its events are no longer kept.
            None => self
                .app
                .store
                .job(id)
                .await?
                .map(|job| Message { seq: None, event: JobMessage::Updated(Box::new(job)) }),
        };
        match first {
            Some(message) if !matches!(message.event, JobMessage::Removed(_)) => {
                self.seen = self.seen.max(message.seq.unwrap_or(0));
                self.ended = is_last(&message.event);
                self.ready.push_back(message);
            }
            // There is no such job, or no longer.
            Some(_) | None => self.ended = true,
        }
        Ok(())
    }

    /// A watcher that comes back after the end is not left waiting.
    async fn end_if_over(&mut self) -> Result<(), StoreError> {
        if let Some(id) = self.job
            && self.ready.is_empty()
            && !self.behind
        {
            self.ended = self.app.store.job(id).await?.is_none_or(|job| job.status.is_ended());
        }
        Ok(())
    }
}

/// Whether nothing follows for this job, unless somebody asks for it.
fn is_last(event: &JobMessage) -> bool {
    match event {
        JobMessage::Updated(job) => job.status.is_ended(),
        JobMessage::Progress { .. } => false,
        JobMessage::Removed(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::Scene;

    #[tokio::test]
    async fn a_number_that_is_not_the_next_one_sends_the_feed_to_the_store() {
        let scene = Scene::new().await;
        let mut feed = Feed::open(scene.app.clone(), None, None).await.expect("opens");
        scene.submitted().await;
        scene.submitted().await;
        let first = feed.live.recv().await.expect("a message");
        let second = feed.live.recv().await.expect("a message");
        // As if the first had never come.
        feed.take(second);
        let numbers = [feed.next().await, feed.next().await].map(|next| next.expect("reads").expect("an event").seq);
        assert_eq!(numbers, [Some(1), Some(2)]);
        feed.take(first);
        assert!(feed.ready.is_empty(), "what comes late was told already");
    }
}
