//! What the daemon says to systemd, and what systemd hands to it. Without a service manager all of it does nothing.
//!
//! The watchdog is fed from here and nowhere else, and only while every part gives signs of life: a timer that is
//! merely alive itself would keep a daemon going whose queue hangs.

use std::{
    net::TcpListener,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use sd_notify::NotifyState;

use crate::{
    app::App,
    config, failpoint,
    liveness::{Beat, Late},
};

/// How often the status line is looked at, and the watchdog fed where it wants no more.
const TICK: Duration = Duration::from_secs(1);

/// How long no task may get its turn.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(30);

/// By how much each word extends the time that stopping may take; said every [`TICK`].
const EXTENSION_USEC: u32 = 10_000_000;

/// What stopping takes beside the running job's checkpoint (`worker.stop_timeout`): the inbox, connections, the
/// database. A daemon that takes longer is left to `TimeoutStopSec`.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// The socket that systemd listens on for us (`atelier.socket`), if it does.
///
/// To be called once, before there are threads: the variables that tell of it are removed from the environment.
///
/// # Errors
/// More than one socket, or another than one of TCP.
pub fn listener() -> anyhow::Result<Option<TcpListener>> {
    let mut passed = listenfd::ListenFd::from_env();
    if passed.len() > 1 {
        bail!("systemd passes {} sockets, and one is used: atelier.socket takes one ListenStream=", passed.len());
    }
    let listener = passed
        .take_tcp_listener(0)
        .context("the socket that systemd passes: ListenStream= of atelier.socket takes ADDRESS:PORT")?;
    if let Some(listener) = &listener {
        listener.set_nonblocking(true).context("the socket that systemd passes")?;
    }
    Ok(listener)
}

/// The daemon works; also what ends a reload.
pub fn ready(app: &App) {
    say(&[NotifyState::Ready, NotifyState::Status(&status(app))]);
}

/// The configuration is read again. [`ready`] follows, whatever comes of it.
pub fn reloading() {
    // Type=notify-reload wants both in one message.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => say(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration again")]),
        Err(error) => tracing::warn!(%error, "systemd is not told of the reload: there is no clock"),
    }
}

/// The daemon ends. [`attend`] asks for more time while it does.
pub fn stopping(app: &App) {
    say(&[NotifyState::Stopping, extension(), NotifyState::Status(&stop_status(app))]);
}

/// Who tells systemd how the daemon is doing. Ends when dropped.
#[derive(Debug)]
pub struct Attendant {
    ticks: tokio::task::JoinHandle<()>,
    _end: mpsc::Sender<()>,
}

impl Drop for Attendant {
    fn drop(&mut self) {
        self.ticks.abort();
    }
}

/// Tells how the daemon is doing and feeds the watchdog, until the answer is dropped. Called within the runtime.
///
/// From a thread of its own: one task that blocks may hold up every other, timers too, and that is to be told of.
///
/// # Errors
/// There can be no such thread.
pub fn attend(app: Arc<App>) -> anyhow::Result<Option<Attendant>> {
    if !config::has_service_manager() {
        return Ok(None);
    }
    let runtime = Beat::new("runtime");
    let beats = beats(&app, runtime.clone());
    let ticks = tokio::spawn(async move {
        loop {
            runtime.alive(failpoint::patience("liveness.runtime", RUNTIME_PATIENCE));
            tokio::time::sleep(TICK).await;
        }
    });
    let (end, ended) = mpsc::channel();
    std::thread::Builder::new()
        .name("systemd".into())
        .spawn(move || keep_informed(&app, beats, &ended))
        .context("no thread can be started")?;
    Ok(Some(Attendant { ticks, _end: end }))
}

fn keep_informed(app: &App, beats: Vec<Beat>, ended: &mpsc::Receiver<()>) {
    let watchdog = sd_notify::watchdog_enabled();
    if let Some(limit) = watchdog {
        tracing::info!(?limit, "systemd's watchdog is fed");
    }
    let tick = watchdog.map_or(TICK, |limit| (limit / 4).min(TICK));
    let mut keeper = Keeper { beats, late: Vec::new() };
    let (mut said, mut stop_by) = (String::new(), None);
    while ended.recv_timeout(tick) == Err(mpsc::RecvTimeoutError::Timeout) {
        let now = Instant::now();
        if watchdog.is_some() && keeper.all_are_alive(now) {
            say(&[NotifyState::Watchdog]);
        }
        if app.shutdown.is_cancelled() {
            let until = now + app.config().worker.stop_timeout + STOP_PATIENCE;
            if now < *stop_by.get_or_insert(until) {
                say(&[extension(), NotifyState::Status(&stop_status(app))]);
            }
            continue;
        }
        let status = status(app);
        if said != status {
            say(&[NotifyState::Status(&status)]);
            said = status;
        }
    }
}

/// Judges the signs of life.
struct Keeper {
    beats: Vec<Beat>,
    /// Those that the log has told of.
    late: Vec<&'static str>,
}

impl Keeper {
    fn all_are_alive(&mut self, now: Instant) -> bool {
        let late: Vec<Late> = self.beats.iter().filter_map(|beat| beat.late(now)).collect();
        for Late { part, silent, bound } in &late {
            if !self.late.contains(part) {
                let (silent_s, bound_s) = (silent.as_secs_f64(), bound.as_secs_f64());
                tracing::error!(part, silent_s, bound_s, "the {part} hangs: the watchdog is not fed until it goes on");
            }
        }
        for part in &self.late {
            if !late.iter().any(|late| late.part == *part) {
                tracing::info!(part, "the {part} goes on");
            }
        }
        self.late = late.iter().map(|late| late.part).collect();
        late.is_empty()
    }
}

fn beats(app: &App, runtime: Beat) -> Vec<Beat> {
    let inbox = app.inbox.get().map(crate::inbox::InboxHandle::beat);
    app.queue.beats().into_iter().chain(inbox).chain([runtime]).collect()
}

/// What `systemctl status` shows.
fn status(app: &App) -> String {
    let gate = app.queue.gate();
    let now = match (app.queue.running(), gate.blocked) {
        (Some(id), _) => match app.queue.live_progress(id) {
            Some(progress) if progress.steps > 0 => {
                format!("job {id}: {} step {} of {}", progress.phase, progress.step, progress.steps)
            }
            Some(progress) => format!("job {id}: {}", progress.phase),
            None => format!("job {id}"),
        },
        (None, Some(why)) => format!("standing still: {why}"),
        (None, None) => "idle".to_owned(),
    };
    let paused = if gate.paused { ", paused" } else { "" };
    format!("{now}; {} waiting{paused}", app.queue.waiting())
}

fn stop_status(app: &App) -> String {
    match app.queue.running() {
        Some(id) => format!("stopping; job {id} writes its checkpoint"),
        None => "stopping".to_owned(),
    }
}

fn extension() -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(EXTENSION_USEC)
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_that_hangs_is_enough_and_its_return_is_noticed() {
        let (fetcher, scanner) = (Beat::new("fetcher"), Beat::new("scanner"));
        let mut keeper = Keeper { beats: vec![fetcher.clone(), scanner.clone()], late: Vec::new() };
        let minute = Duration::from_mins(1);
        let soon = Instant::now() + Duration::from_secs(90);
        assert!(keeper.all_are_alive(soon), "nothing is expected yet");
        fetcher.alive(10 * minute);
        scanner.alive(minute);
        assert!(keeper.all_are_alive(Instant::now()));
        assert!(!keeper.all_are_alive(soon));
        assert_eq!(keeper.late, ["scanner"]);
        scanner.alive(10 * minute);
        assert!(keeper.all_are_alive(soon));
        assert_eq!(keeper.late, [""; 0]);
    }
}
