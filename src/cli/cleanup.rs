//! `atelier cleanup`: removes what is past its time, through the daemon or, where none runs, by itself.

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    args::Global,
    client::{self, Client},
    error::{CliError, Exit, Result},
    output::{self, line, note, plain, print, size, table},
};
use crate::{config::Config, data_lock, maintenance, store::Store};

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Cleanup {
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// The daemon's report, as far as people read it.
#[derive(Deserialize)]
struct Report {
    jobs: u64,
    files: u64,
    bytes: u64,
    #[serde(default)]
    items: Vec<Item>,
    #[serde(default)]
    problems: Vec<String>,
}

#[derive(Deserialize)]
struct Item {
    job: Option<String>,
    bytes: u64,
    why: String,
}

pub(super) async fn run(global: &Global, cleanup: Cleanup) -> Result {
    let report = report(global, cleanup.dry_run).await?;
    if global.json {
        return output::json(&report);
    }
    let report: Report = serde_json::from_value(report)
        .map_err(|error| CliError::failed(format!("the report is not understood: {error}")))?;
    if cleanup.dry_run && !report.items.is_empty() {
        let row = |item: &Item| vec![item.job.clone().unwrap_or_default(), size(item.bytes), item.why.clone()];
        print(&table(&["JOB", "SIZE", "WHY"], &report.items.iter().map(row).collect::<Vec<_>>()))?;
    }
    let removed = if cleanup.dry_run { "would be removed" } else { "removed" };
    line(&format!("{} jobs and {} files {removed}, {}", report.jobs, report.files, size(report.bytes)))?;
    for problem in &report.problems {
        note(&plain(problem));
    }
    if report.problems.is_empty() { Ok(()) } else { Err(CliError::silent(Exit::Failed)) }
}

async fn report(global: &Global, dry_run: bool) -> Result<Value> {
    let body = json!({ "dry_run": dry_run });
    if global.server.is_some() {
        return Client::new(global)?.post("/cleanup", Some(&body)).await;
    }
    let config = global.load(&[])?.config;
    let client = Client::of_config(&config, client::explicit_token(global)?)?;
    match client.post("/cleanup", Some(&body)).await {
        Err(error) if error.exit == Exit::Unreachable => match data_lock::holder(&config.paths.data) {
            // It is there and does not answer: starting up, or its address was changed.
            Some(pid) => {
                Err(CliError { message: format!("{} (pid {pid} uses the data folder)", error.message), ..error })
            }
            None => alone(&config, dry_run).await,
        },
        answered => answered,
    }
}

/// Without a daemon.
async fn alone(config: &Config, dry_run: bool) -> Result<Value> {
    let database = config.paths.data.join("atelier.db");
    if !database.exists() {
        return Err(CliError::usage(format!("there is nothing to clean up: {} does not exist", database.display()))
            .hint("--data or --config names the daemon's data folder"));
    }
    let failed = |error: &dyn std::error::Error| CliError::failed(format!("{}: {error}", database.display()));
    let store = Store::open(&database).await.map_err(|error| failed(&error))?;
    let report = maintenance::cleanup::run(&store, config, dry_run).await;
    store.close().await;
    let report = report.map_err(|error| failed(&error))?;
    serde_json::to_value(&report).map_err(|error| failed(&error))
}
