//! A job's outputs as files: whole, in parts, or not at all where the client has them.

use std::{io::SeekFrom, sync::Arc};

use atelier_domain::{Job, JobId, Output};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};
use tokio_util::io::ReaderStream;

use super::{
    Http,
    media::{self, Selection},
    problem::{Problem, ProblemBody},
    status::HttpCode,
};
use crate::store::JobRecord;

/// Bytes read at once; one answer holds a few of these.
const CHUNK: usize = 64 << 10;

/// Download an output
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/outputs/{index}",
    operation_id = "download_output",
    tag = "jobs",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("index" = u32, Path, description = "Which of its outputs, from 0"),
        ("Range" = Option<String>, Header, description = "`bytes=FIRST-LAST`"),
        ("If-Range" = Option<String>, Header, description = "An ETag: the part, if it is still that file, else all of it"),
        ("If-None-Match" = Option<String>, Header, description = "ETags that the client has"),
    ),
    responses(
        (status = 200, description = "The bytes", content((String = "image/png"), (String = "image/jpeg"), (String = "image/webp"), (String = "application/octet-stream")), headers(
            ("ETag" = String, description = "The sha256 of the bytes"),
            ("Content-Disposition" = String, description = "The file's name"),
        )),
        (status = 206, description = "A part of them", content((String = "image/png"), (String = "image/jpeg"), (String = "image/webp"), (String = "application/octet-stream")), headers(
            ("Content-Range" = String, description = "Which part"),
        )),
        (status = 304, description = "The client has them"),
        (status = 404, description = "No such job or output", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 416, description = "The range lies beyond the file", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn download(
    State(http): State<Arc<Http>>,
    path: Result<Path<(String, String)>, axum::extract::rejection::PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let no_such = || Problem::not_found("this output");
    let Path((id, index)) = path.map_err(|_| no_such())?;
    let (Ok(id), Ok(index)) = (id.parse::<JobId>(), index.parse::<usize>()) else { return Err(no_such()) };
    let record = http.app.store.record(id).await?.ok_or_else(|| Problem::not_found(format_args!("job {id}")))?;
    answer(&record, index, &headers).await
}

/// One output of a job, as far as the client wants it.
pub(super) async fn answer(record: &JobRecord, index: usize, headers: &HeaderMap) -> Result<Response, Problem> {
    let file = open_of(record, index).await?;
    send(file, &record.job.outputs[index], headers).await
}

/// An output's file.
pub(super) async fn open_of(record: &JobRecord, index: usize) -> Result<File, Problem> {
    let (Some(output), Some(path)) = (record.job.outputs.get(index), record.output_paths.get(index)) else {
        let Job { id, status, outputs, .. } = &record.job;
        return Err(Problem::not_found(format_args!("output {index} of job {id}"))
            .with_hint(format!("the job is {status} and has {} outputs", outputs.len())));
    };
    open(path, output).await
}

/// The file, if it still is what the job has made.
async fn open(path: &std::path::Path, output: &Output) -> Result<File, Problem> {
    let gone = || {
        Problem::not_found(format_args!("the file {:?}", output.name))
            .with_hint("somebody has moved, changed or removed it in the outbox")
    };
    let file = match File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(gone()),
        Err(error) => return Err(Problem::io("opening the output", &error)),
    };
    let meta = file.metadata().await.map_err(|error| Problem::io("opening the output", &error))?;
    if meta.is_file() && meta.len() == output.bytes { Ok(file) } else { Err(gone()) }
}

async fn send(mut file: File, output: &Output, headers: &HeaderMap) -> Result<Response, Problem> {
    let etag = format!("\"{}\"", output.sha256);
    let bytes = output.bytes;
    let (status, first, length) = match media::select(headers, &etag, bytes) {
        Selection::NotModified => (StatusCode::NOT_MODIFIED, 0, 0),
        Selection::Whole => (StatusCode::OK, 0, bytes),
        Selection::Part { first, length } => (StatusCode::PARTIAL_CONTENT, first, length),
        Selection::Unsatisfiable => {
            return Err(Problem::http(HttpCode::RangeNotSatisfiable, format!("the file has {bytes} bytes"))
                .with_header(header::CONTENT_RANGE, value(&format!("bytes */{bytes}"))));
        }
    };
    let body = if status == StatusCode::NOT_MODIFIED {
        Body::empty()
    } else {
        file.seek(SeekFrom::Start(first)).await.map_err(|error| Problem::io("reading the output", &error))?;
        Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK))
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::ETAG, value(&etag));
    // It may be kept, but whoever shows it asks first: a job may be removed.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(header::CONTENT_RANGE, value(&format!("bytes {first}-{}/{bytes}", first + length - 1)));
    }
    let is_seen = ["image/", "video/", "audio/"].iter().any(|kind| output.media_type.starts_with(kind))
        && output.media_type != "image/svg+xml";
    let disposition = if is_seen { "inline" } else { "attachment" };
    headers.insert(header::CONTENT_DISPOSITION, media::content_disposition(disposition, &output.name));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let media_type = HeaderValue::from_str(&output.media_type)
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
