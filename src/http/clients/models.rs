//! `GET /v1/models`: a list that clients of OpenAI's API and of Replicate's both read as theirs.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    super::{Http, problem::Problem},
    OpenAiErrors, Problems, pick,
};
use crate::models::InstalledModel;

/// A model, in OpenAI's words and in Replicate's.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClientModel {
    id: String,
    #[schema(example = "model")]
    object: &'static str,
    created: i64,
    owned_by: String,
    /// What it does.
    #[schema(value_type = Vec<super::super::schema::JobKind>)]
    kinds: Vec<atelier_domain::JobKind>,
    owner: String,
    name: String,
    url: String,
    description: String,
    #[schema(example = "private")]
    visibility: &'static str,
    run_count: u64,
    latest_version: ClientModelVersion,
}

/// Replicate's name for what a model is at a time; ours is made of the model's id.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClientModelVersion {
    id: String,
    created_at: String,
    /// How the packages are to read the schema.
    cog_version: String,
    /// What goes in and comes out, for the package's own checks.
    #[schema(value_type = Value)]
    openapi_schema: Value,
}

/// With older versions of Replicate's tool a list of outputs came one by one, and the packages go by that.
const COG: &str = "0.9.0";

impl ClientModelVersion {
    pub(crate) fn of(model: &InstalledModel) -> Self {
        Self {
            id: pick::version(&model.id),
            created_at: "1970-01-01T00:00:00Z".into(),
            cog_version: COG.into(),
            openapi_schema: json!({
                "openapi": "3.0.2",
                "info": {"title": model.id, "version": env!("CARGO_PKG_VERSION")},
                "paths": {},
                "components": {"schemas": {
                    "Input": {"title": "Input", "type": "object", "properties": {"prompt": {"type": "string"}}},
                    "Output": {"title": "Output", "type": "array", "items": {"type": "string", "format": "uri"}},
                }},
            }),
        }
    }
}

impl ClientModel {
    pub(crate) fn of(model: &InstalledModel) -> Self {
        let (owner, name) = pick::owner_and_name(&model.id);
        let kinds: Vec<_> = model.kinds.iter().map(|kind| kind.as_str()).collect();
        Self {
            id: model.id.clone(),
            object: "model",
            created: 0,
            owned_by: owner.to_owned(),
            kinds: model.kinds.clone(),
            owner: owner.to_owned(),
            name: name.to_owned(),
            url: format!("/v1/models/{owner}/{name}"),
            description: format!("does {}", kinds.join(", ")),
            visibility: "private",
            run_count: 0,
            latest_version: ClientModelVersion::of(model),
        }
    }
}

/// All models that can be used, as OpenAI's list and as a page of Replicate's.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClientModels {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<ClientModel>,
    /// The same again.
    results: Vec<ClientModel>,
    /// Always null: one page holds them all.
    next: Option<String>,
    previous: Option<String>,
}

/// List models for other APIs' clients
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "list_client_models",
    tag = "openai",
    responses((status = 200, description = "Every complete model", body = ClientModels), OpenAiErrors)
)]
pub(crate) async fn list(State(http): State<Arc<Http>>) -> Json<ClientModels> {
    let registry = http.app.registry();
    let models = || registry.list().filter(|model| model.is_complete()).map(ClientModel::of).collect();
    Json(ClientModels { object: "list", data: models(), results: models(), next: None, previous: None })
}

pub(crate) fn no_such_model(name: &str) -> Problem {
    let shown: String = name.chars().take(100).collect();
    Problem::not_found(format_args!("the model {shown:?}")).with_hint("GET /v1/models lists what is installed")
}

/// Show a model to OpenAI's clients
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    operation_id = "show_client_model",
    tag = "openai",
    params(("id" = String, Path, description = "The model's id; the slash of ORG/NAME is written %2F")),
    responses((status = 200, description = "The model", body = ClientModel), OpenAiErrors)
)]
pub(crate) async fn show(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<ClientModel>, Problem> {
    let Path(id) = path.map_err(|_| no_such_model("?"))?;
    let registry = http.app.registry();
    pick::find(&registry, &id).map(|model| Json(ClientModel::of(model))).ok_or_else(|| no_such_model(&id))
}

/// Show a model to Replicate's clients
#[utoipa::path(
    get,
    path = "/v1/models/{owner}/{name}",
    operation_id = "show_replicate_model",
    tag = "replicate",
    params(
        ("owner" = String, Path, description = "`atelier` for models whose id has no slash"),
        ("name" = String, Path, description = "The model's name")
    ),
    responses((status = 200, description = "The model", body = ClientModel), Problems)
)]
pub(crate) async fn show_owned(
    State(http): State<Arc<Http>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<ClientModel>, Problem> {
    let Path((owner, name)) = path.map_err(|_| no_such_model("?"))?;
    let id = format!("{owner}/{name}");
    let registry = http.app.registry();
    pick::find(&registry, &id).map(|model| Json(ClientModel::of(model))).ok_or_else(|| no_such_model(&id))
}

/// Show a model's version to Replicate's clients
#[utoipa::path(
    get,
    path = "/v1/models/{owner}/{name}/versions/{version}",
    operation_id = "show_replicate_version",
    tag = "replicate",
    params(
        ("owner" = String, Path, description = "`atelier` for models whose id has no slash"),
        ("name" = String, Path, description = "The model's name"),
        ("version" = String, Path, description = "64 hexadecimal digits")
    ),
    responses((status = 200, description = "The version", body = ClientModelVersion), Problems)
)]
pub(crate) async fn show_version(
    State(http): State<Arc<Http>>,
    path: Result<Path<(String, String, String)>, PathRejection>,
) -> Result<Json<ClientModelVersion>, Problem> {
    let Path((owner, name, version)) = path.map_err(|_| no_such_model("?"))?;
    let id = format!("{owner}/{name}");
    let registry = http.app.registry();
    let model = pick::find(&registry, &id).ok_or_else(|| no_such_model(&id))?;
    let found = ClientModelVersion::of(model);
    if found.id == version { Ok(Json(found)) } else { Err(Problem::not_found("this version of the model")) }
}
