//! The configuration: read once, checked as a whole, and told exactly where it is wrong.
//!
//! Four layers, the stronger over the weaker: `config/default.toml` (compiled in), the file of `--config`, variables
//! named `ATELIER__SECTION__KEY`, flags. This is the only place of the program that reads the environment.
//! Nothing here starts, opens or creates anything.
//!
//! Adding a key: a field in [`types`], its line in [`keys`], [`build`] and `config/default.toml`; the compiler and
//! the tests name what is left.

mod build;
mod check;
mod error;
mod hub;
mod keys;
mod layers;
mod places;
mod presets;
mod show;
pub mod text;
mod types;
mod value;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use self::{
    error::{ConfigError, Origin, Problem},
    hub::{HubAccess, Token, hub_access},
    keys::{Change, diff, follow},
    types::{
        Checkpoint, Cleanup, Config, Duplicates, HfCache, Inbox, Limits, Log, LogFormat, MemoryBudget, Models, Outbox,
        Paths, ProgressConfig, Provenance, QueueConfig, Server, Watch, Webhooks, Worker,
    },
};
use self::{layers::Layer, places::Places};

/// The defaults, every key with a comment.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// What systemd sets for a service that it passes credentials to.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// What a configuration is made from, beside the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Variables; those that are none of ours are passed over.
    pub env: Vec<(String, String)>,
    /// Dotted keys with their values: TOML, or bare text.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// With the environment of this process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| {
                name.starts_with(layers::ENV_PREFIX)
                    || name == CREDENTIALS
                    || hub::CACHE_VARIABLES.contains(&name.as_str())
            })
            .collect();
        Self { file, env, flags }
    }
}

/// Places that a test has armed in the environment; see [`crate::failpoint`].
#[cfg(any(debug_assertions, feature = "failpoints"))]
pub fn failpoints() -> Option<String> {
    std::env::var("ATELIER_FAILPOINTS").ok()
}

/// Whether a service manager wants to hear how this process is doing.
pub fn has_service_manager() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

/// A configuration, and where each of its values comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// By dotted key; also `presets.NAME.KEY`.
    pub origins: BTreeMap<String, Origin>,
}

impl Config {
    /// # Errors
    /// Everything that is wrong, each with its place.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
        let working_dir = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        load(sources, &working_dir)
    }

    /// The defaults alone, relative to the working directory.
    pub fn defaults() -> Self {
        Self::load(&Sources::default()).expect("a test holds that the defaults are right").config
    }
}

fn load(sources: &Sources, working_dir: &Path) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    let defaults = layers::from_toml(DEFAULT_TOML, None, &mut problems);
    let mut file = Layer::default();
    let mut file_dir = None;
    if let Some(path) = &sources.file {
        match layers::read(path) {
            Ok((folder, text)) => {
                file_dir = Some(base_of(path, folder));
                file = layers::from_toml(&text, Some(path), &mut problems);
            }
            Err(problem) => problems.push(problem),
        }
    }
    let layer = defaults.clone().under(file);
    let env = layers::from_env(&sources.env, &layer.presets, &mut problems);
    let flags = layers::from_flags(&sources.flags, &mut problems);
    let layer = layer.under(env).under(flags);

    let credentials =
        sources.env.iter().find(|(name, value)| name == CREDENTIALS && !value.is_empty()).map(|(_, v)| v.into());
    let places = Places {
        working_dir: working_dir.to_owned(),
        file_dir,
        credentials,
        hf_cache: hub::default_cache(&sources.env),
        data: None,
    };
    let (config, wrong) = build::build(&layer, &defaults, places);
    problems.extend(wrong);
    let origins = origins(&layer);
    if problems.is_empty() {
        problems = check::check(&config, &|key| origins.get(key).cloned().unwrap_or(Origin::Default));
    }
    if problems.is_empty() {
        return Ok(Loaded { config, origins });
    }
    problems.sort_by_key(|problem| rank(&problem.origin));
    Err(ConfigError { problems })
}

/// The folder from which relative paths in a file count: its own. A checkout's `config/default.toml`, named explicitly
/// and perhaps edited, means what it means by itself: the checkout.
fn base_of(file: &Path, folder: PathBuf) -> PathBuf {
    match folder.parent() {
        Some(checkout) if folder.ends_with("config") && file.ends_with("default.toml") => checkout.to_owned(),
        Some(_) | None => folder,
    }
}

/// The order in which problems are told: down the file, then the environment, then the command line.
fn rank(origin: &Origin) -> (u8, usize) {
    match origin {
        Origin::Default => (0, 0),
        Origin::File { line, .. } => (1, *line),
        Origin::Env(_) => (2, 0),
        Origin::Flag => (3, 0),
    }
}

fn origins(layer: &Layer) -> BTreeMap<String, Origin> {
    let values = layer.values.iter().map(|(key, given)| (key.clone(), given.origin.clone()));
    let presets = layer.presets.iter().flat_map(|(name, preset)| {
        preset.keys.iter().map(move |(key, given)| (format!("presets.{name}.{key}"), given.origin.clone()))
    });
    values.chain(presets).collect()
}

#[cfg(test)]
mod tests;
