//! `GET /`: what this is and how it is, in a few lines.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Http,
    models::WorkerInfo,
    problem::{Problem, ProblemBody},
};

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
    #[schema(example = "/openapi.json")]
    api: &'static str,
}

/// What this is
#[utoipa::path(
    get,
    path = "/",
    tag = "operations",
    responses(
        (status = 200, description = "Health, version and device", body = About),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn show(State(http): State<Arc<Http>>) -> Result<Json<About>, Problem> {
    let counts = http.app.store.counts().await?;
    Ok(Json(About {
        name: "atelier",
        version: env!("CARGO_PKG_VERSION"),
        status: http.why_not_ready().await.map_or("ok", |problem| problem.code()),
        uptime_seconds: http.app.started.elapsed().as_secs(),
        jobs: counts.into_iter().map(|(status, n)| (status.as_str(), n)).collect(),
        worker: WorkerInfo::of(http.app.engine.status()),
        api: "/openapi.json",
    }))
}
