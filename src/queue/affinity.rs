//! Jobs for a model that is loaded may go first: loading a large one takes longer than many jobs.
//!
//! Never far: only among the next `queue.affinity` deliveries that are as urgent as the next, and only as often that each
//! job is overtaken `queue.affinity` times at most.

use std::{collections::HashMap, sync::PoisonError};

use atelier_domain::JobId;

use super::Queue;

/// How often each waiting job was overtaken. Forgotten with the process: a restart begins with nothing loaded.
pub(super) type Overtaken = HashMap<JobId, u32>;

impl Queue {
    /// Puts the delivery to the front that saves loading a model, if one is near.
    pub(super) async fn prefer_loaded(&self) {
        let most = self.config().queue.affinity;
        let loaded: Vec<String> = self.inner.engine.status().loaded.into_iter().map(|model| model.id).collect();
        if most == 0 || loaded.is_empty() {
            return;
        }
        let next = match self.inner.store.next_deliveries(most.saturating_add(1)).await {
            Ok(next) => next,
            Err(error) => {
                tracing::debug!(%error, "the order of the queue stays as it is");
                return;
            }
        };
        let is_loaded = |model: &Option<String>| model.as_ref().is_some_and(|model| loaded.contains(model));
        let [first, others @ ..] = &next[..] else { return };
        // One that names no model may well mean the loaded one.
        if first.model.is_none() || is_loaded(&first.model) {
            return;
        }
        let mut as_urgent = others.iter().take_while(|other| other.priority == first.priority);
        let Some(at) = as_urgent.position(|other| is_loaded(&other.model)) else { return };
        let passed = &next[..=at];
        if passed.iter().any(|one| self.overtaken().get(&one.id).is_some_and(|times| *times >= most)) {
            return;
        }
        let chosen = &others[at];
        match self.inner.store.put_before(chosen.id, first.id).await {
            Ok(true) => {
                tracing::info!(job = %chosen.id, model = chosen.model, overtakes = %first.id, "goes first: its model is loaded");
                let mut overtaken = self.overtaken();
                for one in passed {
                    *overtaken.entry(one.id).or_default() += 1;
                }
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "the order of the queue stays as it is"),
        }
    }

    /// A job that runs, or has ended before it could, is overtaken no more.
    pub(super) fn forget_overtaken(&self, id: JobId) {
        self.overtaken().remove(&id);
    }

    /// How many waiting jobs others have gone before.
    pub fn overtaken_jobs(&self) -> usize {
        self.overtaken().len()
    }

    fn overtaken(&self) -> std::sync::MutexGuard<'_, Overtaken> {
        self.inner.overtaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
