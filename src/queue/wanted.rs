//! Jobs whose model is not there yet: they wait without holding anybody up, and are told how that goes.

use std::sync::Arc;

use atelier_domain::{ErrorInfo, JobId, Timestamp};

use super::Queue;
use crate::store::StoreError;

/// Gets models that jobs name and that are not installed.
pub trait FetchModels: Send + Sync {
    /// What becomes of a job that needs `model`. Called whenever the job's turn comes; must not wait.
    fn want(&self, model: &str, job: JobId) -> Wanted;
}

/// How it stands about a model that is not installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nobody gets it: the job goes on, and fails if it cannot do without.
    No,
    /// It is on its way; the note tells people how far.
    Coming { note: String },
    /// It was to come, and does not.
    Failed(ErrorInfo),
}

/// A waiting job asks again so often; its note is as new as that.
const ASK_AGAIN_S: i64 = 3;

impl Queue {
    /// Has `fetcher` asked for models that are not installed.
    pub fn fetch_models_with(&self, fetcher: Arc<dyn FetchModels>) {
        // Set once, when the daemon is put together; a second one has no meaning.
        let _ = self.inner.puller.set(fetcher);
    }

    /// Lets the jobs that wait for `model` ask again at once.
    ///
    /// # Errors
    /// The database. They ask again by themselves a little later.
    pub async fn model_settled(&self, model: &str) -> Result<(), StoreError> {
        self.inner.store.release_waiting(model.to_owned()).await?;
        self.wake();
        Ok(())
    }

    /// Before a job starts: what is to be known about its model. `None`: it waits, and its delivery was handed back.
    pub(super) async fn model_for(&self, id: JobId) -> Result<Option<Result<(), ErrorInfo>>, StoreError> {
        let Some(fetcher) = self.inner.puller.get().filter(|_| self.config().models.auto_pull) else {
            return Ok(Some(Ok(())));
        };
        let Some(model) = self.inner.store.record(id).await?.and_then(|record| record.model_asked) else {
            return Ok(Some(Ok(())));
        };
        if self.inner.registry.borrow().get(&model).is_some() {
            return Ok(Some(Ok(())));
        }
        match fetcher.want(&model, id) {
            Wanted::No => Ok(Some(Ok(()))),
            Wanted::Failed(error) => Ok(Some(Err(error))),
            Wanted::Coming { note } => {
                let again = Timestamp::now().0 / 1000 + ASK_AGAIN_S;
                self.persist(|| self.inner.store.put_off(id, note.clone(), again)).await?;
                Ok(None)
            }
        }
    }
}
