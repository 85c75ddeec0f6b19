//! The page at `/dashboard`: a client of the API like any other, without anything from elsewhere.
//!
//! Its files hold no data and need no token; what they show is asked from the API, with the token that the page asks
//! for.

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};

use super::problem::ProblemBody;

/// Its own files and the server's answers, nothing else.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The files that need no token.
pub(crate) const PATHS: [&str; 3] = ["/dashboard", "/dashboard/app.js", "/dashboard/style.css"];

fn file(media_type: &'static str, body: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 2] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(media_type)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY)),
    ];
    (headers, body).into_response()
}

/// Whether a browser wants a page rather than JSON.
pub(crate) fn wants_page(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|range| range.trim().split(';').next().is_some_and(|range| range.trim() == "text/html"))
}

/// The page, for `/` too.
pub(crate) fn page() -> Response {
    file("text/html; charset=utf-8", include_str!("index.html"))
}

/// Show the dashboard
#[utoipa::path(
    get,
    path = "/dashboard",
    operation_id = "show_dashboard",
    tag = "operations",
    responses(
        (status = 200, description = "A page", body = String, content_type = "text/html"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn show() -> Response {
    page()
}

/// The dashboard's script
#[utoipa::path(
    get,
    path = "/dashboard/app.js",
    operation_id = "dashboard_script",
    tag = "operations",
    responses(
        (status = 200, description = "JavaScript", body = String, content_type = "text/javascript"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("app.js"))
}

/// The dashboard's looks
#[utoipa::path(
    get,
    path = "/dashboard/style.css",
    operation_id = "dashboard_style",
    tag = "operations",
    responses(
        (status = 200, description = "CSS", body = String, content_type = "text/css"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("style.css"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_gets_the_page_and_a_program_json() {
        let asks = |accept: &'static str| {
            wants_page(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
        };
        assert!(asks("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(asks("application/json, text/html;q=0.1"));
        assert!(!asks("*/*") && !asks("application/json") && !wants_page(&HeaderMap::new()));
    }

    #[test]
    fn the_page_names_only_files_that_are_served() {
        let page = include_str!("index.html");
        for path in &PATHS[1..] {
            assert!(page.contains(path), "{path}");
        }
        // The policy forbids them: they would silently not work.
        assert!(!page.contains("style=") && !page.contains("onclick") && !page.contains("http://"));
    }
}
