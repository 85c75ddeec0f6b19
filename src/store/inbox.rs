//! The drop folder's own notes.

use std::path::PathBuf;

use atelier_domain::{JobId, Timestamp};
use sqlx::Row as _;

use super::{
    Store, StoreError, delivery,
    rows::{paths_json, to_json},
};

/// A file that is about to leave the inbox, or has left it and is no job yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxClaim {
    /// The job's future id, part of the claimed file's name.
    pub id: JobId,
    /// Below the inbox, any bytes.
    pub rel_path: PathBuf,
    /// Below the inbox, likewise.
    pub sidecars: Vec<PathBuf>,
    pub claimed_at: Timestamp,
}

impl Store {
    /// Notes claims before their files are moved, all in one commit.
    pub async fn claim_begin(&self, claims: Vec<InboxClaim>) -> Result<(), StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    for claim in claims {
                        sqlx::query(
                            "INSERT INTO inbox_claims (id, rel_path, sidecars, claimed_at) VALUES (?1, ?2, ?3, ?4)
                             ON CONFLICT (id) DO UPDATE SET rel_path = excluded.rel_path, sidecars = excluded.sidecars",
                        )
                        .bind(claim.id.to_string())
                        .bind(to_json(&atelier_domain::protocol::WirePath(claim.rel_path)))
                        .bind(paths_json(claim.sidecars))
                        .bind(claim.claimed_at.0)
                        .execute(tx.conn())
                        .await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// All open claims, oldest first.
    pub async fn claims(&self) -> Result<Vec<InboxClaim>, StoreError> {
        let fetched = sqlx::query("SELECT id, rel_path, sidecars, claimed_at FROM inbox_claims ORDER BY id")
            .fetch_all(&self.read)
            .await?;
        fetched
            .iter()
            .map(|row| {
                let id: String = row.try_get("id")?;
                let wrong = |what: String| StoreError::Row { id: id.clone(), what };
                let path: atelier_domain::protocol::WirePath =
                    serde_json::from_str(row.try_get("rel_path")?).map_err(|e| wrong(e.to_string()))?;
                let sidecars: Vec<atelier_domain::protocol::WirePath> =
                    serde_json::from_str(row.try_get("sidecars")?).map_err(|e| wrong(e.to_string()))?;
                Ok(InboxClaim {
                    id: id.parse().map_err(|e| wrong(format!("{e}")))?,
                    rel_path: path.0,
                    sidecars: sidecars.into_iter().map(|path| path.0).collect(),
                    claimed_at: Timestamp(row.try_get("claimed_at")?),
                })
            })
            .collect()
    }

    /// Drops claims that have come to nothing, or have been dealt with without a job.
    pub async fn claim_end(&self, ids: Vec<JobId>) -> Result<(), StoreError> {
        self.writer
            .write(move |tx| {
                Box::pin(async move {
                    for id in ids {
                        delivery::end_claim(tx.conn(), id).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}
