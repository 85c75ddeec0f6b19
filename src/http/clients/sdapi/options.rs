//! `options`: of the webui's hundreds, the chosen model counts here.

use std::sync::Arc;

use atelier_domain::JobKind;
use axum::{Json, body::Body, extract::State, http::HeaderMap};
use serde_json::{Value, json};

use super::super::{
    super::{Http, intake, problem::Problem},
    SdapiErrors,
    models::no_such_model,
    pick,
};
use crate::store::MetaKey;

/// The model that was chosen, if it is still there; `None`: whatever suits the job.
pub(super) async fn checkpoint(http: &Http) -> Result<Option<String>, Problem> {
    let chosen = http.app.store.meta(MetaKey::Checkpoint).await?.filter(|name| !name.is_empty());
    Ok(chosen.filter(|name| pick::find(&http.app.registry(), name).is_some()))
}

/// Show options (A1111)
#[utoipa::path(
    get,
    path = "/sdapi/v1/options",
    operation_id = "sdapi_show_options",
    tag = "sdapi",
    responses((status = 200, description = "`sd_model_checkpoint`, and what the webui's clients look for", body = Object), SdapiErrors)
)]
pub(crate) async fn show(State(http): State<Arc<Http>>) -> Result<Json<Value>, Problem> {
    let chosen = checkpoint(&http).await?;
    let registry = http.app.registry();
    let first = || registry.serving(JobKind::Generate).next().map(|model| model.id.clone());
    let checkpoint = chosen.or_else(first);
    Ok(Json(json!({
        "sd_model_checkpoint": checkpoint,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
        "samples_save": true,
        "grid_save": false,
        "outdir_samples": "",
    })))
}

/// Change options (A1111)
///
/// `sd_model_checkpoint` chooses a model, and an empty text lets each job have what suits it. Other options are passed
/// over.
#[utoipa::path(
    post,
    path = "/sdapi/v1/options",
    operation_id = "sdapi_set_options",
    tag = "sdapi",
    request_body(content((Object = "application/json"))),
    responses((status = 200, description = "Taken", body = Option<Object>), SdapiErrors)
)]
pub(crate) async fn set(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Option<Value>>, Problem> {
    let options = intake::receive_json(&headers, body, http.settings.body).await?.unwrap_or_default();
    if let Some(Value::String(name)) = options.get("sd_model_checkpoint") {
        let id = match name.as_str() {
            "" => String::new(),
            name => pick::find(&http.app.registry(), name).ok_or_else(|| no_such_model(name))?.id.clone(),
        };
        http.app.store.set_meta(MetaKey::Checkpoint, id).await?;
    }
    Ok(Json(None))
}
