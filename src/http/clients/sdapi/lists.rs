//! What there is to choose from, as far as it is here.

use std::sync::Arc;

use atelier_domain::JobKind;
use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use serde_json::{Value, json};

use super::{
    super::{
        super::{Http, problem::Problem},
        SdapiErrors, pick,
    },
    samplers,
};

/// List something (A1111)
///
/// `sd-models`, `samplers`, `schedulers`, `loras`, `upscalers`, `latent-upscale-modes`, `scripts`, `script-info`,
/// `cmd-flags`, `sd-vae`, `embeddings`, `hypernetworks`, `face-restorers`, `realesrgan-models`, `prompt-styles`,
/// `extensions`. What is not here is an empty list.
#[utoipa::path(
    get,
    path = "/sdapi/v1/{list}",
    operation_id = "sdapi_list",
    tag = "sdapi",
    params(("list" = String, Path, description = "What to list")),
    responses((status = 200, description = "A list, or an object of lists", body = Value), SdapiErrors)
)]
pub(crate) async fn list(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let Path(list) = path.map_err(|_| Problem::not_found("this list"))?;
    Ok(Json(match list.as_str() {
        "sd-models" => checkpoints(&http),
        "samplers" => samplers::names().map(|(name, ours)| json!({"name": name, "aliases": [ours], "options": {}})).collect(),
        "schedulers" => samplers::SCHEDULERS
            .iter()
            .map(|(name, label)| json!({"name": name, "label": label, "aliases": null, "default_rho": -1.0, "need_inner_model": false}))
            .collect(),
        "loras" => loras(&http),
        "upscalers" => upscalers(&http),
        // Not a script that can be run: by this name clients know that ControlNet is there, and `webuiapi` only then
        // takes a unit back that it sent once.
        "scripts" => json!({"txt2img": ["controlnet m2m"], "img2img": ["controlnet m2m"]}),
        "embeddings" => json!({"loaded": {}, "skipped": {}}),
        "cmd-flags" => json!({}),
        "script-info" | "latent-upscale-modes" | "sd-vae" | "sd-modules" | "hypernetworks" | "face-restorers"
        | "realesrgan-models" | "prompt-styles" | "extensions" => json!([]),
        other => {
            let shown: String = other.chars().take(64).collect();
            return Err(Problem::not_found(format_args!("/sdapi/v1/{shown}")));
        }
    }))
}

/// Models that make pictures.
fn checkpoints(http: &Http) -> Value {
    let makes = |kind: &JobKind| matches!(kind, JobKind::Generate | JobKind::Edit | JobKind::Inpaint);
    let registry = http.app.registry();
    let models = registry.list().filter(|model| model.is_complete() && model.kinds.iter().any(makes));
    models
        .map(|model| {
            json!({
                "title": model.id, "model_name": pick::last_part(&model.id), "hash": null, "sha256": null,
                "filename": model.id, "config": null,
            })
        })
        .collect()
}

fn loras(http: &Http) -> Value {
    let registry = http.app.registry();
    let loras = registry.list().filter(|model| model.class_name.as_deref() == Some("LoRA"));
    loras
        .map(|model| json!({"name": model.id, "alias": pick::last_part(&model.id), "path": model.id, "metadata": {}}))
        .collect()
}

fn upscalers(http: &Http) -> Value {
    let none = json!({"name": "None", "model_name": null, "model_path": null, "model_url": null, "scale": 4});
    let registry = http.app.registry();
    let ours = registry.serving(JobKind::Upscale).map(|model| {
        let scale = if model.id.contains("x4") { 4 } else { 2 };
        json!({"name": model.id, "model_name": model.id, "model_path": null, "model_url": null, "scale": scale})
    });
    std::iter::once(none).chain(ours).collect()
}

/// Look at the models' folders again (A1111)
#[utoipa::path(
    post,
    path = "/sdapi/v1/refresh-checkpoints",
    operation_id = "sdapi_refresh_checkpoints",
    tag = "sdapi",
    responses((status = 200, description = "Done", body = Option<Object>), SdapiErrors)
)]
pub(crate) async fn refresh(State(http): State<Arc<Http>>) -> Json<Option<Value>> {
    http.app.rescan_models().await;
    Json(None)
}

/// Look at the LoRAs' folders again (A1111)
#[utoipa::path(
    post,
    path = "/sdapi/v1/refresh-loras",
    operation_id = "sdapi_refresh_loras",
    tag = "sdapi",
    responses((status = 200, description = "Done", body = Option<Object>), SdapiErrors)
)]
pub(crate) async fn refresh_loras(State(http): State<Arc<Http>>) -> Json<Option<Value>> {
    refresh(State(http)).await
}

/// The version of ControlNet's API (A1111)
#[utoipa::path(
    get,
    path = "/controlnet/version",
    operation_id = "controlnet_version",
    tag = "sdapi",
    responses((status = 200, description = "2", body = Object), SdapiErrors)
)]
pub(crate) async fn controlnet_version() -> Json<Value> {
    Json(json!({"version": 2}))
}

/// List ControlNets (A1111)
#[utoipa::path(
    get,
    path = "/controlnet/model_list",
    operation_id = "controlnet_models",
    tag = "sdapi",
    responses((status = 200, description = "Ids of models that do `control`", body = Object), SdapiErrors)
)]
pub(crate) async fn controlnet_models(State(http): State<Arc<Http>>) -> Json<Value> {
    let registry = http.app.registry();
    let ids: Vec<_> = registry.serving(JobKind::Control).map(|model| model.id.clone()).collect();
    Json(json!({"model_list": ids}))
}

/// List ControlNet's preprocessors (A1111)
#[utoipa::path(
    get,
    path = "/controlnet/module_list",
    operation_id = "controlnet_modules",
    tag = "sdapi",
    responses((status = 200, description = "Names for `module`", body = Object), SdapiErrors)
)]
pub(crate) async fn controlnet_modules() -> Json<Value> {
    let modules: &[&str] =
        if pick::knows("preprocessor") { &["none", "canny", "anyline", "lineart"] } else { &["none"] };
    let detail: serde_json::Map<String, Value> =
        modules.iter().map(|name| ((*name).to_owned(), json!({"model_free": false, "sliders": []}))).collect();
    Json(json!({"module_list": modules, "module_detail": detail}))
}
