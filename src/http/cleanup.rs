//! Cleanup on demand.

use std::sync::Arc;

use atelier_domain::{ErrorCode, JobId};
use axum::{Json, body::Body, extract::State, http::HeaderMap};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Http, intake,
    problem::{Problem, ProblemBody},
};
use crate::maintenance::cleanup::{self, CleanupError, CleanupReport};

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CleanupRequest {
    /// Only tell what would be removed.
    dry_run: bool,
}

/// What was removed, or would be.
#[derive(Serialize, ToSchema)]
pub(crate) struct CleanupAnswer {
    dry_run: bool,
    jobs: u64,
    files: u64,
    bytes: u64,
    /// At most 1,000 of them.
    items: Vec<CleanupItem>,
    /// What could not be removed, and why; tried again next time.
    problems: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct CleanupItem {
    #[schema(value_type = String)]
    job: JobId,
    paths: Vec<String>,
    bytes: u64,
    why: String,
}

impl From<CleanupReport> for CleanupAnswer {
    fn from(report: CleanupReport) -> Self {
        let items = report.items.into_iter().map(|item| CleanupItem {
            job: item.job,
            paths: item.paths,
            bytes: item.bytes,
            why: item.why,
        });
        Self {
            dry_run: report.dry_run,
            jobs: report.jobs,
            files: report.files,
            bytes: report.bytes,
            items: items.collect(),
            problems: report.problems,
        }
    }
}

/// Clean up
///
/// Removes what the configured retention no longer keeps, now. With `dry_run` nothing is removed.
#[utoipa::path(
    post,
    path = "/api/v1/cleanup",
    operation_id = "clean_up",
    tag = "queue",
    request_body = Option<CleanupRequest>,
    responses(
        (status = 200, description = "What was removed, or would be", body = CleanupAnswer),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn run(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CleanupAnswer>, Problem> {
    let request: CleanupRequest = match intake::receive_json(&headers, body, http.settings.body).await? {
        None => CleanupRequest::default(),
        Some(value) => {
            serde_json::from_value(value).map_err(|error| Problem::new(ErrorCode::InvalidRequest, error.to_string()))?
        }
    };
    let app = http.app.clone();
    // Files and rows go together, also when the client has gone.
    let report = tokio::spawn(async move { cleanup::run(&app.store, &app.config(), request.dry_run).await }).await;
    let report = report.map_err(|_| Problem::new(ErrorCode::Internal, "cleanup did not end"))?;
    report.map(|report| Json(report.into())).map_err(|error| match error {
        CleanupError::Busy => Problem::new(ErrorCode::Conflict, error.to_string()),
        CleanupError::Lock { error, .. } => Problem::io("locking the data folder", &error),
        CleanupError::Store(error) => error.into(),
    })
}
