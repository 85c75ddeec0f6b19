//! The rows of new jobs: several jobs' in one call, since a call is a trip to SQLite's thread and back, which costs more
//! than the statements.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use atelier_domain::{Input, Job, SourceType, Webhook, protocol::WirePath};
use sqlx::{
    AssertSqlSafe, Row as _,
    query::Query,
    sqlite::{Sqlite, SqliteArguments},
};

use super::{
    StoreError, delivery,
    rows::{path_json, paths_json, to_json},
    writer::{Ahead, WriteTx},
};

/// A new job with what only the daemon needs to know.
#[derive(Clone, Debug)]
pub struct Insert {
    pub job: Job,
    pub input_paths: Vec<PathBuf>,
    pub mask: Option<(Input, PathBuf)>,
    pub output_dir: Option<PathBuf>,
    pub output_stem: Option<PathBuf>,
    pub source_path: Option<PathBuf>,
    pub sidecars: Vec<PathBuf>,
    pub dedupe_key: Option<String>,
    /// Key and fingerprint.
    pub idempotency: Option<(String, String)>,
    /// Waiting jobs at most; 0: no bound.
    pub max_queued: u64,
    pub webhook: Option<Webhook>,
    pub trace_id: Option<String>,
}

#[derive(Clone, Debug)]
pub enum Inserted {
    New(Box<Job>),
    /// This content with these parameters is live or done already.
    Duplicate(Box<Job>),
    /// The same request with the same `Idempotency-Key`.
    Replayed(Box<Job>),
    /// The key was used for another request.
    IdempotencyMismatch,
    QueueFull,
}

impl Insert {
    /// Its rows are all that there is to write, and no other request's are looked at: it may share a call.
    pub(super) fn is_plain(&self) -> bool {
        self.idempotency.is_none() && self.webhook.is_none() && self.job.source.r#type == SourceType::Http
    }
}

/// Jobs of one call at most: for each number of them a text of its own is prepared.
pub(super) const TOGETHER: usize = 8;

/// Job, delivery and event; where the first inserts nothing, the others do not either. Its arguments have no numbers, so
/// that they follow each other where it stands several times.
const ONE: &str = concat!(
    "INSERT INTO image_jobs (id, kind, model, model_asked, status, priority, progress_phase, progress_at, max_attempts,
        source_type, source_name, source_path, sidecars, params, inputs, input_paths, mask, output_dir, output_stem,
        dedupe_key, created_at, webhook, trace_id)
     SELECT ?, ?, ?, ?, 'queued', ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
     WHERE (SELECT sum(n) FROM job_counts WHERE status IN ('queued', 'retrying')) < ?
     ON CONFLICT DO NOTHING;",
    delivery::insert_sql!(condition = "changes() > 0"),
    "; INSERT INTO job_events (job_id, created_at) SELECT ?, ? WHERE changes() > 0 RETURNING seq, job_id;"
);

/// [`ONE`] so many times, after what goes ahead.
fn text(ahead: Ahead, jobs: usize) -> Arc<str> {
    static TEXTS: [[OnceLock<Arc<str>>; TOGETHER]; Ahead::ALL] =
        [const { [const { OnceLock::new() }; TOGETHER] }; Ahead::ALL];
    TEXTS[ahead as usize][jobs - 1].get_or_init(|| format!("{}{}", ahead.sql(), ONE.repeat(jobs)).into()).clone()
}

type Bind<'q> = Query<'q, Sqlite, SqliteArguments>;

fn bind<'q>(query: Bind<'q>, new: &Insert) -> Bind<'q> {
    let job = &new.job;
    let id: Arc<str> = job.id.to_string().into();
    let max = if new.max_queued == 0 { i64::MAX } else { i64::try_from(new.max_queued).unwrap_or(i64::MAX) };
    let model: Option<Arc<str>> = job.model.as_deref().map(Arc::from);
    query
        .bind(id.clone())
        .bind(job.kind.as_str())
        .bind(model.clone())
        .bind(model)
        .bind(job.priority)
        .bind(job.created_at.0)
        .bind(job.max_attempts)
        .bind(job.source.r#type.as_str())
        .bind(job.source.name.clone())
        .bind(path_json(new.source_path.clone()))
        .bind(paths_json(new.sidecars.clone()))
        .bind(to_json(&job.params))
        .bind(to_json(&job.inputs))
        .bind(paths_json(new.input_paths.clone()))
        .bind(new.mask.as_ref().map(|(input, path)| to_json(&(input, WirePath(path.clone())))))
        .bind(path_json(new.output_dir.clone()))
        .bind(path_json(new.output_stem.clone()))
        .bind(new.dedupe_key.clone())
        .bind(job.created_at.0)
        .bind(new.webhook.as_ref().map(to_json))
        .bind(new.trace_id.clone())
        .bind(max)
        .bind(id.clone())
        .bind(id.clone())
        .bind(delivery::QUEUE)
        .bind(job.created_at.0)
        .bind(job.priority)
        .bind(id)
        .bind(job.created_at.0)
}

/// Writes the rows of one to [`TOGETHER`] jobs: the numbers of their events, `None` for a job that was not inserted
/// because the queue is full, or because it is there already.
pub(super) async fn rows(tx: &mut WriteTx, news: &[Insert]) -> Result<Vec<Option<i64>>, StoreError> {
    let text = text(tx.take_ahead(), news.len());
    let query = news.iter().fold(sqlx::query(AssertSqlSafe(text)), bind);
    let rows = query.fetch_all(tx.conn()).await?;
    let written: Result<Vec<(String, i64)>, sqlx::Error> =
        rows.iter().map(|row| Ok((row.try_get("job_id")?, row.try_get("seq")?))).collect();
    let mut written = written?.into_iter().peekable();
    let seq_of = |new: &Insert| written.next_if(|(id, _)| *id == new.job.id.to_string()).map(|(_, seq)| seq);
    Ok(news.iter().map(seq_of).collect())
}
