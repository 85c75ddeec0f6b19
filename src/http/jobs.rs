//! Jobs that are there already: list, look, call off, try again, remove.

use std::sync::Arc;

use atelier_domain::{ErrorCode, Job, JobKind, JobStatus, SourceType, request::nearest};
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    Http,
    extract::{JobPath, QueryOf},
    problem::{Problem, ProblemBody},
    schema,
};
use crate::store::JobFilter;

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 200;

impl Http {
    /// The job with the progress that the database does not know of yet.
    pub(crate) fn live(&self, mut job: Job) -> Job {
        if job.status == JobStatus::Running
            && let Some(progress) = self.app.queue.live_progress(job.id)
        {
            job.progress = progress;
        }
        job
    }

    async fn job(&self, id: atelier_domain::JobId) -> Result<Job, Problem> {
        let job = self.app.store.job(id).await?.ok_or_else(|| Problem::not_found(format_args!("job {id}")))?;
        Ok(self.live(job))
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Only jobs in this status.
    #[param(value_type = Option<schema::JobStatus>, inline)]
    status: Option<String>,
    /// Only jobs of this kind.
    #[param(value_type = Option<schema::JobKind>, inline)]
    kind: Option<String>,
    /// Only jobs that came this way.
    #[param(value_type = Option<schema::SourceType>, inline)]
    source: Option<String>,
    /// Jobs of one page; 50 where it is not given.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    limit: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

impl ListQuery {
    fn filter(&self) -> Result<JobFilter, Problem> {
        let limit = match given(self.limit.as_ref()) {
            None => DEFAULT_LIMIT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=MAX_LIMIT).contains(limit))
                .ok_or_else(|| invalid(format!("limit {text:?} is not a number from 1 to {MAX_LIMIT}")))?,
        };
        let cursor = given(self.cursor.as_ref())
            .map(|text| text.parse().map_err(|_| invalid(format!("cursor {text:?} is none of this server's"))))
            .transpose()?;
        Ok(JobFilter {
            status: word(
                "status",
                given(self.status.as_ref()),
                JobStatus::parse,
                &JobStatus::ALL.map(JobStatus::as_str),
            )?,
            kind: word("kind", given(self.kind.as_ref()), JobKind::parse, &JobKind::ALL.map(JobKind::as_str))?,
            source: word("source", given(self.source.as_ref()), SourceType::parse, &["http", "inbox"])?,
            limit,
            cursor,
        })
    }
}

/// `?status=` asks for nothing.
fn given(value: Option<&String>) -> Option<&str> {
    value.map(String::as_str).filter(|text| !text.is_empty())
}

fn invalid(detail: String) -> Problem {
    Problem::new(ErrorCode::InvalidRequest, detail)
}

fn word<T>(name: &str, text: Option<&str>, parse: fn(&str) -> Option<T>, known: &[&str]) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    parse(text).map(Some).ok_or_else(|| {
        let shown: String = text.chars().take(64).collect();
        let hint = match nearest(text, known.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("one of {}", known.join(", ")),
        };
        invalid(format!("{name} {shown:?} is not known")).with_hint(hint)
    })
}

/// A page of jobs, newest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct JobList {
    #[schema(value_type = Vec<schema::Job>)]
    jobs: Vec<Job>,
    /// Asks for the next page; null on the last one.
    #[schema(value_type = Option<String>)]
    next_cursor: Option<atelier_domain::JobId>,
}

/// List jobs
#[utoipa::path(
    get,
    path = "/api/v1/jobs",
    operation_id = "list_jobs",
    tag = "jobs",
    params(ListQuery),
    responses(
        (status = 200, description = "Newest first", body = JobList),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list(
    State(http): State<Arc<Http>>,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<JobList>, Problem> {
    let page = http.app.store.list(&query.filter()?).await?;
    let jobs = page.jobs.into_iter().map(|job| http.live(job)).collect();
    Ok(Json(JobList { jobs, next_cursor: page.next_cursor }))
}

/// Show a job
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}",
    operation_id = "show_job",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "The job as it is now", body = schema::Job),
        (status = 404, description = "No such job", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn show(State(http): State<Arc<Http>>, JobPath(id): JobPath) -> Result<Json<Job>, Problem> {
    Ok(Json(http.job(id).await?))
}

/// Remove a job
///
/// Calls it off where it is live; its row and its files go.
#[utoipa::path(
    delete,
    path = "/api/v1/jobs/{id}",
    operation_id = "delete_job",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "No such job", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn delete(State(http): State<Arc<Http>>, JobPath(id): JobPath) -> Result<StatusCode, Problem> {
    let queue = http.app.queue.clone();
    // A running job is waited for; half a removal must not stay when the client has gone.
    let removed = tokio::spawn(async move { queue.delete(id).await }).await;
    removed.map_err(|_| Problem::new(ErrorCode::Internal, "the job could not be removed"))??;
    Ok(StatusCode::NO_CONTENT)
}

/// Call a job off
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/cancel",
    operation_id = "cancel_job",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 202, description = "It is cancelled, or will be at its next step", body = schema::Job),
        (status = 404, description = "No such job", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 409, description = "It has ended already", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn cancel(
    State(http): State<Arc<Http>>,
    JobPath(id): JobPath,
) -> Result<(StatusCode, Json<Job>), Problem> {
    let job = http.app.queue.cancel(id).await?;
    Ok((StatusCode::ACCEPTED, Json(http.live(job))))
}

/// Try a job again
///
/// From the beginning, with the same inputs and parameters.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/retry",
    operation_id = "retry_job",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 202, description = "It is queued again", body = schema::Job),
        (status = 404, description = "No such job", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 409, description = "It has neither failed nor been cancelled", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn retry(
    State(http): State<Arc<Http>>,
    JobPath(id): JobPath,
) -> Result<(StatusCode, Json<Job>), Problem> {
    let job = http.app.queue.retry(id).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// What is needed to make a job's outputs again
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/manifest",
    operation_id = "show_manifest",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "Parameters, seed, weights' sha256, versions, device", body = Object),
        (status = 404, description = "No such job, or it has not succeeded", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn manifest(State(http): State<Arc<Http>>, JobPath(id): JobPath) -> Result<Json<Value>, Problem> {
    let record = http.app.store.record(id).await?.ok_or_else(|| Problem::not_found(format_args!("job {id}")))?;
    let status = record.job.status;
    let missing = || {
        Problem::not_found(format_args!("the manifest of job {id}"))
            .with_hint(format!("a job has one when it has succeeded; this one is {status}"))
    };
    Ok(Json(record.manifest.ok_or_else(missing)?))
}
