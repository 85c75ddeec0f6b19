//! `atelier models rm`: what somebody has put or pulled here goes; what others own or use stays.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::Path,
};

use clap::Args;
use serde_json::Value;

use super::{find, pull, scan};
use crate::{
    cli::{
        args::Global,
        client::{self, Client},
        error::{CliError, Exit, Result},
        output::{self, complain, line, plain, size},
    },
    config::Config,
    hub::{self, PullState, RepoId},
    models::{InstalledModel, Origin, Registry},
};

#[derive(Args, Debug)]
pub(in crate::cli) struct Rm {
    #[arg(value_name = "MODEL", required = true)]
    ids: Vec<String>,

    /// Remove without asking
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(global: &Global, rm: &Rm) -> Result {
    if global.server.is_some() {
        return Err(CliError::usage("models rm removes from this machine; --server names a daemon")
            .hint("run it where the models lie"));
    }
    let config = global.load(&[])?.config;
    let registry = scan(&config);
    let daemon = Client::of_config(&config, client::explicit_token(global)?)?;
    let mut removed = Vec::new();
    let mut first = Ok(());
    for id in &rm.ids {
        match remove(&config, &registry, &daemon, id, rm.yes).await {
            Ok(()) => {
                removed.push(id.clone());
                if !global.json {
                    line(&format!("removed {}", plain(id)))?;
                }
            }
            Err(error) => {
                complain(&error);
                first = first.and(Err(CliError::silent(error.exit)));
            }
        }
    }
    if !removed.is_empty() {
        pull::tell_the_daemon(global, &config).await;
    }
    if global.json {
        output::json(&serde_json::json!({ "removed": removed }))?;
    }
    first
}

async fn remove(config: &Config, registry: &Registry, daemon: &Client, id: &str, yes: bool) -> Result {
    let dirs = config.all_model_dirs();
    let pulls = hub::pulls_in(&dirs);
    let pull = pulls.iter().find(|(note, _)| note.id == id);
    if let Some((_, PullState::Pulling)) = pull {
        return Err(CliError::failed(format!("{id} is being pulled")).hint("stop that first"));
    }
    if let (Some((note, _)), None) = (pull, registry.get(id)) {
        confirm(yes, &format!("what was pulled of {id} ({})", size(note.progress.bytes)))?;
        let id: RepoId = id.parse().map_err(|error| pull::told(&error))?;
        return hub::discard(&dirs, &id).map_err(|error| pull::told(&error));
    }
    let model = find(registry, id, &dirs)?;
    match model.origin {
        Origin::Embedded => {
            return Err(CliError::failed(format!("{id} came with Atelier and stays"))
                .hint("a models directory without it can be named in paths.models"));
        }
        Origin::HfCache => {
            return Err(CliError::failed(format!("{id} belongs to Hugging Face's cache, {}", model.path.display()))
                .hint("remove it there, or set models.hf_cache = \"off\""));
        }
        Origin::Folder => {}
    }
    if is_loaded(daemon, id).await? {
        return Err(CliError::failed(format!("{id} is loaded by the daemon"))
            .hint(format!("`atelier models unload {id}` lets go of it")));
    }
    confirm(yes, &format!("{id} ({}, {})", model.path.display(), size(model.bytes)))?;
    delete(model).map_err(|error| CliError::failed(format!("{} was not removed: {error}", model.path.display())))
}

/// Whether a daemon on this machine has it in memory. One that is not there has nothing.
async fn is_loaded(daemon: &Client, id: &str) -> Result<bool> {
    let answer: Value = match daemon.get("/models").await {
        Ok(answer) => answer,
        Err(error) if error.exit == Exit::Unreachable => return Ok(false),
        Err(error) => return Err(error),
    };
    let models = answer.get("models").and_then(Value::as_array);
    let is_this = |model: &&Value| model.get("id").and_then(Value::as_str) == Some(id);
    let model = models.and_then(|models| models.iter().find(is_this));
    Ok(model.and_then(|model| model.get("loaded")).and_then(Value::as_bool).unwrap_or(false))
}

/// Asks a person; a script says `--yes`.
fn confirm(yes: bool, what: &str) -> Result {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !output::stderr_is_terminal() {
        return Err(CliError::usage(format!("not removed: {what}")).hint("say --yes to remove it without being asked"));
    }
    let mut answer = String::new();
    let asked = write!(io::stderr(), "remove {}? [y/N] ", plain(what)).and_then(|()| io::stderr().flush());
    asked
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|error| CliError::failed(error.to_string()))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(CliError::failed("not removed")) }
}

/// A link is removed, not what it leads to.
fn delete(model: &InstalledModel) -> io::Result<()> {
    let path = &model.path;
    if !path.symlink_metadata()?.is_dir() {
        return std::fs::remove_file(path);
    }
    // Renamed first: a model is there as a whole, or not at all.
    let mut hidden = std::ffi::OsString::from(".removed-");
    hidden.push(path.file_name().unwrap_or_default());
    let hidden = path.with_file_name(hidden);
    std::fs::rename(path, &hidden)?;
    std::fs::remove_dir_all(&hidden)?;
    if model.id.contains('/') {
        // The organisation's folder, where this was its last model.
        let _ = std::fs::remove_dir(path.parent().unwrap_or(Path::new("")));
    }
    Ok(())
}
