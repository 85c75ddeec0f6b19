//! The log: readable or JSON to standard error, and rolling files in the data folder.

use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing_appender::{
    non_blocking::WorkerGuard,
    rolling::{RollingFileAppender, Rotation},
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt::writer::BoxMakeWriter, layer::SubscriberExt as _, registry::LookupSpan, reload,
    util::SubscriberInitExt as _,
};

use crate::config::{Log, LogFormat};

/// Keeps the log's writer alive, and changes its level.
pub struct Telemetry {
    level: reload::Handle<EnvFilter, Registry>,
    /// Writes what waits when it is dropped.
    writing: Mutex<Option<WorkerGuard>>,
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
    let file = log.files.then(|| {
        RollingFileAppender::builder()
            .rotation(Rotation::DAILY)
            .filename_prefix("atelier")
            .filename_suffix("log")
            .max_log_files(log.keep_files.max(1))
            .build(&log.dir)
    });
    let file = file.transpose()?;
    let is_coloured = matches!(log.format, LogFormat::Pretty) && rustix::termios::isatty(std::io::stderr());
    // A line is made once and goes to both, unless it has colours: those are for a person who looks on.
    let coloured = is_coloured.then(|| layer(log.format, true, BoxMakeWriter::new(std::io::stderr)));
    let plain = (file.is_some() || !is_coloured).then(|| {
        let (writer, writing) =
            tracing_appender::non_blocking(Sinks { file, console: !is_coloured, lines: Vec::new() });
        (layer(log.format, false, BoxMakeWriter::new(writer)), writing)
    });
    let (plain, writing) = plain.unzip();
    let layers: Vec<_> = plain.into_iter().chain(coloured).collect();
    tracing_subscriber::registry().with(filter).with(layers).try_init()?;
    std::panic::set_hook(Box::new(|panic| tracing::error!("panic: {panic}")));
    Ok(Telemetry { level, writing: Mutex::new(writing) })
}

/// Where lines go, from a thread of their own: whoever has something to say waits for no disk and no reader. What has
/// gathered is written at once; each line by itself would cost more than making it.
struct Sinks {
    file: Option<RollingFileAppender>,
    console: bool,
    lines: Vec<u8>,
}

/// Lines that are written at once at most.
const GATHERED: usize = 64 << 10;

impl Write for Sinks {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.extend_from_slice(line);
        if self.lines.len() >= GATHERED {
            self.flush()?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let console = if self.console { io::stderr().write_all(&self.lines) } else { Ok(()) };
        let file = self.file.as_mut().map_or(Ok(()), |file| file.write_all(&self.lines));
        self.lines.clear();
        console.and(file)
    }
}

fn layer<S>(format: LogFormat, ansi: bool, writer: BoxMakeWriter) -> BoxedLayer<S>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(writer);
    match format {
        LogFormat::Pretty => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

impl Telemetry {
    /// Writes what waits; nothing is logged after this. For an end that drops nothing.
    pub fn end(&self) {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

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
