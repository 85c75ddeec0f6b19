//! A job, told as a prediction: the words of Replicate's API, in its answers and in its webhooks.

use atelier_domain::{Job, JobStatus, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::admission;

/// The owner that models without one are given, where an API cannot name a model without.
pub const OWNER: &str = "atelier";

/// Owner and name, for APIs whose models have both.
pub fn owner_and_name(id: &str) -> (&str, &str) {
    id.split_once('/').unwrap_or((OWNER, id))
}

/// What a model's version is called, for APIs that name models by it: 64 hexadecimal digits, made of the id alone.
pub fn version(id: &str) -> String {
    admission::hex(&Sha256::digest(id))
}

const fn status(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Queued | JobStatus::Retrying => "starting",
        JobStatus::Running => "processing",
        JobStatus::Succeeded => "succeeded",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "canceled",
    }
}

/// Where the outputs of a job are, below the server that is found at `base_url`.
pub fn addresses(job: &Job, base_url: &str) -> Vec<String> {
    job.outputs.iter().map(|output| format!("{base_url}{}", output.url)).collect()
}

/// The prediction. `outputs` say where the outputs are, or what is in them.
pub fn prediction(job: &Job, base_url: &str, outputs: Vec<String>) -> Value {
    let model = job.model.as_deref().unwrap_or(job.kind.as_str());
    let (owner, name) = owner_and_name(model);
    let url = format!("{base_url}/v1/predictions/{}", job.id);
    json!({
        "id": job.id,
        "model": format!("{owner}/{name}"),
        "version": version(model),
        "status": status(job.status),
        "input": job.params,
        "output": output(job, outputs),
        "error": job.error.as_ref().map(|error| match error.hint.as_str() {
            "" => error.message.clone(),
            hint => format!("{} ({hint})", error.message),
        }),
        "logs": logs(job),
        "metrics": metrics(job),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "completed_at": job.finished_at,
        "data_removed": false,
        "source": "api",
        "urls": {"get": url, "cancel": format!("{url}/cancel"), "web": format!("{base_url}/api/v1/jobs/{}", job.id)},
    })
}

fn output(job: &Job, outputs: Vec<String>) -> Value {
    match &job.result {
        _ if job.status != JobStatus::Succeeded => Value::Null,
        Some(result) if job.outputs.is_empty() => job.caption().map_or_else(|| result.clone(), Value::String),
        Some(_) | None => outputs.into(),
    }
}

/// The line that Replicate's packages read a progress from.
fn logs(job: &Job) -> String {
    let progress = &job.progress;
    if progress.steps == 0 {
        return String::new();
    }
    let percent = progress.step * 100 / progress.steps;
    let bar = "#".repeat((percent / 10) as usize);
    format!("{percent:>3}%|{bar:<10}| {}/{}", progress.step, progress.steps)
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a job fit a double")]
fn metrics(job: &Job) -> Value {
    let seconds = |from: Timestamp, to: Timestamp| (to.0 - from.0).max(0) as f64 / 1000.0;
    match (job.started_at, job.finished_at) {
        (Some(started), Some(finished)) => {
            json!({"predict_time": seconds(started, finished), "total_time": seconds(job.created_at, finished)})
        }
        (None | Some(_), None | Some(_)) => json!({}),
    }
}
