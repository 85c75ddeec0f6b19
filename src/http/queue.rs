//! The queue as a whole: how much waits, what runs, how long it will take, and whether it goes on.

use std::{collections::BTreeMap, sync::Arc};

use atelier_domain::{Job, JobId, JobStatus, Timestamp};
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Http,
    extract::QueryOf,
    problem::{Problem, ProblemBody},
    schema,
};
use crate::store::JobFilter;

/// Succeeded jobs that an estimate rests on.
const SAMPLE: u32 = 20;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueueQuery {
    /// Also where this job stands.
    #[param(value_type = Option<String>)]
    job: Option<JobId>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct QueueInfo {
    /// Jobs per status, all six.
    #[schema(value_type = BTreeMap<String, u64>)]
    counts: BTreeMap<&'static str, u64>,
    /// Somebody has paused it.
    paused: bool,
    /// Why it stands still by itself, such as `disk_full`.
    blocked: Option<String>,
    #[schema(value_type = Option<schema::Job>)]
    running: Option<Job>,
    /// When the job that waits longest was submitted.
    #[schema(value_type = Option<String>, format = DateTime)]
    oldest_waiting_at: Option<Timestamp>,
    /// How many more jobs it takes.
    free_places: u64,
    /// How long a job takes, by the last that succeeded; null before the first.
    mean_job_seconds: Option<f64>,
    /// When all that waits will have run, in seconds from now.
    estimate_seconds: Option<f64>,
    /// Where the job stands that was asked for, if it waits.
    place: Option<Place>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Place {
    #[schema(value_type = String)]
    job: JobId,
    /// Jobs before it; 0: it is next.
    position: u64,
    /// Until it starts.
    estimate_seconds: Option<f64>,
}

/// Show the queue
#[utoipa::path(
    get,
    path = "/api/v1/queue",
    operation_id = "show_queue",
    tag = "queue",
    params(QueueQuery),
    responses(
        (status = 200, description = "The queue as it is now", body = QueueInfo),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn show(
    State(http): State<Arc<Http>>,
    QueryOf(query): QueryOf<QueueQuery>,
) -> Result<Json<QueueInfo>, Problem> {
    Ok(Json(http.queue_info(query.job).await?))
}

/// Pause the queue
///
/// The running job goes on; no other starts. Survives a restart.
#[utoipa::path(
    post,
    path = "/api/v1/queue/pause",
    operation_id = "pause_queue",
    tag = "queue",
    responses(
        (status = 200, description = "The queue as it is now", body = QueueInfo),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn pause(State(http): State<Arc<Http>>) -> Result<Json<QueueInfo>, Problem> {
    http.app.queue.pause().await?;
    Ok(Json(http.queue_info(None).await?))
}

/// Resume the queue
#[utoipa::path(
    post,
    path = "/api/v1/queue/resume",
    operation_id = "resume_queue",
    tag = "queue",
    responses(
        (status = 200, description = "The queue as it is now", body = QueueInfo),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn resume(State(http): State<Arc<Http>>) -> Result<Json<QueueInfo>, Problem> {
    http.app.queue.resume().await?;
    Ok(Json(http.queue_info(None).await?))
}

impl Http {
    async fn queue_info(&self, job: Option<JobId>) -> Result<QueueInfo, Problem> {
        let store = &self.app.store;
        let counts = store.counts().await?;
        let filter = |status, limit| JobFilter { status: Some(status), limit, ..JobFilter::default() };
        let running = store.list(&filter(JobStatus::Running, 1)).await?.jobs.pop().map(|job| self.live(job));
        let ended = store.list(&filter(JobStatus::Succeeded, SAMPLE)).await?.jobs;
        let mean = mean_seconds(&ended);
        let waiting = counts.get(&JobStatus::Queued).copied().unwrap_or(0);
        let gate = self.app.queue.gate();
        let place = match job {
            None => None,
            Some(job) => store.position(job).await?.map(|position| Place {
                job,
                position,
                estimate_seconds: mean.map(|mean| estimate(mean, running.as_ref(), position)),
            }),
        };
        Ok(QueueInfo {
            counts: counts.into_iter().map(|(status, n)| (status.as_str(), n)).collect(),
            paused: gate.paused,
            blocked: gate.blocked,
            oldest_waiting_at: store.oldest_queued().await?,
            free_places: self.app.queue.free_places(),
            mean_job_seconds: mean,
            estimate_seconds: mean.map(|mean| estimate(mean, running.as_ref(), waiting)),
            running,
            place,
        })
    }
}

fn mean_seconds(ended: &[Job]) -> Option<f64> {
    let times = ended.iter().filter_map(|job| Some(seconds_between(job.started_at?, job.finished_at?)));
    let (n, sum) = times.fold((0.0, 0.0), |(n, sum), seconds| (n + 1.0, sum + seconds));
    (n > 0.0).then(|| sum / n)
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a job fit a double")]
fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    (to.0 - from.0).max(0) as f64 / 1000.0
}

/// What is left of the running job, and `waiting` whole ones.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn estimate(mean: f64, running: Option<&Job>, waiting: u64) -> f64 {
    let left = running.map_or(0.0, |job| mean * (1.0 - job.progress.fraction.clamp(0.0, 1.0)));
    left + mean * waiting as f64
}

#[cfg(test)]
mod tests {
    use atelier_domain::{JobKind, Params, Progress, Source, SourceType};

    use super::*;

    fn job(started: i64, finished: i64, fraction: f64) -> Job {
        Job {
            id: JobId::from_ulid(ulid::Ulid::generate()),
            kind: JobKind::Upscale,
            model: None,
            status: JobStatus::Succeeded,
            priority: 0,
            progress: Progress { fraction, ..Progress::queued(Timestamp(0)) },
            attempt: 1,
            max_attempts: 3,
            crashes: 0,
            resumed_from_step: None,
            source: Source { r#type: SourceType::Http, name: None },
            params: Params::default(),
            inputs: vec![],
            outputs: vec![],
            result: None,
            error: None,
            created_at: Timestamp(0),
            started_at: Some(Timestamp(started)),
            finished_at: Some(Timestamp(finished)),
        }
    }

    #[test]
    fn an_estimate_is_the_rest_of_the_running_job_and_the_waiting_ones() {
        assert_eq!(mean_seconds(&[]), None);
        let mean = mean_seconds(&[job(0, 10_000, 1.0), job(5_000, 25_000, 1.0)]).expect("two jobs");
        assert!((mean - 15.0).abs() < 1e-9);
        assert!((estimate(mean, Some(&job(0, 0, 0.5)), 2) - 37.5).abs() < 1e-9);
        assert!((estimate(mean, None, 0)).abs() < 1e-9);
    }
}
