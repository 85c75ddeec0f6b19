//! `atelier models`: what is installed on this machine, whether it is whole, fetching and removing it.

mod pull;
mod remove;
mod verify;
mod weights;

use std::path::PathBuf;

use clap::Subcommand;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    args::Global,
    client::Client,
    error::{CliError, Exit, Result},
    output::{self, line, plain, print, size, table},
};
use crate::{
    config::Config,
    hub::{self, PullNote, PullState},
    models::{InstalledModel, Registry},
};

#[derive(Subcommand, Debug)]
pub(super) enum Models {
    /// List installed models, which of them are loaded, and what is being pulled
    List,
    /// Fetch a model from a hub, or go on where an earlier pull of it ended
    Pull(pull::Pull),
    /// Read all files of models and say what is wrong with them
    Verify {
        /// Models to check [default: all]
        #[arg(value_name = "MODEL")]
        ids: Vec<String>,
    },
    /// Have the daemon let go of a model's memory
    Unload {
        #[arg(value_name = "MODEL")]
        id: String,
    },
    /// Remove models from this machine, also what a pull that was cut short has left
    Rm(remove::Rm),
}

pub(super) async fn run(global: &Global, models: Models) -> Result {
    match models {
        Models::List => list(global).await,
        Models::Pull(pull) => pull::run(global, &pull).await,
        Models::Verify { ids } => verify::run(global, &ids),
        Models::Unload { id } => unload(global, &id).await,
        Models::Rm(rm) => remove::run(global, &rm).await,
    }
}

/// A model as the API tells of it.
#[derive(Serialize, Deserialize)]
struct Model {
    id: String,
    family: Option<String>,
    class_name: Option<String>,
    kinds: Vec<String>,
    bytes: u64,
    complete: bool,
    problem: Option<String>,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    loaded: bool,
    #[serde(default)]
    loaded_bytes: u64,
}

impl Model {
    fn of(model: &InstalledModel) -> Self {
        let family = model.family.and_then(|family| serde_json::to_value(family).ok());
        Self {
            id: model.id.clone(),
            family: family.and_then(|family| family.as_str().map(str::to_owned)),
            class_name: model.class_name.clone(),
            kinds: model.kinds.iter().map(ToString::to_string).collect(),
            bytes: model.bytes,
            complete: model.is_complete(),
            problem: model.problem.clone(),
            origin: model.origin.as_str().to_owned(),
            loaded: false,
            loaded_bytes: 0,
        }
    }
}

/// A pull as the API tells of it.
#[derive(Serialize, Deserialize)]
struct PullRow {
    #[serde(flatten)]
    note: PullNote,
    state: String,
}

impl PullRow {
    fn of((note, state): (PullNote, PullState)) -> Self {
        Self { note, state: state.as_str().to_owned() }
    }
}

async fn list(global: &Global) -> Result {
    let answer = if let Some(answer) = asked(global).await? {
        answer
    } else {
        let config = global.load(&[])?.config;
        let pulls: Vec<_> = hub::pulls_in(&config.all_model_dirs()).into_iter().map(PullRow::of).collect();
        json!({ "models": scan(&config).list().map(Model::of).collect::<Vec<_>>(), "pulls": pulls })
    };
    if global.json {
        return output::json(&answer);
    }
    let models = answer.get("models").cloned().unwrap_or_default();
    let unread = |error: serde_json::Error| CliError::failed(format!("the list of models is not understood: {error}"));
    let models: Vec<Model> = serde_json::from_value(models).map_err(unread)?;
    // A daemon of before knows of none.
    let pulls = answer.get("pulls").cloned().unwrap_or_else(|| json!([]));
    let pulls: Vec<PullRow> = serde_json::from_value(pulls).map_err(unread)?;
    if models.is_empty() && pulls.is_empty() {
        return line("no model is installed");
    }
    let row = |model: &Model| {
        let state = match (&model.problem, model.loaded) {
            (Some(problem), _) => problem.clone(),
            (None, true) => format!("loaded, {}", size(model.loaded_bytes)),
            (None, false) if model.origin == "hf_cache" => "installed, in Hugging Face's cache".to_owned(),
            (None, false) => "installed".to_owned(),
        };
        vec![
            model.id.clone(),
            model.class_name.clone().unwrap_or_default(),
            model.kinds.join(","),
            size(model.bytes),
            state,
        ]
    };
    let pull = |pull: &PullRow| {
        let progress = &pull.note.progress;
        let percent = (progress.bytes.min(progress.total_bytes) * 100).checked_div(progress.total_bytes).unwrap_or(0);
        let state = format!("{}, {percent} % of {}", pull.state, size(progress.total_bytes));
        vec![pull.note.id.clone(), String::new(), String::new(), size(progress.bytes), state]
    };
    let rows: Vec<_> = models.iter().map(row).chain(pulls.iter().map(pull)).collect();
    print(&table(&["MODEL", "CLASS", "KINDS", "SIZE", "STATE"], &rows))
}

async fn unload(global: &Global, id: &str) -> Result {
    let daemon = Client::new(global)?;
    let answer: Value = daemon.answer(daemon.api(Method::POST, &format!("/models/{}/unload", escaped(id)))).await?;
    if global.json { output::json(&answer) } else { line(&format!("unloaded {}", plain(id))) }
}

/// A model's id as one part of a path.
fn escaped(id: &str) -> String {
    id.replace('%', "%25").replace('/', "%2F")
}

/// What the daemon says; `None` where none is at work and none was named.
async fn asked(global: &Global) -> Result<Option<Value>> {
    match Client::new(global)?.get("/models").await {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.exit == Exit::Unreachable && global.server.is_none() => Ok(None),
        Err(error) => Err(error),
    }
}

fn scan(config: &Config) -> Registry {
    Registry::scan(&config.all_model_dirs())
}

fn find<'a>(registry: &'a Registry, id: &str, dirs: &[PathBuf]) -> Result<&'a InstalledModel> {
    registry.get(id).ok_or_else(|| {
        let error = CliError::new(Exit::NotFound, format!("there is no model {id:?}"));
        match atelier_domain::request::nearest(id, registry.list().map(|model| model.id.as_str())) {
            Some(near) => error.hint(format!("did you mean {near:?}?")),
            None => error.hint(format!(
                "looked in {}",
                dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
            )),
        }
    })
}
