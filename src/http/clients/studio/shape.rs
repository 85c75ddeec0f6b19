//! A job, told as the old services told theirs.

use atelier_domain::{Job, JobStatus};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::super::reply::Pictures;
use crate::store::JobRecord;

/// A job, as the editor shows it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct StudioJob {
    /// As in `/api/v1/jobs/{id}`.
    pub(super) job_id: String,
    /// `queued`, `processing`, `completed`, `failed` or `cancelled`.
    pub(super) status: &'static str,
    /// Percent.
    #[schema(minimum = 0, maximum = 100)]
    pub(super) progress: u32,
    /// In words.
    pub(super) message: String,
    pub(super) current_step: u32,
    pub(super) total_steps: u32,
    pub(super) prompt: Option<String>,
    pub(super) error: Option<String>,
    pub(super) created_at: String,
    pub(super) started_at: Option<String>,
    pub(super) completed_at: Option<String>,
    /// Once it is completed.
    pub(super) download_url: Option<String>,
    /// The outputs' names, for `/api/download/{file}`.
    pub(super) files: Vec<String>,
    /// A caption's text.
    pub(super) caption: Option<String>,
}

pub(super) const fn status(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Queued | JobStatus::Retrying => "queued",
        JobStatus::Running => "processing",
        JobStatus::Succeeded => "completed",
        JobStatus::Failed => "failed",
        JobStatus::Cancelled => "cancelled",
    }
}

/// Whole percent; 100 only at the end.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
pub(super) fn percent(status: JobStatus, fraction: f64) -> u32 {
    if status == JobStatus::Succeeded {
        return 100;
    }
    ((fraction.clamp(0.0, 1.0) * 100.0) as u32).min(99)
}

fn message(job: &Job) -> String {
    match job.status {
        JobStatus::Queued => "waiting".into(),
        JobStatus::Retrying => "waiting for another try".into(),
        JobStatus::Running if job.progress.steps > 0 => {
            format!("{}: step {} of {}", job.progress.phase, job.progress.step, job.progress.steps)
        }
        JobStatus::Running => job.progress.phase.clone(),
        JobStatus::Succeeded => "done".into(),
        JobStatus::Failed => job.error.as_ref().map_or_else(|| "failed".into(), |error| error.message.clone()),
        JobStatus::Cancelled => "called off".into(),
    }
}

impl StudioJob {
    pub(super) fn of(job: &Job) -> Self {
        let done = job.status == JobStatus::Succeeded && !job.outputs.is_empty();
        Self {
            job_id: job.id.to_string(),
            status: status(job.status),
            progress: percent(job.status, job.progress.fraction),
            message: message(job),
            current_step: job.progress.step,
            total_steps: job.progress.steps,
            prompt: job.params.prompt.clone(),
            error: job.error.as_ref().map(|error| match error.hint.as_str() {
                "" => error.message.clone(),
                hint => format!("{} ({hint})", error.message),
            }),
            created_at: job.created_at.to_string(),
            started_at: job.started_at.map(|at| at.to_string()),
            completed_at: job.finished_at.map(|at| at.to_string()),
            download_url: done.then(|| format!("/api/jobs/{}/download", job.id)),
            files: job.outputs.iter().map(|output| output.name.clone()).collect(),
            caption: job.caption(),
        }
    }
}

/// The finished result, as the service with a route per model gave it.
pub(super) fn result(record: &JobRecord, name: &str, pictures: &mut Pictures) -> Value {
    let job = &record.job;
    let is_video = |media_type: &str| media_type.starts_with("video/");
    let urls: Vec<_> = job.outputs.iter().map(|output| format!("/api/download/{}", output.name)).collect();
    let mut answer = json!({
        "success": true,
        "status": "completed",
        "job_id": job.id,
        "model": name,
        "model_id": job.model,
        "prompt": job.params.prompt,
        "seed": job.params.seed,
        "files": job.outputs.iter().map(|output| &output.name).collect::<Vec<_>>(),
        "download_urls": urls,
        "generation_time": seconds(job),
    });
    if let Some(output) = job.outputs.first() {
        answer["width"] = output.width.into();
        answer["height"] = output.height.into();
        answer["media_type"] = output.media_type.clone().into();
        answer["download_url"] = urls[0].clone().into();
        if is_video(&output.media_type) {
            answer["video_url"] = urls[0].clone().into();
        } else {
            answer["images"] = pictures.outputs(record).into();
            // Once more by the name for one picture, where there is one.
            if job.outputs.len() == 1 {
                answer["image"] = pictures.output(record, 0).into();
            }
        }
    }
    if let Some(caption) = job.caption() {
        answer["caption"] = caption.into();
    } else if let Some(result) = &job.result {
        answer["result"] = result.clone();
    }
    answer
}

/// How long a job ran.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of a job fit a double")]
pub(super) fn seconds(job: &Job) -> Option<f64> {
    Some((job.finished_at?.0 - job.started_at?.0).max(0) as f64 / 1000.0)
}
