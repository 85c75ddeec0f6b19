//! A request of another API: named values, and pictures wherever that API puts them.
//!
//! Values stay in memory and are small; every text too long to be one goes to the spool as it arrives, decoded as
//! base64. Whoever reads the fields says which of them are pictures; what nobody takes is gone with the fields.

use atelier_domain::ErrorCode;
use axum::{body::Body, http::HeaderMap};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use serde_json::{Map, Value};
use ulid::Ulid;

use super::{
    Bounds, Form, Format, MAX_JSON, Patience, Receiver, Slot,
    base64_text::{TextDecoder, TextError},
    content_length,
    divert::{DivertError, Diverter, Piece},
    malformed_json, multipart,
    pace::{BodyError, PacedBody},
    spool::{Received, Spool},
};
use crate::http::{problem::Problem, status::HttpCode};

/// Bytes of a text that may still be a prompt: 2,000 characters, each written as an escape.
const LONG: usize = 16 << 10;

/// What has arrived, by the other API's own names.
#[derive(Debug)]
pub(crate) struct Fields {
    pub(crate) values: Map<String, Value>,
    /// The files of a form, by the names of their parts, in the order of the request.
    pub(crate) files: Vec<(String, Received)>,
    long: Vec<Option<Result<Received, TextError>>>,
    /// Begins the texts that stand for long ones.
    mark: String,
    spool: Spool,
    upload_bytes: u64,
}

/// Receives a form or JSON, or nothing at all. When it fails, or is dropped, nothing of it stays on disk.
pub(crate) async fn receive_fields(
    spool: &Spool,
    bounds: Bounds,
    patience: Patience,
    headers: &HeaderMap,
    body: Body,
) -> Result<Fields, Problem> {
    let max = bounds.body_bytes();
    if content_length(headers).is_some_and(|length| length > max) {
        return Err(Problem::http(HttpCode::BodyTooLarge, format!("the body has more than {max} bytes")));
    }
    let mut fields = Fields {
        values: Map::new(),
        files: Vec::new(),
        long: Vec::new(),
        mark: format!("{}:", Ulid::generate()),
        spool: spool.clone(),
        upload_bytes: bounds.upload_bytes,
    };
    let mut body = PacedBody::new(body, patience, max).peekable();
    // Clients that have nothing to say often do not say in which form.
    match std::pin::Pin::new(&mut body).peek().await {
        None => return Ok(fields),
        Some(Err(error)) => return Err(error.problem()),
        Some(Ok(_)) => {}
    }
    match Format::of(headers)? {
        Format::Form { boundary } => {
            let mut receiver = Receiver::new(spool, bounds, Form::Fields);
            fields.values = multipart::receive(&mut receiver, boundary, &mut body).await?;
            fields.files = receiver.named;
        }
        Format::Json => {
            let mut receiver = Receiver::new(spool, bounds, Form::Fields);
            let chunks = (&mut body).map_err(|error: BodyError| error.problem());
            let (value, long) = receiver.long_json(chunks, &fields.mark).await?;
            fields.long = long;
            fields.values = match value {
                Value::Object(map) => map,
                Value::Null => Map::new(),
                Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    return Err(Problem::new(ErrorCode::InvalidRequest, "the body is an object of names and values"));
                }
            };
        }
    }
    Ok(fields)
}

impl Receiver<'_> {
    /// Reads JSON; long texts in it go to disk, and a mark with their number stands in their place.
    async fn long_json(
        &mut self,
        chunks: impl Stream<Item = Result<Bytes, Problem>>,
        mark: &str,
    ) -> Result<(Value, Vec<Option<Result<Received, TextError>>>), Problem> {
        let mut chunks = std::pin::pin!(chunks);
        let mut diverter = Diverter::of_long_texts(LONG, mark.to_owned(), MAX_JSON);
        let mut long = Vec::new();
        let mut decoder = TextDecoder::default();
        let mut decoded = Vec::new();
        let mut failed = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            for mut input in chunk.chunks(64 << 10) {
                loop {
                    let piece = diverter.next(&mut input).map_err(|error| match error {
                        DivertError::TooLong(_) => Problem::http(HttpCode::BodyTooLarge, error.to_string()),
                        DivertError::Control | DivertError::Escape => malformed_json(diverter.here(&error)),
                    })?;
                    match piece {
                        None => break,
                        Some(Piece::Begin(_)) => {
                            self.begin(Slot::Named(String::new()), None)?;
                            (decoder, failed) = (TextDecoder::default(), None);
                        }
                        Some(Piece::Characters) if failed.is_none() => {
                            failed = decoder.push(diverter.characters(), &mut decoded).err();
                            self.write(&decoded).await?;
                            decoded.clear();
                        }
                        Some(Piece::Characters) => {}
                        Some(Piece::End) => {
                            let decoder = std::mem::take(&mut decoder);
                            let result = failed.take().map_or_else(|| decoder.finish(&mut decoded), Err);
                            self.write(&decoded).await?;
                            decoded.clear();
                            self.end().await?;
                            long.push(result.err());
                        }
                    }
                }
            }
        }
        let value = diverter.finish().map_err(malformed_json)?;
        let received = std::mem::take(&mut self.named).into_iter().map(|(_, received)| received);
        let long = received.zip(long).map(|(received, error)| Some(error.map_or(Ok(received), Err))).collect();
        Ok((value, long))
    }
}

impl Fields {
    fn long_index(&self, text: &str) -> Option<usize> {
        text.strip_prefix(&self.mark)?.parse().ok()
    }

    /// Whether this text was too long for anything but a picture.
    pub(crate) fn is_long(&self, text: &str) -> bool {
        self.long_index(text).is_some()
    }

    /// The value under the first of these names that has one; gone from the fields then.
    pub(crate) fn take(&mut self, names: &[&'static str]) -> Option<(&'static str, Value)> {
        names.iter().find_map(|name| match self.values.remove(*name) {
            None | Some(Value::Null) => None,
            Some(value) => Some((*name, value)),
        })
    }

    /// The picture that a text writes, as a data URI or in bare base64.
    ///
    /// # Errors
    /// It writes none; `place` is what the message calls it.
    pub(crate) async fn picture(&mut self, place: &str, text: &str) -> Result<Received, Problem> {
        let wrong = |error: &TextError| {
            Problem::new(ErrorCode::InvalidRequest, format!("{place}: {error}"))
                .with_hint("a picture in JSON is a data URI or bare base64")
        };
        if let Some(index) = self.long_index(text) {
            return match self.long.get_mut(index).and_then(Option::take) {
                Some(Ok(received)) => Ok(received),
                Some(Err(error)) => Err(wrong(&error)),
                None => {
                    Err(Problem::new(ErrorCode::InvalidRequest, format!("{place}: a picture that was used before")))
                }
            };
        }
        let mut bytes = Vec::new();
        let mut decoder = TextDecoder::default();
        decoder.push(text.as_bytes(), &mut bytes).and_then(|()| decoder.finish(&mut bytes)).map_err(|e| wrong(&e))?;
        self.keep(None, &bytes).await
    }

    /// Writes bytes to the spool as if they had been uploaded.
    pub(crate) async fn keep(&self, name: Option<&str>, bytes: &[u8]) -> Result<Received, Problem> {
        let mut upload = self.spool.create(name, self.upload_bytes)?;
        upload.write(bytes).await?;
        upload.finish().await
    }

    /// The form's files whose parts have one of these names.
    pub(crate) fn files_named(&mut self, names: &[&str]) -> Vec<Received> {
        let (taken, rest) =
            std::mem::take(&mut self.files).into_iter().partition(|(name, _)| names.contains(&name.as_str()));
        self.files = rest;
        let taken: Vec<(String, Received)> = taken;
        taken.into_iter().map(|(_, received)| received).collect()
    }
}
