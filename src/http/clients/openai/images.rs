//! `POST /v1/images/generations` and `/v1/images/edits`.

use std::sync::Arc;

use atelier_domain::Output;
use axum::{body::Body, extract::State, http::StatusCode, response::Response};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    super::{
        super::{Http, problem::Problem},
        OpenAiErrors,
        door::{self, Visitor},
        reply::{self, After, Pictures},
    },
    stream,
    wish::{self, Look},
};
use crate::store::JobRecord;

/// A wish for pictures. Names that are not listed here are passed over.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct ImageGeneration {
    prompt: String,
    /// One of `GET /v1/models`; a name of OpenAI's own models means whatever is installed.
    model: Option<String>,
    #[schema(minimum = 1, maximum = 10)]
    n: Option<u32>,
    /// `auto`, or WIDTHxHEIGHT.
    #[schema(example = "1024x1024")]
    size: Option<String>,
    /// `url` or `b64_json`.
    response_format: Option<String>,
    /// `png`, `jpeg` or `webp`.
    output_format: Option<String>,
    /// For JPEG and WebP.
    #[schema(minimum = 0, maximum = 100)]
    output_compression: Option<u32>,
    /// `auto` or `opaque`.
    background: Option<String>,
    /// `auto`, `low`, `medium`, `high`, …: the number of steps, where that is not given.
    quality: Option<String>,
    stream: Option<bool>,
    /// Pictures of how far it is, where the model makes some.
    #[schema(minimum = 0, maximum = 3)]
    partial_images: Option<u32>,
    seed: Option<u64>,
    negative_prompt: Option<String>,
    #[schema(minimum = 1, maximum = 1000)]
    num_inference_steps: Option<u32>,
    guidance_scale: Option<f64>,
    /// Stronger than `guidance_scale`.
    true_cfg_scale: Option<f64>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    strength: Option<f64>,
    #[schema(value_type = Option<Value>)]
    loras: Option<Value>,
}

/// An edit: the same names, and pictures.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct ImageEdit {
    #[serde(flatten)]
    wish: ImageGeneration,
    /// Data URIs or base64; also as `images`, a list of `{"image_url"}`.
    #[schema(value_type = Value)]
    image: Value,
    /// Transparent where to paint; white where to paint, if nothing in it is transparent.
    mask: Option<String>,
}

/// The same as a form; numbers are texts.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct ImageEditForm {
    prompt: String,
    model: Option<String>,
    n: Option<String>,
    size: Option<String>,
    /// Repeatable, also under the name `image[]`.
    #[schema(value_type = Option<Vec<String>>, format = Binary)]
    image: Option<Vec<Vec<u8>>>,
    #[schema(value_type = Option<String>, format = Binary)]
    mask: Option<Vec<u8>>,
}

/// What was made.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct ImagesResponse {
    /// Seconds since 1970.
    created: i64,
    data: Vec<ImageData>,
    output_format: String,
    size: String,
    quality: String,
    background: String,
    /// The job, for `/api/v1/jobs/{id}`.
    job: String,
    seed: Option<u64>,
    usage: ImagesUsage,
}

/// Always zero: nothing is counted here.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct ImagesUsage {
    input_tokens: u64,
    output_tokens: u64,
    total_tokens: u64,
    #[schema(value_type = Value)]
    input_tokens_details: Value,
}

/// Either of the two.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct ImageData {
    b64_json: Option<String>,
    /// Opens without a token, for an hour.
    url: Option<String>,
}

/// Generate pictures (OpenAI)
///
/// Answers when they are made. The same request again, before its answer was fetched, is the same job. With
/// `stream`, events `image_generation.partial_image` and `image_generation.completed`.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    operation_id = "openai_generate_images",
    tag = "openai",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters: the same request with the same key is the same job")),
    request_body(content((ImageGeneration = "application/json"))),
    responses(
        (status = 200, description = "The pictures", content((ImagesResponse = "application/json"), (String = "text/event-stream"))),
        OpenAiErrors
    )
)]
pub(crate) async fn generate(State(http): State<Arc<Http>>, visitor: Visitor, body: Body) -> Result<Response, Problem> {
    create(http, visitor, body, false).await
}

/// Edit pictures (OpenAI)
///
/// As a form or as JSON; otherwise as `/v1/images/generations`, with events `image_edit.*`.
#[utoipa::path(
    post,
    path = "/v1/images/edits",
    operation_id = "openai_edit_images",
    tag = "openai",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters: the same request with the same key is the same job")),
    request_body(content((ImageEditForm = "multipart/form-data"), (ImageEdit = "application/json"))),
    responses(
        (status = 200, description = "The pictures", content((ImagesResponse = "application/json"), (String = "text/event-stream"))),
        OpenAiErrors
    )
)]
pub(crate) async fn edit(State(http): State<Arc<Http>>, visitor: Visitor, body: Body) -> Result<Response, Problem> {
    create(http, visitor, body, true).await
}

async fn create(http: Arc<Http>, visitor: Visitor, body: Body, edits: bool) -> Result<Response, Problem> {
    let key = visitor.key_of_waiting()?;
    let mut arrival = door::receive(&http, &visitor, body).await?;
    let (order, look) = wish::read(&http, &visitor, &mut arrival.fields, edits).await?;
    let placed = arrival.place(&http, order, key).await?;
    if look.stream {
        return Ok(stream::answer(&http, placed, look, edits));
    }
    let record = door::succeeded(&http, &placed).await?;
    let mut pictures = Pictures::new();
    let answer = response(&http, &record, &look, &mut pictures);
    reply::json(&http, StatusCode::OK, &answer, pictures, After::forget(placed.key)).await
}

/// The size of a job's first output; they are all alike.
pub(super) fn size(record: &JobRecord) -> String {
    record.job.outputs.first().map_or_else(|| "auto".into(), |output| format!("{}x{}", output.width, output.height))
}

pub(super) fn usage() -> Value {
    json!({
        "input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    })
}

fn response(http: &Http, record: &JobRecord, look: &Look, pictures: &mut Pictures) -> Value {
    let job = &record.job;
    let data: Vec<Value> = if look.as_url {
        let url = |output: &Output| json!({"url": format!("{}{}", look.base_url, http.link(&output.url))});
        job.outputs.iter().map(url).collect()
    } else {
        pictures.outputs(record).into_iter().map(|mark| json!({"b64_json": mark})).collect()
    };
    json!({
        "created": job.finished_at.map_or(0, |finished| finished.0 / 1000),
        "data": data,
        "output_format": look.format,
        "size": size(record),
        "quality": look.quality,
        "background": look.background,
        "job": job.id,
        "seed": job.params.seed,
        "usage": usage(),
    })
}
