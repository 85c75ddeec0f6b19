//! The trace that a request belongs to: W3C's header `traceparent`, of which the log keeps the trace's id.
//!
//! A job keeps the id too, so that its lines in the log are found by it, also after a restart. Nothing is sent to any
//! collector: whoever gathers the log has what links it to the client's own trace.

use axum::http::HeaderMap;

tokio::task_local! {
    static TRACE: Option<String>;
}

/// The 32 hexadecimal digits of the trace that the request names; a header that does not follow the grammar is as good
/// as none.
pub(crate) fn id_of(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let mut parts = value.to_str().ok()?.trim().split('-');
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_zero = |part: &str| part.bytes().all(|b| b == b'0');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_whole = is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    // A later version may say more; this one does not.
    let is_known = version != "ff" && (version != "00" || parts.next().is_none());
    (is_whole && is_known && !is_zero(trace) && !is_zero(parent)).then(|| trace.to_owned())
}

/// Runs `inner` as a part of the trace.
pub(crate) async fn within<F: Future>(trace: Option<String>, inner: F) -> F::Output {
    TRACE.scope(trace, inner).await
}

/// The trace of the request that is being answered.
pub(crate) fn current() -> Option<String> {
    TRACE.try_with(Clone::clone).ok().flatten()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_a_header_that_follows_the_grammar_counts() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_static(value));
            id_of(&headers)
        };
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").as_deref(), Some(trace));
        assert_eq!(of("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").as_deref(), Some(trace));
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47\"\"-00f067aa0ba902b7-01",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_trace_is_known_inside_and_nowhere_else() {
        assert_eq!(within(Some("a".into()), async { current() }).await.as_deref(), Some("a"));
        assert_eq!(current(), None);
    }
}
