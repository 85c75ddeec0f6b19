//! `atelier reload`: has the running daemon read its configuration again, and returns when it lives by it.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{
    args::Global,
    error::{CliError, Exit, Result},
    output::{self, line, note},
};
use crate::{config::Config, daemon_note::DaemonNote, data_lock};

/// Reading the configuration and looking at all models takes far less.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(global: &Global) -> Result {
    // A broken configuration is told here, to whoever asks; the daemon would only write it into its log.
    let config = global.load(&[])?.config;
    let before = running(&config)?;
    let pid = i32::try_from(before.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| CliError::failed(format!("{} is no process id", before.pid)))?;
    kill_process(pid, Signal::HUP).map_err(|errno| {
        CliError::failed(format!("process {} cannot be told: {errno}", before.pid))
            .hint("run this as the daemon's user or as root")
    })?;
    let after = wait_for_next(&config, &before)?;
    if let Some(why) = after.refused {
        return Err(CliError::usage(format!("the daemon's configuration stays as it was:\n{why}")));
    }
    if global.json {
        return output::json(&json!({ "generation": after.generation, "needs_restart": after.needs_restart }));
    }
    line("the daemon lives by the new configuration")?;
    if !after.needs_restart.is_empty() {
        note(&format!("only after a restart: {}", after.needs_restart.join(", ")));
    }
    Ok(())
}

/// What the daemon says of itself, if it is at work.
fn running(config: &Config) -> Result<DaemonNote> {
    let data = &config.paths.data;
    let holder = data_lock::holder(data);
    DaemonNote::read(data).filter(|note| holder == Some(note.pid.to_string())).ok_or_else(|| {
        let error = CliError::new(Exit::Unreachable, format!("no daemon is ready in {}", data.display()));
        error.hint("--config or --data names the one that is meant; `atelier serve` starts one")
    })
}

fn wait_for_next(config: &Config, before: &DaemonNote) -> Result<DaemonNote> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match DaemonNote::read(&config.paths.data) {
            Some(note) if note.pid == before.pid && note.generation > before.generation => return Ok(note),
            None if data_lock::holder(&config.paths.data).is_none() => {
                return Err(CliError::new(Exit::Unreachable, "the daemon has ended meanwhile"));
            }
            Some(_) | None => {}
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(CliError::failed(format!("the daemon has not read it within {} s", PATIENCE.as_secs()))
        .hint("its log says what it is at"))
}
