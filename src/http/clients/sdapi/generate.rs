//! `txt2img` and `img2img`.

use std::sync::Arc;

use atelier_domain::{Job, JobStatus};
use axum::{body::Body, extract::State, http::StatusCode, response::Response};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    super::{
        super::{Http, coalesce, problem::Problem},
        SdapiErrors,
        door::{self, Visitor},
        reply::{self, After, Pictures},
    },
    wish,
};
use crate::store::JobRecord;

/// A wish, in the webui's words. Names that are not listed here are passed over.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiWish {
    prompt: Option<String>,
    negative_prompt: Option<String>,
    /// -1: any.
    seed: Option<i64>,
    steps: Option<u32>,
    cfg_scale: Option<f64>,
    width: Option<u32>,
    height: Option<u32>,
    /// Pictures are `batch_size` times `n_iter`, at most 10.
    batch_size: Option<u32>,
    n_iter: Option<u32>,
    sampler_name: Option<String>,
    scheduler: Option<String>,
    /// `img2img`: how far the result may leave its source.
    denoising_strength: Option<f64>,
    /// `img2img`: data URIs or base64.
    init_images: Option<Vec<String>>,
    /// `img2img`: white where to paint.
    mask: Option<String>,
    /// 1: black where to paint.
    inpainting_mask_invert: Option<u32>,
    /// `sd_model_checkpoint` and `samples_format`.
    #[schema(value_type = Option<Value>)]
    override_settings: Option<Value>,
    /// `ControlNet`: one unit with `image`, `model`, `module` and `weight`.
    #[schema(value_type = Option<Value>)]
    alwayson_scripts: Option<Value>,
    send_images: Option<bool>,
    /// The job's name, for `progress` and `interrupt`.
    force_task_id: Option<String>,
}

/// What was made.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct SdapiImages {
    /// Base64.
    images: Vec<String>,
    /// The request.
    #[schema(value_type = Value)]
    parameters: Value,
    /// JSON as a text: seeds, sizes, the model, the job's id.
    info: String,
}

/// Text to image (A1111)
///
/// Answers when it is made. The same request again, before its answer was fetched, is the same job.
#[utoipa::path(
    post,
    path = "/sdapi/v1/txt2img",
    operation_id = "sdapi_txt2img",
    tag = "sdapi",
    request_body(content((SdapiWish = "application/json"))),
    responses((status = 200, description = "The pictures; none where it was interrupted", body = SdapiImages), SdapiErrors)
)]
pub(crate) async fn txt2img(State(http): State<Arc<Http>>, visitor: Visitor, body: Body) -> Result<Response, Problem> {
    make(&http, &visitor, body, false).await
}

/// Image to image (A1111)
#[utoipa::path(
    post,
    path = "/sdapi/v1/img2img",
    operation_id = "sdapi_img2img",
    tag = "sdapi",
    request_body(content((SdapiWish = "application/json"))),
    responses((status = 200, description = "The pictures; none where it was interrupted", body = SdapiImages), SdapiErrors)
)]
pub(crate) async fn img2img(State(http): State<Arc<Http>>, visitor: Visitor, body: Body) -> Result<Response, Problem> {
    make(&http, &visitor, body, true).await
}

async fn make(http: &Arc<Http>, visitor: &Visitor, body: Body, from_picture: bool) -> Result<Response, Problem> {
    let key = visitor.key_of_waiting()?;
    let mut arrival = door::receive(http, visitor, body).await?;
    let wish = wish::read(http, &mut arrival.fields, from_picture).await?;
    let placed = arrival.place(http, wish.order, key).await?;
    let record = door::ended(http, placed.job.id).await?;
    if record.job.status == JobStatus::Failed
        && let Some(problem) = door::failure(&record.job)
    {
        if let Some(key) = placed.key {
            coalesce::delivered(http, key).await;
        }
        return Err(problem);
    }
    let mut pictures = Pictures::new();
    let images = if wish.send_images { pictures.outputs(&record) } else { Vec::new() };
    let answer = json!({"images": images, "parameters": wish.echo, "info": info(&record, &wish.echo).to_string()});
    reply::json(http, StatusCode::OK, &answer, pictures, After::forget(placed.key)).await
}

/// What the webui tells of a picture, as far as it is known here.
fn info(record: &JobRecord, asked: &Map<String, Value>) -> Value {
    let job = &record.job;
    let count = job.outputs.len().max(1) as u64;
    let seed = job.params.seed.unwrap_or(0);
    let seeds: Vec<_> = (0..count).map(|index| seed.wrapping_add(index)).collect();
    let prompt = job.params.prompt.as_deref().unwrap_or_default();
    let negative = job.params.negative_prompt.as_deref().unwrap_or_default();
    let (width, height) = job.outputs.first().map_or((0, 0), |output| (output.width, output.height));
    let text = infotext(job, asked, width, height);
    json!({
        "prompt": prompt,
        "all_prompts": vec![prompt; job.outputs.len()],
        "negative_prompt": negative,
        "all_negative_prompts": vec![negative; job.outputs.len()],
        "seed": seed,
        "all_seeds": seeds,
        "subseed": 0,
        "all_subseeds": vec![0; job.outputs.len()],
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": asked.get("sampler_name").cloned().unwrap_or(Value::Null),
        "cfg_scale": job.params.guidance_scale,
        "steps": job.params.steps,
        "batch_size": job.outputs.len(),
        "denoising_strength": job.params.strength,
        "sd_model_name": job.model,
        "sd_model_hash": null,
        "index_of_first_image": 0,
        "infotexts": vec![text; job.outputs.len()],
        "styles": [],
        "job_timestamp": job.created_at,
        "clip_skip": 1,
        "is_using_inpainting_conditioning": job.kind == atelier_domain::JobKind::Inpaint,
        "version": concat!("atelier ", env!("CARGO_PKG_VERSION")),
        "job": job.id,
        "interrupted": job.status == JobStatus::Cancelled,
    })
}

fn infotext(job: &Job, asked: &Map<String, Value>, width: u32, height: u32) -> String {
    let mut lines = vec![job.params.prompt.clone().unwrap_or_default()];
    if let Some(negative) = job.params.negative_prompt.as_deref().filter(|text| !text.is_empty()) {
        lines.push(format!("Negative prompt: {negative}"));
    }
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: Option<String>| facts.extend(value.map(|value| format!("{name}: {value}")));
    fact("Steps", job.params.steps.map(|steps| steps.to_string()));
    fact("Sampler", asked.get("sampler_name").and_then(Value::as_str).map(str::to_owned));
    fact("CFG scale", job.params.guidance_scale.map(|scale| scale.to_string()));
    fact("Seed", job.params.seed.map(|seed| seed.to_string()));
    fact("Size", Some(format!("{width}x{height}")));
    fact("Denoising strength", job.params.strength.map(|strength| strength.to_string()));
    fact("Model", job.model.clone());
    fact("Version", Some(concat!("atelier ", env!("CARGO_PKG_VERSION")).into()));
    lines.push(facts.join(", "));
    lines.join("\n")
}
