//! `atelier serve`: the daemon itself, with flags for the keys that people set by hand.

use clap::Args;

use super::{
    args::{Global, literal},
    error::{CliError, Exit, Result},
};
use crate::{
    config::Config,
    serve::{self, Locked},
    signing,
};

#[derive(Args, Debug)]
pub(super) struct Serve {
    /// Address and port to listen on (server.listen)
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,

    /// File of the tokens that clients must show (server.tokens_file)
    #[arg(long, value_name = "FILE")]
    tokens_file: Option<String>,

    /// The drop folder (inbox.dir)
    #[arg(long, value_name = "DIR")]
    inbox: Option<String>,

    /// Take no dropped files (inbox.enabled = false)
    #[arg(long, conflicts_with = "inbox")]
    no_inbox: bool,

    /// Folder for finished files (outbox.dir)
    #[arg(long, value_name = "DIR")]
    outbox: Option<String>,

    /// Folder that models live in; may be given several times (paths.models)
    #[arg(long, value_name = "DIR")]
    models: Vec<String>,

    /// The worker's program (worker.command)
    #[arg(long, value_name = "PROGRAM")]
    worker: Option<String>,

    /// Where to compute: auto, cpu or cuda:N (worker.device)
    #[arg(long)]
    device: Option<String>,

    /// What to log: error, warn, info, debug, trace (log.level)
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// How to log on standard error: pretty or json (log.format)
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

pub(super) fn run(global: &Global, serve: &Serve) -> Result {
    let sources = global.sources(&serve.flags());
    let load = move || {
        let loaded = Config::load(&sources).map_err(|error| error.to_string())?;
        signing::check(&loaded).map_err(|problem| problem.to_string())?;
        Ok(loaded)
    };
    let loaded = load().map_err(|error: String| CliError::usage(format!("the configuration:\n{error}")))?;
    let reload = Box::new(load);
    serve::run(loaded, reload).map_err(|error| {
        let exit = if error.is::<Locked>() { Exit::Usage } else { Exit::Failed };
        CliError::new(exit, format!("{error:#}"))
    })
}

impl Serve {
    fn flags(&self) -> Vec<(String, String)> {
        let mut flags: Vec<(String, String)> = [
            ("server.listen", &self.listen),
            ("server.tokens_file", &self.tokens_file),
            ("inbox.dir", &self.inbox),
            ("outbox.dir", &self.outbox),
            ("worker.command", &self.worker),
            ("worker.device", &self.device),
            ("log.level", &self.log_level),
            ("log.format", &self.log_format),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), literal(value.as_ref()?))))
        .collect();
        if self.no_inbox {
            flags.push(("inbox.enabled".to_owned(), "false".to_owned()));
        }
        if !self.models.is_empty() {
            let dirs = self.models.iter().cloned().map(toml::Value::String).collect();
            flags.push(("paths.models".to_owned(), toml::Value::Array(dirs).to_string()));
        }
        flags
    }
}
