//! The probes: is the process alive, and should it be sent work.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Http,
    problem::{Problem, ProblemBody},
    status::HttpCode,
};

#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

/// Is it alive
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "is_alive",
    tag = "operations",
    security(()),
    responses((status = 200, description = "The process answers", body = Health))
)]
pub(crate) async fn alive() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Is it ready
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "is_ready",
    tag = "operations",
    security(()),
    responses(
        (status = 200, description = "Jobs are taken and run", body = Health),
        (status = 503, description = "Not now, and why", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn ready(State(http): State<Arc<Http>>) -> Result<Json<Health>, Problem> {
    http.why_not_ready().await.map_or(Ok(Json(Health { status: "ok" })), Err)
}

impl Http {
    pub(crate) async fn why_not_ready(&self) -> Option<Problem> {
        if self.app.shutdown.is_cancelled() {
            return Some(Problem::http(HttpCode::ShuttingDown, "the daemon is about to end"));
        }
        if let Some(why) = self.app.queue.gate().blocked {
            return Some(Problem::http(HttpCode::NotReady, format!("the queue stands still: {why}")));
        }
        match self.app.store.counts().await {
            Ok(_) => None,
            Err(error) => {
                tracing::error!(%error, "not ready");
                Some(Problem::http(HttpCode::NotReady, "the database does not answer"))
            }
        }
    }
}
