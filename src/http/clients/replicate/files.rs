//! `/v1/files`.

use std::{sync::Arc, time::Duration};

use atelier_domain::{ErrorCode, Timestamp};
use atelier_imaging::MediaType;
use axum::{
    Json,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::time::MissedTickBehavior;
use ulid::Ulid;
use utoipa::ToSchema;

use super::{
    super::{
        super::{Http, intake::Received, problem::Problem},
        Problems,
        door::{self, Visitor},
    },
    store::{self, Stored},
};
use crate::admission;

/// A file that was sent ahead.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplicateFile {
    id: String,
    name: String,
    content_type: String,
    size: u64,
    etag: String,
    #[schema(value_type = Value)]
    checksums: Value,
    /// Always empty.
    #[schema(value_type = Value)]
    metadata: Value,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// A day later.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    /// `get`: what a prediction's input says to mean this file.
    #[schema(value_type = Value)]
    urls: Value,
}

impl ReplicateFile {
    fn of(stored: &Stored, base_url: &str) -> Self {
        let kept = i64::try_from(store::KEPT.as_millis()).unwrap_or(0);
        Self {
            id: stored.id.to_string(),
            name: stored.name.clone(),
            content_type: content_type(stored),
            size: stored.bytes,
            etag: stored.sha256.clone(),
            checksums: serde_json::json!({"sha256": stored.sha256}),
            metadata: serde_json::json!({}),
            created_at: stored.created_at(),
            expires_at: stored.created_at().plus_millis(kept),
            urls: serde_json::json!({"get": format!("{base_url}/v1/files/{}", stored.id)}),
        }
    }
}

fn content_type(stored: &Stored) -> String {
    use std::io::Read as _;
    let mut head = [0; 64];
    let read = std::fs::File::open(&stored.path).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
    MediaType::sniff(&head[..read]).map_or_else(|| "application/octet-stream".into(), |found| found.as_str().to_owned())
}

/// A page of files; there is only one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplicateFiles {
    results: Vec<ReplicateFile>,
    next: Option<String>,
    previous: Option<String>,
}

/// The form of an upload.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct ReplicateUpload {
    #[schema(value_type = String, format = Binary)]
    content: Vec<u8>,
}

/// Runs what blocks.
async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Problem::new(ErrorCode::Internal, doing))?.map_err(|error| Problem::io(doing, &error))
}

/// Looks once an hour for files that have been kept for long enough, until the daemon ends.
pub(crate) async fn forget_old(http: Arc<Http>) {
    let mut hourly = tokio::time::interval(Duration::from_hours(1));
    hourly.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = http.app.shutdown.cancelled() => return,
            _ = hourly.tick() => {}
        }
        let data = http.app.config().paths.data.clone();
        // Whatever went wrong is in the log, and the next hour tries again.
        let _ = blocking("looking for old files", move || store::list(&data).map(drop)).await;
    }
}

/// Send a file ahead (Replicate)
#[utoipa::path(
    post,
    path = "/v1/files",
    operation_id = "replicate_create_file",
    tag = "replicate",
    request_body(content((ReplicateUpload = "multipart/form-data"))),
    responses((status = 201, description = "It is kept for a day", body = ReplicateFile), Problems)
)]
pub(crate) async fn create(
    State(http): State<Arc<Http>>,
    visitor: Visitor,
    body: Body,
) -> Result<(StatusCode, Json<ReplicateFile>), Problem> {
    let mut arrival = door::receive(&http, &visitor, body).await?;
    let mut files = arrival.fields.files_named(&["content"]);
    let (Some(received), true) = (files.pop(), files.is_empty()) else {
        return Err(Problem::new(ErrorCode::InvalidRequest, "the form has one file, in part content"));
    };
    let data = http.app.config().paths.data.clone();
    let base_url = visitor.base_url();
    let kept = blocking("keeping the file", move || {
        if store::list(&data)?.len() >= store::MAX_FILES {
            return Ok(None);
        }
        let sha256 = hash(&received)?;
        let stored = store::keep(&data, &received, &sha256)?;
        Ok(Some(ReplicateFile::of(&stored, &base_url)))
    });
    let full = || {
        Problem::new(ErrorCode::QueueFull, format!("{} files are kept already", store::MAX_FILES))
            .with_hint("DELETE /v1/files/{id}, or send pictures as data URIs")
            .retry_after(60)
    };
    Ok((StatusCode::CREATED, Json(kept.await?.ok_or_else(full)?)))
}

fn hash(received: &Received) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut std::fs::File::open(received.path())?, &mut hasher)?;
    Ok(admission::hex(&hasher.finalize()))
}

/// List files (Replicate)
#[utoipa::path(
    get,
    path = "/v1/files",
    operation_id = "replicate_list_files",
    tag = "replicate",
    responses((status = 200, description = "Newest first", body = ReplicateFiles), Problems)
)]
pub(crate) async fn list(State(http): State<Arc<Http>>, visitor: Visitor) -> Result<Json<ReplicateFiles>, Problem> {
    let data = http.app.config().paths.data.clone();
    let base_url = visitor.base_url();
    let results = blocking("listing the files", move || {
        Ok(store::list(&data)?.iter().map(|stored| ReplicateFile::of(stored, &base_url)).collect())
    });
    Ok(Json(ReplicateFiles { results: results.await?, next: None, previous: None }))
}

async fn find(http: &Http, path: Result<Path<String>, PathRejection>) -> Result<Stored, Problem> {
    let no_such = || Problem::not_found("this file").with_hint("files are kept for a day");
    let Path(id) = path.map_err(|_| no_such())?;
    let id: Ulid = id.parse().map_err(|_| no_such())?;
    let data = http.app.config().paths.data.clone();
    blocking("looking for the file", move || store::find(&data, id)).await?.ok_or_else(no_such)
}

/// Show a file (Replicate)
#[utoipa::path(
    get,
    path = "/v1/files/{id}",
    operation_id = "replicate_show_file",
    tag = "replicate",
    params(("id" = String, Path, description = "The file's id")),
    responses((status = 200, description = "What is known of it", body = ReplicateFile), Problems)
)]
pub(crate) async fn show(
    State(http): State<Arc<Http>>,
    visitor: Visitor,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<ReplicateFile>, Problem> {
    let stored = find(&http, path).await?;
    Ok(Json(ReplicateFile::of(&stored, &visitor.base_url())))
}

/// Remove a file (Replicate)
#[utoipa::path(
    delete,
    path = "/v1/files/{id}",
    operation_id = "replicate_delete_file",
    tag = "replicate",
    params(("id" = String, Path, description = "The file's id")),
    responses((status = 204, description = "It is gone"), Problems)
)]
pub(crate) async fn delete(
    State(http): State<Arc<Http>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let stored = find(&http, path).await?;
    blocking("removing the file", move || std::fs::remove_file(stored.path)).await?;
    Ok(StatusCode::NO_CONTENT)
}
