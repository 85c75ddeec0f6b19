//! What a client wants to be told of its job without asking.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ErrorCode, ErrorInfo, JobStatus};

/// Longer addresses are a mistake or an attack.
const MAX_URL: usize = 2048;

/// Where to send, and what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// As it was given; whether it may be called is not decided here.
    pub url: String,
    /// The statuses that are told, each when a job comes to it. Never empty.
    pub events: Vec<JobStatus>,
    /// What is told is not the job but a prediction, as clients of Replicate read it, of the server at this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction_at: Option<String>,
}

impl Webhook {
    /// Reads a URL, or `{"url":…, "events":["job.succeeded", …]}`; without `events` the end of the job is told.
    /// `null` is none.
    ///
    /// # Errors
    /// Another type, another name, an event that does not exist, or a URL that is too long.
    pub fn from_value(value: Value) -> Result<Option<Self>, ErrorInfo> {
        let (url, events) = match value {
            Value::Null => return Ok(None),
            Value::String(url) => (url, None),
            Value::Object(mut map) => {
                let events = map.remove("events");
                let url = map.remove("url");
                if let Some(name) = map.keys().next() {
                    return Err(invalid(format!("{name:?} is not known in webhook"), "it takes url and events"));
                }
                match url {
                    Some(Value::String(url)) => (url, events),
                    Some(_) | None => return Err(invalid("webhook.url is missing or no text".into(), HINT)),
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                return Err(invalid("webhook is neither a URL nor an object".into(), HINT));
            }
        };
        if url.len() > MAX_URL {
            return Err(invalid(format!("webhook.url has more than {MAX_URL} bytes"), HINT));
        }
        Ok(Some(Self { url, events: events_of(events)?, prediction_at: None }))
    }

    /// The name on the wire of a job's coming to `status`.
    pub fn event_name(status: JobStatus) -> String {
        format!("job.{status}")
    }
}

const HINT: &str = "for example \"https://example.org/hook\"";

fn invalid(message: String, hint: &str) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::InvalidRequest, message).with_hint(hint)
}

fn events_of(value: Option<Value>) -> Result<Vec<JobStatus>, ErrorInfo> {
    let names = || JobStatus::ALL.map(Webhook::event_name).join(", ");
    let wrong = |what: String| invalid(what, &format!("a list of some of {}", names()));
    match value {
        None | Some(Value::Null) => Ok(JobStatus::ALL.into_iter().filter(|status| status.is_ended()).collect()),
        Some(Value::Array(list)) if !list.is_empty() => {
            let mut events = Vec::new();
            for item in list {
                let name = item.as_str().unwrap_or_default();
                let status = name.strip_prefix("job.").and_then(JobStatus::parse);
                let status = status.ok_or_else(|| wrong(format!("webhook.events: {item} does not exist")))?;
                if !events.contains(&status) {
                    events.push(status);
                }
            }
            Ok(events)
        }
        Some(_) => Err(wrong("webhook.events is no list of names".into())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_url_alone_asks_for_the_end() {
        let webhook = Webhook::from_value(json!("https://example.org/x")).expect("reads").expect("some");
        assert_eq!(webhook.url, "https://example.org/x");
        assert_eq!(webhook.events, [JobStatus::Succeeded, JobStatus::Failed, JobStatus::Cancelled]);
        assert_eq!(Webhook::from_value(json!({"url": "https://example.org/x"})), Ok(Some(webhook)));
        assert_eq!(Webhook::from_value(Value::Null), Ok(None));
    }

    #[test]
    fn events_are_chosen_by_name() {
        let of = |events: Value| Webhook::from_value(json!({"url": "u", "events": events}));
        let chosen = of(json!(["job.running", "job.failed", "job.running"])).expect("reads").expect("some");
        assert_eq!(chosen.events, [JobStatus::Running, JobStatus::Failed]);
        for wrong in [json!([]), json!(["running"]), json!(["job.done"]), json!("job.failed"), json!([1])] {
            let error = of(wrong.clone()).expect_err("refused");
            assert!(error.hint.contains("job.succeeded"), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_is_no_webhook_is_refused() {
        for wrong in [json!(1), json!([]), json!({}), json!({"url": 1}), json!({"url": "u", "secret": "s"})] {
            assert_eq!(
                Webhook::from_value(wrong.clone()).expect_err("refused").code,
                ErrorCode::InvalidRequest,
                "{wrong}"
            );
        }
        assert!(Webhook::from_value(json!("x".repeat(3000))).is_err());
    }
}
