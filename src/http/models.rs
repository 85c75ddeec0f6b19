//! What is installed, what is loaded, and letting go of it.

use std::{collections::BTreeMap, sync::Arc};

use atelier_domain::{ErrorCode, JobKind, model::Family, protocol::LoadedModel};
use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Http,
    problem::{Problem, ProblemBody},
    schema,
};
use crate::{
    engine::{EngineState, EngineStatus},
    hub::{PullNote, PullState, pulls_in},
};

/// A model's folder.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelInfo {
    id: String,
    /// Null: a class that this version does not run.
    family: Option<&'static str>,
    class_name: Option<String>,
    #[schema(value_type = Vec<schema::JobKind>)]
    kinds: Vec<JobKind>,
    /// On disk.
    bytes: u64,
    /// Whether it can be used.
    complete: bool,
    /// Why it cannot.
    problem: Option<String>,
    /// `embedded`, `folder`, or `hf_cache` for what is used where Hugging Face's programs keep it.
    origin: &'static str,
    loaded: bool,
    /// In memory.
    loaded_bytes: u64,
}

/// The process that does the work.
#[derive(Serialize, ToSchema)]
pub(crate) struct WorkerInfo {
    /// `stopped`, `starting`, `idle` or `busy`.
    state: &'static str,
    pid: Option<u32>,
    /// Null until it has run once.
    #[schema(value_type = Option<schema::Device>)]
    device: Option<atelier_domain::protocol::Device>,
    libtorch: Option<String>,
    worker_version: Option<String>,
    /// Resident, with everything.
    rss_bytes: u64,
    /// How often it was lost since the daemon started.
    lost: u64,
}

impl WorkerInfo {
    pub(crate) fn of(status: EngineStatus) -> Self {
        Self {
            state: status.state.as_str(),
            pid: status.pid,
            device: status.device,
            libtorch: status.libtorch,
            worker_version: status.worker_version,
            rss_bytes: status.rss_bytes,
            lost: status.lost,
        }
    }
}

/// A model on its way from a hub.
#[derive(Serialize, ToSchema)]
pub(crate) struct PullInfo {
    /// `ORG/NAME`.
    id: String,
    revision: String,
    /// `pulling`, or `interrupted`: the next pull goes on.
    state: &'static str,
    bytes: u64,
    /// 0 until the hub's list is read.
    total_bytes: u64,
    files: u64,
    total_files: u64,
}

impl PullInfo {
    fn of((note, state): (PullNote, PullState)) -> Self {
        Self {
            id: note.id,
            revision: note.revision,
            state: state.as_str(),
            bytes: note.progress.bytes,
            total_bytes: note.progress.total_bytes,
            files: note.progress.files,
            total_files: note.progress.total_files,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList {
    models: Vec<ModelInfo>,
    /// By this daemon or by anybody else, into the models directories.
    pulls: Vec<PullInfo>,
    worker: WorkerInfo,
}

/// List models
#[utoipa::path(
    get,
    path = "/api/v1/models",
    operation_id = "list_models",
    tag = "models",
    responses(
        (status = 200, description = "What is installed and what is loaded", body = ModelList),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list(State(http): State<Arc<Http>>) -> Json<ModelList> {
    let status = http.app.engine.status();
    let loaded: BTreeMap<&str, u64> = status.loaded.iter().map(|model| (model.id.as_str(), model.bytes)).collect();
    // Looked at anew: a model may have been put there or pulled a moment ago.
    let registry = http.app.rescan_models().await;
    let dirs = http.app.config().all_model_dirs();
    let pulls = tokio::task::spawn_blocking(move || pulls_in(&dirs)).await.unwrap_or_default();
    let models = registry.list().map(|model| ModelInfo {
        id: model.id.clone(),
        family: model.family.map(Family::as_str),
        class_name: model.class_name.clone(),
        kinds: model.kinds.clone(),
        bytes: model.bytes,
        complete: model.is_complete(),
        problem: model.problem.clone(),
        origin: model.origin.as_str(),
        loaded: loaded.contains_key(model.id.as_str()),
        loaded_bytes: loaded.get(model.id.as_str()).copied().unwrap_or(0),
    });
    let models = models.collect();
    Json(ModelList { models, pulls: pulls.into_iter().map(PullInfo::of).collect(), worker: WorkerInfo::of(status) })
}

/// What is loaded after a request to let go.
#[derive(Serialize, ToSchema)]
pub(crate) struct Loaded {
    #[schema(value_type = Vec<schema::LoadedModel>)]
    pub(crate) loaded: Vec<LoadedModel>,
}

/// Unload a model
#[utoipa::path(
    post,
    path = "/api/v1/models/{id}/unload",
    operation_id = "unload_model",
    tag = "models",
    params(("id" = String, Path, description = "The model's id; the slash of ORG/NAME is written %2F")),
    responses(
        (status = 200, description = "What is loaded now", body = Loaded),
        (status = 404, description = "No such model", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 409, description = "A job is running", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn unload(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Loaded>, Problem> {
    let Path(id) = path.map_err(|_| Problem::not_found("this model"))?;
    let shown: String = id.chars().take(100).collect();
    let is_loaded = http.app.engine.status().loaded.iter().any(|model| model.id == id);
    if http.app.registry().get(&id).is_none() && !is_loaded {
        return Err(Problem::not_found(format_args!("model {shown:?}")));
    }
    let_go(&http, Some(id)).await
}

/// Unload all models
#[utoipa::path(
    post,
    path = "/api/v1/models/unload",
    operation_id = "unload_all_models",
    tag = "models",
    responses(
        (status = 200, description = "What is loaded now", body = Loaded),
        (status = 409, description = "A job is running", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn unload_all(State(http): State<Arc<Http>>) -> Result<Json<Loaded>, Problem> {
    let_go(&http, None).await
}

pub(crate) async fn let_go(http: &Http, model: Option<String>) -> Result<Json<Loaded>, Problem> {
    if http.app.engine.status().state == EngineState::Busy {
        return Err(Problem::new(ErrorCode::Conflict, "a job is running").with_hint("cancel it, or ask again after it"));
    }
    let engine = http.app.engine.clone();
    // The worker's answer must be taken, also when the client has gone.
    let loaded = tokio::spawn(async move { Box::pin(engine.unload(model)).await }).await;
    let loaded = loaded.map_err(|_| Problem::new(ErrorCode::Internal, "the worker could not be asked"))??;
    Ok(Json(Loaded { loaded }))
}
