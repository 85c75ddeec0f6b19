//! `atelier jobs`: what there is, how it goes, and what shall become of it.

use std::{convert::Infallible, path::PathBuf};

use atelier_domain::{Job, JobId, JobKind, JobStatus, SourceType};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    args::Global,
    client::Client,
    download,
    error::{CliError, Exit, Result},
    follow::{self, News, Patience},
    output::{self, complain, line, local, note, pairs, plain, print, table},
    submit,
};

#[derive(Subcommand, Debug)]
pub(super) enum Jobs {
    /// List jobs, the newest first
    List(List),
    /// Show everything about a job
    Show {
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Follow a job to its end, or all jobs where none is named
    Watch {
        #[arg(value_name = "ID")]
        id: Option<String>,
        /// Bring the outputs into this folder when the job has succeeded
        #[arg(long, value_name = "DIR", requires = "id")]
        output: Option<PathBuf>,
    },
    /// Call jobs off, waiting or running
    Cancel(Ids),
    /// Put failed or cancelled jobs back into the queue
    Retry(Ids),
    /// Remove jobs with their files; live ones are cancelled first
    Rm(Ids),
}

#[derive(Args, Debug)]
pub(super) struct List {
    /// Only of this status
    #[arg(long, value_parser = PossibleValuesParser::new(JobStatus::ALL.map(JobStatus::as_str)))]
    status: Option<String>,
    /// Only of this kind
    #[arg(long, value_parser = PossibleValuesParser::new(JobKind::ALL.map(JobKind::as_str)))]
    kind: Option<String>,
    /// Only from there
    #[arg(long, value_parser = PossibleValuesParser::new([SourceType::Http.as_str(), SourceType::Inbox.as_str()]))]
    source: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Go on after the page that named this cursor
    #[arg(long)]
    cursor: Option<String>,
    /// All of them, page by page
    #[arg(long, conflicts_with_all = ["limit", "cursor"])]
    all: bool,
}

#[derive(Args, Debug)]
pub(super) struct Ids {
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Page {
    jobs: Vec<Job>,
    next_cursor: Option<String>,
}

pub(super) async fn run(global: &Global, jobs: Jobs) -> Result {
    match jobs {
        Jobs::List(list) => self::list(global, &list).await,
        Jobs::Show { id } => show(global, parse(&id)?).await,
        Jobs::Watch { id: Some(id), output } => {
            let id = parse(&id)?;
            if let Some(folder) = &output {
                download::prepare(folder)?;
            }
            let client = Client::new(global)?;
            if global.json {
                watch_lines(&client, id).await
            } else {
                submit::wait(global, &client, id, output.as_deref()).await
            }
        }
        Jobs::Watch { id: None, .. } => watch_all(global).await,
        Jobs::Cancel(ids) => each(global, &ids, Act::Cancel).await,
        Jobs::Retry(ids) => each(global, &ids, Act::Retry).await,
        Jobs::Rm(ids) => each(global, &ids, Act::Remove).await,
    }
}

/// What is no id names no job.
fn parse(id: &str) -> Result<JobId> {
    id.parse().map_err(|error: atelier_domain::id::InvalidJobId| CliError::new(Exit::NotFound, error.to_string()))
}

async fn list(global: &Global, list: &List) -> Result {
    let client = Client::new(global)?;
    let mut query: Vec<(&str, String)> = Vec::new();
    for (name, value) in [("status", &list.status), ("kind", &list.kind), ("source", &list.source)] {
        query.extend(value.clone().map(|value| (name, value)));
    }
    query.push(("limit", if list.all { 200 } else { list.limit }.to_string()));
    let mut whole = Page { next_cursor: list.cursor.clone(), ..Page::default() };
    loop {
        let cursor = whole.next_cursor.take().map(|cursor| ("cursor", cursor));
        let query: Vec<_> = query.iter().cloned().chain(cursor).collect();
        let page: Page = client.answer(client.api(Method::GET, "/jobs").query(&query)).await?;
        whole.next_cursor = page.next_cursor;
        if !list.all {
            whole.jobs = page.jobs;
            break;
        }
        if global.json {
            whole.jobs.extend(page.jobs);
        } else {
            // A page at a time, so that a million rows need no memory and `head` ends it early.
            rows(&page.jobs, whole.jobs.is_empty())?;
            whole.jobs.truncate(1);
            whole.jobs.extend(page.jobs.into_iter().take(1));
        }
        if whole.next_cursor.is_none() {
            return if global.json { output::json(&whole) } else { Ok(()) };
        }
    }
    if global.json {
        return output::json(&whole);
    }
    rows(&whole.jobs, true)?;
    if let Some(cursor) = &whole.next_cursor {
        note(&format!("there are more: --cursor {cursor}, or --all"));
    }
    Ok(())
}

fn rows(jobs: &[Job], head: bool) -> Result {
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            vec![
                job.id.to_string(),
                format!("{:<11}", job.kind.as_str()),
                format!("{:<9}", job.status.as_str()),
                format!("{:>4.0} %", job.progress.fraction * 100.0),
                local(job.created_at),
                job.source.name.clone().unwrap_or_default(),
            ]
        })
        .collect();
    // Fixed widths, so that pages fit under each other.
    let id = format!("{:<26}", "ID");
    let text = table(&[&id, "KIND", "STATUS", "DONE", "CREATED", "NAME"], &rows);
    print(if head { &text } else { text.split_once('\n').map_or("", |(_, rest)| rest) })
}

async fn show(global: &Global, id: JobId) -> Result {
    let job: Job = Client::new(global)?.get(&format!("/jobs/{id}")).await?;
    if global.json {
        return output::json(&job);
    }
    print(&pairs(&describe(&job)))
}

fn describe(job: &Job) -> Vec<(&'static str, String)> {
    let progress = &job.progress;
    let mut lines = vec![
        ("id", job.id.to_string()),
        ("kind", job.kind.to_string()),
        ("model", job.model.clone().unwrap_or_else(|| "not chosen yet".to_owned())),
        ("status", job.status.to_string()),
        (
            "progress",
            format!("{:.0} %, {} {}/{}", progress.fraction * 100.0, progress.phase, progress.step, progress.steps),
        ),
        ("priority", job.priority.to_string()),
        ("attempt", format!("{} of {}", job.attempt, job.max_attempts)),
    ];
    if job.crashes > 0 {
        lines.push(("crashes", job.crashes.to_string()));
    }
    if let Some(step) = job.resumed_from_step {
        lines.push(("resumed", format!("from step {step}")));
    }
    let name = job.source.name.as_deref().unwrap_or_default();
    lines.push(("source", format!("{} {name}", job.source.r#type.as_str()).trim_end().to_owned()));
    if let Ok(serde_json::Value::Object(params)) = serde_json::to_value(&job.params) {
        lines.extend(params.iter().map(|(name, value)| ("param", format!("{name} = {value}"))));
    }
    let file = |name: &str, media_type: &str, width: u32, height: u32, bytes: u64| {
        // A text has no size in pixels.
        let pixels = if width > 0 { format!("{width} × {height}, ") } else { String::new() };
        format!("{name} ({media_type}, {pixels}{})", output::size(bytes))
    };
    for input in &job.inputs {
        lines.push(("input", file(&input.name, &input.media_type, input.width, input.height, input.bytes)));
    }
    for made in &job.outputs {
        lines.push(("output", file(&made.name, &made.media_type, made.width, made.height, made.bytes)));
    }
    if let Some(result) = &job.result {
        let text = result.get("text").and_then(serde_json::Value::as_str);
        lines.push(("result", text.map_or_else(|| result.to_string(), str::to_owned)));
    }
    if let Some(error) = &job.error {
        lines.push(("error", format!("{}: {}", error.code, error.message)));
        if !error.hint.is_empty() {
            lines.push(("hint", error.hint.clone()));
        }
    }
    lines.push(("created", local(job.created_at)));
    lines.extend(job.started_at.map(|time| ("started", local(time))));
    lines.extend(job.finished_at.map(|time| ("finished", local(time))));
    lines
}

/// One line of JSON for each change; the job is the API's.
async fn watch_lines(client: &Client, id: JobId) -> Result {
    let mut printed = Ok(());
    let job = {
        let mut tell = |job: &Job| {
            if printed.is_ok() {
                printed = output::json_line(job);
            }
        };
        tokio::select! {
            job = follow::job(client, id, Patience::default(), &mut tell) => job?,
            _ = tokio::signal::ctrl_c() => return Err(CliError::silent(Exit::Interrupted)),
        }
    };
    printed?;
    if job.status == JobStatus::Succeeded { Ok(()) } else { Err(CliError::silent(Exit::Failed)) }
}

async fn watch_all(global: &Global) -> Result {
    let client = Client::new(global)?;
    let mut tell = |news: News| match news {
        News::Job(job) if global.json => output::json_line(&job),
        News::Progress { id, progress } if global.json => output::json_line(&json!({"id": id, "progress": progress})),
        News::Removed(id) if global.json => output::json_line(&json!({"id": id, "removed": true})),
        News::Job(job) => {
            let name = job.source.name.as_deref().unwrap_or_default();
            let (kind, status) = (job.kind.as_str(), job.status.as_str());
            line(format!("{} {kind:<11} {status:<9} {}", job.id, plain(name)).trim_end())
        }
        News::Progress { id, progress } => line(&format!(
            "{id} {:>3.0} % {} {}/{}",
            progress.fraction * 100.0,
            plain(&progress.phase),
            progress.step,
            progress.steps
        )),
        News::Removed(id) => line(&format!("{id} removed")),
    };
    let watched: Result<Infallible> = tokio::select! {
        ended = follow::all(&client, Patience::default(), &mut tell) => ended,
        _ = tokio::signal::ctrl_c() => Err(CliError::silent(Exit::Interrupted)),
    };
    match watched {
        Ok(never) => match never {},
        Err(error) => Err(error),
    }
}

#[derive(Clone, Copy)]
enum Act {
    Cancel,
    Retry,
    Remove,
}

/// Does the same to several jobs. One that fails does not keep the others; the first failure decides the exit code.
async fn each(global: &Global, ids: &Ids, act: Act) -> Result {
    let client = Client::new(global)?;
    let mut first = Ok(());
    let mut done = Vec::new();
    for id in &ids.ids {
        match one(&client, id, act).await {
            Ok(Some(job)) => done.push(job),
            Ok(None) => {}
            Err(error) => {
                let unreachable = error.exit == Exit::Unreachable;
                complain(&error);
                first = first.and(Err(CliError::silent(error.exit)));
                if unreachable {
                    break;
                }
            }
        }
    }
    if global.json {
        match (done.as_slice(), ids.ids.len()) {
            ([], 1) => {}
            ([job], 1) => output::json(job)?,
            (jobs, _) => output::json(&jobs)?,
        }
    } else {
        for job in &done {
            let later = matches!(act, Act::Cancel) && !job.status.is_ended();
            line(&format!("{} {}{}", job.id, job.status, if later { ", ends at its next step" } else { "" }))?;
        }
    }
    first
}

/// The job after what was done to it, where it is still there.
async fn one(client: &Client, id: &str, act: Act) -> Result<Option<Job>> {
    let id = parse(id)?;
    match act {
        Act::Cancel => client.post(&format!("/jobs/{id}/cancel"), None).await.map(Some),
        Act::Retry => client.post(&format!("/jobs/{id}/retry"), None).await.map(Some),
        Act::Remove => client.delete(&format!("/jobs/{id}")).await.map(|()| None),
    }
}
