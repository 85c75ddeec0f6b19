//! `atelier queue`: how full it is, and whether it runs.

use clap::Subcommand;
use serde_json::Value;

use super::{
    args::Global,
    client::Client,
    error::Result,
    output::{self, pairs, print},
};

#[derive(Subcommand, Clone, Copy, Debug)]
pub(super) enum Queue {
    /// Show how many jobs wait, which one runs and whether the queue is paused
    Status,
    /// Start no further job; what runs goes on
    Pause,
    /// Start jobs again
    Resume,
}

pub(super) async fn run(global: &Global, queue: Queue) -> Result {
    let client = Client::new(global)?;
    match queue {
        Queue::Status => {}
        Queue::Pause => client.send(client.api(reqwest::Method::POST, "/queue/pause")).await.map(drop)?,
        Queue::Resume => client.send(client.api(reqwest::Method::POST, "/queue/resume")).await.map(drop)?,
    }
    let status: Value = client.get("/queue").await?;
    if global.json { output::json(&status) } else { print(&pairs(&describe(&status))) }
}

fn describe(status: &Value) -> Vec<(String, String)> {
    let Value::Object(map) = status else { return vec![("queue".to_owned(), status.to_string())] };
    let mut lines = Vec::new();
    for (name, value) in map {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Bool(flag) => if *flag { "yes" } else { "no" }.to_owned(),
            Value::Number(number) => number.to_string(),
            // Counts by status, on one line.
            Value::Object(inner) if inner.values().all(Value::is_number) => {
                inner.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
            }
            // A job is named by its id.
            Value::Object(inner) => inner.get("id").and_then(Value::as_str).unwrap_or("…").to_owned(),
            Value::Array(items) => format!("{} listed by --json", items.len()),
        };
        lines.push((name.replace('_', " "), text));
    }
    lines
}
