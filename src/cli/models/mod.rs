//! `atelier models`: what is installed on this machine, whether it is whole, and removing it.

mod weights;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    args::Global,
    client::{self, Client},
    error::{CliError, Exit, Result},
    output::{self, complain, line, plain, print, size, table},
};
use crate::{
    config::Config,
    models::{InstalledModel, Registry},
};

#[derive(Subcommand, Debug)]
pub(super) enum Models {
    /// List installed models, and which of them are loaded
    List,
    /// Read all files of models and say what is wrong with them
    Verify {
        /// Models to check [default: all]
        #[arg(value_name = "MODEL")]
        ids: Vec<String>,
    },
    /// Remove models from this machine
    Rm {
        #[arg(value_name = "MODEL", required = true)]
        ids: Vec<String>,
    },
    /// Fetch a model from a hub (not in this version)
    Pull {
        #[arg(value_name = "ORG/NAME")]
        id: String,
    },
}

pub(super) async fn run(global: &Global, models: Models) -> Result {
    match models {
        Models::List => list(global).await,
        Models::Verify { ids } => verify(global, &ids),
        Models::Rm { ids } => remove(global, &ids).await,
        Models::Pull { id } => {
            Err(CliError::usage(format!("models pull is not in this version yet, so {id} stays where it is"))
                .hint("put the model's folder, as it is on the hub, into one of paths.models"))
        }
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
            loaded: false,
            loaded_bytes: 0,
        }
    }
}

async fn list(global: &Global) -> Result {
    let answer = if let Some(answer) = asked(global).await? {
        answer
    } else {
        let registry = scan(&global.load(&[])?.config);
        json!({ "models": registry.list().map(Model::of).collect::<Vec<_>>() })
    };
    if global.json {
        return output::json(&answer);
    }
    let models = answer.get("models").cloned().unwrap_or_default();
    let models: Vec<Model> = serde_json::from_value(models)
        .map_err(|error| CliError::failed(format!("the list of models is not understood: {error}")))?;
    if models.is_empty() {
        return line("no model is installed");
    }
    let row = |model: &Model| {
        let state = match (&model.problem, model.loaded) {
            (Some(problem), _) => problem.clone(),
            (None, true) => format!("loaded, {}", size(model.loaded_bytes)),
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
    print(&table(&["MODEL", "CLASS", "KINDS", "SIZE", "STATE"], &models.iter().map(row).collect::<Vec<_>>()))
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

/// What reading a whole model has shown.
#[derive(Serialize)]
struct Verified {
    id: String,
    ok: bool,
    problems: Vec<String>,
    weights: Vec<weights::Weights>,
}

fn verify(global: &Global, ids: &[String]) -> Result {
    let config = global.load(&[])?.config;
    let registry = scan(&config);
    let models = if ids.is_empty() {
        registry.list().collect()
    } else {
        ids.iter().map(|id| find(&registry, id, &config.all_model_dirs())).collect::<Result<Vec<_>>>()?
    };
    let mut verified = Vec::new();
    for model in models {
        let (weights, wrong) = weights::check(&model.path);
        let problems: Vec<String> = model.problem.iter().cloned().chain(wrong).collect();
        let result = Verified { id: model.id.clone(), ok: problems.is_empty(), problems, weights };
        if !global.json {
            line(&format!("{} {}", if result.ok { "OK  " } else { "FAIL" }, plain(&result.id)))?;
            for problem in &result.problems {
                line(&format!("     {}", plain(problem)))?;
            }
        }
        verified.push(result);
    }
    if global.json {
        output::json(&json!({ "models": verified }))?;
    } else if verified.is_empty() {
        line("no model is installed")?;
    }
    if verified.iter().all(|model| model.ok) { Ok(()) } else { Err(CliError::silent(Exit::Failed)) }
}

async fn remove(global: &Global, ids: &[String]) -> Result {
    if global.server.is_some() {
        return Err(CliError::usage("models rm removes from this machine; --server names a daemon")
            .hint("run it where the models lie"));
    }
    let config = global.load(&[])?.config;
    let registry = scan(&config);
    let daemon = Client::of_config(&config, client::explicit_token(global)?)?;
    let mut first = Ok(());
    for id in ids {
        let removed = match find(&registry, id, &config.all_model_dirs()) {
            Ok(model) => remove_one(&daemon, model).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => line(&format!("removed {}", plain(id)))?,
            Err(error) => {
                complain(&error);
                first = first.and(Err(CliError::silent(error.exit)));
            }
        }
    }
    first
}

async fn remove_one(daemon: &Client, model: &InstalledModel) -> Result {
    let path = format!("/models/{}/unload", model.id.replace('%', "%25").replace('/', "%2F"));
    match daemon.send(daemon.api(Method::POST, &path)).await {
        // A daemon that knows nothing of it, or none at all, does not use it.
        Ok(_) => {}
        Err(error) if matches!(error.exit, Exit::Unreachable | Exit::NotFound) => {}
        Err(error) => return Err(error),
    }
    delete(&model.path).map_err(|error| CliError::failed(format!("{} was not removed: {error}", model.path.display())))
}

/// A link is removed, not what it leads to.
fn delete(folder: &Path) -> std::io::Result<()> {
    if folder.symlink_metadata()?.is_symlink() {
        return std::fs::remove_file(folder);
    }
    // Renamed first: a model is there as a whole, or not at all.
    let mut hidden = std::ffi::OsString::from(".removed-");
    hidden.push(folder.file_name().unwrap_or_default());
    let hidden = folder.with_file_name(hidden);
    std::fs::rename(folder, &hidden)?;
    std::fs::remove_dir_all(&hidden)
}
