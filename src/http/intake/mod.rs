//! A job as it comes over the wire: JSON or a form, with its pictures on disk and everything else in memory.
//!
//! Pictures are written to the spool as they arrive, also those in JSON; what is held in memory is bounded whatever a
//! client sends. Knows the grammar of requests and nothing of jobs: what the JSON means is `admission`'s.

mod base64_text;
mod divert;
mod fields;
mod json;
mod multipart;
mod pace;
mod spool;

use atelier_domain::ErrorCode;
use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, header},
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use serde_json::{Map, Value};

pub use self::pace::Patience;
use self::{
    base64_text::TextDecoder,
    divert::{Diverter, Piece, Slots},
    pace::{BodyError, PacedBody},
    spool::Upload,
};
pub(crate) use self::{
    fields::{Fields, receive_fields},
    spool::{Received, Spool},
};
use super::{problem::Problem, status::HttpCode};
use crate::config::Config;

/// Bytes of JSON beside the pictures. A prompt has 2,000 characters.
const MAX_JSON: usize = 1 << 20;

const JOB_SLOTS: Slots = Slots { one: &["mask"], many: &["images"] };

/// What one request may bring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) upload_bytes: u64,
    pub(crate) images: usize,
}

impl Bounds {
    pub(crate) fn of(config: &Config) -> Self {
        Self { upload_bytes: config.limits.upload, images: config.limits.images }
    }

    /// All pictures and the mask, each as large as can be, in base64, and the rest.
    fn body_bytes(self) -> u64 {
        let files = self.images as u64 + 1;
        files.saturating_mul(self.upload_bytes).saturating_mul(3) / 2 + (MAX_JSON as u64) * 2
    }
}

/// What has arrived.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The job's JSON without `images` and `mask`.
    pub(crate) job: Map<String, Value>,
    pub(crate) images: Vec<Received>,
    pub(crate) mask: Option<Received>,
    /// The webhook is told a prediction of the server at this address.
    pub(crate) prediction_at: Option<String>,
}

enum Format {
    Json,
    Form { boundary: String },
}

impl Format {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let unsupported = |detail: String| {
            Problem::http(HttpCode::UnsupportedMediaType, detail)
                .with_hint("send application/json or multipart/form-data")
                .with_header(
                    HeaderName::from_static("accept-post"),
                    HeaderValue::from_static("application/json, multipart/form-data"),
                )
        };
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            return Err(unsupported("the request has no Content-Type".into()));
        };
        let text = value.to_str().map_err(|_| unsupported("Content-Type is not readable".into()))?;
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if is_json(&essence) {
            return Ok(Self::Json);
        }
        if essence != "multipart/form-data" {
            let shown: String = essence.chars().take(64).collect();
            return Err(unsupported(format!("Content-Type {shown:?} is not taken here")));
        }
        let boundary = multer::parse_boundary(text)
            .ok()
            .filter(|boundary| (1..=200).contains(&boundary.len()))
            .ok_or_else(|| Problem::http(HttpCode::MalformedRequest, "Content-Type names no usable boundary"))?;
        Ok(Self::Form { boundary })
    }
}

fn is_json(essence: &str) -> bool {
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Receives a job. When it fails, or is dropped, nothing of it stays on disk.
pub(crate) async fn receive(
    spool: &Spool,
    bounds: Bounds,
    patience: Patience,
    headers: &HeaderMap,
    body: Body,
) -> Result<Draft, Problem> {
    let format = Format::of(headers)?;
    let max = bounds.body_bytes();
    if content_length(headers).is_some_and(|length| length > max) {
        return Err(Problem::http(HttpCode::BodyTooLarge, format!("the body has more than {max} bytes")));
    }
    let mut body = PacedBody::new(body, patience, max);
    let mut receiver = Receiver::new(spool, bounds, Form::Job);
    let job = match format {
        Format::Form { boundary } => multipart::receive(&mut receiver, boundary, &mut body).await?,
        Format::Json => {
            let chunks = (&mut body).map_err(|error: BodyError| error.problem());
            match receiver.json(chunks).await? {
                Value::Object(map) => map,
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    return Err(Problem::new(ErrorCode::InvalidRequest, "a job is an object of names and values")
                        .with_hint("for example {\"kind\":\"upscale\",\"images\":[\"data:image/png;base64,…\"]}"));
                }
            }
        }
    };
    Ok(Draft { job, images: receiver.images, mask: receiver.mask, prediction_at: None })
}

/// A small JSON body, such as `{"dry_run":true}`; `None` where there is none.
pub(crate) async fn receive_json(
    headers: &HeaderMap,
    body: Body,
    patience: Patience,
) -> Result<Option<Value>, Problem> {
    let mut body = PacedBody::new(body, patience, MAX_JSON as u64);
    let mut text = Vec::new();
    while let Some(bytes) = body.try_next().await.map_err(|error| error.problem())? {
        text.extend_from_slice(&bytes);
    }
    if text.is_empty() {
        return Ok(None);
    }
    match Format::of(headers)? {
        Format::Json => json::parse(&text).map(Some).map_err(malformed_json),
        Format::Form { .. } => {
            Err(Problem::http(HttpCode::UnsupportedMediaType, "only application/json is taken here"))
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[expect(clippy::needless_pass_by_value, reason = "so that it can stand in map_err")]
fn malformed_json(error: json::JsonError) -> Problem {
    Problem::http(HttpCode::MalformedJson, format!("line {} column {}: {}", error.line, error.column, error.message))
}

/// Whose grammar a form follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Ours: part `job` or its fields, files in `image` and `mask`.
    Job,
    /// Another API's: fields and files under whatever names.
    Fields,
}

/// Where a file goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Slot {
    Images,
    Mask,
    /// The part of this name, or the long text of this number.
    Named(String),
}

impl Slot {
    /// The slot of a name among [`JOB_SLOTS`].
    fn of_job(name: &str) -> Self {
        if name == "mask" { Self::Mask } else { Self::Images }
    }
}

/// Takes pictures, whatever they are wrapped in.
struct Receiver<'s> {
    spool: &'s Spool,
    bounds: Bounds,
    form: Form,
    images: Vec<Received>,
    mask: Option<Received>,
    named: Vec<(String, Received)>,
    current: Option<(Slot, Upload)>,
}

impl<'s> Receiver<'s> {
    fn new(spool: &'s Spool, bounds: Bounds, form: Form) -> Self {
        Self { spool, bounds, form, images: Vec::new(), mask: None, named: Vec::new(), current: None }
    }

    fn begin(&mut self, slot: Slot, name: Option<&str>) -> Result<(), Problem> {
        let too_many = match slot {
            Slot::Mask => self.mask.is_some(),
            Slot::Images => self.images.len() >= self.bounds.images,
            // The mask beside the pictures.
            Slot::Named(_) => self.named.len() > self.bounds.images,
        };
        if too_many {
            let detail = match slot {
                Slot::Mask => "more than one mask".to_owned(),
                Slot::Images | Slot::Named(_) => format!("more than {} images", self.bounds.images),
            };
            return Err(Problem::new(ErrorCode::InvalidRequest, detail).with_hint("limits.images bounds them"));
        }
        self.current = Some((slot, self.spool.create(name, self.bounds.upload_bytes)?));
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        match &mut self.current {
            Some((_, upload)) => upload.write(bytes).await,
            None => Ok(()),
        }
    }

    async fn end(&mut self) -> Result<(), Problem> {
        let Some((slot, upload)) = self.current.take() else { return Ok(()) };
        let received = upload.finish().await?;
        match slot {
            Slot::Mask => self.mask = Some(received),
            Slot::Images => self.images.push(received),
            Slot::Named(name) => self.named.push((name, received)),
        }
        Ok(())
    }

    /// Reads JSON; pictures in it go to disk.
    async fn json(&mut self, chunks: impl Stream<Item = Result<Bytes, Problem>>) -> Result<Value, Problem> {
        let mut chunks = std::pin::pin!(chunks);
        let before = (self.images.len(), self.mask.is_some());
        let mut diverter = Diverter::new(JOB_SLOTS, MAX_JSON);
        let mut decoder = TextDecoder::default();
        let mut decoded = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            // Characters of one piece are held twice, so pieces are kept small.
            for mut input in chunk.chunks(64 << 10) {
                loop {
                    let piece = diverter.next(&mut input).map_err(|error| match error {
                        divert::DivertError::TooLong(_) => Problem::http(HttpCode::BodyTooLarge, error.to_string())
                            .with_hint("pictures go into images and mask, or into multipart/form-data"),
                        divert::DivertError::Control | divert::DivertError::Escape => {
                            malformed_json(diverter.here(&error))
                        }
                    })?;
                    match piece {
                        None => break,
                        Some(Piece::Begin(slot)) => {
                            self.begin(Slot::of_job(slot), None)?;
                            decoder = TextDecoder::default();
                        }
                        Some(Piece::Characters) => {
                            decoder
                                .push(diverter.characters(), &mut decoded)
                                .map_err(|error| self.not_a_picture(&error))?;
                            self.write(&decoded).await?;
                            decoded.clear();
                        }
                        Some(Piece::End) => {
                            std::mem::take(&mut decoder)
                                .finish(&mut decoded)
                                .map_err(|error| self.not_a_picture(&error))?;
                            self.write(&decoded).await?;
                            decoded.clear();
                            self.end().await?;
                        }
                    }
                }
            }
        }
        let value = diverter.finish().map_err(malformed_json)?;
        self.without_pictures(value, before)
    }

    /// Takes the places of the pictures out, which hold nothing any more, and refuses what stands there otherwise.
    fn without_pictures(&self, mut value: Value, before: (usize, bool)) -> Result<Value, Problem> {
        let Value::Object(map) = &mut value else { return Ok(value) };
        let wrong = |what: &str| Err(Problem::new(ErrorCode::InvalidRequest, what));
        let images = match map.remove("images") {
            None | Some(Value::Null) => 0,
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => list.len(),
            Some(_) => return wrong("images is a list of texts: data URIs or base64"),
        };
        let mask = match map.remove("mask") {
            None | Some(Value::Null) => false,
            Some(Value::String(_)) => true,
            Some(_) => return wrong("mask is a text: a data URI or base64"),
        };
        if (images, mask) != (self.images.len() - before.0, self.mask.is_some() && !before.1) {
            return wrong("images and mask cannot be told from the rest");
        }
        Ok(value)
    }

    fn not_a_picture(&self, error: &base64_text::TextError) -> Problem {
        let place = match &self.current {
            Some((Slot::Mask, _)) => "mask".to_owned(),
            Some(_) | None => format!("images[{}]", self.images.len()),
        };
        Problem::new(ErrorCode::InvalidRequest, format!("{place}: {error}"))
            .with_hint("a picture in JSON is a data URI or bare base64")
    }
}
