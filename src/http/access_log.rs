//! One line and one measurement per request. Never a header, a body or a query: they may hold secrets.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request},
    http::Method,
    middleware::Next,
    response::Response,
};
use tracing::{Instrument as _, field::Empty};

use super::{request_id::RequestId, trace};

pub(crate) async fn record(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let path: String = request.uri().path().chars().take(200).collect();
    let id = request.extensions().get::<RequestId>().map(RequestId::as_str).unwrap_or_default();
    let trace = trace::id_of(request.headers());
    let span = tracing::info_span!("http", %method, path, request_id = id, trace_id = trace, token = Empty);
    let response = trace::within(trace, next.run(request)).instrument(span.clone()).await;
    let elapsed = started.elapsed();
    let status = response.status().as_u16();
    span.in_scope(|| {
        let latency_ms = elapsed.as_secs_f64() * 1e3;
        if status >= 500 {
            tracing::warn!(status, latency_ms, "answered");
        } else if matches!(method, Method::GET | Method::HEAD | Method::OPTIONS) {
            tracing::debug!(status, latency_ms, "answered");
        } else {
            tracing::info!(status, latency_ms, "answered");
        }
    });
    let method = label(&method);
    metrics::counter!("atelier_http_requests_total", "method" => method, "route" => route.clone(), "status" => status.to_string())
        .increment(1);
    metrics::histogram!("atelier_http_request_seconds", "method" => method, "route" => route)
        .record(elapsed.as_secs_f64());
    response
}

/// Anybody may make up a method; a label's values stay few.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
