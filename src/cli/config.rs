//! `atelier config`: what counts, where it comes from, and what is wrong with it.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    args::Global,
    error::{CliError, Exit, Result},
    output::{self, line, note, print},
};
use crate::{
    config::{Config, Origin, Problem},
    signing,
};

#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Print the configuration that counts, each value with its origin
    Show,
    /// Say what is wrong with the configuration, or OK
    Check {
        /// File to check [default: that of --config, or the defaults alone]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

pub(super) fn run(global: &Global, command: &ConfigCommand) -> Result {
    match command {
        ConfigCommand::Show => show(global),
        ConfigCommand::Check { file } => check(global, file.as_ref()),
    }
}

fn show(global: &Global) -> Result {
    let loaded = global.load(&[])?;
    if !global.json {
        return print(&loaded.show());
    }
    let values: BTreeMap<String, Value> = loaded
        .values()
        .into_iter()
        .map(|(key, value)| {
            let origin = loaded.origins.get(&key).map_or_else(|| Origin::Default.to_string(), ToString::to_string);
            (key, json!({ "value": value, "origin": origin }))
        })
        .collect();
    output::json(&values)
}

fn check(global: &Global, file: Option<&PathBuf>) -> Result {
    let mut sources = global.sources(&[]);
    if let Some(file) = file {
        sources.file = Some(file.clone());
    }
    let name = sources.file.as_ref().map_or_else(|| "the defaults".to_owned(), |file| file.display().to_string());
    let problems = match Config::load(&sources) {
        Ok(loaded) => signing::check(&loaded).err().into_iter().collect(),
        Err(error) => error.problems,
    };
    if global.json {
        let problems: Vec<Value> = problems.iter().map(describe).collect();
        output::json(&json!({ "ok": problems.is_empty(), "file": sources.file, "problems": problems }))?;
    } else if problems.is_empty() {
        line(&format!("OK: {name}"))?;
    } else {
        for problem in &problems {
            note(&problem.to_string());
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(CliError::silent(Exit::Usage)) }
}

fn describe(problem: &Problem) -> Value {
    let (file, line) = match &problem.origin {
        Origin::File { path, line } => (Some(path.display().to_string()), Some(*line)),
        Origin::Default | Origin::Env(_) | Origin::Flag => (None, None),
    };
    json!({
        "origin": problem.origin.to_string(),
        "file": file,
        "line": line,
        "key": problem.key,
        "message": problem.message,
        "hint": problem.hint,
    })
}
