//! The keys under which requests are known as the same; written with the job, see `transitions`.

use atelier_domain::Job;

use super::{Store, StoreError, rows};

impl Store {
    /// The job that a key leads to.
    pub async fn job_of_key(&self, key: &str) -> Result<Option<Job>, StoreError> {
        let row =
            sqlx::query("SELECT j.* FROM image_jobs j JOIN idempotency_keys k ON k.job_id = j.id WHERE k.key = ?1")
                .bind(key)
                .fetch_optional(&self.read)
                .await?;
        row.as_ref().map(rows::job).transpose()
    }

    /// The next request under this key is a new job.
    pub async fn forget_key(&self, key: String) -> Result<(), StoreError> {
        self.writer
            .write_lazily(move |tx| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM idempotency_keys WHERE key = ?1").bind(key).execute(tx.conn()).await?;
                    Ok(())
                })
            })
            .await
    }
}

#[cfg(test)]
impl Store {
    /// Whether any key leads to this job.
    pub(crate) async fn has_key(&self, id: atelier_domain::JobId) -> Result<bool, StoreError> {
        let n: i64 = sqlx::query_scalar("SELECT count(*) FROM idempotency_keys WHERE job_id = ?1")
            .bind(id.to_string())
            .fetch_one(&self.read)
            .await?;
        Ok(n > 0)
    }

    /// Makes an ended job's end lie further back.
    pub(crate) async fn set_back(&self, id: atelier_domain::JobId, ms: i64) -> Result<(), StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    sqlx::query("UPDATE image_jobs SET finished_at = finished_at - ?2 WHERE id = ?1")
                        .bind(id.to_string())
                        .bind(ms)
                        .execute(tx.conn())
                        .await?;
                    Ok(())
                })
            })
            .await
    }
}
