//! Small facts that survive a restart, and the database's own housekeeping.

use super::{Store, StoreError};

/// The names under which facts are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// `1`: somebody has paused the queue.
    Paused,
    /// When cleanup last ran to its end, ms.
    LastCleanup,
    /// The model that A1111's clients have chosen.
    Checkpoint,
    /// What the dashboard has saved, JSON.
    DashboardSettings,
}

impl MetaKey {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::LastCleanup => "last_cleanup",
            Self::Checkpoint => "sdapi_checkpoint",
            Self::DashboardSettings => "dashboard_settings",
        }
    }
}

impl Store {
    pub async fn meta(&self, key: MetaKey) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar("SELECT value FROM app_meta WHERE key = ?1")
            .bind(key.as_str())
            .fetch_optional(&self.read)
            .await?)
    }

    pub async fn set_meta(&self, key: MetaKey, value: String) -> Result<(), StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO app_meta (key, value) VALUES (?1, ?2)
                         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    )
                    .bind(key.as_str())
                    .bind(value)
                    .execute(tx.conn())
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    /// How carefully the writer commits what it acknowledges; 2 is `FULL`.
    pub async fn writer_synchronous(&self) -> Result<i64, StoreError> {
        self.writer
            .write(|tx| {
                Box::pin(async move { Ok(sqlx::query_scalar("PRAGMA synchronous").fetch_one(tx.conn()).await?) })
            })
            .await
    }

    /// Forgets all but the newest `keep` events; the newest always stays, so that numbers never repeat.
    pub async fn trim_events(&self, keep: u32) -> Result<u64, StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    let n = sqlx::query(
                        "DELETE FROM job_events WHERE seq IN (SELECT seq FROM job_events
                            WHERE seq <= (SELECT max(seq) FROM job_events) - ?1 ORDER BY seq LIMIT 500)",
                    )
                    .bind(keep.max(1))
                    .execute(tx.conn())
                    .await?
                    .rows_affected();
                    Ok(n)
                })
            })
            .await
    }

    /// Gives free pages back to the file system, a few at a time, and folds the log into the database.
    pub async fn give_back_space(&self) -> Result<(), StoreError> {
        sqlx::query("PRAGMA incremental_vacuum(256)").execute(&self.delivery).await?;
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&self.delivery).await?;
        Ok(())
    }
}
