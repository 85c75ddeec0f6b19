//! The log: readable or JSON to standard error, and rolling files in the data folder.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing_appender::{
    non_blocking::WorkerGuard,
    rolling::{RollingFileAppender, Rotation},
};
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

use crate::config::{Log, LogFormat};

/// Keeps the log's writer alive, and changes its level.
pub struct Telemetry {
    level: reload::Handle<EnvFilter, Registry>,
    /// Flushes when dropped.
    _file: Option<WorkerGuard>,
}

type BoxedLayer<S> = Box<dyn Layer<S> + Send + Sync>;

/// Seconds of a job, and of its waiting: from a small picture on a fast card to a video on none.
const JOB_SECONDS: [f64; 15] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0];

/// Seconds of a request.
const REQUEST_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// What counts and measures, with the bounds of the histograms.
///
/// # Errors
/// None, as long as the bounds are not empty.
pub fn metrics() -> anyhow::Result<PrometheusBuilder> {
    let mut builder = PrometheusBuilder::new();
    for (name, bounds) in [
        ("atelier_job_seconds", &JOB_SECONDS[..]),
        ("atelier_job_wait_seconds", &JOB_SECONDS),
        ("atelier_http_request_seconds", &REQUEST_SECONDS),
    ] {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)?;
    }
    Ok(builder)
}

/// Starts logging. Called once.
///
/// # Errors
/// A level that does not parse, or a log folder that cannot be made.
pub fn start(log: &Log) -> anyhow::Result<Telemetry> {
    let filter = filter(log)?;
    let (filter, level) = reload::Layer::new(filter);
    let mut file = None;
    let file_layer: Option<BoxedLayer<_>> = if log.files {
        let appender = RollingFileAppender::builder()
            .rotation(Rotation::DAILY)
            .filename_prefix("atelier")
            .filename_suffix("log")
            .max_log_files(log.keep_files.max(1))
            .build(&log.dir)?;
        let (writer, guard) = tracing_appender::non_blocking(appender);
        file = Some(guard);
        Some(match log.format {
            LogFormat::Pretty => tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer).boxed(),
            LogFormat::Json => tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
        })
    } else {
        None
    };
    let console: BoxedLayer<_> = match log.format {
        LogFormat::Pretty => {
            let ansi = rustix::termios::isatty(std::io::stderr());
            tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(std::io::stderr).boxed()
        }
        LogFormat::Json => {
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(file_layer).with(console).try_init()?;
    std::panic::set_hook(Box::new(|panic| tracing::error!("panic: {panic}")));
    Ok(Telemetry { level, _file: file })
}

impl Telemetry {
    /// Takes a new level.
    pub fn reload(&self, log: &Log) {
        match filter(log) {
            Ok(filter) => {
                let _ = self.level.reload(filter);
            }
            Err(error) => tracing::warn!(%error, "log.level stays as it was"),
        }
    }
}

fn filter(log: &Log) -> anyhow::Result<EnvFilter> {
    // apalis and sqlx tell of every poll at `info`; that is for whoever asks for it by name.
    let quiet = "apalis=warn,apalis_core=warn,apalis_sqlite=warn,sqlx=warn,hyper=warn";
    Ok(EnvFilter::builder().parse(format!("{quiet},{}", log.level))?)
}
