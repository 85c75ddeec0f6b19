//! Which models are installed: folders that hold a `config.json` or `model_index.json`.
//!
//! Reads names and sizes only; weights are the worker's business.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use atelier_domain::{JobKind, model::Family};
use serde_json::Value;

/// A folder that describes a model, complete or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledModel {
    /// The folder's name; for `ORG/NAME` folders both parts.
    pub id: String,
    /// `None`: a class that this version does not run.
    pub family: Option<Family>,
    pub class_name: Option<String>,
    pub kinds: Vec<JobKind>,
    pub path: PathBuf,
    pub bytes: u64,
    /// Why it cannot be used, in words.
    pub problem: Option<String>,
}

impl InstalledModel {
    pub fn is_complete(&self) -> bool {
        self.problem.is_none()
    }
}

/// All installed models, as last looked at.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    models: BTreeMap<String, InstalledModel>,
}

impl Registry {
    /// Looks into `dirs`, one and two levels deep. The first folder of a name wins, in the order of `dirs`.
    pub fn scan(dirs: &[PathBuf]) -> Self {
        let mut models = BTreeMap::new();
        for dir in dirs {
            for (name, path) in sub_folders(dir) {
                if let Some(model) = inspect(&name, &path) {
                    models.entry(name).or_insert(model);
                    continue;
                }
                for (inner, path) in sub_folders(&path) {
                    let id = format!("{name}/{inner}");
                    if let Some(model) = inspect(&id, &path) {
                        models.entry(id).or_insert(model);
                    }
                }
            }
        }
        Self { models }
    }

    pub fn list(&self) -> impl Iterator<Item = &InstalledModel> {
        self.models.values()
    }

    pub fn get(&self, id: &str) -> Option<&InstalledModel> {
        self.models.get(id)
    }

    /// Complete models that serve `kind`, by name.
    pub fn serving(&self, kind: JobKind) -> impl Iterator<Item = &InstalledModel> {
        self.models.values().filter(move |model| model.is_complete() && model.kinds.contains(&kind))
    }
}

fn sub_folders(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| !name.starts_with('.'))
        .collect()
}

fn inspect(id: &str, path: &Path) -> Option<InstalledModel> {
    let config = ["model_index.json", "config.json"].into_iter().map(|name| path.join(name)).find(|p| p.is_file())?;
    let mut problem = None;
    let class_name = match std::fs::read(&config)
        .map_err(|e| e.to_string())
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).map_err(|e| e.to_string()))
    {
        Ok(value) => value.get("_class_name").and_then(Value::as_str).map(str::to_owned),
        Err(error) => {
            problem = Some(format!("{}: {error}", config.display()));
            None
        }
    };
    let family = class_name.as_deref().and_then(Family::from_class_name);
    if problem.is_none() && family.is_none() {
        problem = Some(match &class_name {
            Some(name) => format!("{name} is not a class that this version runs"),
            None => format!("{} names no _class_name", config.display()),
        });
    }
    if let Some(family) = family {
        let missing: Vec<_> =
            family.required_files().iter().filter(|file| !path.join(file).is_file()).copied().collect();
        if !missing.is_empty() {
            problem = Some(format!("{} is missing", missing.join(", ")));
        }
    }
    Some(InstalledModel {
        id: id.to_owned(),
        kinds: family.map(|f| f.kinds().to_vec()).unwrap_or_default(),
        family,
        class_name,
        path: path.to_owned(),
        bytes: folder_bytes(path, 4),
        problem,
    })
}

fn folder_bytes(dir: &Path, depth: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.path().metadata() {
            Ok(meta) if meta.is_dir() && depth > 0 => folder_bytes(&entry.path(), depth - 1),
            Ok(meta) if meta.is_file() => meta.len(),
            Ok(_) | Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_tells_what_it_is_and_what_it_lacks() {
        let dir = tempfile::tempdir().expect("temp dir");
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        put("good/config.json", r#"{"_class_name":"SPAN"}"#);
        put("good/model.safetensors", "12345");
        put("org/half/config.json", r#"{"_class_name":"SPAN"}"#);
        put("other/model_index.json", r#"{"_class_name":"WhateverPipeline"}"#);
        put("broken/config.json", "{");
        put("nothing/readme.txt", "");
        put(".hidden/config.json", r#"{"_class_name":"SPAN"}"#);

        let registry = Registry::scan(&[dir.path().to_owned(), dir.path().join("absent")]);
        let ids: Vec<_> = registry.list().map(|m| m.id.as_str()).collect();
        assert_eq!(ids, ["broken", "good", "org/half", "other"]);
        assert_eq!(registry.get("good").expect("good").bytes, 27);
        assert_eq!(registry.serving(JobKind::Upscale).map(|m| m.id.as_str()).collect::<Vec<_>>(), ["good"]);
        let problem = |id: &str| registry.get(id).and_then(|m| m.problem.clone()).unwrap_or_default();
        assert_eq!(problem("org/half"), "model.safetensors is missing");
        assert!(problem("other").contains("WhateverPipeline"));
        assert!(problem("broken").contains("config.json"));
    }
}
