//! What a client is told when something is wrong: `application/problem+json` (RFC 9457), always.
//!
//! A problem knows nothing of the request that met it; [`super::request_id`] adds the request's id on the way out.

use atelier_domain::{ErrorCode, ErrorInfo};
use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::status::{self, HttpCode};
use crate::{
    queue::{EnqueueError, QueueError},
    store::StoreError,
};

/// An answer that is an error.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    hint: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The body of every error.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// `urn:atelier:problem:` and the code.
    #[schema(example = "urn:atelier:problem:image_truncated")]
    r#type: String,
    /// The code in words.
    title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What happened, and to what.
    detail: &'a str,
    /// Stable snake_case, for programs.
    #[schema(example = "image_truncated")]
    code: &'a str,
    /// What to do about it; absent where there is nothing to say.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[schema(required = false)]
    hint: &'a str,
    /// Under this id the log tells more.
    request_id: &'a str,
}

impl Problem {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        ErrorInfo::new(code, detail).into()
    }

    pub(crate) fn http(code: HttpCode, detail: impl Into<String>) -> Self {
        Self {
            status: code.status(),
            code: code.as_str(),
            detail: detail.into(),
            hint: String::new(),
            headers: Vec::new(),
        }
    }

    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("{what} does not exist"))
    }

    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    #[must_use]
    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        self.with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// The same problem, told with where it was met.
    #[must_use]
    pub(crate) fn within(mut self, place: &str) -> Self {
        self.detail = format!("{place}: {}", self.detail);
        self
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) fn hint(&self) -> &str {
        &self.hint
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// An I/O error of ours while `doing` something for a client, who is told no path.
    pub(crate) fn io(doing: &str, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let kind = error.kind();
        if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            tracing::warn!(%error, "the disk is full: {doing}");
            return Self::new(ErrorCode::DiskFull, format!("the server's disk is full: {doing}"))
                .with_hint("try again when there is room");
        }
        tracing::error!(%error, "{doing}");
        let code = if kind == ErrorKind::PermissionDenied { ErrorCode::PermissionDenied } else { ErrorCode::IoError };
        Self::new(code, format!("the server failed {doing}: {kind}"))
    }

    /// The response's body; `into_response` leaves it empty.
    pub(super) fn body(&self, request_id: &str) -> Body {
        let mut title: Vec<char> = self.code.replace('_', " ").chars().collect();
        if let Some(first) = title.first_mut() {
            first.make_ascii_uppercase();
        }
        let body = ProblemBody {
            r#type: format!("urn:atelier:problem:{}", self.code),
            title: title.into_iter().collect(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            hint: &self.hint,
            request_id,
        };
        Body::from(serde_json::to_vec(&body).expect("texts and numbers serialise"))
    }
}

impl From<ErrorInfo> for Problem {
    fn from(info: ErrorInfo) -> Self {
        let problem = Self {
            status: status::of(info.code),
            code: info.code.as_str(),
            detail: info.message,
            hint: info.hint,
            headers: Vec::new(),
        };
        if info.code == ErrorCode::DiskFull { problem.retry_after(30) } else { problem }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if error.is_disk_full() {
            return Self::new(ErrorCode::DiskFull, "the server's disk is full");
        }
        tracing::error!(%error, "the database failed a request");
        Self::new(ErrorCode::Internal, "the database could not do what was asked")
            .with_hint("the server's log tells more under this request id")
    }
}

impl From<EnqueueError> for Problem {
    fn from(error: EnqueueError) -> Self {
        match error {
            EnqueueError::Store(error) => error.into(),
            EnqueueError::QueueFull { retry_after_s, .. } => Self::from(error.info()).retry_after(retry_after_s),
            EnqueueError::IdempotencyMismatch | EnqueueError::DiskFull => error.info().into(),
        }
    }
}

impl From<QueueError> for Problem {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Store(error) => error.into(),
            QueueError::Files(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Self::new(ErrorCode::InputMissing, error.to_string())
            }
            QueueError::Files(error) => Self::io("working on the job's files", &error),
            QueueError::NotFound
            | QueueError::Conflict { .. }
            | QueueError::Duplicate(_)
            | QueueError::StillRunning => error.info().into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        for (name, value) in self.headers.clone() {
            response.headers_mut().insert(name, value);
        }
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response.extensions_mut().insert(self);
        response
    }
}
