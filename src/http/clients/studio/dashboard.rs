//! What the old dashboard shows: status, results, metrics, logs and its own settings.

use std::{collections::BTreeMap, sync::Arc};

use atelier_domain::{ErrorCode, JobStatus, Timestamp};
use axum::{Json, body::Body, extract::State, http::HeaderMap};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{
    super::{
        super::{Http, extract::QueryOf, intake, models::WorkerInfo, problem::Problem},
        Problems,
        sdapi::info::machine_memory,
    },
    logs, settings,
    shape::{StudioJob, seconds},
};
use crate::store::{JobFilter, MetaKey};

/// Jobs that metrics are made of.
const SAMPLE: u32 = 200;
/// Bytes of saved settings.
const MAX_SETTINGS: usize = 64 << 10;

#[derive(Serialize, ToSchema)]
pub(crate) struct DashboardStatus {
    /// `ok`, or why no work is done.
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    /// Jobs per status.
    #[schema(value_type = BTreeMap<String, u64>)]
    jobs: BTreeMap<&'static str, u64>,
    running: Option<StudioJob>,
    paused: bool,
    worker: WorkerInfo,
    /// Ids of loaded models.
    loaded: Vec<String>,
    /// Bytes of the machine's memory.
    memory_total: u64,
    memory_available: u64,
}

/// Show the dashboard's status (studio)
#[utoipa::path(
    get,
    path = "/api/dashboard/status",
    operation_id = "dashboard_status",
    tag = "studio",
    responses((status = 200, description = "How it is now", body = DashboardStatus), Problems)
)]
pub(crate) async fn status(State(http): State<Arc<Http>>) -> Result<Json<DashboardStatus>, Problem> {
    let counts = http.app.store.counts().await?;
    let running = match http.app.queue.running() {
        Some(id) => http.app.store.job(id).await?.map(|job| StudioJob::of(&http.live(job))),
        None => None,
    };
    let engine = http.app.engine.status();
    let (memory_total, memory_available) = machine_memory();
    Ok(Json(DashboardStatus {
        status: http.why_not_ready().await.map_or("ok", |problem| problem.code()),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: http.app.started.elapsed().as_secs(),
        jobs: counts.into_iter().map(|(status, n)| (status.as_str(), n)).collect(),
        running,
        paused: http.app.queue.gate().paused,
        loaded: engine.loaded.iter().map(|model| model.id.clone()).collect(),
        worker: WorkerInfo::of(engine),
        memory_total,
        memory_available,
    }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResultsQuery {
    /// 50 where it is not given.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DashboardResults {
    /// Newest first.
    results: Vec<DashboardResult>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DashboardResult {
    #[serde(flatten)]
    job: StudioJob,
    #[schema(value_type = super::super::super::schema::JobKind)]
    kind: atelier_domain::JobKind,
    model: Option<String>,
    seed: Option<u64>,
    /// Paths below this server.
    urls: Vec<String>,
    generation_time: Option<f64>,
}

/// Show the newest results (studio)
#[utoipa::path(
    get,
    path = "/api/dashboard/results",
    operation_id = "dashboard_results",
    tag = "studio",
    params(ResultsQuery),
    responses((status = 200, description = "Succeeded jobs, wherever they came from", body = DashboardResults), Problems)
)]
pub(crate) async fn results(
    State(http): State<Arc<Http>>,
    QueryOf(query): QueryOf<ResultsQuery>,
) -> Result<Json<DashboardResults>, Problem> {
    let limit = query.limit.unwrap_or(50).clamp(1, 200);
    let filter = JobFilter { status: Some(JobStatus::Succeeded), limit, ..JobFilter::default() };
    let jobs = http.app.store.list(&filter).await?.jobs;
    let results = jobs.iter().map(|job| DashboardResult {
        job: StudioJob::of(job),
        kind: job.kind,
        model: job.model.clone(),
        seed: job.params.seed,
        urls: job.outputs.iter().map(|output| output.url.clone()).collect(),
        generation_time: seconds(job),
    });
    Ok(Json(DashboardResults { results: results.collect() }))
}

#[derive(Default, Serialize, ToSchema)]
pub(crate) struct DashboardMetrics {
    total: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    /// Succeeded among those that succeeded or failed; null before the first.
    success_rate: Option<f64>,
    /// Of the last 200 that succeeded, per model.
    models: BTreeMap<String, DashboardModelMetrics>,
    /// The same per kind.
    kinds: BTreeMap<String, DashboardModelMetrics>,
    /// Of those, how many ended in the last 24 hours.
    last_24h: u64,
}

#[derive(Default, Serialize, ToSchema)]
pub(crate) struct DashboardModelMetrics {
    jobs: u64,
    mean_seconds: f64,
    max_seconds: f64,
}

impl DashboardModelMetrics {
    #[expect(clippy::cast_precision_loss, reason = "at most 200")]
    fn add(&mut self, seconds: f64) {
        self.mean_seconds = (self.mean_seconds * self.jobs as f64 + seconds) / (self.jobs + 1) as f64;
        self.jobs += 1;
        self.max_seconds = self.max_seconds.max(seconds);
    }
}

/// Show metrics (studio)
#[utoipa::path(
    get,
    path = "/api/dashboard/metrics",
    operation_id = "dashboard_metrics",
    tag = "studio",
    responses((status = 200, description = "Counts and times", body = DashboardMetrics), Problems)
)]
#[expect(clippy::cast_precision_loss, reason = "a share")]
pub(crate) async fn metrics(State(http): State<Arc<Http>>) -> Result<Json<DashboardMetrics>, Problem> {
    let counts = http.app.store.counts().await?;
    let of = |status| counts.get(&status).copied().unwrap_or(0);
    let (succeeded, failed) = (of(JobStatus::Succeeded), of(JobStatus::Failed));
    let mut answer = DashboardMetrics {
        total: counts.values().sum(),
        succeeded,
        failed,
        cancelled: of(JobStatus::Cancelled),
        success_rate: (succeeded + failed > 0).then(|| succeeded as f64 / (succeeded + failed) as f64),
        ..DashboardMetrics::default()
    };
    let filter = JobFilter { status: Some(JobStatus::Succeeded), limit: SAMPLE, ..JobFilter::default() };
    let yesterday = Timestamp::now().plus_millis(-86_400_000);
    for job in http.app.store.list(&filter).await?.jobs {
        let Some(seconds) = seconds(&job) else { continue };
        answer.last_24h += u64::from(job.finished_at.is_some_and(|finished| finished >= yesterday));
        answer.kinds.entry(job.kind.as_str().to_owned()).or_default().add(seconds);
        answer.models.entry(job.model.unwrap_or_default()).or_default().add(seconds);
    }
    Ok(Json(answer))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogsQuery {
    /// 200 where it is not given.
    #[param(minimum = 1, maximum = 2000)]
    lines: Option<usize>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DashboardLogs {
    /// Oldest first.
    logs: Vec<String>,
}

async fn on_logs<T: Send + 'static>(
    http: &Http,
    doing: &'static str,
    work: impl FnOnce(&std::path::Path) -> std::io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let folder = http.app.config().log.dir.clone();
    let done = tokio::task::spawn_blocking(move || work(&folder)).await;
    done.map_err(|_| Problem::new(ErrorCode::Internal, doing))?.map_err(|error| Problem::io(doing, &error))
}

/// Show the log's last lines (studio)
#[utoipa::path(
    get,
    path = "/api/dashboard/logs",
    operation_id = "dashboard_logs",
    tag = "studio",
    params(LogsQuery),
    responses((status = 200, description = "Of today's file; none where log.files is off", body = DashboardLogs), Problems)
)]
pub(crate) async fn logs(
    State(http): State<Arc<Http>>,
    QueryOf(query): QueryOf<LogsQuery>,
) -> Result<Json<DashboardLogs>, Problem> {
    let lines = query.lines.unwrap_or(200).clamp(1, 2000);
    let logs = on_logs(&http, "reading the log", move |folder| logs::tail(folder, lines)).await?;
    Ok(Json(DashboardLogs { logs }))
}

/// Clear the log (studio)
///
/// Empties today's file and removes the older ones.
#[utoipa::path(
    delete,
    path = "/api/dashboard/logs",
    operation_id = "dashboard_clear_logs",
    tag = "studio",
    responses((status = 200, description = "How many bytes went", body = Object), Problems)
)]
pub(crate) async fn clear_logs(State(http): State<Arc<Http>>) -> Result<Json<Value>, Problem> {
    let bytes = on_logs(&http, "clearing the log", logs::clear).await?;
    tracing::info!(bytes, "the log was cleared over HTTP");
    Ok(Json(json!({"success": true, "bytes": bytes})))
}

/// Clear the log, for clients that only post (studio)
#[utoipa::path(
    post,
    path = "/api/dashboard/logs/clear",
    operation_id = "dashboard_post_clear_logs",
    tag = "studio",
    responses((status = 200, description = "How many bytes went", body = Object), Problems)
)]
pub(crate) async fn post_clear_logs(State(http): State<Arc<Http>>) -> Result<Json<Value>, Problem> {
    clear_logs(State(http)).await
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DashboardSettings {
    /// What was saved.
    #[schema(value_type = Value)]
    settings: Map<String, Value>,
    /// What counts: `defaults` from the settings, the rest from the daemon's configuration, and changed there.
    #[schema(value_type = Value)]
    effective: Value,
}

async fn settings_of(http: &Http) -> Result<DashboardSettings, Problem> {
    let saved = settings::saved(http).await?;
    let config = http.app.config();
    Ok(DashboardSettings {
        effective: json!({
            "defaults": settings::defaults(&saved).unwrap_or_default(),
            "keep_alive_seconds": config.worker.keep_alive.as_secs(),
            "device": config.worker.device,
            "max_queued": config.queue.max_queued,
            "max_upload_bytes": config.limits.upload,
            "max_prompt_characters": config.limits.prompt_chars,
            "output_format": config.outbox.format,
        }),
        settings: saved,
    })
}

/// Show settings (studio)
#[utoipa::path(
    get,
    path = "/api/dashboard/settings",
    operation_id = "dashboard_settings",
    tag = "studio",
    responses((status = 200, description = "What was saved, and what counts", body = DashboardSettings), Problems)
)]
pub(crate) async fn settings(State(http): State<Arc<Http>>) -> Result<Json<DashboardSettings>, Problem> {
    Ok(Json(settings_of(&http).await?))
}

/// Save settings (studio)
///
/// The dashboard's own, as an object of at most 64 KiB. `num_inference_steps`, `guidance_scale`, `width`, `height`,
/// `negative_prompt`, `strength`, `num_images` and `output_format`, also with `default_` before them, are what
/// `/api/generate/…`, its sisters that make pictures, and `/api/jobs` take where a request says nothing; all others change
/// nothing.
#[utoipa::path(
    post,
    path = "/api/dashboard/settings",
    operation_id = "dashboard_save_settings",
    tag = "studio",
    request_body(content((Object = "application/json"))),
    responses((status = 200, description = "What is saved now, and what counts", body = DashboardSettings), Problems)
)]
pub(crate) async fn save_settings(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DashboardSettings>, Problem> {
    let value = intake::receive_json(&headers, body, http.settings.body).await?.unwrap_or_default();
    let Value::Object(mut given) = value else {
        return Err(Problem::new(ErrorCode::InvalidRequest, "settings are an object of names and values"));
    };
    // Some clients send back what they were given.
    if let Some(Value::Object(inner)) = given.remove("settings") {
        given = inner;
    }
    settings::defaults(&given)?;
    let text = Value::Object(given).to_string();
    if text.len() > MAX_SETTINGS {
        return Err(Problem::new(ErrorCode::InvalidRequest, format!("settings of more than {MAX_SETTINGS} bytes")));
    }
    http.app.store.set_meta(MetaKey::DashboardSettings, text).await?;
    Ok(Json(settings_of(&http).await?))
}
