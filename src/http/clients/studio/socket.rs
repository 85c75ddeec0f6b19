//! The editor's WebSocket: one job, as it goes.

use std::sync::Arc;

use atelier_domain::JobStatus;
use axum::{
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::HeaderMap,
    response::Response,
};
use serde::Serialize;

use super::{
    super::{
        super::{Http, extract::JobPath, feed::Feed, problem::Problem, ws},
        Problems,
    },
    shape::{StudioJob, percent, status},
};
use crate::store::{JobMessage, Message};

/// How far a running job is.
#[derive(Serialize)]
struct Moment<'a> {
    r#type: &'static str,
    job_id: String,
    status: &'static str,
    progress: u32,
    message: &'a str,
    current_step: u32,
    total_steps: u32,
}

#[derive(Serialize)]
struct Whole {
    r#type: &'static str,
    #[serde(flatten)]
    job: StudioJob,
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data with text keys")
}

/// `{"type":"status", …}` with the whole job, `{"type":"progress", …}` with its steps, `{"type":"removed"}`.
fn frame(message: &Message) -> String {
    match &message.event {
        JobMessage::Updated(job) => text(&Whole { r#type: "status", job: StudioJob::of(job) }),
        JobMessage::Progress { id, progress } => text(&Moment {
            r#type: "progress",
            job_id: id.to_string(),
            status: status(JobStatus::Running),
            progress: percent(JobStatus::Running, progress.fraction),
            message: &progress.phase,
            current_step: progress.step,
            total_steps: progress.steps,
        }),
        JobMessage::Removed(id) => text(&serde_json::json!({"type": "removed", "job_id": id})),
    }
}

/// Watch a job (studio)
///
/// Texts `{"type":"status"}` with the job and `{"type":"progress"}` with its steps; closed with its end.
#[utoipa::path(
    get,
    path = "/api/jobs/{id}/ws",
    operation_id = "studio_watch_job",
    tag = "studio",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 101, description = "The socket is open"), Problems)
)]
pub(crate) async fn watch(
    State(http): State<Arc<Http>>,
    JobPath(id): JobPath,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = ws::upgrade(&http, &headers, upgrade)?;
    let feed = Feed::open(http.app.clone(), Some(id), None).await?;
    if feed.is_over() {
        return Err(Problem::not_found(format_args!("job {id}")));
    }
    Ok(ws::open(http, upgrade, feed, frame))
}
