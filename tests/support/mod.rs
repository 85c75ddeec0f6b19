//! The daemon's inner parts put together in a temporary folder, with the stand-in worker.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::needless_pass_by_value, clippy::wildcard_enum_match_arm, reason = "tests")]
#![allow(unreachable_pub, reason = "a module of each test binary")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use atelier::{
    admission,
    config::{Config, Sources},
    engine::{Engine, EngineConfig},
    models::Registry,
    queue::{Enqueued, NewJob, Queue},
    store::Store,
};
use atelier_domain::{Job, JobId, JobSpec, JobStatus, Source, SourceType, protocol::Offload};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Long enough for a loaded machine; a test that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn fake_worker() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_atelier")).with_file_name("atelier-fake-worker");
    assert!(path.exists(), "{} is missing: run `cargo build` first", path.display());
    path
}

pub struct Parts {
    pub dir: tempfile::TempDir,
    pub config: Arc<Config>,
    pub store: Store,
    pub queue: Queue,
    pub engine: Engine,
    pub registry: Arc<Registry>,
}

/// A folder with one model that makes pictures from prompts, and a configuration over the defaults.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub worker_args: Vec<String>,
}

impl Scene {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models/fake");
        std::fs::create_dir_all(&model).unwrap();
        std::fs::write(model.join("config.json"), r#"{"_class_name":"AtelierFake"}"#).unwrap();
        let path = |sub: &str| dir.path().join(sub).display().to_string();
        let sources = Sources {
            flags: vec![
                ("paths.data".into(), path("data")),
                ("paths.models".into(), format!("[{:?}]", path("models"))),
                ("inbox.dir".into(), path("inbox")),
                ("queue.backoff".into(), "100ms".into()),
                ("worker.cancel_grace".into(), "2s".into()),
                ("worker.stop_timeout".into(), "5s".into()),
            ],
            ..Sources::default()
        };
        let config = Config::load(&sources).expect("the test's configuration is right").config;
        for sub in ["spool", "checkpoints", "outbox"] {
            std::fs::create_dir_all(dir.path().join("data").join(sub)).unwrap();
        }
        Self { dir, config, worker_args: Vec::new() }
    }

    /// Further words on the worker's command line.
    pub fn worker(mut self, args: &[&str]) -> Self {
        self.worker_args = args.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn database(&self) -> PathBuf {
        self.config.paths.data.join("atelier.db")
    }

    /// Opens everything and starts delivery.
    pub async fn start(self) -> Parts {
        let parts = self.open().await;
        parts.queue.start().await.unwrap();
        parts
    }

    /// Opens everything; nothing is delivered yet.
    pub async fn open(self) -> Parts {
        let config = Arc::new(self.config);
        let store = Store::open(&config.paths.data.join("atelier.db")).await.unwrap();
        let worker = &config.worker;
        let command =
            std::iter::once(fake_worker().into_os_string()).chain(self.worker_args.into_iter().map(Into::into));
        let engine = Engine::new(EngineConfig {
            command: command.collect(),
            device: "cpu".into(),
            threads: 1,
            memory_budget: None,
            offload: Offload::Auto,
            keep_alive: worker.keep_alive,
            stall_timeout: worker.stall_timeout,
            stop_timeout: worker.stop_timeout,
            cancel_grace: worker.cancel_grace,
        });
        let registry = Arc::new(Registry::scan(&config.all_model_dirs()));
        let (config_sender, config_receiver) = watch::channel(config.clone());
        let (registry_sender, registry_receiver) = watch::channel(registry.clone());
        let queue = Queue::new(store.clone(), engine.clone(), config_receiver, registry_receiver).await.unwrap();
        // Receivers only read; the senders may live as long as the process.
        std::mem::forget((config_sender, registry_sender));
        Parts { dir: self.dir, config, store, queue, engine, registry }
    }
}

impl Parts {
    /// A job that makes a picture from `prompt`, with more in `params`.
    pub fn new_job(&self, prompt: &str, spec: Value) -> NewJob {
        let mut wish = json!({"kind": "generate", "params": {"prompt": prompt, "seed": 7}});
        for (key, value) in spec.as_object().unwrap() {
            if key == "params" {
                for (name, value) in value.as_object().unwrap() {
                    wish["params"][name] = value.clone();
                }
            } else {
                wish[key] = value.clone();
            }
        }
        let spec = JobSpec::from_value(wish).unwrap();
        let resolved = admission::resolve(spec, None, &self.config, &self.registry).unwrap();
        NewJob {
            id: self.queue.new_id(),
            resolved,
            source: Source { r#type: SourceType::Http, name: None },
            source_path: None,
            inputs: Vec::new(),
            mask: None,
            output_dir: None,
            output_stem: None,
            sidecars: Vec::new(),
            dedupe_key: None,
            idempotency: None,
        }
    }

    pub async fn submit(&self, prompt: &str, spec: Value) -> JobId {
        match self.queue.enqueue(self.new_job(prompt, spec)).await.unwrap() {
            Enqueued::New(job) => job.id,
            other => panic!("not a new job: {other:?}"),
        }
    }

    pub async fn ended(&self, id: JobId) -> Job {
        let job = self.queue.wait_ended(id, PATIENCE).await.unwrap().expect("the job exists");
        assert!(job.status.is_ended(), "job {id} has not ended: {job:?}");
        job
    }

    /// Waits until the job's row says `status`.
    pub async fn until(&self, id: JobId, status: JobStatus) -> Job {
        let mut messages = self.queue.subscribe();
        let wait = async {
            loop {
                let job = self.store.job(id).await.unwrap().expect("the job exists");
                if job.status == status {
                    return job;
                }
                assert!(!job.status.is_ended(), "job {id} ended instead of becoming {status}: {job:?}");
                let _ = tokio::time::timeout(Duration::from_millis(200), messages.recv()).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("job {id} did not become {status}"))
    }

    /// Waits until the job has shown at least this step.
    pub async fn until_step(&self, id: JobId, step: u32) {
        let wait = async {
            loop {
                match self.queue.live_progress(id) {
                    Some(progress) if progress.step >= step => return,
                    _ => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("job {id} did not reach step {step}"));
    }

    pub async fn stop(&self) {
        self.queue.stop().await;
        self.engine.shutdown().await;
        self.store.close().await;
    }

    /// A connection of somebody else's.
    pub async fn foreign(&self) -> sqlx::SqliteConnection {
        use sqlx::ConnectOptions as _;
        sqlx::sqlite::SqliteConnectOptions::new()
            .filename(self.config.paths.data.join("atelier.db"))
            .busy_timeout(Duration::from_secs(30))
            .connect()
            .await
            .unwrap()
    }

    pub fn output(&self, job: &Job) -> Vec<u8> {
        std::fs::read(self.config.outbox.dir.join(&job.outputs[0].name)).unwrap()
    }
}
