//! `atelier backup` and `atelier restore`: a copy of everything, and what becomes of it.

use std::path::PathBuf;

use clap::Args;

use super::{
    args::Global,
    error::{CliError, Exit, Result},
    output::{self, line, note, size},
};
use crate::maintenance::{
    backup::{self, BackupError, Manifest},
    restore,
};

#[derive(Args, Debug)]
pub(super) struct Backup {
    /// Folder to make; its disk must have room for all outputs
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Leave the outputs out: the database and the pictures of waiting jobs only
    #[arg(long)]
    no_outputs: bool,
}

#[derive(Args, Debug)]
pub(super) struct Restore {
    /// Folder that `atelier backup` has made
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(super) async fn backup(global: &Global, backup: &Backup) -> Result {
    let config = global.load(&[])?.config;
    let folder = std::path::absolute(&backup.folder)
        .map_err(|error| CliError::usage(format!("{}: {error}", backup.folder.display())))?;
    let manifest = backup::backup(&config, &folder, !backup.no_outputs).await.map_err(|error| explain(&error))?;
    tell(global, &manifest, &format!("copied to {}", folder.display()))
}

pub(super) async fn restore(global: &Global, restore: &Restore) -> Result {
    let config = global.load(&[])?.config;
    let manifest = restore::restore(&config, &restore.folder).await.map_err(|error| explain(&error))?;
    tell(global, &manifest, &format!("restored to {}", config.paths.data.display()))
}

fn tell(global: &Global, manifest: &Manifest, what: &str) -> Result {
    if global.json {
        return output::json(manifest);
    }
    line(&format!(
        "{what}: {} jobs, {} outputs, {}, of {}",
        manifest.jobs,
        manifest.outputs,
        size(manifest.bytes),
        manifest.made_at
    ))?;
    if manifest.missing_outputs > 0 {
        note(&format!("{} outputs that jobs speak of were gone", manifest.missing_outputs));
    }
    if !manifest.with_outputs {
        note("without the outputs");
    }
    Ok(())
}

fn explain(error: &BackupError) -> CliError {
    let (exit, hint) = match error {
        BackupError::Exists(_) => (Exit::Usage, "move it away, or name another folder"),
        BackupError::NoDatabase(_) => (Exit::Usage, "--config or --data names the daemon's data folder"),
        BackupError::NoBackup { .. } => (Exit::Usage, "name the folder that `atelier backup` has made"),
        BackupError::Lock(_) => (Exit::Usage, "stop the daemon first"),
        BackupError::Restless(_) => (Exit::Failed, "`atelier queue pause`, then try again"),
        BackupError::Room { .. } => (Exit::Failed, "another disk, or --no-outputs"),
        BackupError::Files { .. } => (Exit::Failed, "run it as the daemon's user, or as root"),
        BackupError::Store(_) => (Exit::Failed, "`atelier doctor` looks at the database"),
    };
    CliError::new(exit, error.to_string()).hint(hint)
}
