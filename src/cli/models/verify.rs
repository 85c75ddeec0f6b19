//! `atelier models verify`: every byte of a model, against its own structure and against what its hub said.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use serde_json::json;

use super::{find, scan, weights};
use crate::{
    cli::{
        args::Global,
        error::{CliError, Exit, Result},
        output::{self, line, plain},
    },
    hub::Manifest,
    models::{InstalledModel, Origin, expected_sha256},
};

/// What reading a whole model has shown.
#[derive(Serialize)]
struct Verified {
    id: String,
    ok: bool,
    /// What the hashes were compared with: what was recorded when it was pulled, the names in Hugging Face's cache, or
    /// nothing that there is.
    compared_with: Option<&'static str>,
    problems: Vec<String>,
    weights: Vec<weights::Weights>,
}

pub(super) fn run(global: &Global, ids: &[String]) -> Result {
    let config = global.load(&[])?.config;
    let registry = scan(&config);
    let models = if ids.is_empty() {
        registry.list().collect()
    } else {
        ids.iter().map(|id| find(&registry, id, &config.all_model_dirs())).collect::<Result<Vec<_>>>()?
    };
    let mut verified = Vec::new();
    for model in models {
        let result = verify(model);
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

fn verify(model: &InstalledModel) -> Verified {
    let (weights, wrong) = weights::check(&model.path);
    let mut problems: Vec<String> = model.problem.iter().cloned().chain(wrong).collect();
    let compared_with = match (model.origin, Manifest::read(&model.path)) {
        (Origin::HfCache, _) => {
            problems.extend(weights.iter().filter_map(|file| cached(&model.path, file)));
            Some("cache")
        }
        (Origin::Embedded | Origin::Folder, Ok(Some(manifest))) => {
            problems.extend(against(&manifest, &model.path, &weights));
            Some("manifest")
        }
        (Origin::Embedded | Origin::Folder, Ok(None)) => None,
        (Origin::Embedded | Origin::Folder, Err(error)) => {
            problems.push(error);
            None
        }
    };
    Verified { id: model.id.clone(), ok: problems.is_empty(), compared_with, problems, weights }
}

/// A file of the cache is called by its hash.
fn cached(folder: &Path, file: &weights::Weights) -> Option<String> {
    let expected = expected_sha256(&folder.join(&file.file))?;
    differs(&file.file, &expected, &file.sha256)
}

fn differs(file: &str, expected: &str, found: &str) -> Option<String> {
    (expected != found).then(|| format!("{file}: its sha256 is {found}, and {expected} was pulled"))
}

fn against(manifest: &Manifest, folder: &Path, weights: &[weights::Weights]) -> Vec<String> {
    let known: BTreeMap<&str, &str> = weights.iter().map(|file| (file.file.as_str(), file.sha256.as_str())).collect();
    let problem = |file: &crate::hub::ManifestFile| {
        let path = folder.join(&file.path);
        match path.metadata() {
            Err(error) => return Some(format!("{}: {error}", file.path)),
            Ok(meta) if meta.len() != file.bytes => {
                return Some(format!("{}: {} bytes, and {} were pulled", file.path, meta.len(), file.bytes));
            }
            Ok(_) => {}
        }
        if let Some(found) = known.get(file.path.as_str()) {
            return differs(&file.path, &file.sha256, found);
        }
        match weights::sha256(&path) {
            Ok(found) => differs(&file.path, &file.sha256, &found),
            Err(error) => Some(format!("{}: {error}", file.path)),
        }
    };
    manifest.files.iter().filter_map(problem).collect()
}
