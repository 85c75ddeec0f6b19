//! `progress`, `interrupt` and `skip`: of one task by its id, or of whatever runs.

use std::sync::Arc;

use atelier_domain::{Job, JobId, JobStatus, SourceType, Timestamp};
use axum::{Json, body::Body, extract::State, http::HeaderMap};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::super::{
    super::{Http, extract::QueryOf, intake, problem::Problem},
    SdapiErrors,
    preview::Previews,
};
use crate::{queue::QueueError, store::JobFilter};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ProgressQuery {
    /// A request's `force_task_id`, or a job's id; left out: whatever runs.
    #[serde(alias = "task_id")]
    id_task: Option<String>,
    /// `true`: without `current_image`.
    skip_current_image: Option<String>,
}

/// How far it is.
#[derive(Serialize, ToSchema)]
pub(crate) struct SdapiProgress {
    /// 0 to 1; 0 where nothing runs.
    progress: f64,
    /// Seconds.
    eta_relative: f64,
    #[schema(value_type = Value)]
    state: Value,
    /// A preview in base64, where the model makes some.
    current_image: Option<String>,
    textinfo: Option<String>,
    /// The job's name or id.
    current_task: Option<String>,
    /// Of the task that was asked for.
    queued: bool,
    completed: bool,
}

/// The task of this name: what runs first, then what is newest.
async fn task(http: &Http, name: &str) -> Result<Option<Job>, Problem> {
    let store = &http.app.store;
    if let Ok(id) = name.parse::<JobId>()
        && let Some(job) = store.job(id).await?
    {
        return Ok(Some(http.live(job)));
    }
    let filter = JobFilter { source: Some(SourceType::Http), limit: 200, ..JobFilter::default() };
    let jobs = store.list(&filter).await?.jobs;
    Ok(jobs.into_iter().find(|job| job.source.name.as_deref() == Some(name)).map(|job| http.live(job)))
}

async fn running(http: &Http) -> Result<Option<Job>, Problem> {
    let Some(id) = http.app.queue.running() else { return Ok(None) };
    Ok(http.app.store.job(id).await?.map(|job| http.live(job)))
}

/// How far it is (A1111)
#[utoipa::path(
    get,
    path = "/sdapi/v1/progress",
    operation_id = "sdapi_progress",
    tag = "sdapi",
    params(ProgressQuery),
    responses((status = 200, description = "Of the task, or of what runs", body = SdapiProgress), SdapiErrors)
)]
pub(crate) async fn show(
    State(http): State<Arc<Http>>,
    QueryOf(query): QueryOf<ProgressQuery>,
) -> Result<Json<SdapiProgress>, Problem> {
    let job = match query.id_task.filter(|name| !name.is_empty()) {
        Some(name) => {
            let missing =
                || Problem::not_found(format_args!("the task {:?}", name.chars().take(64).collect::<String>()));
            Some(task(&http, &name).await?.ok_or_else(missing)?)
        }
        None => running(&http).await?,
    };
    let skip = query.skip_current_image.is_some_and(|skip| skip.eq_ignore_ascii_case("true") || skip == "1");
    let current_image = match job.as_ref().filter(|job| job.status == JobStatus::Running && !skip) {
        Some(job) => Previews::of(&http, job.id).next().await.map(|preview| STANDARD.encode(preview)),
        None => None,
    };
    let counts = http.app.store.counts().await?;
    let of = |status| counts.get(&status).copied().unwrap_or(0);
    let live = of(JobStatus::Queued) + of(JobStatus::Running) + of(JobStatus::Retrying);
    let is = |statuses: &[JobStatus]| job.as_ref().is_some_and(|job| statuses.contains(&job.status));
    let progress = job.as_ref().filter(|job| job.status == JobStatus::Running).map(|job| &job.progress);
    Ok(Json(SdapiProgress {
        progress: progress.map_or(0.0, |progress| progress.fraction.clamp(0.0, 1.0)),
        eta_relative: job.as_ref().map_or(0.0, eta),
        state: json!({
            "skipped": false,
            "interrupted": is(&[JobStatus::Cancelled]),
            "stopping_generation": false,
            "job": job.as_ref().map(name).unwrap_or_default(),
            "job_count": live,
            "job_timestamp": job.as_ref().map_or_else(|| "0".into(), |job| job.created_at.to_string()),
            "job_no": 0,
            "sampling_step": progress.map_or(0, |progress| progress.step),
            "sampling_steps": progress.map_or(0, |progress| progress.steps),
        }),
        current_image,
        textinfo: progress.map(|progress| progress.phase.clone()),
        current_task: job.as_ref().map(name),
        queued: is(&[JobStatus::Queued, JobStatus::Retrying]),
        completed: is(&[JobStatus::Succeeded, JobStatus::Failed, JobStatus::Cancelled]),
    }))
}

fn name(job: &Job) -> String {
    job.source.name.clone().unwrap_or_else(|| job.id.to_string())
}

/// Seconds, by the time that the part behind it has taken.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn eta(job: &Job) -> f64 {
    let fraction = job.progress.fraction.clamp(0.0, 1.0);
    match job.started_at {
        Some(started) if job.status == JobStatus::Running && fraction > 0.0 => {
            let elapsed = (Timestamp::now().0 - started.0).max(0) as f64 / 1000.0;
            elapsed / fraction * (1.0 - fraction)
        }
        Some(_) | None => 0.0,
    }
}

async fn stop(http: &Http, headers: &HeaderMap, body: Body) -> Result<Json<Value>, Problem> {
    let asked = intake::receive_json(headers, body, http.settings.body).await?.unwrap_or_default();
    let named = ["id_task", "task_id", "force_task_id"].iter().find_map(|key| asked.get(key)?.as_str());
    let job = match named {
        Some(name) => task(http, name).await?,
        // A dropped file is not what somebody at the webui wants to stop.
        None => running(http).await?.filter(|job| job.source.r#type == SourceType::Http),
    };
    if let Some(job) = job {
        match http.app.queue.cancel(job.id).await {
            Ok(_) | Err(QueueError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(json!({})))
}

/// Stop what runs (A1111)
///
/// With `{"id_task"}`, only that task; else the running job, unless it is a dropped file's. Its client is answered
/// without a picture.
#[utoipa::path(
    post,
    path = "/sdapi/v1/interrupt",
    operation_id = "sdapi_interrupt",
    tag = "sdapi",
    request_body(content((Object = "application/json"))),
    responses((status = 200, description = "It will stop at its next step", body = Object), SdapiErrors)
)]
pub(crate) async fn interrupt(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    stop(&http, &headers, body).await
}

/// Skip what runs (A1111)
///
/// The same as `interrupt`: all pictures of a request are one job.
#[utoipa::path(
    post,
    path = "/sdapi/v1/skip",
    operation_id = "sdapi_skip",
    tag = "sdapi",
    request_body(content((Object = "application/json"))),
    responses((status = 200, description = "It will stop at its next step", body = Object), SdapiErrors)
)]
pub(crate) async fn skip(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    stop(&http, &headers, body).await
}
