//! apalis's rows: one per live job, with the job's own id, written in the job's transactions.
//!
//! apalis claims and orders; it is run with `lock_tasks` and `persist_results` off, so that it never writes to a row
//! after the claim. A row is deleted by the transaction that ends its job and handed back (`Pending`, unlocked) by the
//! one that interrupts it or puts it off, which leaves no acknowledgement to be late, lost or slow.

use apalis_core::task::{builder::TaskBuilder, task_id::TaskId};
use atelier_domain::{JobId, JobStatus, Timestamp};
use sqlx::SqliteConnection;

use super::{Store, StoreError, transitions, writer::WriteTx};

/// apalis's name of the queue, its `job_type`.
pub const QUEUE: &str = "gpu";

/// apalis orders by an unsigned priority; ours starts at −100.
const PRIORITY_BASE: i32 = 100;

/// Rows that apalis must never give up by itself: attempts are counted in our own table.
const ATTEMPTS_WITHOUT_END: usize = i32::MAX as usize;

/// What start-up found to repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Jobs that ran when the daemon ended, and wait again.
    pub interrupted: Vec<JobId>,
    /// Jobs that were to be cancelled when the daemon ended.
    pub cancelled: Vec<JobId>,
    /// Deliveries without a live job, removed.
    pub stray: u64,
    /// Live jobs without a delivery, delivered anew.
    pub undelivered: u64,
}

/// The statement that writes the very row of [`push`], for a call that does more than that (a test compares them). Its
/// arguments: the id twice, the queue, now in milliseconds, the priority.
macro_rules! insert_sql {
    (condition = $condition:literal) => {
        concat!(
            "INSERT INTO Jobs (job, id, job_type, status, attempts, max_attempts, run_at, priority, metadata)
             SELECT CAST('{\"job_id\":\"' || ? || '\"}' AS BLOB), ?, ?, 'Pending', 0, 2147483647, ? / 1000, ? + 100, '{}'
             WHERE ",
            $condition
        )
    };
}
pub(super) use insert_sql;

pub(super) async fn push(conn: &mut SqliteConnection, id: JobId, priority: i32) -> Result<(), StoreError> {
    let priority = usize::try_from(priority + PRIORITY_BASE).unwrap_or(0);
    let payload = format!("{{\"job_id\":\"{id}\"}}");
    let task = TaskBuilder::new(payload.into_bytes())
        .task_id(TaskId::from_ulid(id.as_ulid()))
        .priority(priority)
        .max_attempts(ATTEMPTS_WITHOUT_END)
        .build();
    let pushed = apalis_sqlite::queries::push_tasks(conn, QUEUE, &[task]).await;
    pushed.map_err(|error| {
        if let apalis_sqlite::Error::Database(error) = error {
            StoreError::from(error)
        } else {
            StoreError::Row { id: id.to_string(), what: error.to_string() }
        }
    })
}

pub(super) async fn remove(conn: &mut SqliteConnection, id: JobId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM Jobs WHERE id = ?1").bind(id.to_string()).execute(conn).await?;
    Ok(())
}

/// Hands a claimed row back, to be claimed again from `run_at` on, in seconds: apalis knows no finer time.
pub(super) async fn release(conn: &mut SqliteConnection, id: JobId, run_at: i64) -> Result<(), StoreError> {
    sqlx::query("UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL, run_at = ?2 WHERE id = ?1")
        .bind(id.to_string())
        .bind(run_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// The second at which a back-off has surely ended.
pub(super) const fn retry_second(run_at: Timestamp) -> i64 {
    run_at.0.div_euclid(1000) + (run_at.0.rem_euclid(1000) > 0) as i64
}

/// The job exists now; the note that its file was about to be moved has served.
pub(super) async fn end_claim(conn: &mut SqliteConnection, id: JobId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM inbox_claims WHERE id = ?1").bind(id.to_string()).execute(conn).await?;
    Ok(())
}

/// A delivery that may be claimed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextDelivery {
    pub id: JobId,
    /// As apalis orders by it.
    pub priority: i64,
    /// The job's model, where it names one.
    pub model: Option<String>,
}

impl Store {
    /// The deliveries that would be claimed next, in apalis's order.
    pub async fn next_deliveries(&self, limit: u32) -> Result<Vec<NextDelivery>, StoreError> {
        let rows: Vec<(String, i64, Option<String>)> = sqlx::query_as(
            "SELECT Jobs.id, Jobs.priority, j.model FROM Jobs JOIN image_jobs j ON j.id = Jobs.id
             WHERE Jobs.job_type = ?1 AND Jobs.status = 'Pending' AND Jobs.lock_by IS NULL
               AND (Jobs.run_at IS NULL OR Jobs.run_at <= unixepoch())
             ORDER BY Jobs.priority DESC, Jobs.run_at ASC, Jobs.id ASC LIMIT ?2",
        )
        .bind(QUEUE)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        let row =
            |(id, priority, model): (String, i64, _)| Some(NextDelivery { id: id.parse().ok()?, priority, model });
        Ok(rows.into_iter().filter_map(row).collect())
    }

    /// Has `id` claimed before `first`, if both still wait.
    pub async fn put_before(&self, id: JobId, first: JobId) -> Result<bool, StoreError> {
        self.writer
            .write_lazily(move |tx| {
                Box::pin(async move {
                    let done = sqlx::query(
                        "UPDATE Jobs SET priority = first.priority + 1
                         FROM (SELECT priority FROM Jobs WHERE id = ?2 AND status = 'Pending') first
                         WHERE Jobs.id = ?1 AND Jobs.status = 'Pending'",
                    )
                    .bind(id.to_string())
                    .bind(first.to_string())
                    .execute(tx.conn())
                    .await?;
                    Ok(done.rows_affected() == 1)
                })
            })
            .await
    }

    /// Puts right what a crash may have left. To be called before apalis's worker registers, with the data folder's
    /// lock held: nobody else has anything claimed.
    pub async fn recover(&self) -> Result<Recovered, StoreError> {
        self.writer.write(|tx| Box::pin(recover(tx))).await
    }

    /// Raises what has waited long. One step of priority for each `step_ms` of waiting, so that a steady stream of
    /// urgent jobs cannot hold back an old one for ever.
    pub async fn age(&self, step_ms: i64) -> Result<u64, StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let n = sqlx::query(
                        "UPDATE Jobs SET priority = j.priority + ?2 + (?3 - j.created_at) / ?4
                         FROM image_jobs j
                         WHERE Jobs.id = j.id AND Jobs.job_type = ?1 AND Jobs.status = 'Pending'
                           AND j.status IN ('queued', 'retrying')
                           AND Jobs.priority < j.priority + ?2 + (?3 - j.created_at) / ?4",
                    )
                    .bind(QUEUE)
                    .bind(PRIORITY_BASE)
                    .bind(Timestamp::now().0)
                    .bind(step_ms.max(1))
                    .execute(tx.conn())
                    .await?
                    .rows_affected();
                    Ok(n)
                })
            })
            .await
    }

    /// Rows of apalis's that no live job needs, and workers that are long gone.
    pub async fn sweep_deliveries(&self) -> Result<u64, StoreError> {
        self.writer
            .write(|tx| {
                Box::pin(async move {
                    let stray = stray(tx).await?;
                    let workers = sqlx::query(
                        "DELETE FROM Workers WHERE last_seen < strftime('%s', 'now') - 604800
                         AND NOT EXISTS (SELECT 1 FROM Jobs WHERE lock_by = Workers.id)",
                    )
                    .execute(tx.conn())
                    .await?
                    .rows_affected();
                    Ok(stray + workers)
                })
            })
            .await
    }
}

async fn stray(tx: &mut WriteTx) -> Result<u64, StoreError> {
    Ok(sqlx::query(
        "DELETE FROM Jobs WHERE job_type = ?1 AND NOT EXISTS
            (SELECT 1 FROM image_jobs j WHERE j.id = Jobs.id AND j.status IN ('queued', 'running', 'retrying'))",
    )
    .bind(QUEUE)
    .execute(tx.conn())
    .await?
    .rows_affected())
}

async fn recover(tx: &mut WriteTx) -> Result<Recovered, StoreError> {
    let mut recovered = Recovered { stray: stray(tx).await?, ..Recovered::default() };
    let running: Vec<(String, i64)> =
        sqlx::query_as("SELECT id, cancel_requested FROM image_jobs WHERE status = 'running' ORDER BY id")
            .fetch_all(tx.conn())
            .await?;
    for (id, cancel) in running {
        let Ok(id) = id.parse::<JobId>() else { continue };
        if cancel == 1 {
            transitions::cancelled_in(tx, id).await?;
            recovered.cancelled.push(id);
        } else {
            transitions::interrupt(tx, id, None).await?;
            recovered.interrupted.push(id);
        }
    }
    sqlx::query("UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL WHERE job_type = ?1 AND (status <> 'Pending' OR lock_by IS NOT NULL)")
        .bind(QUEUE)
        .execute(tx.conn())
        .await?;
    // A name may register again only when its last sign of life is old; ours is dead, we hold the lock.
    sqlx::query("UPDATE Workers SET last_seen = 0 WHERE worker_type = ?1").bind(QUEUE).execute(tx.conn()).await?;
    for status in [JobStatus::Queued, JobStatus::Retrying] {
        let lost: Vec<(String, i32, Option<i64>)> = sqlx::query_as(
            "SELECT id, priority, run_at FROM image_jobs WHERE status = ?1
             AND NOT EXISTS (SELECT 1 FROM Jobs WHERE Jobs.id = image_jobs.id)",
        )
        .bind(status.as_str())
        .fetch_all(tx.conn())
        .await?;
        for (id, priority, run_at) in lost {
            let Ok(id) = id.parse::<JobId>() else { continue };
            push(tx.conn(), id, priority).await?;
            if let Some(run_at) = run_at {
                release(tx.conn(), id, retry_second(Timestamp(run_at))).await?;
            }
            recovered.undelivered += 1;
        }
    }
    Ok(recovered)
}
