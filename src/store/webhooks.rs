//! The webhooks' outbox: what is to be told to whom, in the order in which it became true.
//!
//! A message is written by the very transaction that makes it true, so neither can be without the other. It goes away
//! when it was taken, or nobody has taken it for too long.

use atelier_domain::{Job, JobId, Timestamp, Webhook};
use serde_json::json;
use sqlx::Row as _;

use super::{Store, StoreError, writer::WriteTx};
use crate::prediction;

/// A message that may be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookMessage {
    pub seq: i64,
    /// The header `webhook-id`: whoever is told twice knows by it.
    pub id: String,
    pub job_id: JobId,
    pub url: String,
    /// The same bytes at every try.
    pub body: String,
    pub created_at: Timestamp,
    /// Tries so far.
    pub attempts: u32,
}

/// What waits to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WebhookBacklog {
    pub messages: u64,
    pub oldest: Option<Timestamp>,
}

/// Puts a message into the outbox, where the job's client wants to be told of this status.
pub(super) async fn push(tx: &mut WriteTx, webhook: Option<&Webhook>, job: &Job) -> Result<(), StoreError> {
    let Some(webhook) = webhook.filter(|webhook| webhook.events.contains(&job.status)) else { return Ok(()) };
    let now = Timestamp::now();
    let body = match &webhook.prediction_at {
        Some(base_url) => prediction::prediction(job, base_url, prediction::addresses(job, base_url)),
        None => json!({"type": Webhook::event_name(job.status), "timestamp": now, "data": job}),
    };
    sqlx::query(
        "INSERT INTO webhook_outbox (id, job_id, url, body, created_at, next_at) VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
    )
    .bind(format!("msg_{}", ulid::Ulid::generate()))
    .bind(job.id.to_string())
    .bind(&webhook.url)
    .bind(body.to_string())
    .bind(now.0)
    .execute(tx.conn())
    .await?;
    tx.webhook_waits();
    Ok(())
}

impl Store {
    /// Returns when a message was put into the outbox since the last call.
    pub async fn webhook_waits(&self) {
        self.webhooks.notified().await;
    }

    /// Messages that are due, at most one a job: the first of those that it has.
    pub async fn webhooks_due(&self, now: Timestamp, limit: u32) -> Result<Vec<WebhookMessage>, StoreError> {
        let rows = sqlx::query(
            "SELECT o.* FROM webhook_outbox o WHERE o.next_at <= ?1
             AND NOT EXISTS (SELECT 1 FROM webhook_outbox e WHERE e.job_id = o.job_id AND e.seq < o.seq)
             ORDER BY o.next_at, o.seq LIMIT ?2",
        )
        .bind(now.0)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                let job: String = row.try_get("job_id")?;
                let job_id = job.parse().map_err(|error| StoreError::Row { id: job, what: format!("{error}") })?;
                Ok(WebhookMessage {
                    seq: row.try_get("seq")?,
                    id: row.try_get("id")?,
                    job_id,
                    url: row.try_get("url")?,
                    body: row.try_get("body")?,
                    created_at: Timestamp(row.try_get("created_at")?),
                    attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(u32::MAX),
                })
            })
            .collect()
    }

    /// When the next message is due that is not yet.
    pub async fn webhook_next(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> = sqlx::query_scalar("SELECT min(next_at) FROM webhook_outbox WHERE next_at > ?1")
            .bind(now.0)
            .fetch_one(&self.read)
            .await?;
        Ok(next.map(Timestamp))
    }

    /// Taken, or given up: in either case nothing is left to send.
    pub async fn webhook_done(&self, seq: i64) -> Result<(), StoreError> {
        self.writer
            .write_lazily(move |tx| {
                Box::pin(async move {
                    sqlx::query("DELETE FROM webhook_outbox WHERE seq = ?1").bind(seq).execute(tx.conn()).await?;
                    Ok(())
                })
            })
            .await
    }

    /// Not taken; to be tried again.
    pub async fn webhook_put_off(&self, seq: i64, next_at: Timestamp) -> Result<(), StoreError> {
        self.writer
            .write_lazily(move |tx| {
                Box::pin(async move {
                    sqlx::query("UPDATE webhook_outbox SET attempts = attempts + 1, next_at = ?2 WHERE seq = ?1")
                        .bind(seq)
                        .bind(next_at.0)
                        .execute(tx.conn())
                        .await?;
                    Ok(())
                })
            })
            .await
    }

    pub async fn webhook_backlog(&self) -> Result<WebhookBacklog, StoreError> {
        let (messages, oldest): (i64, Option<i64>) =
            sqlx::query_as("SELECT count(*), min(created_at) FROM webhook_outbox").fetch_one(&self.read).await?;
        Ok(WebhookBacklog { messages: messages.try_into().unwrap_or(0), oldest: oldest.map(Timestamp) })
    }
}
