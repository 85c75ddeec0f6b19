//! The worker's standard output and error, line by line into the daemon's log, with the job they belong to.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use atelier_domain::JobId;
use serde::Deserialize;
use tokio::{io::AsyncReadExt as _, net::unix::pipe};

/// Longer lines are cut; a worker that writes no line ends must not fill our memory.
const MAX_LINE: usize = 8 << 10;

/// The job that the worker is at, for lines that do not say.
#[derive(Clone, Default)]
pub(super) struct CurrentJob(Arc<Mutex<Option<JobId>>>);

impl CurrentJob {
    pub(super) fn set(&self, job: Option<JobId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = job;
    }

    fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|id| id.to_string()).unwrap_or_default()
    }
}

/// What our worker's own logger writes, one JSON object a line; anything else is passed on as it is.
#[derive(Deserialize)]
struct Line {
    level: String,
    message: String,
    #[serde(default)]
    job: String,
    /// Whatever else the line says.
    #[serde(flatten)]
    more: serde_json::Map<String, serde_json::Value>,
}

impl Line {
    fn text(&self) -> String {
        let more = self.more.iter().filter(|(name, _)| !["timestamp", "target"].contains(&name.as_str()));
        more.fold(self.message.clone(), |text, (name, value)| format!("{text} {name}={value}"))
    }
}

/// Reads until the pipe closes.
pub(super) fn follow(pipe: OwnedFd, stream: &'static str, current: CurrentJob) {
    let Ok(mut receiver) = pipe::Receiver::from_owned_fd(pipe) else { return };
    tokio::spawn(async move {
        let mut pending = Vec::new();
        let mut buffer = vec![0; 4 << 10];
        while let Ok(n @ 1..) = receiver.read(&mut buffer).await {
            for byte in &buffer[..n] {
                if *byte == b'\n' || pending.len() >= MAX_LINE {
                    emit(&pending, stream, &current);
                    pending.clear();
                }
                if *byte != b'\n' {
                    pending.push(*byte);
                }
            }
        }
        emit(&pending, stream, &current);
    });
}

fn emit(line: &[u8], stream: &'static str, current: &CurrentJob) {
    if line.is_empty() {
        return;
    }
    match serde_json::from_slice::<Line>(line) {
        Ok(line) => {
            let job = if line.job.is_empty() { current.get() } else { line.job.clone() };
            let text = line.text();
            match line.level.as_str() {
                "ERROR" => tracing::error!(target: "worker", %job, "{text}"),
                "WARN" => tracing::warn!(target: "worker", %job, "{text}"),
                "DEBUG" | "TRACE" => tracing::debug!(target: "worker", %job, "{text}"),
                _ => tracing::info!(target: "worker", %job, "{text}"),
            }
        }
        Err(_) => {
            let text = String::from_utf8_lossy(line);
            let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
            tracing::warn!(target: "worker", job = %current.get(), %stream, "{text}");
        }
    }
}
