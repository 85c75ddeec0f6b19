//! `/metrics` for Prometheus: what was counted along the way, and what is read at the time of the scrape.

use std::{fmt::Write as _, sync::Arc};

use atelier_domain::Timestamp;
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use super::{
    Http,
    problem::{Problem, ProblemBody},
};

/// Metrics for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "scrape_metrics",
    tag = "operations",
    responses(
        (status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn scrape(State(http): State<Arc<Http>>) -> Result<Response, Problem> {
    let mut text = http.app.metrics.render();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    http.gauges(&mut text).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// One family of the text format.
struct Family<'t> {
    text: &'t mut String,
    name: &'static str,
}

impl<'t> Family<'t> {
    fn new(text: &'t mut String, name: &'static str, kind: &str, help: &str) -> Self {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a String takes everything");
        Self { text, name }
    }

    fn value(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.text, "{}{labels} {value}", self.name).expect("a String takes everything");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(millis: i64) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

impl Http {
    async fn gauges(&self, text: &mut String) -> Result<(), Problem> {
        let app = &self.app;
        let counts = app.store.counts().await?;
        let mut jobs = Family::new(text, "atelier_jobs", "gauge", "Jobs per status.");
        for (status, n) in &counts {
            jobs.value(&[("status", status.as_str())], n);
        }
        let oldest = app.store.oldest_queued().await?;
        let age_ms = oldest.map_or(0, |at| (Timestamp::now().0 - at.0).max(0));
        Family::new(text, "atelier_queue_oldest_waiting_seconds", "gauge", "Age of the job that waits longest.")
            .value(&[], seconds(age_ms));
        Family::new(text, "atelier_queue_free_places", "gauge", "Jobs that the queue still takes.")
            .value(&[], app.queue.free_places());
        let gate = app.queue.gate();
        Family::new(text, "atelier_queue_paused", "gauge", "1 when somebody has paused the queue.")
            .value(&[], u8::from(gate.paused));
        Family::new(text, "atelier_queue_blocked", "gauge", "1 when the queue stands still by itself.")
            .value(&[], u8::from(gate.blocked.is_some()));
        let running = match app.queue.running() {
            Some(id) => app.store.job(id).await?.and_then(|job| job.started_at),
            None => None,
        };
        let running_ms = running.map_or(0, |at| (Timestamp::now().0 - at.0).max(0));
        Family::new(text, "atelier_job_running_seconds", "gauge", "Since the running job was first started; 0: none.")
            .value(&[], seconds(running_ms));
        let backlog = app.store.webhook_backlog().await?;
        Family::new(text, "atelier_webhook_outbox", "gauge", "Webhook messages that wait to be taken.")
            .value(&[], backlog.messages);
        let oldest_ms = backlog.oldest.map_or(0, |at| (Timestamp::now().0 - at.0).max(0));
        Family::new(text, "atelier_webhook_oldest_seconds", "gauge", "Age of the webhook message that waits longest.")
            .value(&[], seconds(oldest_ms));
        let worker = app.engine.status();
        Family::new(text, "atelier_worker_up", "gauge", "1 when a worker process is there.")
            .value(&[], u8::from(worker.pid.is_some()));
        Family::new(text, "atelier_worker_resident_bytes", "gauge", "Memory of the worker process.")
            .value(&[], worker.rss_bytes);
        Family::new(text, "atelier_worker_lost_total", "counter", "Workers that died, hung or talked rubbish.")
            .value(&[], worker.lost);
        let mut loaded = Family::new(text, "atelier_model_loaded_bytes", "gauge", "Memory of each loaded model.");
        for model in &worker.loaded {
            loaded.value(&[("model", &model.id)], model.bytes);
        }
        if let Some(inbox) = app.inbox.get() {
            let problems = inbox.status().problems.len();
            Family::new(text, "atelier_inbox_problems", "gauge", "Files that somebody has to look at.")
                .value(&[], problems);
        }
        Family::new(text, "atelier_uptime_seconds", "gauge", "Since the daemon started.")
            .value(&[], app.started.elapsed().as_secs());
        Family::new(text, "atelier_build_info", "gauge", "Always 1.")
            .value(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = String::new();
        Family::new(&mut text, "m", "gauge", "Help.").value(&[("a", "x\"\\\ny"), ("b", "z")], 3);
        assert_eq!(text, "# HELP m Help.\n# TYPE m gauge\nm{a=\"x\\\"\\\\\\ny\",b=\"z\"} 3\n");
    }
}
