//! `Idempotency-Key`: the same request twice is one job.

use atelier_domain::{ErrorCode, Input, JobSpec, Webhook};
use axum::http::HeaderMap;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::problem::Problem;
use crate::admission;

/// The request's key, where it has one.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let is_key = (1..=255).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    match value.to_str() {
        Ok(key) if is_key && values.next().is_none() => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => Err(Problem::new(
            ErrorCode::InvalidRequest,
            "Idempotency-Key is given once and has 1 to 255 visible ASCII characters, without spaces",
        )),
    }
}

/// What makes two requests the same: what was asked for, before anything was decided (a drawn seed differs), and the
/// pictures' contents.
pub(crate) fn fingerprint(spec: &JobSpec, images: &[Input], mask: Option<&Input>, webhook: Option<&Webhook>) -> String {
    let mut request = json!({
        "kind": spec.kind,
        "model": spec.model,
        "preset": spec.preset,
        "priority": spec.priority,
        "name": spec.name,
        "params": spec.params,
        "images": images.iter().map(|image| &image.sha256).collect::<Vec<_>>(),
        "mask": mask.map(|mask| &mask.sha256),
    });
    if let Some(webhook) = webhook {
        request["webhook"] = json!(webhook);
    }
    admission::hex(&Sha256::digest(request.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_key_is_one_visible_word() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.append("idempotency-key", HeaderValue::from_bytes(value.as_bytes()).expect("value"));
            key(&headers)
        };
        assert_eq!(key(&HeaderMap::new()).expect("none"), None);
        assert_eq!(of("order-17/α").map_err(|p| p.code()), Err("invalid_request"));
        assert_eq!(of("order-17/a").expect("a key").as_deref(), Some("order-17/a"));
        for bad in ["", "two words", "a\tb"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
        let mut twice = HeaderMap::new();
        twice.append("idempotency-key", HeaderValue::from_static("a"));
        twice.append("idempotency-key", HeaderValue::from_static("b"));
        assert!(key(&twice).is_err());
        let mut long = HeaderMap::new();
        long.append("idempotency-key", HeaderValue::from_str(&"x".repeat(256)).expect("value"));
        assert!(key(&long).is_err());
    }

    #[test]
    fn a_fingerprint_tells_requests_apart_by_everything_that_matters() {
        let spec = |json: &str| JobSpec::from_value(serde_json::from_str(json).expect("json")).expect("spec");
        let input = |sha256: &str| Input {
            name: "a".into(),
            media_type: "image/png".into(),
            bytes: 1,
            width: 1,
            height: 1,
            sha256: sha256.into(),
        };
        let base = fingerprint(&spec(r#"{"kind":"upscale","scale":2}"#), &[input("x")], None, None);
        assert_eq!(base, fingerprint(&spec(r#"{"params":{"scale":2},"kind":"upscale"}"#), &[input("x")], None, None));
        let others = [
            fingerprint(&spec(r#"{"kind":"upscale","scale":4}"#), &[input("x")], None, None),
            fingerprint(&spec(r#"{"kind":"upscale","scale":2}"#), &[input("y")], None, None),
            fingerprint(&spec(r#"{"kind":"upscale","scale":2}"#), &[input("x"), input("x")], None, None),
            fingerprint(&spec(r#"{"kind":"upscale","scale":2}"#), &[], Some(&input("x")), None),
            fingerprint(&spec(r#"{"kind":"upscale","scale":2,"priority":1}"#), &[input("x")], None, None),
        ];
        assert!(!others.contains(&base));
    }
}
