//! What the running daemon is made of, for those parts that need several of them.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Loaded, MemoryBudget},
    engine::{Engine, EngineConfig},
    inbox::InboxHandle,
    models::Registry,
    queue::Queue,
    store::Store,
};

/// The daemon's parts. Shared as `Arc<App>`.
#[derive(Debug)]
pub struct App {
    config: watch::Sender<Arc<Config>>,
    registry: watch::Sender<Arc<Registry>>,
    pub store: Store,
    pub queue: Queue,
    pub engine: Engine,
    pub metrics: PrometheusHandle,
    pub started: Instant,
    /// Cancelled when the daemon is to end.
    pub shutdown: CancellationToken,
    pub inbox: OnceLock<InboxHandle>,
}

/// The parts that [`App`] is put together from.
pub(crate) struct Parts {
    pub(crate) config: watch::Sender<Arc<Config>>,
    pub(crate) registry: watch::Sender<Arc<Registry>>,
    pub(crate) store: Store,
    pub(crate) queue: Queue,
    pub(crate) engine: Engine,
    pub(crate) metrics: PrometheusHandle,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            config: parts.config,
            registry: parts.registry,
            store: parts.store,
            queue: parts.queue,
            engine: parts.engine,
            metrics: parts.metrics,
            started: Instant::now(),
            shutdown: CancellationToken::new(),
            inbox: OnceLock::new(),
        })
    }

    /// The configuration as it is now.
    pub fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// Tells of every new configuration.
    pub fn watch_config(&self) -> watch::Receiver<Arc<Config>> {
        self.config.subscribe()
    }

    /// The installed models as last looked at.
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.borrow().clone()
    }

    /// Tells of every new look at the models.
    pub fn watch_registry(&self) -> watch::Receiver<Arc<Registry>> {
        self.registry.subscribe()
    }

    /// Looks at the models directories again.
    pub async fn rescan_models(&self) -> Arc<Registry> {
        let dirs = self.config().all_model_dirs();
        let found = tokio::task::spawn_blocking(move || Registry::scan(&dirs)).await.unwrap_or_default();
        let found = Arc::new(found);
        self.registry.send_replace(found.clone());
        found
    }

    /// Takes what can be taken of a new configuration, and says what needs a restart.
    pub async fn apply(&self, new: Loaded) {
        let old = self.config();
        let changes = crate::config::diff(&old, &new.config);
        if changes.is_empty() {
            tracing::info!("the configuration is read again; nothing has changed");
        }
        for change in &changes {
            if change.reloadable {
                tracing::info!(key = %change.key, "reloaded");
            } else {
                tracing::warn!(key = %change.key, "changed, but takes effect only after a restart");
            }
        }
        let taken = crate::config::follow(&old, new.config);
        self.engine.reconfigure(engine_config(&taken));
        self.config.send_replace(Arc::new(taken));
        self.rescan_models().await;
        if let Some(inbox) = self.inbox.get() {
            inbox.scan_now();
        }
    }
}

/// What the engine takes from the configuration.
pub(crate) fn engine_config(config: &Config) -> EngineConfig {
    let worker = &config.worker;
    EngineConfig {
        command: if worker.command.is_empty() { vec![default_worker().into()] } else { worker.command.clone() },
        device: worker.device.clone(),
        threads: worker.threads,
        memory_budget: match worker.memory_budget {
            MemoryBudget::Auto => None,
            MemoryBudget::Bytes(bytes) => Some(bytes),
        },
        offload: worker.offload,
        keep_alive: worker.keep_alive,
        stall_timeout: worker.stall_timeout,
        stop_timeout: worker.stop_timeout,
        cancel_grace: worker.cancel_grace,
    }
}

/// `atelier-worker` beside this program's own file.
pub fn default_worker() -> std::path::PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("atelier-worker")))
        .unwrap_or_else(|| "atelier-worker".into())
}
