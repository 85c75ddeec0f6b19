//! The editor: jobs that are submitted, looked at, downloaded and removed.

use std::{io, sync::Arc};

use atelier_domain::{ErrorCode, JobId, JobKind, JobStatus, SourceType};
use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{
    super::{
        super::{
            Http,
            extract::{JobPath, QueryOf},
            media, outputs,
            problem::Problem,
        },
        Problems,
        door::{self, Order, Visitor},
        mask::{self, Drawn},
        models::no_such_model,
        pick,
        reply::{self, After},
    },
    service, settings,
    shape::StudioJob,
};
use crate::store::JobFilter;

/// A picture and what shall become of it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct EditorForm {
    prompt: String,
    negative_prompt: Option<String>,
    /// Repeatable.
    #[schema(value_type = Option<Vec<String>>, format = Binary)]
    image: Option<Vec<Vec<u8>>>,
    #[schema(value_type = Option<String>, format = Binary)]
    mask: Option<Vec<u8>>,
    seed: Option<i64>,
    num_inference_steps: Option<u32>,
    guidance_scale: Option<f64>,
    strength: Option<f64>,
    model: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct EditorJobs {
    /// Newest first, at most 100.
    jobs: Vec<StudioJob>,
}

/// Submit an edit (studio)
///
/// A form with `image`, or JSON with it as a data URI or base64.
#[utoipa::path(
    post,
    path = "/api/jobs",
    operation_id = "studio_submit",
    tag = "studio",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters: the same request with the same key is the same job")),
    request_body(content((EditorForm = "multipart/form-data"), (EditorForm = "application/json"))),
    responses((status = 202, description = "The job", body = StudioJob), Problems)
)]
pub(crate) async fn submit(
    State(http): State<Arc<Http>>,
    visitor: Visitor,
    body: Body,
) -> Result<(StatusCode, Json<StudioJob>), Problem> {
    let key = visitor.key_of_asking()?;
    let mut arrival = door::receive(&http, &visitor, body).await?;
    let fields = &mut arrival.fields;
    let mut order = Order::default();
    order.images = fields.files_named(&["image", "file", "images", "image[]", "images[]"]);
    if order.images.is_empty() && ["image", "images", "image_base64"].iter().any(|n| fields.values.contains_key(*n)) {
        order.images.push(fields.image().await?);
    }
    let mask = match fields.files_named(&["mask"]).pop() {
        Some(mask) => Some(mask),
        None => match fields.take(&["mask"]) {
            Some((_, Value::String(text))) if !text.is_empty() => Some(fields.picture("mask", &text).await?),
            Some(_) | None => None,
        },
    };
    if let Some(mask) = mask {
        order.mask = Some(mask::ours(&http, mask, Drawn::White).await?);
    }
    let registry = http.app.registry();
    let model = match fields.text(&["model"])? {
        None => None,
        Some(name) => Some(pick::find(&registry, &name).ok_or_else(|| no_such_model(&name))?),
    };
    let kind = match (order.images.is_empty(), order.mask.is_some()) {
        (true, _) => JobKind::Generate,
        (false, true) => JobKind::Inpaint,
        (false, false) => pick::kind(&registry, model, &[JobKind::Edit, JobKind::Generate]),
    };
    order.set("kind", kind.as_str());
    if let Some(model) = model {
        order.set("model", model.id.clone());
    }
    service::params(fields, &mut order)?;
    settings::fill(&http, &mut order).await?;
    let placed = arrival.place(&http, order, key).await?;
    Ok((StatusCode::ACCEPTED, Json(StudioJob::of(&http.live(placed.job)))))
}

/// List jobs (studio)
#[utoipa::path(
    get,
    path = "/api/jobs",
    operation_id = "studio_list_jobs",
    tag = "studio",
    responses((status = 200, description = "Those that came over HTTP", body = EditorJobs), Problems)
)]
pub(crate) async fn list(State(http): State<Arc<Http>>) -> Result<Json<EditorJobs>, Problem> {
    let filter = JobFilter { source: Some(SourceType::Http), limit: 100, ..JobFilter::default() };
    let page = http.app.store.list(&filter).await?;
    Ok(Json(EditorJobs { jobs: page.jobs.into_iter().map(|job| StudioJob::of(&http.live(job))).collect() }))
}

async fn job(http: &Http, id: JobId) -> Result<StudioJob, Problem> {
    let job = http.app.store.job(id).await?.ok_or_else(|| Problem::not_found(format_args!("job {id}")))?;
    Ok(StudioJob::of(&http.live(job)))
}

/// Show a job (studio)
#[utoipa::path(
    get,
    path = "/api/jobs/{id}",
    operation_id = "studio_show_job",
    tag = "studio",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job as it is now", body = StudioJob), Problems)
)]
pub(crate) async fn show(State(http): State<Arc<Http>>, JobPath(id): JobPath) -> Result<Json<StudioJob>, Problem> {
    Ok(Json(job(&http, id).await?))
}

/// Show a job's status (studio)
#[utoipa::path(
    get,
    path = "/api/jobs/{id}/status",
    operation_id = "studio_show_job_status",
    tag = "studio",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job as it is now", body = StudioJob), Problems)
)]
pub(crate) async fn status(State(http): State<Arc<Http>>, JobPath(id): JobPath) -> Result<Json<StudioJob>, Problem> {
    Ok(Json(job(&http, id).await?))
}

/// Call a job off (studio)
#[utoipa::path(
    post,
    path = "/api/jobs/{id}/cancel",
    operation_id = "studio_cancel_job",
    tag = "studio",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "It is called off, or will be at its next step", body = StudioJob), Problems)
)]
pub(crate) async fn cancel(State(http): State<Arc<Http>>, JobPath(id): JobPath) -> Result<Json<StudioJob>, Problem> {
    let job = http.app.queue.cancel(id).await?;
    Ok(Json(StudioJob::of(&http.live(job))))
}

/// Remove a job (studio)
///
/// Calls it off where it is live; its files go.
#[utoipa::path(
    delete,
    path = "/api/jobs/{id}",
    operation_id = "studio_delete_job",
    tag = "studio",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "It is gone", body = Object), Problems)
)]
pub(crate) async fn delete(State(http): State<Arc<Http>>, JobPath(id): JobPath) -> Result<Json<Value>, Problem> {
    let queue = http.app.queue.clone();
    let removed = tokio::spawn(async move { queue.delete(id).await }).await;
    removed.map_err(|_| Problem::new(ErrorCode::Internal, "the job could not be removed"))??;
    Ok(Json(json!({"success": true, "job_id": id})))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct DownloadQuery {
    /// Which of its outputs; the first where it is not given.
    index: Option<usize>,
    /// Whether the job goes once its output was fetched; where it is not given, it goes if it has but one.
    cleanup: Option<bool>,
}

/// Download a job's result (studio)
///
/// Sent to its end, the job is removed with its files; a download that breaks off removes nothing.
#[utoipa::path(
    get,
    path = "/api/jobs/{id}/download",
    operation_id = "studio_download_job",
    tag = "studio",
    params(("id" = String, Path, description = "The job's id"), DownloadQuery),
    responses(
        (status = 200, description = "The bytes", content((String = "image/png"), (String = "image/jpeg"), (String = "image/webp"), (String = "application/octet-stream"))),
        (status = 409, description = "It is not completed", body = super::super::super::problem::ProblemBody<'static>, content_type = "application/problem+json"),
        Problems
    )
)]
pub(crate) async fn download(
    State(http): State<Arc<Http>>,
    JobPath(id): JobPath,
    QueryOf(query): QueryOf<DownloadQuery>,
) -> Result<Response, Problem> {
    let record = http.app.store.record(id).await?.ok_or_else(|| Problem::not_found(format_args!("job {id}")))?;
    if record.job.status != JobStatus::Succeeded {
        return Err(Problem::new(ErrorCode::Conflict, format!("job {id} is {}", record.job.status))
            .with_hint("download it when its status is completed"));
    }
    let index = query.index.unwrap_or(0);
    let count = record.job.outputs.len();
    let missing = || Problem::not_found(format_args!("output {index} of job {id}"));
    let output = record.job.outputs.get(index).ok_or_else(missing)?.clone();
    let mut file = outputs::open_of(&record, index).await?;
    let after = if query.cleanup.unwrap_or(count == 1) { After::Remove(id) } else { After::Nothing };
    let bytes = output.bytes;
    let body = reply::streamed(&http, after, move |_, sender| async move {
        sender.file(&mut file, bytes).await.map_err(|error: io::Error| {
            tracing::debug!(%error, "a download broke off");
            reply::Broken
        })
    });
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_DISPOSITION, media::content_disposition("attachment", &output.name));
    let media_type = HeaderValue::from_str(&output.media_type);
    headers.insert(
        header::CONTENT_TYPE,
        media_type.unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream")),
    );
    Ok(response)
}
