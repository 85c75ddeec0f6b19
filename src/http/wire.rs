//! Events as they are written, the same for server-sent events and the WebSocket.

use atelier_domain::{Job, JobId, Progress};
use axum::response::sse::Event;
use serde::Serialize;

use crate::store::{JobMessage, Message};

/// What a progress event says.
#[derive(Serialize)]
struct ProgressData<'a> {
    id: JobId,
    progress: &'a Progress,
}

#[derive(Serialize)]
struct RemovedData {
    id: JobId,
}

#[derive(Serialize)]
struct Frame<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a Job>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<&'a Progress>,
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("jobs are plain data with text keys")
}

pub(crate) fn sse(message: &Message) -> Event {
    let event = match message.seq {
        Some(seq) => Event::default().id(seq.to_string()),
        None => Event::default(),
    };
    let event = event.event(message.event.name());
    match &message.event {
        JobMessage::Updated(job) => event.data(json(job)),
        JobMessage::Progress { id, progress } => event.data(json(&ProgressData { id: *id, progress })),
        JobMessage::Removed(id) => event.data(json(&RemovedData { id: *id })),
    }
}

/// `{"type":"job.updated","seq":7,"job":{…}}`, `{"type":"job.progress","id":…,"progress":{…}}`,
/// `{"type":"job.removed","seq":8,"id":…}`.
pub(crate) fn websocket(message: &Message) -> String {
    let frame = Frame { r#type: message.event.name(), seq: message.seq, job: None, id: None, progress: None };
    json(&match &message.event {
        JobMessage::Updated(job) => Frame { job: Some(job), ..frame },
        JobMessage::Progress { id, progress } => Frame { id: Some(*id), progress: Some(progress), ..frame },
        JobMessage::Removed(id) => Frame { id: Some(*id), ..frame },
    })
}
