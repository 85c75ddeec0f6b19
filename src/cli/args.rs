//! What every command understands.

use std::path::PathBuf;

use clap::Args;

use super::error::{CliError, Result};
use crate::config::{Config, Loaded, Sources};

#[derive(Args, Clone, Debug, Default)]
pub(super) struct Global {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", env = "ATELIER_CONFIG", help_heading = "Global options")]
    pub(super) config: Option<PathBuf>,

    /// The daemon's data folder (paths.data)
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(super) data: Option<String>,

    /// Set any key of the configuration, such as inbox.settle=5s
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = setting, help_heading = "Global options")]
    pub(super) set: Vec<(String, String)>,

    /// Address of the daemon [default: the one that uses the data folder, else server.listen]
    #[arg(long, global = true, value_name = "URL", env = "ATELIER_SERVER", help_heading = "Global options")]
    pub(super) server: Option<String>,

    /// File whose first line is the token to show to the daemon
    #[arg(long, global = true, value_name = "FILE", env = "ATELIER_TOKEN_FILE", help_heading = "Global options")]
    pub(super) token_file: Option<PathBuf>,

    /// The token itself; better given as the variable, which other users cannot see
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "ATELIER_TOKEN",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(super) token: Option<String>,

    /// Print data as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    pub(super) json: bool,
}

impl Global {
    /// What the configuration is made from; `flags` are those of the command itself.
    pub(super) fn sources(&self, flags: &[(String, String)]) -> Sources {
        let data = self.data.iter().map(|data| ("paths.data".to_owned(), literal(data)));
        let flags = data.chain(flags.iter().cloned()).chain(self.set.iter().cloned()).collect();
        Sources::of_process(self.config.clone(), flags)
    }

    pub(super) fn load(&self, flags: &[(String, String)]) -> Result<Loaded> {
        Config::load(&self.sources(flags)).map_err(|error| CliError::usage(format!("the configuration:\n{error}")))
    }
}

/// A text as a TOML value, so that it is taken word for word.
pub(super) fn literal(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn setting(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("KEY=VALUE, such as inbox.settle=5s".to_owned()),
    }
}
