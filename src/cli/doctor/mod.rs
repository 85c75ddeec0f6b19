//! `atelier doctor`: looks at everything that the daemon needs, and says what to do where something is amiss.
//!
//! It changes nothing: no folder is made, no database is migrated.

mod daemon;
mod database;
mod disk;
mod folders;
mod machine;
mod models;
mod signing;
mod worker;

use serde::Serialize;
use serde_json::json;

use super::{
    args::Global,
    error::{CliError, Exit, Result},
    output::{self, line, plain},
};
use crate::config::{Config, Loaded};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, with less than one might expect.
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    message: String,
    /// What to do; empty where all is well.
    hint: String,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict, message: message.into(), hint: hint.into() }
    }

    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, message, "")
    }

    fn warn(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warn, message, hint)
    }

    fn fail(name: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(name, Verdict::Fail, message, hint)
    }
}

pub(super) async fn run(global: &Global) -> Result {
    let checks = look(global).await;
    let worst = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
    if global.json {
        output::json(&json!({ "ok": worst != Verdict::Fail, "checks": checks }))?;
    } else {
        for check in &checks {
            let verdict = match check.verdict {
                Verdict::Ok => "OK  ",
                Verdict::Warn => "WARN",
                Verdict::Fail => "FAIL",
            };
            for (index, text) in check.message.lines().enumerate() {
                let name = if index == 0 { check.name } else { "" };
                line(&format!("{} {name:<13} {}", if index == 0 { verdict } else { "    " }, plain(text)))?;
            }
            if !check.hint.is_empty() {
                line(&format!("     {:<13} → {}", "", plain(&check.hint)))?;
            }
        }
    }
    if worst == Verdict::Fail { Err(CliError::silent(Exit::Failed)) } else { Ok(()) }
}

async fn look(global: &Global) -> Vec<Check> {
    let mut checks = vec![version()];
    let loaded = Config::load(&global.sources(&[]));
    let config = match loaded {
        Ok(Loaded { config, .. }) => {
            let file = global.config.as_ref().map_or_else(|| "the defaults".to_owned(), |f| f.display().to_string());
            checks.push(Check::ok("configuration", file));
            config
        }
        Err(error) => {
            checks.push(Check::fail(
                "configuration",
                error.to_string(),
                "correct it; `atelier config show` prints what counts. Nothing else can be checked before",
            ));
            return checks;
        }
    };
    checks.push(worker::check(&config).await);
    checks.push(machine::card(&config).await);
    checks.push(machine::clock(&config).await);
    checks.extend(folders::data(&config));
    checks.extend(disk::check(&config.paths.data));
    checks.push(database::check(&config).await);
    checks.push(folders::outbox(&config));
    checks.push(signing::check(&config).await);
    if config.inbox.enabled {
        checks.extend(folders::inbox(&config));
    } else {
        checks.push(Check::ok("inbox", "turned off (inbox.enabled)"));
    }
    checks.extend(models::check(&config));
    checks.push(daemon::check(global, &config).await);
    checks
}

fn version() -> Check {
    Check::ok(
        "version",
        format!(
            "atelier {} ({} {}, {}), database schema {}, worker protocol {}",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH,
            if cfg!(debug_assertions) { "a debug build" } else { "a release build" },
            crate::store::SCHEMA_VERSION,
            atelier_domain::protocol::PROTOCOL_VERSION
        ),
    )
}
