//! Reading jobs. Every query here is answered from an index, whatever the number of jobs.

use std::{collections::BTreeMap, path::PathBuf};

use atelier_domain::{Job, JobId, JobKind, JobStatus, SourceType, Timestamp, protocol::WirePath};
use sqlx::Row as _;

use super::{JobMessage, JobRecord, Store, StoreError, delivery::QUEUE, rows};

/// Which jobs to list; newest first.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobFilter {
    pub status: Option<JobStatus>,
    pub kind: Option<JobKind>,
    pub source: Option<SourceType>,
    pub limit: u32,
    /// The last id of the page before.
    pub cursor: Option<JobId>,
}

#[derive(Clone, Debug)]
pub struct JobPage {
    pub jobs: Vec<Job>,
    /// `None`: this was the last page.
    pub next_cursor: Option<JobId>,
}

/// How many jobs there are in each status; all six are always there.
pub type Counts = BTreeMap<JobStatus, u64>;

#[derive(Clone, Debug)]
pub struct StoredEvent {
    pub seq: i64,
    pub event: JobMessage,
}

/// An ended job that cleanup may look at.
#[derive(Clone, Debug)]
pub struct Removable {
    pub id: JobId,
    pub status: JobStatus,
    pub finished_at: Timestamp,
    pub output_paths: Vec<PathBuf>,
    pub output_bytes: u64,
}

impl Store {
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query("SELECT * FROM image_jobs WHERE id = ?1")
            .bind(id.to_string())
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(rows::job).transpose()
    }

    pub async fn record(&self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM image_jobs WHERE id = ?1")
            .bind(id.to_string())
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(rows::record).transpose()
    }

    pub async fn list(&self, filter: &JobFilter) -> Result<JobPage, StoreError> {
        let limit = filter.limit.clamp(1, 200);
        // The filter decides which index walks backwards; conditions that are not asked for are not in the text, or
        // the planner could not use any.
        let mut sql = String::from("SELECT * FROM image_jobs WHERE id < ?1");
        if filter.status.is_some() {
            sql.push_str(" AND status = ?2");
        }
        if filter.kind.is_some() {
            sql.push_str(" AND kind = ?3");
        }
        if filter.source.is_some() {
            sql.push_str(" AND source_type = ?4");
        }
        sql.push_str(" ORDER BY id DESC LIMIT ?5");
        let fetched = sqlx::query(sqlx::AssertSqlSafe(sql))
            // Every ULID sorts before a letter beyond Crockford's alphabet.
            .bind(filter.cursor.map_or_else(|| "~".to_owned(), |id| id.to_string()))
            .bind(filter.status.map(JobStatus::as_str))
            .bind(filter.kind.map(JobKind::as_str))
            .bind(filter.source.map(SourceType::as_str))
            .bind(limit + 1)
            .fetch_all(&self.read)
            .await?;
        let mut jobs = fetched.iter().map(rows::job).collect::<Result<Vec<_>, _>>()?;
        let more = jobs.len() > limit as usize;
        jobs.truncate(limit as usize);
        let next_cursor = if more { jobs.last().map(|job| job.id) } else { None };
        Ok(JobPage { jobs, next_cursor })
    }

    pub async fn counts(&self) -> Result<Counts, StoreError> {
        let fetched = sqlx::query("SELECT status, n FROM job_counts").fetch_all(&self.read).await?;
        let mut counts: Counts = JobStatus::ALL.into_iter().map(|status| (status, 0)).collect();
        for row in fetched {
            if let Some(status) = JobStatus::parse(row.try_get("status")?) {
                counts.insert(status, row.try_get::<i64, _>("n")?.try_into().unwrap_or(0));
            }
        }
        Ok(counts)
    }

    /// When the job that waits longest was made.
    pub async fn oldest_queued(&self) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> =
            sqlx::query_scalar("SELECT created_at FROM image_jobs WHERE status = 'queued' ORDER BY id LIMIT 1")
                .fetch_optional(&self.read)
                .await?;
        Ok(at.map(Timestamp))
    }

    /// Ids of all jobs in a status, oldest first.
    pub async fn ids_with(&self, status: JobStatus) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM image_jobs WHERE status = ?1 ORDER BY id")
            .bind(status.as_str())
            .fetch_all(&self.read)
            .await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Which of `ids` have a job.
    pub async fn known(&self, ids: &[JobId]) -> Result<Vec<JobId>, StoreError> {
        let found: Vec<String> =
            sqlx::query_scalar("SELECT id FROM image_jobs WHERE id IN (SELECT value FROM json_each(?1))")
                .bind(rows::to_json(&ids))
                .fetch_all(&self.read)
                .await?;
        Ok(found.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// How many jobs are ahead of a waiting one; `None` where it does not wait.
    pub async fn position(&self, id: JobId) -> Result<Option<u64>, StoreError> {
        let n: Option<i64> = sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM Jobs a WHERE a.job_type = ?2 AND a.status = 'Pending' AND a.lock_by IS NULL
                AND (a.priority > j.priority OR (a.priority = j.priority
                    AND (a.run_at < j.run_at OR (a.run_at = j.run_at AND a.id < j.id)))))
             FROM Jobs j WHERE j.id = ?1 AND j.status = 'Pending' AND j.lock_by IS NULL",
        )
        .bind(id.to_string())
        .bind(QUEUE)
        .fetch_optional(&self.read)
        .await?;
        Ok(n.and_then(|n| n.try_into().ok()))
    }

    /// A live or succeeded job with this key.
    pub async fn find_duplicate(&self, dedupe_key: &str) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query(
            "SELECT * FROM image_jobs WHERE dedupe_key = ?1
             AND status IN ('queued', 'running', 'retrying', 'succeeded')",
        )
        .bind(dedupe_key)
        .fetch_optional(&self.read)
        .await?;
        row.as_ref().map(rows::job).transpose()
    }

    /// Durable events after `seq`, each with the job as it is now.
    pub async fn events_after(&self, seq: i64, job: Option<JobId>, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        let sql = match job {
            None => {
                "SELECT e.seq AS seq, e.job_id AS event_job, j.* FROM job_events e
                     LEFT JOIN image_jobs j ON j.id = e.job_id WHERE e.seq > ?1 ORDER BY e.seq LIMIT ?2"
            }
            Some(_) => {
                "SELECT e.seq AS seq, e.job_id AS event_job, j.* FROM job_events e
                     LEFT JOIN image_jobs j ON j.id = e.job_id WHERE e.seq > ?1 AND e.job_id = ?3
                     ORDER BY e.seq LIMIT ?2"
            }
        };
        let fetched =
            sqlx::query(sql).bind(seq).bind(limit).bind(job.map(|id| id.to_string())).fetch_all(&self.read).await?;
        fetched
            .iter()
            .map(|row| {
                let seq = row.try_get("seq")?;
                let id: String = row.try_get("event_job")?;
                let event = if row.try_get::<Option<&str>, _>("id")?.is_some() {
                    JobMessage::Updated(Box::new(rows::job(row)?))
                } else {
                    let id = id.parse().map_err(|error| StoreError::Row { id, what: format!("{error}") })?;
                    JobMessage::Removed(id)
                };
                Ok(StoredEvent { seq, event })
            })
            .collect()
    }

    /// The number of the newest durable event.
    pub async fn last_seq(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM job_events").fetch_one(&self.read).await?)
    }

    /// Jobs whose end was committed, but whose sources may not have been moved yet.
    pub async fn hooks_due(&self) -> Result<Vec<JobRecord>, StoreError> {
        let fetched =
            sqlx::query("SELECT * FROM image_jobs WHERE hooks_due = 1 ORDER BY id").fetch_all(&self.read).await?;
        fetched.iter().map(rows::record).collect()
    }

    /// Jobs in back-off, with when it ends.
    pub async fn retry_times(&self) -> Result<Vec<(JobId, Timestamp)>, StoreError> {
        let fetched =
            sqlx::query("SELECT id, run_at FROM image_jobs WHERE status = 'retrying'").fetch_all(&self.read).await?;
        fetched
            .iter()
            .map(|row| {
                let id: String = row.try_get("id")?;
                let run_at: Option<i64> = row.try_get("run_at")?;
                let parsed = id.parse().map_err(|error| StoreError::Row { id, what: format!("{error}") })?;
                Ok((parsed, Timestamp(run_at.unwrap_or(0))))
            })
            .collect()
    }

    /// Ended jobs in `status`, oldest end first, that ended before `before` and after `after` (for paging).
    pub async fn removable(
        &self,
        status: JobStatus,
        before: Timestamp,
        after: Option<(Timestamp, JobId)>,
        limit: u32,
    ) -> Result<Vec<Removable>, StoreError> {
        let (after_time, after_id) = after.map_or((i64::MIN, String::new()), |(t, id)| (t.0, id.to_string()));
        let fetched = sqlx::query(
            "SELECT id, status, finished_at, outputs, output_paths FROM image_jobs
             WHERE status = ?1 AND finished_at < ?2 AND hooks_due = 0 AND (finished_at, id) > (?3, ?4)
             ORDER BY finished_at, id LIMIT ?5",
        )
        .bind(status.as_str())
        .bind(before.0)
        .bind(after_time)
        .bind(after_id)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        fetched
            .iter()
            .map(|row| {
                let id: String = row.try_get("id")?;
                let wrong = |what: String| StoreError::Row { id: id.clone(), what };
                let outputs: Vec<atelier_domain::Output> =
                    serde_json::from_str(row.try_get("outputs")?).map_err(|e| wrong(e.to_string()))?;
                let paths: Vec<WirePath> =
                    serde_json::from_str(row.try_get("output_paths")?).map_err(|e| wrong(e.to_string()))?;
                Ok(Removable {
                    id: id.parse().map_err(|e| wrong(format!("{e}")))?,
                    status,
                    finished_at: Timestamp(row.try_get("finished_at")?),
                    output_paths: paths.into_iter().map(|path| path.0).collect(),
                    output_bytes: outputs.iter().map(|output| output.bytes).sum(),
                })
            })
            .collect()
    }

    /// SQLite's own word on the file's health: `ok`, or what is wrong with it.
    pub async fn quick_check(&self) -> Result<String, StoreError> {
        Ok(sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&self.read).await?)
    }
}
