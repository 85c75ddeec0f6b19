//! `atelier serve`: puts the parts together in the right order, and takes them apart again.
//!
//! Start: lock, database, repairs, delivery, inbox, HTTP; only then is the daemon ready. Stop: no new work, the running
//! job's checkpoint, the database last.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use atelier_domain::Timestamp;
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    app::{App, Parts, engine_config},
    config::{self, Config, Loaded},
    daemon_note::DaemonNote,
    data_lock::{self, LockError},
    egress::Egress,
    engine::Engine,
    http, inbox,
    maintenance::{cleanup, reconcile},
    models::Registry,
    on_demand::OnDemand,
    outbox::webhooks,
    queue::Queue,
    store::{MetaKey, Store},
    systemd, telemetry,
};

/// How long a start waits for the lock of a daemon that was just killed.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Reads the configuration again, for SIGHUP.
pub type Reload = Box<dyn Fn() -> Result<Loaded, String> + Send + Sync>;

/// The data folder is somebody else's; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Locked(#[from] LockError);

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// It cannot start: the data folder is taken ([`Locked`]), or something cannot be opened. The message says what.
pub fn run(loaded: Loaded, reload: Reload) -> anyhow::Result<()> {
    let begun = Instant::now();
    #[cfg(any(debug_assertions, feature = "failpoints"))]
    if let Some(armed) = crate::config::failpoints() {
        crate::failpoint::arm(&armed);
    }
    let passed = systemd::listener()?;
    let config = Arc::new(loaded.config);
    let data = config.paths.data.clone();
    for dir in
        [data.clone(), data.join("spool"), data.join("checkpoints"), config.log.dir.clone(), config.outbox.dir.clone()]
    {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    }
    let _lock = data_lock::acquire_within(&data, LOCK_PATIENCE).map_err(Locked)?;
    raise_descriptor_limit();
    let telemetry = telemetry::start(&config.log)?;
    let signals = listen_for_signals()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("atelier").build()?;
    let result = runtime.block_on(serve(config, passed, &telemetry, reload, signals, begun));
    // A blocking call that hangs on a dead mount must not keep a stopped daemon alive.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// As many clients as the administrator lets us: the soft limit is 1024 for the sake of programs that call `select`.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

async fn serve(
    config: Arc<Config>,
    passed: Option<std::net::TcpListener>,
    telemetry: &telemetry::Telemetry,
    reload: Reload,
    mut signals: mpsc::UnboundedReceiver<i32>,
    begun: Instant,
) -> anyhow::Result<()> {
    let data = config.paths.data.clone();
    let store = Store::open(&data.join("atelier.db")).await?;
    let metrics = telemetry::metrics()?.install_recorder()?;
    let (config_sender, config_receiver) = watch::channel(config.clone());
    let registry = Registry::scan(&config.all_model_dirs());
    let (registry_sender, registry_receiver) = watch::channel(Arc::new(registry));
    let engine = Engine::new(engine_config(&config));
    let reconciled = reconcile::run(&store, &data).await?;
    let queue = Queue::new(store.clone(), engine.clone(), config_receiver, registry_receiver).await?;
    let app = App::new(Parts { config: config_sender, registry: registry_sender, store, queue, engine, metrics });

    let listener = match passed {
        Some(passed) => TcpListener::from_std(passed)?,
        None => TcpListener::bind(config.server.listen)
            .await
            .with_context(|| format!("cannot listen on {} (server.listen)", config.server.listen))?,
    };
    let address = listener.local_addr()?;
    let server = http::Server::new(app.clone(), listener, http_settings(&config)).context("HTTP cannot be served")?;

    // The inbox registers for the ends of jobs before the first can end.
    let inbox = config.inbox.enabled.then(|| inbox::prepare(&app));
    OnDemand::start(&app);
    let recovered = app.queue.start().await?;
    app.queue.run_due_hooks().await?;
    if let Some(prepared) = inbox {
        let _ = app.inbox.set(prepared.start(app.shutdown.clone()));
    }
    let server = tokio::spawn(server.run());
    let maintenance = tokio::spawn(maintain(app.clone()));
    let egress = Egress::new().context("the TLS of outgoing requests cannot be set up")?;
    let webhooks = webhooks::run(app.store.clone(), app.watch_config(), egress, app.shutdown.clone());
    let webhooks = tokio::spawn(webhooks);
    let mut note = DaemonNote { pid: std::process::id(), address: address.to_string(), ..DaemonNote::default() };
    note.write(&data).with_context(|| format!("cannot write {}", DaemonNote::path(&data).display()))?;
    tracing::info!(
        %address,
        pid = std::process::id(),
        ms = begun.elapsed().as_millis(),
        recovered = recovered.interrupted.len() + reconciled.published.len(),
        "ready"
    );
    systemd::ready(&app);
    let attendant = systemd::attend(app.clone())?;

    let mut interrupted = false;
    loop {
        match signals.recv().await {
            Some(SIGHUP) => {
                systemd::reloading();
                read_again(&app, telemetry, &reload, &mut note).await;
                if let Err(error) = note.write(&data) {
                    tracing::warn!(%error, "{} could not be written", DaemonNote::path(&data).display());
                }
                systemd::ready(&app);
            }
            Some(SIGUSR1) => report(&app).await,
            Some(signal) => {
                interrupted = signal == SIGINT;
                tracing::info!(signal = if interrupted { "SIGINT" } else { "SIGTERM" }, "stopping");
                break;
            }
            None => break,
        }
    }

    app.shutdown.cancel();
    systemd::stopping(&app);
    let note = DaemonNote::path(&data);
    let stop = stop(&app, &note, server, maintenance, webhooks);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            signal = signals.recv() => if signal == Some(SIGINT) && interrupted {
                tracing::warn!("second SIGINT: ending at once; the next start repairs the queue");
                telemetry.end();
                std::process::exit(130);
            } else if signal == Some(SIGINT) {
                interrupted = true;
            },
        }
    }
    drop(attendant);
    tracing::info!("stopped");
    Ok(())
}

fn http_settings(config: &Config) -> http::Settings {
    http::Settings { max_connections: config.server.max_connections, ..http::Settings::default() }
}

/// Takes what can be taken of the configuration as it is written now; the note tells what came of it.
async fn read_again(app: &App, telemetry: &telemetry::Telemetry, reload: &Reload, note: &mut DaemonNote) {
    note.generation += 1;
    (note.refused, note.needs_restart) = match reload() {
        Ok(loaded) => {
            let changes = config::diff(&app.config(), &loaded.config);
            telemetry.reload(&loaded.config.log);
            app.apply(loaded).await;
            (None, changes.into_iter().filter(|change| !change.reloadable).map(|change| change.key).collect())
        }
        Err(error) => {
            tracing::error!("the configuration stays as it was: {error}");
            (Some(error), Vec::new())
        }
    };
}

async fn stop(
    app: &App,
    note: &PathBuf,
    server: tokio::task::JoinHandle<()>,
    maintenance: tokio::task::JoinHandle<()>,
    webhooks: tokio::task::JoinHandle<()>,
) {
    let _ = std::fs::remove_file(note);
    if let Some(inbox) = app.inbox.get() {
        inbox.stopped().await;
    }
    app.queue.stop().await;
    app.engine.shutdown().await;
    maintenance.abort();
    match tokio::time::timeout(Duration::from_secs(5), server).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the HTTP server panicked"),
        Err(_) => tracing::warn!("clients were still connected"),
    }
    // It ends by itself at the shutdown; what was on its way is sent again.
    let _ = tokio::time::timeout(Duration::from_secs(1), webhooks).await;
    app.store.close().await;
}

/// Signals become messages; the handlers themselves do nothing else.
fn listen_for_signals() -> anyhow::Result<mpsc::UnboundedReceiver<i32>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}

/// What `kill -USR1` writes into the log.
async fn report(app: &App) {
    let counts = match app.store.counts().await {
        Ok(counts) => counts.iter().map(|(status, n)| format!("{status} {n}")).collect::<Vec<_>>().join(", "),
        Err(error) => error.to_string(),
    };
    let engine = app.engine.status();
    let gate = app.queue.gate();
    tracing::info!(
        uptime_s = app.started.elapsed().as_secs(),
        jobs = %counts,
        running = app.queue.running().map(|id| id.to_string()).unwrap_or_default(),
        paused = gate.paused,
        blocked = gate.blocked.unwrap_or_default(),
        worker = engine.state.as_str(),
        worker_pid = engine.pid.unwrap_or_default(),
        worker_rss_mib = engine.rss_bytes >> 20,
        worker_lost = engine.lost,
        device = engine.device.map(|device| device.name).unwrap_or_default(),
        inbox = ?app.inbox.get().map(inbox::InboxHandle::status),
        "status"
    );
}

/// Cleanup when it is due, also when it fell due while the daemon was down, and hooks that failed before.
async fn maintain(app: Arc<App>) {
    let mut look_again = Duration::from_secs(5);
    loop {
        tokio::time::sleep(look_again).await;
        look_again = Duration::from_secs(60);
        // Without it, what a histogram has seen piles up until somebody scrapes.
        app.metrics.run_upkeep();
        if let Err(error) = app.queue.run_due_hooks().await {
            tracing::warn!(%error, "sources of ended jobs wait to be moved");
        }
        let config = app.config();
        let last = app.store.meta(MetaKey::LastCleanup).await.ok().flatten().and_then(|text| text.parse::<i64>().ok());
        let every = i64::try_from(config.cleanup.every.as_millis()).unwrap_or(i64::MAX);
        if last.is_some_and(|last| (0..every).contains(&(Timestamp::now().0 - last))) {
            continue;
        }
        match cleanup::run(&app.store, &config, false).await {
            Ok(report) if report.jobs > 0 || !report.problems.is_empty() => {
                tracing::info!(
                    jobs = report.jobs,
                    files = report.files,
                    bytes = report.bytes,
                    problems = report.problems.join("; "),
                    "cleaned up"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cleanup"),
        }
    }
}
