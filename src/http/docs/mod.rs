//! `/docs`: the API's description for people. The viewer (RapiDoc 9.3.8, MIT, see LICENSE.txt) is part of the program:
//! nothing is fetched from anywhere.

use axum::{
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};

use super::{
    problem::{Problem, ProblemBody},
    status::HttpCode,
};

const PAGE: &str = include_str!("page.html");

/// As the package `rapidoc` of npm has it, compressed by its makers.
const VIEWER: &[u8] = include_bytes!("rapidoc-min.js.gz");

/// The viewer styles itself, and shows pictures that it carries along.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// This description, for people
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "show_docs",
    tag = "operations",
    responses(
        (status = 200, description = "A page that needs nothing from elsewhere", body = String, content_type = "text/html"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn page() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (headers, PAGE).into_response()
}

/// The program of that page
#[utoipa::path(
    get,
    path = "/docs/rapidoc-min.js",
    operation_id = "show_docs_program",
    tag = "operations",
    params(("Accept-Encoding" = Option<String>, Header, description = "Must allow `gzip`, as every browser's does")),
    responses(
        (status = 200, description = "JavaScript", body = String, content_type = "text/javascript"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn program(headers: HeaderMap) -> Result<Response, Problem> {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("*");
    if !["gzip", "*"].iter().any(|encoding| accepted.to_ascii_lowercase().contains(encoding)) {
        return Err(Problem::http(HttpCode::NotAcceptable, "this file is there as gzip only")
            .with_hint("send `Accept-Encoding: gzip`"));
    }
    let headers = [
        (header::CONTENT_TYPE, "text/javascript; charset=utf-8"),
        (header::CONTENT_ENCODING, "gzip"),
        (header::VARY, "accept-encoding"),
        (header::CACHE_CONTROL, "public, max-age=86400"),
    ];
    Ok((headers, VIEWER).into_response())
}
