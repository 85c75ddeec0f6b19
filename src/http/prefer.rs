//! `Prefer` (RFC 7240): how long a client would wait for a job's end.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// Longer waits end early, and are told so in `Preference-Applied`.
const MAX_WAIT: Duration = Duration::from_mins(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefer {
    pub(crate) wait: Option<Duration>,
    pub(crate) respond_async: bool,
}

impl Prefer {
    /// Preferences that are not understood are passed over, as the RFC has it; the first of a kind counts.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut prefer = Self::default();
        let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        for preference in values.flat_map(|value| value.split(',')) {
            // Parameters after a semicolon are for preferences that take some.
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => prefer.respond_async = true,
                "wait" if prefer.wait.is_none() => {
                    let seconds: Option<u64> = value.trim().trim_matches('"').parse().ok();
                    prefer.wait = seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_WAIT));
                }
                _ => {}
            }
        }
        prefer
    }

    /// `Preference-Applied`, where something was.
    pub(crate) fn applied(self, answered_early: bool) -> Option<(HeaderName, HeaderValue)> {
        let value = match self.wait {
            Some(wait) => format!("wait={}", wait.as_secs()),
            None if self.respond_async && answered_early => "respond-async".to_owned(),
            None => return None,
        };
        let value = HeaderValue::from_str(&value).expect("a name and a number");
        Some((HeaderName::from_static("preference-applied"), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_and_bounded() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("prefer", HeaderValue::from_static(value));
            }
            let prefer = Prefer::of(&headers);
            (prefer.wait.map(|wait| wait.as_secs()), prefer.respond_async)
        };
        assert_eq!(of(&[]), (None, false));
        assert_eq!(of(&["wait=30"]), (Some(30), false));
        assert_eq!(of(&["respond-async, Wait = \"10\""]), (Some(10), true));
        assert_eq!(of(&["return=minimal", "wait=5; x=y", "wait=7"]), (Some(5), false));
        assert_eq!(of(&["wait=100000"]), (Some(600), false));
        assert_eq!(of(&["wait=-1", "wait=x"]), (None, false));
        assert_eq!(of(&["wait"]), (None, false));
    }
}
