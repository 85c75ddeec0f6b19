//! OpenAI's Images API, for the `openai` packages and whatever else speaks it.

pub(crate) mod images;
mod stream;
mod wish;

use serde::Serialize;
use utoipa::ToSchema;

/// OpenAI's error body.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiError<'a> {
    error: OpenAiErrorDetail<'a>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiErrorDetail<'a> {
    /// What happened, and what to do about it.
    message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    r#type: &'static str,
    /// The parameter that is wrong, where it is one.
    param: Option<&'a str>,
    /// As in `application/problem+json`.
    code: &'a str,
}

impl<'a> OpenAiError<'a> {
    pub(crate) fn new(status: u16, code: &'a str, detail: &'a str, hint: &str) -> Self {
        let kind = match status {
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let param = detail.strip_prefix("params.").and_then(|rest| rest.split(':').next());
        let message = if hint.is_empty() { detail.to_owned() } else { format!("{detail} ({hint})") };
        Self { error: OpenAiErrorDetail { message, r#type: kind, param, code } }
    }
}

/// OpenAI tells apart less: what is understood and wrong is 400.
pub(crate) fn status(status: u16) -> u16 {
    if status == 422 { 400 } else { status }
}

/// Whether the same request may do better in a moment. The packages would otherwise send every failure again, twice.
pub(crate) fn is_worth_repeating(code: &str) -> bool {
    matches!(code, "queue_full" | "busy" | "shutting_down" | "not_ready" | "timeout" | "disk_full" | "request_timeout")
}
