//! `multipart/form-data` for jobs: part `job` with the JSON, parts `image` and `mask` with the files, in any order;
//! or plain fields in the place of `job`.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::http::header;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use multer::{Field, Multipart};
use serde_json::{Map, Value};

use super::{Form, Receiver, Slot, json, pace::BodyError};
use crate::http::{media, problem::Problem, status::HttpCode};

/// Bytes that multer is given at once.
const PIECE: usize = 64 << 10;
/// Bytes between the data of two parts: boundary and headers.
const BETWEEN_PARTS: usize = 4 * PIECE;
/// Bytes of all plain fields together.
const FIELDS: usize = 256 << 10;
const PARTS: usize = 128;

/// Fields whose text is a number, a list or an object in JSON.
const JSON_FIELDS: [&str; 11] = [
    "priority",
    "params",
    "seed",
    "steps",
    "guidance_scale",
    "width",
    "height",
    "strength",
    "scale",
    "num_images",
    "quality",
];

/// Hands on small pieces one by one.
///
/// multer takes all that a stream has ready into memory before it looks at it; a pause after each piece makes it
/// look. It also has no bound for what stands between two parts; this has.
struct PieceByPiece<S> {
    inner: S,
    ready: VecDeque<Bytes>,
    pause: bool,
    unclaimed: Arc<AtomicUsize>,
}

#[derive(Debug, thiserror::Error)]
enum PartError {
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("more than {BETWEEN_PARTS} bytes between two parts")]
    TooMuchBetween,
}

impl<S: Stream<Item = Result<Bytes, BodyError>> + Unpin> Stream for PieceByPiece<S> {
    type Item = Result<Bytes, PartError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.ready.is_empty() {
            match self.inner.poll_next_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(Some(Ok(mut bytes))) => {
                    while bytes.len() > PIECE {
                        let piece = bytes.split_to(PIECE);
                        self.ready.push_back(piece);
                    }
                    self.ready.push_back(bytes);
                }
            }
        }
        self.pause = true;
        let piece = self.ready.pop_front().unwrap_or_default();
        if self.unclaimed.fetch_add(piece.len(), Ordering::Relaxed) > BETWEEN_PARTS {
            return Poll::Ready(Some(Err(PartError::TooMuchBetween)));
        }
        Poll::Ready(Some(Ok(piece)))
    }
}

/// Reads all parts into `receiver` and gives the job's JSON.
pub(super) async fn receive(
    receiver: &mut Receiver<'_>,
    boundary: String,
    body: impl Stream<Item = Result<Bytes, BodyError>> + Unpin + Send,
) -> Result<Map<String, Value>, Problem> {
    let unclaimed = Arc::new(AtomicUsize::new(0));
    let pieces = PieceByPiece { inner: body, ready: VecDeque::new(), pause: false, unclaimed: unclaimed.clone() };
    let mut parts = Multipart::new(pieces, boundary);
    let mut job = None;
    let mut fields = Map::new();
    let mut field_bytes = 0;
    let mut count = 0;
    while let Some(mut part) = parts.next_field().await.map_err(problem)? {
        count += 1;
        if count > PARTS {
            return Err(malformed(format!("more than {PARTS} parts")));
        }
        unclaimed.store(0, Ordering::Relaxed);
        let name = part.name().ok_or_else(|| malformed("a part without a name"))?.to_owned();
        let is_file = part.file_name().is_some() || disposition_name(&part).is_some();
        match (receiver.form, name.as_str()) {
            (Form::Fields, _) if is_file => file(receiver, &mut part, Slot::Named(name), &unclaimed).await?,
            (Form::Job, "image" | "image[]" | "images" | "images[]") => {
                file(receiver, &mut part, Slot::Images, &unclaimed).await?;
            }
            (Form::Job, "mask") => file(receiver, &mut part, Slot::Mask, &unclaimed).await?,
            (Form::Job, "job") => {
                let text = chunks(&mut part, &unclaimed);
                let value = receiver.json(text).await.map_err(|problem| problem.within("part job"))?;
                let Value::Object(map) = value else {
                    return Err(Problem::new(atelier_domain::ErrorCode::InvalidRequest, "part job is no JSON object"));
                };
                if job.replace(map).is_some() {
                    return Err(malformed("part job is given twice"));
                }
            }
            (Form::Job, _) if is_file => {
                let shown: String = name.chars().take(64).collect();
                return Err(Problem::new(
                    atelier_domain::ErrorCode::InvalidRequest,
                    format!("a file in part {shown:?}, which is not known here"),
                )
                .with_hint("files go into parts named image (repeatable) and mask"));
            }
            (Form::Job | Form::Fields, _) => {
                let mut text = Vec::new();
                let mut data = std::pin::pin!(chunks(&mut part, &unclaimed));
                while let Some(bytes) = data.try_next().await? {
                    field_bytes += bytes.len();
                    if field_bytes > FIELDS {
                        return Err(Problem::http(
                            HttpCode::BodyTooLarge,
                            format!("fields of more than {FIELDS} bytes"),
                        ));
                    }
                    text.extend_from_slice(&bytes);
                }
                let value = field_value(receiver.form, &name, text)?;
                add(&mut fields, receiver.form, name, value)?;
            }
        }
    }
    let mut job = job.unwrap_or_default();
    for (name, value) in fields {
        if job.contains_key(&name) {
            let shown: String = name.chars().take(64).collect();
            return Err(Problem::new(
                atelier_domain::ErrorCode::InvalidRequest,
                format!("{shown:?} is given twice, in part job and beside it"),
            ));
        }
        job.insert(name, value);
    }
    Ok(job)
}

/// A part's data; what has been taken counts no longer as standing between parts.
fn chunks<'f>(
    part: &'f mut Field<'_>,
    unclaimed: &'f AtomicUsize,
) -> impl Stream<Item = Result<Bytes, Problem>> + Send + 'f {
    futures::stream::try_unfold(part, move |part| async move {
        let chunk = part.chunk().await.map_err(problem)?;
        unclaimed.store(0, Ordering::Relaxed);
        Ok(chunk.map(|chunk| (chunk, part)))
    })
}

async fn file(
    receiver: &mut Receiver<'_>,
    part: &mut Field<'_>,
    slot: Slot,
    unclaimed: &AtomicUsize,
) -> Result<(), Problem> {
    let name = disposition_name(part).or_else(|| part.file_name().map(str::to_owned));
    receiver.begin(slot, name.as_deref())?;
    let mut data = std::pin::pin!(chunks(part, unclaimed));
    while let Some(bytes) = data.try_next().await? {
        receiver.write(&bytes).await?;
    }
    receiver.end().await
}

fn disposition_name(part: &Field<'_>) -> Option<String> {
    part.headers().get(header::CONTENT_DISPOSITION).and_then(media::extended_file_name)
}

/// Keeps a field. A job has each name once; other APIs write a list as the same name again.
fn add(fields: &mut Map<String, Value>, form: Form, name: String, value: Value) -> Result<(), Problem> {
    match (fields.get_mut(&name), form) {
        (None, _) => {
            fields.insert(name, value);
        }
        (Some(Value::Array(list)), Form::Fields) => list.push(value),
        (Some(first), Form::Fields) => *first = Value::Array(vec![first.take(), value]),
        (Some(_), Form::Job) => {
            let shown: String = name.chars().take(64).collect();
            return Err(malformed(format!("field {shown:?} is given twice")));
        }
    }
    Ok(())
}

fn field_value(form: Form, name: &str, text: Vec<u8>) -> Result<Value, Problem> {
    let shown: String = name.chars().take(64).collect();
    let text = String::from_utf8(text).map_err(|_| malformed(format!("field {shown:?} is not UTF-8")))?;
    if form == Form::Job && JSON_FIELDS.contains(&name) {
        // Not a number after all: the job's reader says what it should have been.
        return Ok(json::parse(text.trim().as_bytes()).unwrap_or(Value::String(text)));
    }
    Ok(Value::String(text))
}

fn malformed(detail: impl std::fmt::Display) -> Problem {
    Problem::http(HttpCode::MalformedRequest, format!("multipart/form-data: {detail}"))
}

fn problem(error: multer::Error) -> Problem {
    if let multer::Error::StreamReadFailed(inner) = &error {
        match inner.downcast_ref::<PartError>() {
            Some(PartError::Body(body)) => return body.problem(),
            Some(PartError::TooMuchBetween) => return malformed(inner),
            None => {}
        }
    }
    malformed(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What multer holds of a body that is always ready.
    #[tokio::test]
    async fn a_fast_sender_does_not_fill_the_memory() {
        let pulled = Arc::new(AtomicUsize::new(0));
        let counter = pulled.clone();
        let head = Bytes::from_static(b"--b\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\n");
        let body = futures::stream::iter(std::iter::once(head).chain((0..4096).map(|_| Bytes::from(vec![7; PIECE]))))
            .map(move |bytes| {
                counter.fetch_add(bytes.len(), Ordering::Relaxed);
                Ok::<_, BodyError>(bytes)
            });
        let unclaimed = Arc::new(AtomicUsize::new(0));
        let pieces = PieceByPiece { inner: body, ready: VecDeque::new(), pause: false, unclaimed: unclaimed.clone() };
        let mut parts = Multipart::new(pieces, "b");
        let mut part = parts.next_field().await.expect("parses").expect("a part");
        let mut taken = 0;
        for _ in 0..100 {
            let chunk = part.chunk().await.expect("parses").expect("data");
            unclaimed.store(0, Ordering::Relaxed);
            taken += chunk.len();
            let held = pulled.load(Ordering::Relaxed) - taken;
            assert!(held <= 4 * PIECE, "{held} bytes are held");
        }
    }

    #[tokio::test]
    async fn headers_without_an_end_are_cut_off() {
        let head = Bytes::from_static(b"--b\r\nX: ");
        let body =
            futures::stream::iter(std::iter::once(head).chain((0..4096).map(|_| Bytes::from(vec![b'x'; PIECE]))))
                .map(Ok::<_, BodyError>);
        let pieces = PieceByPiece {
            inner: body,
            ready: VecDeque::new(),
            pause: false,
            unclaimed: Arc::new(AtomicUsize::new(0)),
        };
        let error = Multipart::new(pieces, "b").next_field().await.expect_err("endless");
        assert!(error.to_string().contains("failed"), "{error}");
        assert_eq!(problem(error).code(), "malformed_request");
    }
}
