//! The service with a route per model.

use std::sync::Arc;

use atelier_domain::{ErrorCode, JobId, JobKind};
use axum::{
    Json,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    super::{
        super::{Http, intake::Fields, models as native, outputs, problem::Problem},
        Problems,
        door::{self, Order, Visitor},
        mask::{self, Drawn},
        pick,
        reply::{self, After, Pictures},
    },
    services::Service,
    settings, shape,
};

/// A wish, in the old service's words. Names that are not listed here are passed over.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct StudioWish {
    prompt: Option<String>,
    negative_prompt: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
    num_inference_steps: Option<u32>,
    guidance_scale: Option<f64>,
    /// 0 is a seed; -1: any.
    seed: Option<i64>,
    /// A data URI or base64.
    image: Option<String>,
    /// White where to paint.
    mask: Option<String>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    strength: Option<f64>,
    #[schema(minimum = 1, maximum = 10)]
    num_images: Option<u32>,
    /// Another installed model than the route's.
    model: Option<String>,
    /// Answer at once with the job's id.
    r#async: Option<bool>,
}

/// The finished result.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct StudioResult {
    success: bool,
    /// `completed`.
    status: String,
    job_id: String,
    model: String,
    model_id: Option<String>,
    prompt: Option<String>,
    seed: Option<u64>,
    files: Vec<String>,
    /// Paths below this server.
    download_urls: Vec<String>,
    download_url: Option<String>,
    /// Seconds.
    generation_time: Option<f64>,
    width: Option<u32>,
    height: Option<u32>,
    media_type: Option<String>,
    /// Base64.
    images: Option<Vec<String>>,
    /// The same, where there is one.
    image: Option<String>,
    video_url: Option<String>,
    caption: Option<String>,
}

/// The job that was asked for with `"async": true`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct StudioAccepted {
    success: bool,
    /// `queued`, or what it is by now.
    status: String,
    job_id: String,
    status_url: String,
}

/// The routes' common part.
async fn serve(
    http: &Arc<Http>,
    group: &str,
    path: Result<Path<String>, PathRejection>,
    visitor: &Visitor,
    body: Body,
) -> Result<Response, Problem> {
    let Path(name) = path.map_err(|_| Problem::not_found("this model"))?;
    let service = Service::of(group, &name)?;
    let mut arrival = door::receive(http, visitor, body).await?;
    let deferred = arrival.fields.flag(&["async"])?.unwrap_or(false);
    let order = read(http, service, &mut arrival.fields).await?;
    let key = if deferred { visitor.key_of_asking()? } else { visitor.key_of_waiting()? };
    let placed = arrival.place(http, order, key).await?;
    if deferred {
        let id = placed.job.id;
        let answer = json!({
            "success": true, "status": shape::status(placed.job.status), "job_id": id,
            "status_url": format!("/api/jobs/{id}"),
        });
        return Ok((StatusCode::ACCEPTED, Json(answer)).into_response());
    }
    let record = door::succeeded(http, &placed).await?;
    let mut pictures = Pictures::new();
    let answer = shape::result(&record, service.name, &mut pictures);
    reply::json(http, StatusCode::OK, &answer, pictures, After::forget(placed.key)).await
}

async fn read(http: &Arc<Http>, service: Service, fields: &mut Fields) -> Result<Order, Problem> {
    let mut order = Order::default();
    let registry = http.app.registry();
    let model = match fields.text(&["model"])? {
        Some(name) if !name.eq_ignore_ascii_case(service.name) => {
            pick::find(&registry, &name).ok_or_else(|| super::super::models::no_such_model(&name))?
        }
        Some(_) | None => service.model(&registry)?,
    };
    if fields.take(&["audio", "audio_file", "audio_base64"]).is_some() || !fields.files_named(&["audio"]).is_empty() {
        return Err(Problem::new(ErrorCode::NotAvailable, "params.audio: this version takes no sound"));
    }
    order.images = fields.files_named(&["image", "file", "images", "image[]", "control_image"]);
    for name in ["image", "image_base64", "control_image", "images"] {
        let Some((name, value)) = fields.take(&[name]) else { continue };
        for value in if let Value::Array(list) = value { list } else { vec![value] } {
            let Value::String(text) = value else {
                return Err(Problem::new(ErrorCode::InvalidRequest, format!("{name} is no picture")));
            };
            order.images.push(fields.picture(name, &text).await?);
        }
    }
    if let Some((_, Value::String(text))) = fields.take(&["mask", "mask_image"]) {
        let mask = fields.picture("mask", &text).await?;
        order.mask = Some(mask::ours(http, mask, Drawn::White).await?);
    } else if let Some(mask) = fields.files_named(&["mask"]).pop() {
        order.mask = Some(mask);
    }
    // A picture with a mask is painted in, by the same model.
    let kind = if order.mask.is_some() && service.kind == JobKind::Generate { JobKind::Inpaint } else { service.kind };
    order.set("kind", kind.as_str());
    order.set("model", model.id.clone());
    params(fields, &mut order)?;
    if service.kind == JobKind::Caption {
        order.param("max_tokens", fields.whole(&["max_new_tokens", "max_tokens"], 1..=4096)?);
        order.param("temperature", fields.number(&["temperature"])?);
        order.param("top_p", fields.number(&["top_p"])?);
    } else {
        settings::fill(http, &mut order).await?;
    }
    Ok(order)
}

pub(super) fn params(fields: &mut Fields, order: &mut Order) -> Result<(), Problem> {
    order.param("prompt", fields.text(&["prompt", "question", "text"])?);
    order.param("negative_prompt", fields.text(&["negative_prompt"])?);
    order.param("width", fields.whole(&["width"], 16..=16384)?);
    order.param("height", fields.whole(&["height"], 16..=16384)?);
    order.param("steps", fields.whole(&["num_inference_steps", "steps"], 1..=1000)?);
    order.param("guidance_scale", fields.number(&["guidance_scale", "true_cfg_scale", "cfg_scale"])?);
    order.param("seed", fields.seed(&["seed"])?);
    order.param("strength", fields.number(&["strength"])?);
    order.param("num_images", fields.whole(&["num_images", "num_images_per_prompt"], 1..=10)?);
    let control_scale = fields.number(&["controlnet_conditioning_scale", "control_scale"])?;
    order.param("control_scale", control_scale.filter(|_| pick::knows("control_scale")));
    order.param("format", fields.text(&["output_format", "format"])?);
    Ok(())
}

/// Generate pictures (studio)
///
/// With `flux`, `sdxl`, `sd3` or `pony`. Answers when they are made, or with 202 at once where `async` is true.
#[utoipa::path(
    post,
    path = "/api/generate/{model}",
    operation_id = "studio_generate",
    tag = "studio",
    params(("model" = String, Path, description = "`flux`, `sdxl`, `sd3` or `pony`")),
    request_body(content((StudioWish = "application/json"), (StudioWish = "multipart/form-data"))),
    responses(
        (status = 200, description = "The pictures", body = StudioResult),
        (status = 202, description = "The job, with `async`", body = StudioAccepted),
        Problems
    )
)]
pub(crate) async fn generate(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
    visitor: Visitor,
    body: Body,
) -> Result<Response, Problem> {
    serve(&http, "generate", path, &visitor, body).await
}

/// Caption a picture (studio)
#[utoipa::path(
    post,
    path = "/api/caption/{model}",
    operation_id = "studio_caption",
    tag = "studio",
    params(("model" = String, Path, description = "`llava`, `blip` or `qwen`")),
    request_body(content((StudioWish = "application/json"), (StudioWish = "multipart/form-data"))),
    responses(
        (status = 200, description = "The caption", body = StudioResult),
        (status = 202, description = "The job, with `async`", body = StudioAccepted),
        Problems
    )
)]
pub(crate) async fn caption(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
    visitor: Visitor,
    body: Body,
) -> Result<Response, Problem> {
    serve(&http, "caption", path, &visitor, body).await
}

/// Generate along a picture's lines (studio)
#[utoipa::path(
    post,
    path = "/api/controlnet/{model}",
    operation_id = "studio_controlnet",
    tag = "studio",
    params(("model" = String, Path, description = "`mistoline` or `union`")),
    request_body(content((StudioWish = "application/json"), (StudioWish = "multipart/form-data"))),
    responses(
        (status = 200, description = "The pictures", body = StudioResult),
        (status = 202, description = "The job, with `async`", body = StudioAccepted),
        Problems
    )
)]
pub(crate) async fn controlnet(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
    visitor: Visitor,
    body: Body,
) -> Result<Response, Problem> {
    serve(&http, "controlnet", path, &visitor, body).await
}

/// Make a video (studio)
#[utoipa::path(
    post,
    path = "/api/video/{model}",
    operation_id = "studio_video",
    tag = "studio",
    params(("model" = String, Path, description = "`svd`, `animatediff` or `wan21`")),
    request_body(content((StudioWish = "application/json"), (StudioWish = "multipart/form-data"))),
    responses(
        (status = 200, description = "The video's address", body = StudioResult),
        (status = 202, description = "The job, with `async`", body = StudioAccepted),
        Problems
    )
)]
pub(crate) async fn video(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
    visitor: Visitor,
    body: Body,
) -> Result<Response, Problem> {
    serve(&http, "video", path, &visitor, body).await
}

/// Make a picture talk (studio)
#[utoipa::path(
    post,
    path = "/api/talking-head/{model}",
    operation_id = "studio_talking_head",
    tag = "studio",
    params(("model" = String, Path, description = "`infinitetalk`")),
    request_body(content((StudioWish = "application/json"), (StudioWish = "multipart/form-data"))),
    responses(
        (status = 200, description = "The video's address", body = StudioResult),
        (status = 202, description = "The job, with `async`", body = StudioAccepted),
        Problems
    )
)]
pub(crate) async fn talking_head(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
    visitor: Visitor,
    body: Body,
) -> Result<Response, Problem> {
    serve(&http, "talking-head", path, &visitor, body).await
}

/// Let go of a model (studio)
#[utoipa::path(
    post,
    path = "/api/unload/{model}",
    operation_id = "studio_unload",
    tag = "studio",
    params(("model" = String, Path, description = "A route's model, such as `sdxl`, or a model's id")),
    responses((status = 200, description = "What is loaded now", body = Object), Problems)
)]
pub(crate) async fn unload(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let Path(name) = path.map_err(|_| Problem::not_found("this model"))?;
    let registry = http.app.registry();
    let service = super::services::SERVICES.iter().find(|service| service.name == name);
    let id = match service {
        Some(service) => service.model(&registry)?.id.clone(),
        None => pick::find(&registry, &name).ok_or_else(|| super::super::models::no_such_model(&name))?.id.clone(),
    };
    let loaded = native::let_go(&http, Some(id.clone())).await?;
    Ok(Json(json!({"success": true, "model": id, "loaded": loaded.0.loaded})))
}

/// Let go of all models (studio)
#[utoipa::path(
    post,
    path = "/api/unload-all",
    operation_id = "studio_unload_all",
    tag = "studio",
    responses((status = 200, description = "What is loaded now", body = Object), Problems)
)]
pub(crate) async fn unload_all(State(http): State<Arc<Http>>) -> Result<Json<Value>, Problem> {
    let loaded = native::let_go(&http, None).await?;
    Ok(Json(json!({"success": true, "loaded": loaded.0.loaded})))
}

/// The job whose id stands in an output's name.
fn job_in(name: &str) -> Option<JobId> {
    name.split(['-', '.']).rev().filter(|part| part.len() == 26).find_map(|part| part.parse().ok())
}

/// Download an output by its name (studio)
///
/// A name is looked up among the outputs of the job that it names; it is never made into a path.
#[utoipa::path(
    get,
    path = "/api/download/{file}",
    operation_id = "studio_download",
    tag = "studio",
    params(("file" = String, Path, description = "As `files` has it")),
    responses(
        (status = 200, description = "The bytes", content((String = "image/png"), (String = "image/jpeg"), (String = "image/webp"), (String = "application/octet-stream"))),
        (status = 206, description = "A part of them", content((String = "image/png"), (String = "image/jpeg"), (String = "image/webp"), (String = "application/octet-stream"))),
        (status = 304, description = "The client has them"),
        Problems
    )
)]
pub(crate) async fn download(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let no_such = || Problem::not_found("this file").with_hint("files are called as the job's outputs are");
    let Path(name) = path.map_err(|_| no_such())?;
    let id = job_in(&name).ok_or_else(no_such)?;
    let record = http.app.store.record(id).await?.ok_or_else(no_such)?;
    let index = record.job.outputs.iter().position(|output| output.name == name).ok_or_else(no_such)?;
    outputs::answer(&record, index, &headers).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_the_job_in_it_and_nowhere_else() {
        let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        for name in [format!("photo-{id}.png"), format!("a-b-{id}-3.webp"), format!("{id}.png")] {
            assert_eq!(job_in(&name).map(|id| id.to_string()).as_deref(), Some(id), "{name}");
        }
        for name in ["../../etc/passwd", "photo.png", "", "-.-", "01ARZ3NDEKTSV4RRFFQ69G5FA.png"] {
            assert_eq!(job_in(name), None, "{name}");
        }
    }
}
