//! Whether jobs may start: the queue may be paused by somebody, or held up by a full disk.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::watch;

/// Why nothing starts, if nothing does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateState {
    /// Somebody has paused the queue; survives a restart.
    pub paused: bool,
    /// What holds the queue up, as a sentence; goes away by itself.
    pub blocked: Option<String>,
    /// The daemon ends.
    pub stopping: bool,
}

impl GateState {
    pub const fn is_open(&self) -> bool {
        !self.paused && self.blocked.is_none() && !self.stopping
    }
}

#[derive(Clone, Debug)]
pub(super) struct Gate {
    state: watch::Sender<GateState>,
}

impl Gate {
    pub(super) fn new(paused: bool) -> Self {
        Self { state: watch::Sender::new(GateState { paused, ..GateState::default() }) }
    }

    pub(super) fn state(&self) -> GateState {
        self.state.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<GateState> {
        self.state.subscribe()
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.paused, paused) != paused);
    }

    pub(super) fn stop(&self) {
        self.state.send_modify(|state| state.stopping = true);
    }

    /// Holds the queue up until a file can be written into each of `dirs` again.
    pub(super) fn block_until_writable(&self, why: &str, dirs: Vec<PathBuf>) {
        let news = self.state.send_if_modified(|state| {
            let first = state.blocked.is_none();
            if first {
                state.blocked = Some(why.to_owned());
            }
            first
        });
        if !news {
            return;
        }
        tracing::error!("the queue waits: {why}");
        let gate = self.clone();
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(500);
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(30));
                let probed = dirs.clone();
                let writable = tokio::task::spawn_blocking(move || probed.iter().all(|dir| can_write(dir))).await;
                if matches!(writable, Ok(true)) || gate.state.borrow().stopping {
                    break;
                }
            }
            tracing::info!("there is room again; the queue goes on");
            gate.state.send_modify(|state| state.blocked = None);
        });
    }
}

/// Enough for a database page, a note and a small picture; a job that needs more holds the queue up again.
const PROBE_BYTES: usize = 256 << 10;

fn can_write(dir: &Path) -> bool {
    let path = dir.join(".atelier-space-probe");
    let written = std::fs::write(&path, vec![0x5a; PROBE_BYTES]).and_then(|()| std::fs::File::open(&path)?.sync_all());
    let _ = std::fs::remove_file(&path);
    written.is_ok()
}
