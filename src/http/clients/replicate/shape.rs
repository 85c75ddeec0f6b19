//! A job, told as a prediction.

use atelier_domain::{Job, JobStatus, Timestamp};
use serde_json::{Value, json};

use super::super::{pick, reply::Pictures, word::caption};
use crate::store::JobRecord;

pub(super) const fn status(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Queued | JobStatus::Retrying => "starting",
        JobStatus::Running => "processing",
        JobStatus::Succeeded => "succeeded",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "canceled",
    }
}

/// The prediction. Outputs are told by address, or with `data` as data URIs: Replicate's packages take a file from
/// these and from `https` alone.
pub(super) fn prediction(job: &Job, base_url: &str, data: Option<(&JobRecord, &mut Pictures)>) -> Value {
    let model = job.model.as_deref().unwrap_or(job.kind.as_str());
    let (owner, name) = pick::owner_and_name(model);
    let url = format!("{base_url}/v1/predictions/{}", job.id);
    json!({
        "id": job.id,
        "model": format!("{owner}/{name}"),
        "version": pick::version(model),
        "status": status(job.status),
        "input": job.params,
        "output": output(job, base_url, data),
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

fn output(job: &Job, base_url: &str, data: Option<(&JobRecord, &mut Pictures)>) -> Value {
    if job.status != JobStatus::Succeeded {
        return Value::Null;
    }
    if let Some(result) = &job.result
        && job.outputs.is_empty()
    {
        return caption(result).map_or_else(|| result.clone(), Value::String);
    }
    let Some((record, pictures)) = data else {
        return job.outputs.iter().map(|output| format!("{base_url}{}", output.url)).collect();
    };
    let marks = pictures.outputs(record);
    job.outputs.iter().zip(marks).map(|(output, mark)| format!("data:{};base64,{mark}", output.media_type)).collect()
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
