//! `atelier models pull`: fetches a model by itself, with a daemon running or not.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::Value;
use tracing_subscriber::filter::LevelFilter;

use crate::{
    cli::{
        args::Global,
        bar,
        client::{self, Client},
        error::{CliError, Exit, Result},
        output::{self, line, note, plain, size},
    },
    config::{Config, hub_access},
    hub::{self, HubError, Progress, Pulled, RepoId, Request, Revision},
    on_demand::{patience, pull_dir},
};

const AFTER_HELP: &str = "HF_ENDPOINT names another hub, HF_TOKEN a token for models that are not public, and \
                          HF_HUB_OFFLINE=1 forbids asking. What was fetched stays when a pull is cut short: the next \
                          goes on from there.";

#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct Pull {
    /// The model's name on the hub
    #[arg(value_name = "ORG/NAME")]
    id: String,

    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    revision: String,

    /// Fetch files that match, with * and ?, instead of those that the model needs; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,

    /// Prefer weights of this kind, where the hub has them
    #[arg(long, value_name = "KIND")]
    variant: Option<Variant>,

    /// Models directory to put it into [default: the last of paths.models]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Variant {
    /// Half precision: half the size
    Fp16,
}

pub(super) async fn run(global: &Global, args: &Pull) -> Result {
    if global.server.is_some() {
        return Err(CliError::usage("models pull fetches to this machine; --server names a daemon")
            .hint("run it where the models shall lie"));
    }
    let id: RepoId = args.id.parse().map_err(|error| told(&error))?;
    let revision: Revision = args.revision.parse().map_err(|error| told(&error))?;
    let config = global.load(&[])?.config;
    let access = hub_access(&config).map_err(CliError::usage)?;
    let models = models_dir(args.dir.as_deref(), &config)?;
    say_warnings();
    let request =
        Request { id, revision, include: args.include.clone(), half: args.variant == Some(Variant::Fp16), models };
    let mut bar = PullBar::new(&request.id.to_string());
    let pulled = {
        let pulling = hub::pull(access, patience(&config), &request, |progress| bar.show(progress));
        tokio::select! {
            pulled = pulling => pulled.map_err(|error| told(&error)),
            _ = tokio::signal::ctrl_c() => Err(CliError::new(Exit::Interrupted, "interrupted")
                .hint("what has arrived stays; pull again to go on")),
        }
    };
    bar.finish();
    let pulled = pulled?;
    if !config.all_model_dirs().contains(&request.models) {
        note(&format!("{} is none of paths.models: the daemon will not see it there", request.models.display()));
    }
    tell_the_daemon(global, &config).await;
    report(global, &pulled)
}

fn report(global: &Global, pulled: &Pulled) -> Result {
    if global.json {
        return output::json(pulled);
    }
    let id = plain(&pulled.id);
    let commit = pulled.commit.get(..12).unwrap_or_default();
    if pulled.already {
        return line(&format!("{id} is there already, as it is on the hub ({commit})"));
    }
    line(&format!(
        "pulled {id} ({commit}): {} files, {}, of which {} were fetched now",
        pulled.files,
        size(pulled.bytes),
        size(pulled.received_bytes)
    ))
}

fn models_dir(asked: Option<&Path>, config: &Config) -> Result<PathBuf> {
    let dir = asked.map_or_else(|| pull_dir(config), Path::to_owned);
    let made = std::fs::create_dir_all(&dir).and_then(|()| std::path::absolute(&dir));
    made.map_err(|error| {
        CliError::failed(format!("{}: {error}", dir.display())).hint("choose another folder with --dir")
    })
}

/// The hub's client says by warnings that it tries again, and why.
fn say_warnings() {
    let _ = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .without_time()
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}

pub(super) fn told(error: &HubError) -> CliError {
    let exit = match error {
        HubError::Name { .. } | HubError::Endpoint { .. } | HubError::Offline => Exit::Usage,
        HubError::NotFound { .. } => Exit::NotFound,
        HubError::Refused { .. }
        | HubError::Busy { .. }
        | HubError::Server { .. }
        | HubError::Transport(_)
        | HubError::Stalled { .. }
        | HubError::Mismatch { .. }
        | HubError::NoRanges
        | HubError::Corrupt { .. }
        | HubError::Answer { .. }
        | HubError::Unsupported { .. }
        | HubError::Incomplete { .. }
        | HubError::Space { .. }
        | HubError::Taken { .. }
        | HubError::Occupied { .. }
        | HubError::Io { .. }
        | HubError::GaveUp { .. } => Exit::Failed,
    };
    CliError::new(exit, error.to_string()).hint(error.hint())
}

/// A daemon on this machine looks at its models when it is asked for them.
pub(super) async fn tell_the_daemon(global: &Global, config: &Config) {
    let Ok(client) = client::explicit_token(global).and_then(|token| Client::of_config(config, token)) else { return };
    match client.get::<Value>("/models").await {
        Ok(_) => {}
        Err(error) if error.exit == Exit::Unreachable => {}
        Err(error) => note(&format!("the running daemon was not told ({error}); it looks again on SIGHUP")),
    }
}

/// Progress on standard error: a bar on a terminal, a line for each tenth elsewhere.
struct PullBar {
    drawn: Option<indicatif::ProgressBar>,
    id: String,
    tenth: u64,
}

impl PullBar {
    fn new(id: &str) -> Self {
        let drawn = output::stderr_is_terminal().then(|| bar::bytes(0, id));
        Self { drawn, id: plain(id), tenth: 0 }
    }

    fn show(&mut self, progress: &Progress) {
        if let Some(bar) = &self.drawn {
            bar.set_length(progress.total_bytes);
            bar.set_position(progress.bytes);
            bar.set_message(format!("{}, {}/{} files", self.id, progress.files, progress.total_files));
            return;
        }
        let tenth = (progress.bytes * 10).checked_div(progress.total_bytes).unwrap_or(0);
        if tenth > self.tenth {
            self.tenth = tenth;
            note(&format!("{}: {} % of {}", self.id, tenth * 10, size(progress.total_bytes)));
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.drawn {
            bar.finish_and_clear();
        }
    }
}
