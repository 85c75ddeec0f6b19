//! `/v1/predictions`.

use std::{sync::Arc, time::Duration};

use atelier_domain::{ErrorCode, JobId};
use axum::{
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{
    super::{
        super::{
            Http,
            extract::{JobPath, QueryOf},
            prefer::Prefer,
            problem::Problem,
        },
        Problems,
        door::{self, Visitor},
        models::no_such_model,
        reply::{self, After, Pictures},
    },
    shape, wish,
};
use crate::{
    queue::QueueError,
    store::{JobFilter, JobRecord},
};

/// `Prefer: wait` without a number: what Replicate's packages read for, less the way back.
const WAIT: Duration = Duration::from_secs(59);
const PAGE: u32 = 100;

/// A prediction to be made.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct NewPrediction {
    /// A model's id or `latest_version.id`; `atelier/KIND` for whatever does that kind.
    version: Option<String>,
    /// `prompt`, `negative_prompt`, `seed`, `image`, `mask`, `width`, `height`, `num_outputs`, `num_inference_steps`,
    /// `guidance_scale`, `prompt_strength`, `scale`, `output_format`, `output_quality`; pictures as data URIs, base64
    /// or addresses of `/v1/files`.
    #[schema(value_type = Value)]
    input: Value,
    /// Is sent the prediction.
    webhook: Option<String>,
    /// Some of `start`, `output`, `logs` and `completed`; the last three where it is not given. Outputs come at the end
    /// here, and `logs` is never told of alone.
    webhook_events_filter: Option<Vec<String>>,
}

/// A job, in Replicate's words.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct Prediction {
    /// The job's.
    id: String,
    model: String,
    version: String,
    /// `starting`, `processing`, `succeeded`, `failed` or `canceled`.
    status: String,
    /// The job's parameters.
    #[schema(value_type = Value)]
    input: Value,
    /// A list of data URIs (over `https`: of addresses), or a text; null until it has succeeded.
    #[schema(value_type = Value, required)]
    output: Option<Value>,
    #[schema(required)]
    error: Option<String>,
    /// How far it is: ` 50%|#####     | 5/10`.
    logs: String,
    #[schema(value_type = Value)]
    metrics: Value,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime, required)]
    started_at: Option<String>,
    #[schema(format = DateTime, required)]
    completed_at: Option<String>,
    data_removed: bool,
    source: String,
    /// `get`, `cancel` and `web`.
    #[schema(value_type = Value)]
    urls: Value,
}

/// A page of predictions.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct PredictionPage {
    results: Vec<Prediction>,
    #[schema(required)]
    next: Option<String>,
    #[schema(required)]
    previous: Option<String>,
}

/// Make a prediction (Replicate)
#[utoipa::path(
    post,
    path = "/v1/predictions",
    operation_id = "replicate_create_prediction",
    tag = "replicate",
    params(
        ("Prefer" = Option<String>, Header, description = "`wait`, or `wait=SECONDS`"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters: the same request with the same key is the same job")
    ),
    request_body(content((NewPrediction = "application/json"))),
    responses((status = 201, description = "The prediction; `starting` where it has not ended in time", body = Prediction), Problems)
)]
pub(crate) async fn create(State(http): State<Arc<Http>>, visitor: Visitor, body: Body) -> Result<Response, Problem> {
    make(&http, &visitor, body, None).await
}

/// Make a prediction with a model (Replicate)
#[utoipa::path(
    post,
    path = "/v1/models/{owner}/{name}/predictions",
    operation_id = "replicate_create_model_prediction",
    tag = "replicate",
    params(
        ("owner" = String, Path, description = "`atelier` for models whose id has no slash"),
        ("name" = String, Path, description = "The model's name, or a kind of job"),
        ("Prefer" = Option<String>, Header, description = "`wait`, or `wait=SECONDS`")
    ),
    request_body(content((NewPrediction = "application/json"))),
    responses((status = 201, description = "The prediction; `starting` where it has not ended in time", body = Prediction), Problems)
)]
pub(crate) async fn create_with_model(
    State(http): State<Arc<Http>>,
    path: Result<Path<(String, String)>, PathRejection>,
    visitor: Visitor,
    body: Body,
) -> Result<Response, Problem> {
    let Path((owner, name)) = path.map_err(|_| no_such_model("?"))?;
    make(&http, &visitor, body, Some(format!("{owner}/{name}"))).await
}

fn wait(headers: &HeaderMap) -> Option<Duration> {
    let bare = || {
        let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case("wait"))
    };
    Prefer::of(headers).wait.or_else(|| bare().then_some(WAIT))
}

async fn make(http: &Arc<Http>, visitor: &Visitor, body: Body, model: Option<String>) -> Result<Response, Problem> {
    let key = visitor.key_of_asking()?;
    let mut arrival = door::receive(http, visitor, body).await?;
    let order = wish::read(http, visitor, &mut arrival.fields, model).await?;
    let placed = arrival.place(http, order, key).await?;
    let id = placed.job.id;
    if let Some(wait) = wait(&visitor.headers) {
        tokio::select! {
            ended = http.app.queue.wait_ended(id, wait) => drop(ended?),
            () = http.app.shutdown.cancelled() => {}
        }
    }
    let mut record = record(http, id).await?;
    if !record.job.status.is_ended() {
        // What the packages take for "ask again later"; anything else that is not the end they take for the end.
        record.job.status = atelier_domain::JobStatus::Queued;
    }
    tell(http, visitor, &record, StatusCode::CREATED).await
}

async fn record(http: &Http, id: JobId) -> Result<JobRecord, Problem> {
    let mut record =
        http.app.store.record(id).await?.ok_or_else(|| Problem::not_found(format_args!("prediction {id}")))?;
    record.job = http.live(record.job);
    Ok(record)
}

async fn tell(
    http: &Arc<Http>,
    visitor: &Visitor,
    record: &JobRecord,
    status: StatusCode,
) -> Result<Response, Problem> {
    let base_url = visitor.base_url();
    let mut pictures = Pictures::new();
    let value = if base_url.starts_with("https:") {
        shape::by_address(http, &record.job, &base_url)
    } else {
        shape::with_data(record, &base_url, &mut pictures)
    };
    reply::json(http, status, &value, pictures, After::Nothing).await
}

/// Show a prediction (Replicate)
#[utoipa::path(
    get,
    path = "/v1/predictions/{id}",
    operation_id = "replicate_show_prediction",
    tag = "replicate",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The prediction as it is now", body = Prediction), Problems)
)]
pub(crate) async fn show(
    State(http): State<Arc<Http>>,
    JobPath(id): JobPath,
    visitor: Visitor,
) -> Result<Response, Problem> {
    let record = record(&http, id).await?;
    tell(&http, &visitor, &record, StatusCode::OK).await
}

/// Call a prediction off (Replicate)
#[utoipa::path(
    post,
    path = "/v1/predictions/{id}/cancel",
    operation_id = "replicate_cancel_prediction",
    tag = "replicate",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The prediction; one that has ended stays as it is", body = Prediction), Problems)
)]
pub(crate) async fn cancel(
    State(http): State<Arc<Http>>,
    JobPath(id): JobPath,
    visitor: Visitor,
) -> Result<Response, Problem> {
    match http.app.queue.cancel(id).await {
        Ok(_) | Err(QueueError::Conflict { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let record = record(&http, id).await?;
    tell(&http, &visitor, &record, StatusCode::OK).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// From the page before.
    cursor: Option<String>,
}

/// List predictions (Replicate)
#[utoipa::path(
    get,
    path = "/v1/predictions",
    operation_id = "replicate_list_predictions",
    tag = "replicate",
    params(PageQuery),
    responses((status = 200, description = "Newest first", body = PredictionPage), Problems)
)]
pub(crate) async fn list(
    State(http): State<Arc<Http>>,
    QueryOf(query): QueryOf<PageQuery>,
    visitor: Visitor,
) -> Result<axum::Json<Value>, Problem> {
    let wrong = |_| Problem::new(ErrorCode::InvalidRequest, "the cursor is none of this server's");
    let cursor = query.cursor.map(|text| text.parse().map_err(wrong)).transpose()?;
    let page = http.app.store.list(&JobFilter { limit: PAGE, cursor, ..JobFilter::default() }).await?;
    let base_url = visitor.base_url();
    let results: Vec<Value> =
        page.jobs.into_iter().map(|job| shape::by_address(&http, &http.live(job), &base_url)).collect();
    let next = page.next_cursor.map(|cursor| format!("{base_url}/v1/predictions?cursor={cursor}"));
    Ok(axum::Json(json!({"results": results, "next": next, "previous": null})))
}
