//! Every change of a job, each a compare-and-set on its status in one transaction with its delivery and its event.
//!
//! Which changes are possible is said once, by `JobStatus::after`; the conditions in the statements are made of it.

use std::path::PathBuf;

use atelier_domain::{
    ErrorCode, ErrorInfo, Job, JobEvent, JobId, JobStatus, Output, Progress, SourceType, Timestamp, protocol::WirePath,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{
    AssertSqlSafe,
    query::Query,
    sqlite::{Sqlite, SqliteArguments},
};

use super::{
    JobMessage, JobRecord, StartedJob, Store, StoreError, delivery, insert,
    insert::{Insert, Inserted},
    rows,
    rows::{path_json, to_json},
    webhooks,
    writer::WriteTx,
};

/// What a succeeded job leaves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Published {
    pub model: String,
    pub outputs: Vec<Output>,
    /// Absolute.
    pub output_paths: Vec<WirePath>,
    pub result: Option<Value>,
    pub manifest: Value,
    pub resumed_from_step: Option<u32>,
}

#[derive(Clone, Debug)]
pub enum CancelOutcome {
    Cancelled(Box<Job>),
    /// It runs; the worker is to be told.
    Requested(Box<Job>),
}

/// Why a change did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    /// Its status does not allow it.
    Status(JobStatus),
    /// Another live or succeeded job does the same.
    Duplicate(JobId),
}

/// `('queued', 'running')`: the statuses from which `event` is possible.
fn sources(event: JobEvent) -> String {
    let names: Vec<_> = JobStatus::sources(event).map(|status| format!("'{status}'")).collect();
    format!("({})", names.join(", "))
}

type Bind<'q> = Query<'q, Sqlite, SqliteArguments>;

/// Applies `event` with further assignments; `None` where the status forbids it.
async fn change<'q>(
    tx: &mut WriteTx,
    id: JobId,
    event: JobEvent,
    assignments: &str,
    bind: impl FnOnce(Bind<'q>) -> Bind<'q>,
) -> Result<Option<JobRecord>, StoreError> {
    let to = JobStatus::sources(event).find_map(|status| status.after(event)).expect("every event leads somewhere");
    let sql = format!(
        "UPDATE image_jobs SET status = '{to}'{assignments} WHERE id = ?1 AND status IN {} RETURNING *",
        sources(event)
    );
    let query = bind(sqlx::query(AssertSqlSafe(sql)).bind(id.to_string()));
    let row = query.fetch_optional(tx.conn()).await?;
    let Some(row) = row else { return Ok(None) };
    let record = rows::record(&row)?;
    tx.record(JobMessage::Updated(Box::new(record.job.clone()))).await?;
    webhooks::push(tx, record.webhook.as_ref(), &record.job).await?;
    Ok(Some(record))
}

async fn status_of(tx: &mut WriteTx, id: JobId) -> Result<Option<JobStatus>, StoreError> {
    let name: Option<String> = sqlx::query_scalar("SELECT status FROM image_jobs WHERE id = ?1")
        .bind(id.to_string())
        .fetch_optional(tx.conn())
        .await?;
    Ok(name.as_deref().and_then(JobStatus::parse))
}

async fn refusal(tx: &mut WriteTx, id: JobId) -> Result<Refusal, StoreError> {
    Ok(status_of(tx, id).await?.map_or(Refusal::NotFound, Refusal::Status))
}

pub(super) async fn insert(tx: &mut WriteTx, new: Insert) -> Result<Inserted, StoreError> {
    if let Some((key, fingerprint)) = &new.idempotency {
        let before: Option<(String, String)> =
            sqlx::query_as("SELECT fingerprint, job_id FROM idempotency_keys WHERE key = ?1")
                .bind(key)
                .fetch_optional(tx.conn())
                .await?;
        if let Some((before, id)) = before {
            return Ok(if before == *fingerprint {
                Inserted::Replayed(Box::new(job_by(tx, "SELECT * FROM image_jobs WHERE id = ?1", &id).await?))
            } else {
                Inserted::IdempotencyMismatch
            });
        }
    }
    let job = &new.job;
    let seq = insert::rows(tx, std::slice::from_ref(&new)).await?[0];
    let Some(seq) = seq else {
        if let Some(key) = &new.dedupe_key {
            let row = sqlx::query(
                "SELECT * FROM image_jobs WHERE dedupe_key = ?1 AND id <> ?2
                 AND status IN ('queued', 'running', 'retrying', 'succeeded')",
            )
            .bind(key)
            .bind(job.id.to_string())
            .fetch_optional(tx.conn())
            .await?;
            if let Some(row) = row {
                // A claim stays until its file has been put away: after a crash it tells where the file was dropped.
                return Ok(Inserted::Duplicate(Box::new(rows::job(&row)?)));
            }
        }
        // The same id again: a step that was done before a crash and is done once more.
        let row = sqlx::query("SELECT * FROM image_jobs WHERE id = ?1")
            .bind(job.id.to_string())
            .fetch_optional(tx.conn())
            .await?;
        return match row {
            Some(row) => {
                delivery::end_claim(tx.conn(), job.id).await?;
                Ok(Inserted::New(Box::new(rows::job(&row)?)))
            }
            None => Ok(Inserted::QueueFull),
        };
    };
    if job.source.r#type == SourceType::Inbox {
        delivery::end_claim(tx.conn(), job.id).await?;
    }
    if let Some((key, fingerprint)) = new.idempotency {
        sqlx::query("INSERT INTO idempotency_keys (key, fingerprint, job_id, created_at) VALUES (?1, ?2, ?3, ?4)")
            .bind(key)
            .bind(fingerprint)
            .bind(job.id.to_string())
            .bind(job.created_at.0)
            .execute(tx.conn())
            .await?;
    }
    tx.recorded(seq, JobMessage::Updated(Box::new(new.job.clone())));
    webhooks::push(tx, new.webhook.as_ref(), &new.job).await?;
    Ok(Inserted::New(Box::new(new.job)))
}

async fn job_by(tx: &mut WriteTx, sql: &'static str, value: &str) -> Result<Job, StoreError> {
    let row = sqlx::query(sql).bind(value).fetch_one(tx.conn()).await?;
    rows::job(&row)
}

impl Store {
    /// Adds a job and its delivery, or says why not.
    pub async fn insert(&self, new: Insert) -> Result<Inserted, StoreError> {
        if new.is_plain() {
            self.writer.insert(new).await
        } else {
            self.writer.write(move |tx| Box::pin(insert(tx, new))).await
        }
    }

    /// The delivery has come to the worker: `None` where there is nothing to do any more.
    pub async fn start(&self, id: JobId) -> Result<Option<StartedJob>, StoreError> {
        self.writer
            .write_lazily(move |tx| {
                Box::pin(async move {
                    change(tx, id, JobEvent::RetryDue, ", run_at = NULL, progress_phase = 'queued'", |q| q).await?;
                    let started = change(
                        tx,
                        id,
                        JobEvent::Start,
                        ", attempt = attempt + 1, started_at = coalesce(started_at, ?2), progress_phase = 'starting',
                         progress_at = ?2",
                        |q| q.bind(Timestamp::now().0),
                    )
                    .await?;
                    match started {
                        Some(record) => Ok(Some(StartedJob { record })),
                        None => {
                            delivery::remove(tx.conn(), id).await?;
                            Ok(None)
                        }
                    }
                })
            })
            .await
    }

    /// How far a running job has come, with the model once it is chosen.
    pub async fn progress(
        &self,
        id: JobId,
        progress: Progress,
        chosen: Option<(String, Option<u32>)>,
    ) -> Result<(), StoreError> {
        let (model, resumed) = chosen.map_or((None, None), |(model, resumed)| (Some(model), resumed));
        self.writer
            .write_lazily(move |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE image_jobs SET progress_phase = ?2, progress_step = ?3, progress_steps = ?4,
                            progress_fraction = min(max(?5, 0.0), 1.0), progress_at = ?6, model = coalesce(?7, model),
                            resumed_from_step = coalesce(?8, resumed_from_step)
                         WHERE id = ?1 AND status = 'running'",
                    )
                    .bind(id.to_string())
                    .bind(progress.phase)
                    .bind(progress.step)
                    .bind(progress.steps)
                    .bind(progress.fraction)
                    .bind(progress.updated_at.0)
                    .bind(model)
                    .bind(resumed)
                    .execute(tx.conn())
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    /// A back-off has ended.
    pub async fn retry_due(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.writer
            .write_lazily(move |tx| {
                Box::pin(async move {
                    change(tx, id, JobEvent::RetryDue, ", run_at = NULL, progress_phase = 'queued'", |q| q).await
                })
            })
            .await
    }

    /// The outputs are in the outbox: the job has succeeded.
    pub async fn succeed(&self, id: JobId, published: Published) -> Result<Option<JobRecord>, StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let record = change(
                        tx,
                        id,
                        JobEvent::Succeed,
                        ", model = ?2, outputs = ?3, output_paths = ?4, result = ?5, manifest = ?6, error = NULL,
                         resumed_from_step = coalesce(?8, resumed_from_step), finished_at = ?7, hooks_due = (source_type = 'inbox'), progress_phase = 'done', progress_step = progress_steps,
                         progress_fraction = 1.0, progress_at = ?7",
                        |q| {
                            q.bind(published.model)
                                .bind(to_json(&published.outputs))
                                .bind(to_json(&published.output_paths))
                                .bind(published.result.as_ref().map(to_json))
                                .bind(to_json(&published.manifest))
                                .bind(Timestamp::now().0)
                                .bind(published.resumed_from_step)
                        },
                    )
                    .await?;
                    delivery::remove(tx.conn(), id).await?;
                    Ok(record)
                })
            })
            .await
    }

    /// The job has failed for good.
    pub async fn fail(&self, id: JobId, error: ErrorInfo) -> Result<Option<JobRecord>, StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let record = fail(tx, id, &error, "").await?;
                    Ok(record)
                })
            })
            .await
    }

    /// The job has failed and is tried again at `run_at`.
    pub async fn retry_later(
        &self,
        id: JobId,
        error: ErrorInfo,
        run_at: Timestamp,
    ) -> Result<Option<JobRecord>, StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let record = change(
                        tx,
                        id,
                        JobEvent::Retry,
                        ", error = ?2, run_at = ?3, first_failed_at = coalesce(first_failed_at, ?4),
                         last_failed_at = ?4, progress_phase = 'retrying', progress_at = ?4",
                        |q| q.bind(to_json(&error)).bind(run_at.0).bind(Timestamp::now().0),
                    )
                    .await?;
                    if record.is_some() {
                        delivery::release(tx.conn(), id, delivery::retry_second(run_at)).await?;
                    }
                    Ok(record)
                })
            })
            .await
    }

    /// A delivered job waits on, from `again` (in seconds) to be delivered once more; `note` says what for.
    pub async fn put_off(&self, id: JobId, note: String, again: i64) -> Result<Option<JobRecord>, StoreError> {
        self.writer
            .write_lazily(move |tx| {
                Box::pin(async move {
                    change(tx, id, JobEvent::RetryDue, ", run_at = NULL, progress_phase = 'queued'", |q| q).await?;
                    let row = sqlx::query(
                        "UPDATE image_jobs SET progress_phase = ?2, progress_at = ?3
                         WHERE id = ?1 AND status = 'queued' RETURNING *",
                    )
                    .bind(id.to_string())
                    .bind(note)
                    .bind(Timestamp::now().0)
                    .fetch_optional(tx.conn())
                    .await?;
                    let Some(row) = row else {
                        delivery::remove(tx.conn(), id).await?;
                        return Ok(None);
                    };
                    let record = rows::record(&row)?;
                    tx.record(JobMessage::Updated(Box::new(record.job.clone()))).await?;
                    delivery::release(tx.conn(), id, again).await?;
                    Ok(Some(record))
                })
            })
            .await
    }

    /// Delivers the jobs again that were put off for `model`.
    pub async fn release_waiting(&self, model: String) -> Result<u64, StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let released = sqlx::query(
                        "UPDATE Jobs SET run_at = min(run_at, ?2) WHERE status = 'Pending' AND id IN
                         (SELECT id FROM image_jobs WHERE status = 'queued' AND model_asked = ?1)",
                    )
                    .bind(model)
                    .bind(Timestamp::now().0 / 1000)
                    .execute(tx.conn())
                    .await?;
                    Ok(released.rows_affected())
                })
            })
            .await
    }

    /// Back to waiting, with no attempt spent. `crashed` counts a lost worker, and fails the job at `max_crashes`.
    pub async fn interrupt(
        &self,
        id: JobId,
        crashed: Option<(ErrorInfo, u32)>,
    ) -> Result<Option<JobRecord>, StoreError> {
        self.writer.write(move |tx| Box::pin(interrupt(tx, id, crashed))).await
    }

    /// Calls a job off: at once where it waits, by request where it runs.
    pub async fn cancel(&self, id: JobId) -> Result<Result<CancelOutcome, Refusal>, StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let row = sqlx::query(
                        "UPDATE image_jobs SET cancel_requested = 1 WHERE id = ?1 AND status = 'running' RETURNING *",
                    )
                    .bind(id.to_string())
                    .fetch_optional(tx.conn())
                    .await?;
                    if let Some(row) = row {
                        return Ok(Ok(CancelOutcome::Requested(Box::new(rows::job(&row)?))));
                    }
                    match cancelled_in(tx, id).await? {
                        Some(record) => Ok(Ok(CancelOutcome::Cancelled(Box::new(record.job)))),
                        None => Ok(Err(refusal(tx, id).await?)),
                    }
                })
            })
            .await
    }

    /// The worker has stopped at a cancelled job.
    pub async fn cancelled(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.writer.write(move |tx| Box::pin(cancelled_in(tx, id))).await
    }

    /// Tries an ended job again from the beginning.
    pub async fn resubmit(&self, id: JobId) -> Result<Result<Job, Refusal>, StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let other: Option<String> = sqlx::query_scalar(
                        "SELECT o.id FROM image_jobs o JOIN image_jobs j ON j.dedupe_key = o.dedupe_key
                         WHERE j.id = ?1 AND o.id <> j.id AND o.dedupe_key IS NOT NULL
                           AND o.status IN ('queued', 'running', 'retrying', 'succeeded')",
                    )
                    .bind(id.to_string())
                    .fetch_optional(tx.conn())
                    .await?;
                    if let Some(other) = other.and_then(|other| other.parse().ok()) {
                        return Ok(Err(Refusal::Duplicate(other)));
                    }
                    let record = change(
                        tx,
                        id,
                        JobEvent::Resubmit,
                        ", attempt = 0, crashes = 0, cancel_requested = 0, model = model_asked, error = NULL, result = NULL,
                         finished_at = NULL, started_at = NULL, hooks_due = 0, resumed_from_step = NULL,
                         progress_phase = 'queued', progress_step = 0, progress_steps = 0, progress_fraction = 0,
                         progress_at = ?2",
                        |q| q.bind(Timestamp::now().0),
                    )
                    .await?;
                    match record {
                        Some(record) => {
                            delivery::push(tx.conn(), id, record.job.priority).await?;
                            Ok(Ok(record.job))
                        }
                        None => Ok(Err(refusal(tx, id).await?)),
                    }
                })
            })
            .await
    }

    /// Forgets ended jobs. Their files are gone already.
    pub async fn remove(&self, ids: Vec<JobId>) -> Result<u64, StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let mut removed = 0;
                    for id in ids {
                        let n = sqlx::query(
                            "DELETE FROM image_jobs WHERE id = ?1 AND status IN ('succeeded', 'failed', 'cancelled')",
                        )
                        .bind(id.to_string())
                        .execute(tx.conn())
                        .await?
                        .rows_affected();
                        if n > 0 {
                            delivery::remove(tx.conn(), id).await?;
                            tx.record(JobMessage::Removed(id)).await?;
                            removed += n;
                        }
                    }
                    Ok(removed)
                })
            })
            .await
    }

    /// The sources of an ended job lie where they belong; `moved` is where its first input is now.
    pub async fn hooks_done(&self, id: JobId, moved: Option<PathBuf>) -> Result<(), StoreError> {
        self.writer
            .write_lazily(move |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE image_jobs SET hooks_due = 0,
                            input_paths = CASE WHEN ?2 IS NULL THEN input_paths
                                ELSE json_set(input_paths, '$[0]', json(?2)) END
                         WHERE id = ?1",
                    )
                    .bind(id.to_string())
                    .bind(path_json(moved))
                    .execute(tx.conn())
                    .await?;
                    Ok(())
                })
            })
            .await
    }
}

async fn fail(tx: &mut WriteTx, id: JobId, error: &ErrorInfo, more: &str) -> Result<Option<JobRecord>, StoreError> {
    let assignments = format!(
        ", error = ?2, run_at = NULL, finished_at = ?3, hooks_due = (source_type = 'inbox'), first_failed_at = coalesce(first_failed_at, ?3),
         last_failed_at = ?3, progress_phase = 'failed', progress_at = ?3{more}"
    );
    let now = Timestamp::now().0;
    let record = change(tx, id, JobEvent::Fail, &assignments, |q| q.bind(to_json(error)).bind(now)).await?;
    delivery::remove(tx.conn(), id).await?;
    Ok(record)
}

pub(super) async fn cancelled_in(tx: &mut WriteTx, id: JobId) -> Result<Option<JobRecord>, StoreError> {
    let record = change(
        tx,
        id,
        JobEvent::Cancel,
        ", run_at = NULL, finished_at = ?2, hooks_due = (source_type = 'inbox'), cancel_requested = 1, progress_phase = 'cancelled',
         progress_at = ?2",
        |q| q.bind(Timestamp::now().0),
    )
    .await?;
    if record.is_some() {
        delivery::remove(tx.conn(), id).await?;
    }
    Ok(record)
}

pub(super) async fn interrupt(
    tx: &mut WriteTx,
    id: JobId,
    crashed: Option<(ErrorInfo, u32)>,
) -> Result<Option<JobRecord>, StoreError> {
    if let Some((error, max_crashes)) = crashed {
        let crashes: Option<i64> = sqlx::query_scalar(
            "UPDATE image_jobs SET crashes = crashes + 1 WHERE id = ?1 AND status = 'running' RETURNING crashes",
        )
        .bind(id.to_string())
        .fetch_optional(tx.conn())
        .await?;
        if crashes.is_some_and(|n| n >= i64::from(max_crashes)) {
            let n = crashes.unwrap_or_default();
            let error = ErrorInfo::new(
                ErrorCode::CrashedRepeatedly,
                format!("the job took the worker down {n} times; the last time: {}", error.message),
            )
            .with_hint(
                format!("{} Look at the worker's lines in the log, try a smaller picture, then retry.", error.hint)
                    .trim()
                    .to_owned(),
            );
            return fail(tx, id, &error, "").await;
        }
    }
    let record = change(
        tx,
        id,
        JobEvent::Interrupt,
        ", attempt = max(attempt - 1, 0), progress_phase = 'queued', progress_at = ?2",
        |q| q.bind(Timestamp::now().0),
    )
    .await?;
    if record.is_some() {
        delivery::release(tx.conn(), id, Timestamp::now().0 / 1000).await?;
    }
    Ok(record)
}
