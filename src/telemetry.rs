//! The log: readable or JSON to standard error, and rolling files in the data folder.

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
