//! The API of stable-diffusion-webui, for `webuiapi` and the many programs that speak it.

pub(crate) mod extras;
pub(crate) mod generate;
pub(crate) mod info;
pub(crate) mod lists;
pub(crate) mod options;
pub(crate) mod progress;
mod samplers;
mod wish;

use serde::Serialize;
use utoipa::ToSchema;

/// The webui's error body.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SdapiError<'a> {
    /// As in `application/problem+json`.
    error: &'a str,
    /// What happened.
    detail: &'a str,
    /// Empty.
    body: &'static str,
    /// What to do about it.
    errors: &'a str,
}

impl<'a> SdapiError<'a> {
    pub(crate) fn new(error: &'a str, detail: &'a str, errors: &'a str) -> Self {
        Self { error, detail, body: "", errors }
    }
}
