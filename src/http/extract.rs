//! What handlers take out of a request; whatever does not fit is a problem, never a bare text.

use atelier_domain::{ErrorCode, JobId};
use axum::{
    extract::{FromRequestParts, Path, Query},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// The `{id}` of a path.
pub(crate) struct JobPath(pub(crate) JobId);

impl<S: Send + Sync> FromRequestParts<S> for JobPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(Path(id)) = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await else {
            return Err(Problem::not_found("this job"));
        };
        // What is no id names no job.
        id.parse().map(Self).map_err(|error| Problem::new(ErrorCode::NotFound, format!("{error}")))
    }
}

/// The query, with every name and value understood.
pub(crate) struct QueryOf<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(query)| Self(query))
            .map_err(|error| Problem::new(ErrorCode::InvalidRequest, format!("the query: {}", error.body_text())))
    }
}
