//! `GET /`: what this is and how it is, in a few lines.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Http, dashboard,
    models::WorkerInfo,
    problem::{Problem, ProblemBody},
    schema,
};
use crate::inbox::{InboxHandle, InboxStatus};

#[derive(Serialize, ToSchema)]
pub(crate) struct About {
    #[schema(example = "atelier")]
    name: &'static str,
    version: &'static str,
    /// `ok`, or why no work is done.
    status: &'static str,
    uptime_seconds: u64,
    /// Jobs per status.
    #[schema(value_type = BTreeMap<String, u64>)]
    jobs: BTreeMap<&'static str, u64>,
    worker: WorkerInfo,
    /// Null where there is none.
    #[schema(value_type = Option<schema::Inbox>)]
    inbox: Option<InboxStatus>,
    #[schema(example = "/openapi.json")]
    api: &'static str,
}

/// What this is
#[utoipa::path(
    get,
    path = "/",
    operation_id = "show_about",
    tag = "operations",
    responses(
        (status = 200, description = "Health, version and device; for a browser the dashboard", body = About),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn show(State(http): State<Arc<Http>>, headers: HeaderMap) -> Result<Response, Problem> {
    if dashboard::wants_page(&headers) {
        return Ok(dashboard::page());
    }
    let counts = http.app.store.counts().await?;
    Ok(Json(About {
        name: "atelier",
        version: env!("CARGO_PKG_VERSION"),
        status: http.why_not_ready().await.map_or("ok", |problem| problem.code()),
        uptime_seconds: http.app.started.elapsed().as_secs(),
        jobs: counts.into_iter().map(|(status, n)| (status.as_str(), n)).collect(),
        worker: WorkerInfo::of(http.app.engine.status()),
        inbox: http.app.inbox.get().map(InboxHandle::status),
        api: "/openapi.json",
    })
    .into_response())
}
