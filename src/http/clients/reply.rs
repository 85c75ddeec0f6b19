//! The way out: JSON with pictures in it, as base64, read from the disk while it is sent.
//!
//! What is held in memory is bounded, however many and large the pictures are. An answer that was sent to its end has
//! a consequence: the request's key is forgotten, or the job is removed.

use std::{io, path::PathBuf, sync::Arc};

use atelier_domain::JobId;
use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::Value;
use tokio::{fs::File, io::AsyncReadExt as _, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use ulid::Ulid;

use super::super::{Http, coalesce, problem::Problem};
use crate::store::JobRecord;

/// Bytes read from a picture at once; a multiple of three, so that pieces of base64 join.
const CHUNK: usize = 48 << 10;
/// Pieces on their way to the socket.
const IN_FLIGHT: usize = 4;

/// What follows once an answer has been sent to its end.
#[derive(Clone, Debug)]
pub(crate) enum After {
    Nothing,
    /// The same request is a new job from now on.
    Forget(String),
    /// The same for several.
    ForgetAll(Vec<String>),
    /// The job goes, with its files.
    Remove(JobId),
}

impl After {
    pub(crate) fn forget(key: Option<String>) -> Self {
        key.map_or(Self::Nothing, Self::Forget)
    }

    async fn happen(self, http: &Arc<Http>) {
        match self {
            Self::Nothing => {}
            Self::Forget(key) => coalesce::delivered(http, key).await,
            Self::ForgetAll(keys) => {
                for key in keys {
                    coalesce::delivered(http, key).await;
                }
            }
            Self::Remove(id) => {
                if let Err(error) = http.app.queue.delete(id).await {
                    tracing::warn!(job = %id, %error, "a job whose result was fetched could not be removed");
                }
            }
        }
    }
}

/// Pictures that stand in a text by marks.
#[derive(Debug)]
pub(crate) struct Pictures {
    mark: String,
    files: Vec<(PathBuf, u64)>,
}

impl Pictures {
    pub(crate) fn new() -> Self {
        Self { mark: Ulid::generate().to_string(), files: Vec::new() }
    }

    /// The text that becomes a file's base64.
    pub(crate) fn add(&mut self, path: PathBuf, bytes: u64) -> String {
        self.files.push((path, bytes));
        format!("{}-{:04}", self.mark, self.files.len() - 1)
    }

    /// The same for an output of a job.
    pub(crate) fn output(&mut self, record: &JobRecord, index: usize) -> Option<String> {
        let (output, path) = (record.job.outputs.get(index)?, record.output_paths.get(index)?);
        Some(self.add(path.clone(), output.bytes))
    }

    /// All outputs of a job.
    pub(crate) fn outputs(&mut self, record: &JobRecord) -> Vec<String> {
        (0..record.job.outputs.len()).filter_map(|index| self.output(record, index)).collect()
    }

    /// The text, cut at its marks.
    fn pieces(&self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(&self.mark) {
            pieces.push(Piece::Text(rest[..at].to_owned()));
            let tail = &rest[at + self.mark.len()..];
            let index: Option<usize> = tail.get(1..5).and_then(|digits| digits.parse().ok());
            if let Some((path, bytes)) = index.and_then(|index| self.files.get(index)) {
                pieces.push(Piece::Base64(path.clone(), *bytes));
            }
            rest = tail.get(5..).unwrap_or_default();
        }
        pieces.push(Piece::Text(rest.to_owned()));
        pieces
    }

    /// Whether all of them are still there.
    pub(crate) async fn check(&self) -> Result<(), Problem> {
        for (path, bytes) in &self.files {
            let meta = tokio::fs::metadata(path).await;
            if !meta.is_ok_and(|meta| meta.is_file() && meta.len() == *bytes) {
                return Err(Problem::not_found("a file of this job")
                    .with_hint("somebody has moved, changed or removed it in the outbox"));
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Base64(PathBuf, u64),
}

/// Where an answer's pieces go. Sending fails once the client has gone.
pub(crate) struct Sender(mpsc::Sender<Result<Bytes, io::Error>>);

/// The client has gone, or a file has.
#[derive(Debug)]
pub(crate) struct Broken;

impl Sender {
    /// A body, and where to write it.
    pub(crate) fn new() -> (Self, Body) {
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        (Self(sender), Body::from_stream(ReceiverStream::new(receiver)))
    }

    pub(crate) async fn text(&self, text: impl Into<String>) -> Result<(), Broken> {
        let text: String = text.into();
        if text.is_empty() {
            return Ok(());
        }
        self.0.send(Ok(text.into())).await.map_err(|_| Broken)
    }

    /// A text with the pictures that stand in it.
    pub(crate) async fn with_pictures(&self, text: &str, pictures: &Pictures) -> Result<(), Broken> {
        for piece in pictures.pieces(text) {
            match piece {
                Piece::Text(text) => self.text(text).await?,
                Piece::Base64(path, bytes) => {
                    if let Err(error) = self.base64(&path, bytes).await {
                        // The answer breaks off, which every client notices.
                        let _ = self.0.send(Err(error)).await;
                        return Err(Broken);
                    }
                }
            }
        }
        Ok(())
    }

    async fn base64(&self, path: &std::path::Path, bytes: u64) -> io::Result<()> {
        let mut file = File::open(path).await?.take(bytes);
        let mut buffer = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let wanted = usize::try_from(left.min(CHUNK as u64)).unwrap_or(CHUNK);
            file.read_exact(&mut buffer[..wanted]).await?;
            left -= wanted as u64;
            let text = STANDARD.encode(&buffer[..wanted]);
            self.0.send(Ok(text.into())).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }

    /// The bytes of a file as they are.
    pub(crate) async fn file(&self, file: &mut File, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let wanted = usize::try_from(left.min(CHUNK as u64)).unwrap_or(CHUNK);
            let mut buffer = vec![0; wanted];
            if let Err(error) = file.read_exact(&mut buffer).await {
                let _ = self.0.send(Err(io::Error::from(error.kind()))).await;
                return Err(error);
            }
            left -= wanted as u64;
            self.0.send(Ok(buffer.into())).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(())
    }

    /// Everything was written; whether the client has taken it.
    pub(crate) async fn finish(self) -> Result<(), Broken> {
        // All places are free again once the socket has taken what was in them.
        self.0.reserve_many(IN_FLIGHT).await.map(drop).map_err(|_| Broken)
    }
}

/// Sends JSON with pictures.
pub(crate) async fn json(
    http: &Arc<Http>,
    status: StatusCode,
    value: &Value,
    pictures: Pictures,
    after: After,
) -> Result<Response, Problem> {
    pictures.check().await?;
    let (sender, body) = Sender::new();
    let (http, text) = (http.clone(), value.to_string());
    tokio::spawn(async move {
        if sender.with_pictures(&text, &pictures).await.is_ok() && sender.finish().await.is_ok() {
            after.happen(&http).await;
        }
    });
    let mut response = (status, body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Writes a body from a task of its own; what follows, follows when `write` succeeds and the client has taken all.
pub(crate) fn streamed<F, W>(http: &Arc<Http>, after: After, write: W) -> Body
where
    W: FnOnce(Arc<Http>, Arc<Sender>) -> F + Send + 'static,
    F: Future<Output = Result<(), Broken>> + Send,
{
    let (sender, body) = Sender::new();
    let http = http.clone();
    tokio::spawn(async move {
        let sender = Arc::new(sender);
        if write(http.clone(), sender.clone()).await.is_ok()
            && let Some(sender) = Arc::into_inner(sender)
            && sender.finish().await.is_ok()
        {
            after.happen(&http).await;
        }
    });
    body
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn pictures_stand_where_their_marks_stood() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut pictures = Pictures::new();
        let mut expected = Vec::new();
        let mut marks = Vec::new();
        for (name, size) in [("a", 0_usize), ("b", 1), ("c", CHUNK), ("d", CHUNK * 2 + 7)] {
            let bytes: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).expect("small")).collect();
            let path = dir.path().join(name);
            std::fs::write(&path, &bytes).expect("written");
            marks.push(pictures.add(path, size as u64));
            expected.push(STANDARD.encode(bytes));
        }
        let text = json!({"first": marks[3], "uri": format!("data:x,{}", marks[1]), "rest": [marks[0], marks[2]]});
        let (sender, body) = Sender::new();
        let writer = tokio::spawn(async move {
            sender.with_pictures(&text.to_string(), &pictures).await.expect("sent");
            sender.finish().await.is_ok()
        });
        let got: Value = serde_json::from_slice(&body.collect().await.expect("a body").to_bytes()).expect("JSON");
        assert!(writer.await.expect("no panic"), "all was taken");
        assert_eq!(
            got,
            json!({"first": expected[3], "uri": format!("data:x,{}", expected[1]), "rest": [expected[0], expected[2]]})
        );
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_is_not_delivered() {
        let (sender, body) = Sender::new();
        sender.text("one").await.expect("there is room");
        drop(body);
        assert!(sender.finish().await.is_err());
    }
}
