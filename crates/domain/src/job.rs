//! A job as everybody sees it: the HTTP API, the command line, events and error files.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ErrorInfo, JobId, JobKind, JobStatus, Params, Timestamp};

/// One job. Its JSON is the contract: field names and order stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub kind: JobKind,
    /// `None` until it is decided, where the choice depends on the picture.
    pub model: Option<String>,
    pub status: JobStatus,
    /// −100 to 100; higher runs first. Waiting raises a job, so that nothing waits for ever.
    pub priority: i32,
    pub progress: Progress,
    /// How often it was started, without soft stops; 0 before the first start.
    pub attempt: u32,
    pub max_attempts: u32,
    /// How often it took the worker down.
    pub crashes: u32,
    pub resumed_from_step: Option<u32>,
    pub source: Source,
    pub params: Params,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    /// What is no file, such as a caption's text.
    pub result: Option<Value>,
    pub error: Option<ErrorInfo>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl Job {
    /// The text that a caption says.
    pub fn caption(&self) -> Option<String> {
        let result = self.result.as_ref()?;
        let text = ["text", "caption"].iter().find_map(|name| result.get(name)).unwrap_or(result);
        text.as_str().map(str::to_owned)
    }
}

/// How far a job has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// `queued`, then what the worker says: `load`, `run`, `save`, …, at last `done`.
    pub phase: String,
    pub step: u32,
    pub steps: u32,
    /// 0 to 1 over the whole job.
    pub fraction: f64,
    /// The text so far, of a job that writes one. Only while it runs, and only in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    pub updated_at: Timestamp,
}

impl Progress {
    pub fn queued(at: Timestamp) -> Self {
        Self { phase: "queued".into(), step: 0, steps: 0, fraction: 0.0, text: None, updated_at: at }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceType {
    Http,
    Inbox,
}

impl SourceType {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Inbox => "inbox",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Http, Self::Inbox].into_iter().find(|t| t.as_str() == name)
    }
}

/// Where a job came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub r#type: SourceType,
    /// The path below the inbox (bytes that are no UTF-8 shown as U+FFFD), or the name given over HTTP.
    pub name: Option<String>,
}

/// A file that a job reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub name: String,
    pub media_type: String,
    pub bytes: u64,
    pub width: u32,
    pub height: u32,
    pub sha256: String,
}

/// A file that a job has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    pub index: u32,
    pub name: String,
    pub media_type: String,
    pub bytes: u64,
    /// Pixels; 0 for a text.
    pub width: u32,
    pub height: u32,
    pub sha256: String,
    pub url: String,
}

impl Output {
    pub fn url_of(job: JobId, index: u32) -> String {
        format!("/api/v1/jobs/{job}/outputs/{index}")
    }
}
