//! What is there: the routes' models, speech, and ComfyUI.

use std::sync::Arc;

use atelier_domain::JobKind;
use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    super::{super::Http, Problems},
    services::SERVICES,
};

/// A route's model.
#[derive(Serialize, ToSchema)]
pub(crate) struct StudioModel {
    name: &'static str,
    route: String,
    #[schema(value_type = super::super::super::schema::JobKind)]
    kind: JobKind,
    available: bool,
    /// The installed model that serves the route.
    model_id: Option<String>,
    loaded: bool,
    /// What is missing.
    message: Option<String>,
    /// What to do about it.
    hint: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct StudioModels {
    models: Vec<StudioModel>,
    /// Ids of loaded models.
    loaded: Vec<String>,
}

/// List the routes' models (studio)
#[utoipa::path(
    get,
    path = "/models",
    operation_id = "studio_models",
    tag = "studio",
    responses((status = 200, description = "Which routes can be used", body = StudioModels), Problems)
)]
pub(crate) async fn models(State(http): State<Arc<Http>>) -> Json<StudioModels> {
    let registry = http.app.registry();
    let loaded: Vec<_> = http.app.engine.status().loaded.into_iter().map(|model| model.id).collect();
    let models = SERVICES.iter().map(|service| {
        let found = service.model(&registry);
        let problem = found.as_ref().err();
        StudioModel {
            name: service.name,
            route: service.path(),
            kind: service.kind,
            available: found.is_ok(),
            model_id: found.as_ref().ok().map(|model| model.id.clone()),
            loaded: found.as_ref().is_ok_and(|model| loaded.contains(&model.id)),
            message: problem.map(|problem| problem.detail().to_owned()),
            hint: problem.map(|problem| problem.hint().to_owned()),
        }
    });
    Json(StudioModels { models: models.collect(), loaded })
}

/// Is there speech (studio)
#[utoipa::path(
    get,
    path = "/api/tts/status",
    operation_id = "studio_tts_status",
    tag = "studio",
    responses((status = 200, description = "Which models speak", body = Object), Problems)
)]
pub(crate) async fn tts(State(http): State<Arc<Http>>) -> Json<Value> {
    let registry = http.app.registry();
    let models: Vec<_> = registry.serving(JobKind::Speech).map(|model| model.id.clone()).collect();
    let message = if models.is_empty() {
        "no installed model speaks; put one into a models directory"
    } else {
        "send jobs of kind speech to /api/v1/jobs"
    };
    Json(json!({"available": !models.is_empty(), "models": models, "message": message}))
}

/// Is there ComfyUI (studio)
#[utoipa::path(
    get,
    path = "/api/comfyui/status",
    operation_id = "studio_comfyui_status",
    tag = "studio",
    responses((status = 200, description = "There is not", body = Object), Problems)
)]
pub(crate) async fn comfyui() -> Json<Value> {
    Json(json!({
        "available": false,
        "running": false,
        "message": "Atelier runs its models itself and does not talk to ComfyUI; its graphs are not understood here",
    }))
}
