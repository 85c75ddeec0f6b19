//! Pulls on demand: a job names a model that is not installed, and waits in the queue while it is fetched.
//!
//! One task a model, whatever the number of jobs. What has arrived lies in the models directory, so a daemon that ends
//! in the middle goes on after its next start, when the job's turn comes again.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use atelier_domain::{ErrorCode, ErrorInfo, JobId};

use crate::{
    app::App,
    config::{Config, hub_access},
    hub::{HubError, Patience, Progress, RepoId, Request, Revision, pull},
    queue::{FetchModels, Wanted},
};

/// While another process pulls the same model.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Fetches models for the queue.
pub struct OnDemand {
    app: Weak<App>,
    pulls: Mutex<HashMap<String, Pull>>,
}

struct Pull {
    state: State,
    /// Jobs that have not yet heard how it ended.
    waiting: BTreeSet<JobId>,
}

enum State {
    Running(Progress),
    Failed(ErrorInfo),
}

impl OnDemand {
    /// Installs itself with the app's queue.
    pub fn start(app: &Arc<App>) {
        let on_demand = Arc::new(Self { app: Arc::downgrade(app), pulls: Mutex::default() });
        app.queue.fetch_models_with(Arc::new(Handle(on_demand)));
    }

    fn set(&self, model: &str, state: State) {
        if let Some(pull) = self.pulls.lock().unwrap_or_else(PoisonError::into_inner).get_mut(model) {
            pull.state = state;
        }
    }

    async fn run(&self, id: RepoId) {
        let model = id.to_string();
        let Some(app) = self.app.upgrade() else { return };
        tracing::info!(%model, "pulling, for a job");
        let ended = tokio::select! {
            ended = self.pull(&app, &id) => ended,
            // What has arrived stays; the next start goes on.
            () = app.shutdown.cancelled() => return,
        };
        match ended {
            Ok(()) => {
                app.rescan_models().await;
                self.pulls.lock().unwrap_or_else(PoisonError::into_inner).remove(&model);
                tracing::info!(%model, "pulled");
            }
            Err(error) => {
                tracing::error!(%model, "the pull failed: {}", error.message);
                self.set(&model, State::Failed(error));
            }
        }
        if let Err(error) = app.queue.model_settled(&model).await {
            tracing::warn!(%error, %model, "jobs that wait for it will ask again later");
        }
    }

    async fn pull(&self, app: &App, id: &RepoId) -> Result<(), ErrorInfo> {
        let config = app.config();
        let access = hub_access(&config).map_err(|error| failed(id, &error, "correct it, then retry the job"))?;
        let request = Request {
            id: id.clone(),
            revision: Revision::default(),
            include: Vec::new(),
            half: false,
            models: pull_dir(&config),
        };
        let model = id.to_string();
        loop {
            let watch = |progress: &Progress| self.set(&model, State::Running(*progress));
            match pull(access.clone(), patience(&config), &request, watch).await {
                Ok(_) => return Ok(()),
                Err(HubError::Taken { .. }) => tokio::time::sleep(LOOK_AGAIN).await,
                Err(error) => return Err(failed(id, &error.to_string(), &error.hint())),
            }
        }
    }
}

fn failed(id: &RepoId, why: &str, hint: &str) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::ModelPullFailed, format!("the model {id} could not be pulled: {why}")).with_hint(hint)
}

/// The models directory that pulled models are put into: the last of `paths.models`, since a package's own, which
/// nobody writes to, come first.
pub fn pull_dir(config: &Config) -> PathBuf {
    config.paths.models.last().cloned().unwrap_or_else(|| config.paths.data.join("models"))
}

/// How the configuration wants a hub to be treated.
pub fn patience(config: &Config) -> Patience {
    let models = &config.models;
    Patience {
        retries: models.pull_retries,
        pause: models.pull_pause,
        stall: models.pull_stall,
        parallel: models.pull_parallel,
    }
}

/// What the queue holds.
struct Handle(Arc<OnDemand>);

impl FetchModels for Handle {
    fn want(&self, model: &str, job: JobId) -> Wanted {
        let Some(app) = self.0.app.upgrade() else { return Wanted::No };
        let Ok(id) = model.parse::<RepoId>() else { return Wanted::No };
        if !app.config().models.auto_pull {
            return Wanted::No;
        }
        let mut pulls = self.0.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pull) = pulls.get_mut(model) {
            match &pull.state {
                State::Running(progress) => {
                    let note = note(model, progress);
                    pull.waiting.insert(job);
                    return Wanted::Coming { note };
                }
                State::Failed(error) if pull.waiting.remove(&job) => {
                    let error = error.clone();
                    if pull.waiting.is_empty() {
                        pulls.remove(model);
                    }
                    return Wanted::Failed(error);
                }
                // A job that comes after the failure, or is tried again, is worth another pull.
                State::Failed(_) => {}
            }
        }
        let pull = pulls
            .entry(model.to_owned())
            .or_insert_with(|| Pull { state: State::Running(Progress::default()), waiting: BTreeSet::new() });
        pull.state = State::Running(Progress::default());
        pull.waiting.insert(job);
        let on_demand = self.0.clone();
        tokio::spawn(async move { on_demand.run(id).await });
        Wanted::Coming { note: note(model, &Progress::default()) }
    }
}

/// What a waiting job shows.
fn note(model: &str, progress: &Progress) -> String {
    if progress.total_bytes == 0 {
        return format!("waiting for the model {model}");
    }
    let percent = progress.bytes.min(progress.total_bytes) * 100 / progress.total_bytes;
    format!("waiting for the model {model}: {percent} % of {} MB", progress.total_bytes.div_ceil(1_000_000))
}
