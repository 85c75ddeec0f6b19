//! The picture of a running job as it is now.

use std::sync::Arc;

use atelier_domain::JobId;
use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::header,
    response::{IntoResponse, Response},
};

use super::{
    Http,
    problem::{Problem, ProblemBody},
};

/// Look at a running job
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/preview",
    operation_id = "job_preview",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "A small picture of how far it is; another one every few steps", content((Vec<u8> = "image/jpeg"))),
        (status = 404, description = "No such job, or it has no preview now", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn show(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(id) = path.map_err(|_| Problem::not_found("this job"))?;
    let id: JobId = id.parse().map_err(|_| Problem::not_found("this job"))?;
    let none = || {
        Problem::not_found(format_args!("a preview of job {id}"))
            .with_hint("there is one while a job of a diffusion model runs, from its first few steps on")
    };
    let file = http.app.queue.preview(id).ok_or_else(none)?;
    // It goes away with the job's end, which may be now.
    let bytes = tokio::fs::read(file).await.map_err(|_| none())?;
    Ok(([(header::CONTENT_TYPE, "image/jpeg"), (header::CACHE_CONTROL, "no-store")], bytes).into_response())
}
