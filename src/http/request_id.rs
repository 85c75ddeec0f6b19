//! Every request has an id: the client's own where it is sane, else a new one. It is in the answer, in the log and
//! in every problem.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use ulid::Ulid;

use super::{clients::dialect::Dialect, problem::Problem};

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The request's id, in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    fn of(request: &Request) -> Self {
        Self(
            request.headers().get(X_REQUEST_ID).filter(|value| is_sane(value)).cloned().unwrap_or_else(|| {
                HeaderValue::from_str(&Ulid::generate().to_string()).expect("a ULID is visible ASCII")
            }),
        )
    }
}

/// Log lines and other programs take it as it is, so nothing that could be markup, a quote or a line break.
fn is_sane(value: &HeaderValue) -> bool {
    (1..=128).contains(&value.len())
        && value.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(b))
}

/// The outermost layer.
pub(crate) async fn attach(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(&request);
    let dialect = Dialect::of(request.uri().path());
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response.headers_mut().remove(axum::http::header::CONTENT_LENGTH);
        dialect.write(&problem, id.as_str(), &mut response);
    }
    response.headers_mut().insert(X_REQUEST_ID, id.0);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sane_id_of_the_client_is_taken() {
        let id_for = |value: &str| {
            let request = Request::builder().header("x-request-id", value).body(axum::body::Body::empty());
            RequestId::of(&request.expect("request")).as_str().to_owned()
        };
        assert_eq!(id_for("abc-123:4/5"), "abc-123:4/5");
        for bad in ["", "a b", "<script>", "\"", "a\tb", &"x".repeat(129)] {
            assert_ne!(id_for(bad), bad);
            assert_eq!(id_for(bad).len(), 26);
        }
    }
}
