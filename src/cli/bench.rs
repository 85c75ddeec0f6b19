//! `atelier bench`: a short standard set of jobs on this machine, and figures for a bug report.
//!
//! Runs beside a daemon or without one: on a database, a queue and a worker of its own, with the configuration's
//! worker, device, threads and models, in a folder beside the data that is removed at the end.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use atelier_domain::{Job, JobSpec, JobStatus, OutputFormat, Source, SourceType};
use atelier_imaging::{Color, EncodeSpec, Metadata, Samples, encode};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    args::Global,
    error::{CliError, Exit, Result},
    output::{self, note, print, size, table},
};
use crate::{
    admission,
    app::engine_config,
    config::Config,
    engine::Engine,
    models::Registry,
    queue::{Enqueued, NewJob, Queue},
    store::Store,
};

/// The side of the picture, in pixels.
const SIDE: u32 = 512;

/// Jobs that are handed in to measure how fast that goes, and how many at once.
const HANDED_IN: usize = 256;
const AT_ONCE: usize = 32;

/// No job of the set takes longer on a machine that works.
const PATIENCE: Duration = Duration::from_mins(15);

/// The set: kind, model and parameters. What is not installed is passed over, and said.
fn standard_set() -> [Value; 3] {
    [
        json!({"kind": "upscale", "model": "span-x2", "params": {"scale": 2, "denoise": "off"}}),
        json!({"kind": "upscale", "model": "span-x4", "params": {"scale": 4, "denoise": "off"}}),
        json!({"kind": "upscale", "model": "waifu2x-photo", "params": {"scale": 2, "denoise": "off"}}),
    ]
}

#[derive(Serialize)]
struct Figures {
    version: &'static str,
    build: &'static str,
    device: Value,
    libtorch: Option<String>,
    /// Seconds from nothing to a worker that is ready, and a job's first step with it.
    first_job_s: Option<f64>,
    worker_rss_bytes: u64,
    durable_jobs_per_s: f64,
    runs: Vec<Run>,
    passed_over: Vec<String>,
}

#[derive(Serialize)]
struct Run {
    kind: String,
    model: String,
    /// With the model to be loaded, and with it loaded.
    first_s: f64,
    again_s: f64,
    /// Of input, with the model loaded.
    megapixels_per_s: f64,
}

pub(super) async fn run(global: &Global) -> Result {
    let loaded = global.load(&[])?.config;
    let folder = loaded.paths.data.with_file_name(format!(".atelier-bench-{}", std::process::id()));
    let config = in_folder(loaded, &folder);
    let measured = tokio::select! {
        measured = measure(&config, &folder) => measured,
        _ = tokio::signal::ctrl_c() => Err(CliError::silent(Exit::Interrupted)),
    };
    let _ = std::fs::remove_dir_all(&folder);
    let figures = measured?;
    if global.json {
        return output::json(&figures);
    }
    tell(&figures)
}

/// The same, working in a folder of its own.
fn in_folder(mut config: Config, folder: &Path) -> Config {
    folder.clone_into(&mut config.paths.data);
    config.outbox.dir = folder.join("outbox");
    config.inbox.enabled = false;
    config
}

async fn measure(config: &Config, folder: &Path) -> Result<Figures> {
    for name in ["spool", "checkpoints", "outbox"] {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)
            .map_err(|error| CliError::failed(format!("{}: {error}", folder.display())).hint("is there room?"))?;
    }
    let picture = picture(folder)?;
    let durable_jobs_per_s = Bench::open(config, &folder.join("handed-in.db")).await?.hand_in(&picture).await?;

    let bench = Bench::open(config, &folder.join("atelier.db")).await?;
    bench.queue.start().await.map_err(|error| failed(&error))?;
    let (mut runs, mut passed_over) = (Vec::new(), Vec::new());
    let mut first_job_s = None;
    for job in standard_set() {
        let name = job["model"].as_str().unwrap_or_default().to_owned();
        if bench.registry.get(&name).is_none_or(|model| !model.is_complete()) {
            passed_over.push(format!("{name} is not installed"));
            continue;
        }
        note(&format!("{} with {name} …", job["kind"].as_str().unwrap_or_default()));
        let begun = Instant::now();
        bench.once(&job, &picture).await?;
        first_job_s.get_or_insert(begun.elapsed().as_secs_f64());
        let first = begun.elapsed();
        let begun = Instant::now();
        bench.once(&job, &picture).await?;
        let again_s = begun.elapsed().as_secs_f64();
        runs.push(Run {
            kind: job["kind"].as_str().unwrap_or_default().to_owned(),
            model: name,
            first_s: first.as_secs_f64(),
            again_s,
            megapixels_per_s: f64::from(SIDE) * f64::from(SIDE) / 1e6 / again_s,
        });
    }
    let worker = bench.engine.status();
    bench.queue.stop().await;
    bench.engine.shutdown().await;
    bench.store.close().await;
    Ok(Figures {
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        device: serde_json::to_value(&worker.device).unwrap_or_default(),
        libtorch: worker.libtorch,
        first_job_s,
        worker_rss_bytes: worker.rss_bytes,
        durable_jobs_per_s,
        runs,
        passed_over,
    })
}

/// The daemon's parts, without its doors.
struct Bench {
    config: Arc<Config>,
    store: Store,
    engine: Engine,
    queue: Queue,
    registry: Arc<Registry>,
    _senders: (watch::Sender<Arc<Config>>, watch::Sender<Arc<Registry>>),
}

impl Bench {
    async fn open(config: &Config, database: &Path) -> Result<Self> {
        let config = Arc::new(config.clone());
        let registry = Arc::new(Registry::scan(&config.all_model_dirs()));
        let (config_sender, config_receiver) = watch::channel(config.clone());
        let (registry_sender, registry_receiver) = watch::channel(registry.clone());
        let store = Store::open(database).await.map_err(|error| failed(&error))?;
        let engine = Engine::new(engine_config(&config));
        let queue = Queue::new(store.clone(), engine.clone(), config_receiver, registry_receiver)
            .await
            .map_err(|error| failed(&error))?;
        Ok(Self { config, store, engine, queue, registry, _senders: (config_sender, registry_sender) })
    }

    async fn enqueue(&self, job: &Value, picture: &Path) -> Result<Job> {
        let refused = |error: &atelier_domain::ErrorInfo| {
            CliError::failed(format!("{}: {}", error.code, error.message)).hint(error.hint.clone())
        };
        let spec = JobSpec::from_value(job.clone()).map_err(|error| refused(&error))?;
        let resolved = admission::resolve(spec, None, &self.config, &self.registry).map_err(|error| refused(&error))?;
        let input = admission::inspect(picture, "bench.png", &self.config).map_err(|error| refused(&error))?;
        let new = NewJob {
            id: self.queue.new_id(),
            resolved,
            source: Source { r#type: SourceType::Http, name: None },
            source_path: None,
            inputs: vec![(input, picture.to_owned())],
            mask: None,
            output_dir: None,
            output_stem: None,
            sidecars: Vec::new(),
            dedupe_key: None,
            idempotency: None,
            webhook: None,
            trace_id: None,
        };
        self.queue.enqueue(new).await.map(Enqueued::into_job).map_err(|error| refused(&error.info()))
    }

    /// How many jobs a second are accepted, each of them durable.
    async fn hand_in(self, picture: &Path) -> Result<f64> {
        let job = json!({"kind": "upscale", "params": {"scale": 2}});
        let begun = Instant::now();
        futures::stream::iter(0..HANDED_IN)
            .map(|_| self.enqueue(&job, picture))
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        let took = begun.elapsed().as_secs_f64();
        self.store.close().await;
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        Ok(HANDED_IN as f64 / took)
    }

    async fn once(&self, job: &Value, picture: &Path) -> Result {
        let id = self.enqueue(job, picture).await?.id;
        let ended = self.queue.wait_ended(id, PATIENCE).await.map_err(|error| failed(&error))?;
        let ended = ended.ok_or_else(|| CliError::failed("the job has vanished"))?;
        if ended.status == JobStatus::Succeeded {
            return Ok(());
        }
        let why =
            ended.error.map_or_else(|| ended.status.to_string(), |error| format!("{}: {}", error.code, error.message));
        Err(CliError::failed(format!("{job} has not succeeded: {why}")).hint("`atelier doctor` looks for the cause"))
    }
}

/// The same picture everywhere: a gradient under a grain, which no network finds trivial.
fn picture(folder: &Path) -> Result<PathBuf> {
    let mut state = 1_u32;
    let mut samples = Vec::with_capacity((SIDE * SIDE * 3) as usize);
    for y in 0..SIDE {
        for x in 0..SIDE {
            for channel in 0..3 {
                // Numerical Recipes' generator: all that is asked of it is to be the same everywhere.
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let base = (x * (channel + 1) + y * (3 - channel)) / 8 % 224;
                samples.push(u8::try_from(base + (state >> 27)).unwrap_or(u8::MAX));
            }
        }
    }
    let spec = EncodeSpec {
        format: OutputFormat::Png,
        quality: 100,
        width: SIDE,
        height: SIDE,
        color: Color::Rgb,
        alpha: false,
        metadata: &Metadata::default(),
    };
    let path = folder.join("spool").join("bench.png");
    encode(Samples::U8(&samples), &spec, &path)
        .map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
    Ok(path)
}

fn tell(figures: &Figures) -> Result {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = vec![
        ("atelier", format!("{} ({} build)", figures.version, figures.build)),
        ("libtorch", figures.libtorch.clone().unwrap_or_else(|| "none".to_owned())),
        ("device", format!("{} ({})", text(&figures.device["name"]), text(&figures.device["model"]))),
        ("worker's memory", size(figures.worker_rss_bytes)),
        ("durable jobs", format!("{:.0} a second", figures.durable_jobs_per_s)),
    ];
    print(&output::pairs(&rows))?;
    let runs: Vec<Vec<String>> = figures
        .runs
        .iter()
        .map(|run| {
            let seconds = |s: f64| format!("{s:.2} s");
            let rate = format!("{:.3}", run.megapixels_per_s);
            vec![run.kind.clone(), run.model.clone(), seconds(run.first_s), seconds(run.again_s), rate]
        })
        .collect();
    print(&table(&["KIND", "MODEL", "FIRST", "AGAIN", "MPIXEL/S"], &runs))?;
    for why in &figures.passed_over {
        note(&format!("passed over: {why}"));
    }
    Ok(())
}

fn failed(error: &dyn std::error::Error) -> CliError {
    CliError::failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_the_same_everywhere_and_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("spool")).expect("mkdir");
        let path = picture(folder.path()).expect("made");
        let input = admission::inspect(&path, "bench.png", &Config::defaults()).expect("whole");
        assert_eq!((input.width, input.height), (SIDE, SIDE));
    }

    #[test]
    fn the_set_is_made_of_what_the_daemon_takes() {
        for job in standard_set() {
            JobSpec::from_value(job).expect("a job");
        }
    }
}
