//! In which words a client is told that something is wrong.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use serde::Serialize;

use super::{
    super::problem::Problem,
    openai::{self, OpenAiError},
    sdapi::SdapiError,
};

/// The form of an error's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `application/problem+json`: ours, and Replicate's.
    Problem,
    OpenAi,
    Sdapi,
}

impl Dialect {
    /// The dialect of a path, also where nothing is found under it.
    pub(crate) fn of(path: &str) -> Self {
        let below = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        // A model with an owner is Replicate's.
        let is_replicates = || path.matches('/').count() > 3;
        if below("/v1/images") || (below("/v1/models") && !is_replicates()) {
            Self::OpenAi
        } else if below("/sdapi") || below("/controlnet") {
            Self::Sdapi
        } else {
            Self::Problem
        }
    }

    /// Writes the problem into a response that has its status and headers already.
    pub(crate) fn write(self, problem: &Problem, request_id: &str, response: &mut Response) {
        let (code, detail, hint) = (problem.code(), problem.detail(), problem.hint());
        match self {
            Self::Problem => *response.body_mut() = problem.body(request_id),
            Self::OpenAi => {
                let status = openai::status(problem.status().as_u16());
                *response.status_mut() = StatusCode::from_u16(status).unwrap_or(problem.status());
                let repeat = if openai::is_worth_repeating(code) { "true" } else { "false" };
                let name = HeaderName::from_static("x-should-retry");
                response.headers_mut().insert(name, HeaderValue::from_static(repeat));
                json(response, &OpenAiError::new(status, code, detail, hint));
            }
            Self::Sdapi => json(response, &SdapiError::new(code, detail, hint)),
        }
    }
}

fn json(response: &mut Response, body: &impl Serialize) {
    let body = serde_json::to_vec(body).expect("texts serialise");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = Body::from(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_the_dialect_of_its_clients() {
        for (path, dialect) in [
            ("/v1/images/generations", Dialect::OpenAi),
            ("/v1/images", Dialect::OpenAi),
            ("/v1/imagesque", Dialect::Problem),
            ("/v1/models", Dialect::OpenAi),
            ("/v1/models/org%2Fname", Dialect::OpenAi),
            ("/v1/models/org/name", Dialect::Problem),
            ("/v1/models/org/name/predictions", Dialect::Problem),
            ("/v1/predictions", Dialect::Problem),
            ("/sdapi/v1/txt2img", Dialect::Sdapi),
            ("/controlnet/version", Dialect::Sdapi),
            ("/api/v1/jobs", Dialect::Problem),
        ] {
            assert_eq!(Dialect::of(path), dialect, "{path}");
        }
    }
}
