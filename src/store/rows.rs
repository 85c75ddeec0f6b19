//! Rows as jobs.

use std::path::PathBuf;

use atelier_domain::{
    Input, Job, JobId, JobKind, JobStatus, Progress, Source, SourceType, Timestamp, Webhook, protocol::WirePath,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sqlx::{Row as _, sqlite::SqliteRow};

use super::StoreError;

/// A job with what only the daemon needs to know.
#[derive(Clone, Debug)]
pub struct JobRecord {
    pub job: Job,
    /// `job.model` may be the worker's choice; this is what was asked for.
    pub model_asked: Option<String>,
    pub input_paths: Vec<PathBuf>,
    pub mask: Option<(Input, PathBuf)>,
    /// Absolute, in the order of the outputs.
    pub output_paths: Vec<PathBuf>,
    /// Below the outbox.
    pub output_dir: Option<PathBuf>,
    pub output_stem: Option<PathBuf>,
    /// Below the inbox, as it was dropped.
    pub source_path: Option<PathBuf>,
    /// Below the inbox, likewise.
    pub sidecars: Vec<PathBuf>,
    pub manifest: Option<Value>,
    pub cancel_requested: bool,
    /// The source has not been put away since the job ended.
    pub hooks_due: bool,
    pub run_at: Option<Timestamp>,
    pub first_failed_at: Option<Timestamp>,
    pub last_failed_at: Option<Timestamp>,
    pub webhook: Option<Webhook>,
    /// Of the request that made the job.
    pub trace_id: Option<String>,
}

/// A job that was just set to running.
#[derive(Clone, Debug)]
pub struct StartedJob {
    pub record: JobRecord,
}

pub(super) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("types of ours with text keys serialise")
}

pub(super) fn paths_json(paths: impl IntoIterator<Item = PathBuf>) -> String {
    to_json(&paths.into_iter().map(WirePath).collect::<Vec<_>>())
}

pub(super) fn path_json(path: Option<PathBuf>) -> Option<String> {
    path.map(|path| to_json(&WirePath(path)))
}

pub(super) struct RowReader<'r> {
    row: &'r SqliteRow,
    id: String,
}

impl<'r> RowReader<'r> {
    fn new(row: &'r SqliteRow) -> Result<Self, StoreError> {
        Ok(Self { row, id: row.try_get("id")? })
    }

    fn wrong(&self, what: impl std::fmt::Display) -> StoreError {
        StoreError::Row { id: self.id.clone(), what: what.to_string() }
    }

    fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        let text: &str = self.row.try_get(column)?;
        serde_json::from_str(text).map_err(|error| self.wrong(format!("{column}: {error}")))
    }

    fn json_opt<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, StoreError> {
        let text: Option<&str> = self.row.try_get(column)?;
        text.map(|text| serde_json::from_str(text).map_err(|error| self.wrong(format!("{column}: {error}"))))
            .transpose()
    }

    fn unsigned(&self, column: &'static str) -> Result<u32, StoreError> {
        let number: i64 = self.row.try_get(column)?;
        u32::try_from(number).map_err(|_| self.wrong(format!("{column} is {number}")))
    }

    fn time_opt(&self, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.row.try_get::<Option<i64>, _>(column)?.map(Timestamp))
    }

    fn paths(&self, column: &'static str) -> Result<Vec<PathBuf>, StoreError> {
        Ok(self.json::<Vec<WirePath>>(column)?.into_iter().map(|path| path.0).collect())
    }

    fn path_opt(&self, column: &'static str) -> Result<Option<PathBuf>, StoreError> {
        Ok(self.json_opt::<WirePath>(column)?.map(|path| path.0))
    }
}

pub(super) fn job(row: &SqliteRow) -> Result<Job, StoreError> {
    let r = RowReader::new(row)?;
    let id: JobId = r.id.parse().map_err(|error| r.wrong(error))?;
    let text = |column| row.try_get::<&str, _>(column);
    let kind = JobKind::parse(text("kind")?).ok_or_else(|| r.wrong("kind"))?;
    let status = JobStatus::parse(text("status")?).ok_or_else(|| r.wrong("status"))?;
    let source_type = SourceType::parse(text("source_type")?).ok_or_else(|| r.wrong("source_type"))?;
    let priority: i64 = row.try_get("priority")?;
    let resumed: Option<i64> = row.try_get("resumed_from_step")?;
    Ok(Job {
        id,
        kind,
        model: row.try_get("model")?,
        status,
        priority: i32::try_from(priority).map_err(|_| r.wrong("priority"))?,
        progress: Progress {
            phase: row.try_get("progress_phase")?,
            step: r.unsigned("progress_step")?,
            steps: r.unsigned("progress_steps")?,
            fraction: row.try_get("progress_fraction")?,
            text: None,
            updated_at: Timestamp(row.try_get("progress_at")?),
        },
        attempt: r.unsigned("attempt")?,
        max_attempts: r.unsigned("max_attempts")?,
        crashes: r.unsigned("crashes")?,
        resumed_from_step: resumed.map(u32::try_from).transpose().map_err(|_| r.wrong("resumed_from_step"))?,
        source: Source { r#type: source_type, name: row.try_get("source_name")? },
        params: r.json("params")?,
        inputs: r.json("inputs")?,
        outputs: r.json("outputs")?,
        result: r.json_opt("result")?,
        error: r.json_opt("error")?,
        created_at: Timestamp(row.try_get("created_at")?),
        started_at: r.time_opt("started_at")?,
        finished_at: r.time_opt("finished_at")?,
    })
}

pub(super) fn record(row: &SqliteRow) -> Result<JobRecord, StoreError> {
    let r = RowReader::new(row)?;
    let mask: Option<(Input, WirePath)> = r.json_opt("mask")?;
    Ok(JobRecord {
        job: job(row)?,
        model_asked: row.try_get("model_asked")?,
        input_paths: r.paths("input_paths")?,
        mask: mask.map(|(input, path)| (input, path.0)),
        output_paths: r.paths("output_paths")?,
        output_dir: r.path_opt("output_dir")?,
        output_stem: r.path_opt("output_stem")?,
        source_path: r.path_opt("source_path")?,
        sidecars: r.paths("sidecars")?,
        manifest: r.json_opt("manifest")?,
        cancel_requested: row.try_get("cancel_requested")?,
        hooks_due: row.try_get("hooks_due")?,
        run_at: r.time_opt("run_at")?,
        first_failed_at: r.time_opt("first_failed_at")?,
        last_failed_at: r.time_opt("last_failed_at")?,
        webhook: r.json_opt("webhook")?,
        trace_id: row.try_get("trace_id")?,
    })
}
