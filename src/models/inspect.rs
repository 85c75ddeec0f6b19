//! One folder: what it is, and what it lacks.

use std::path::Path;

use atelier_domain::model::{Component, ComponentFiles, Family, LORA_FILE};
use atelier_gguf::{Architecture, gguf_files};
use serde_json::Value;

use super::{EMBEDDED, InstalledModel, Origin};

/// The model in the folder `path`, or `None` where nothing says that there is one.
pub(super) fn inspect(id: &str, path: &Path) -> Option<InstalledModel> {
    let found = ["model_index.json", "config.json"].into_iter().map(|name| path.join(name)).find(|p| p.is_file());
    let Some(config) = found else {
        let file = path.join(LORA_FILE);
        return file.is_file().then(|| lora(id, &file));
    };
    let mut problems = Vec::new();
    let value = read_json(&config).unwrap_or_else(|problem| {
        problems.push(problem);
        Value::Null
    });
    let class_name = Family::class_in(&value).map(str::to_owned);
    let family = class_name.as_deref().and_then(Family::from_class_name);
    if problems.is_empty() && family.is_none() {
        problems.push(match &class_name {
            Some(name) => format!("{name} is not a class that this version runs"),
            None => format!("{} names no class", config.display()),
        });
    }
    if let Some(family) = family {
        check(family, path, &value, &mut problems);
    }
    Some(InstalledModel {
        id: id.to_owned(),
        kinds: family.map(|f| f.kinds().to_vec()).unwrap_or_default(),
        family,
        class_name,
        origin: if EMBEDDED.contains(&id) { Origin::Embedded } else { Origin::Folder },
        path: path.to_owned(),
        bytes: folder_bytes(path, 4),
        problem: (!problems.is_empty()).then(|| problems.join("; ")),
    })
}

/// A single file of LoRA weights.
pub(super) fn lora(id: &str, file: &Path) -> InstalledModel {
    InstalledModel {
        id: id.to_owned(),
        family: Some(Family::Lora),
        class_name: Some(Family::Lora.class_names()[0].to_owned()),
        kinds: Vec::new(),
        path: file.to_owned(),
        origin: Origin::Folder,
        bytes: file.metadata().map_or(0, |meta| meta.len()),
        problem: None,
    }
}

fn read_json(path: &Path) -> Result<Value, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

fn check(family: Family, path: &Path, index: &Value, problems: &mut Vec<String>) {
    let missing: Vec<_> = family.required_files().iter().filter(|file| !path.join(file).is_file()).copied().collect();
    if !missing.is_empty() {
        problems.push(format!("{} is missing", missing.join(", ")));
    }
    if let Some(stem) = family.own_weights() {
        weights(path, "", stem, None, problems);
    }
    if family.has_own_tokenizer() {
        tokenizer(path, problems);
        processor(path, problems);
    }
    for part in family.components() {
        component(path, index, part, problems);
    }
}

/// Looks for a tokenizer in any of its layouts.
fn tokenizer(folder: &Path, problems: &mut Vec<String>) {
    if folder.join("tokenizer.json").is_file() {
        return;
    }
    let missing = ["vocab.json", "merges.txt"].into_iter().filter(|file| !folder.join(file).is_file());
    match missing.collect::<Vec<_>>()[..] {
        [] => {}
        [file] => problems.push(format!("{file} is missing")),
        [..] => problems.push("tokenizer.json is missing".to_owned()),
    }
}

/// Looks for what says how pictures are prepared.
fn processor(folder: &Path, problems: &mut Vec<String>) {
    if !["preprocessor_config.json", "processor_config.json"].iter().any(|file| folder.join(file).is_file()) {
        problems.push("preprocessor_config.json is missing".to_owned());
    }
}

fn component(path: &Path, index: &Value, part: &Component, problems: &mut Vec<String>) {
    let name = part.name;
    if part.optional && !path.join(name).is_dir() {
        return;
    }
    let entry = index.get(name).and_then(Value::as_array);
    let class = entry.and_then(|entry| entry.get(1)).and_then(Value::as_str);
    let Some(class) = class else {
        problems.push(format!("model_index.json names no {name}"));
        return;
    };
    if !part.classes.is_empty() && !part.classes.contains(&class) {
        problems.push(format!("{name} is a {class}, which this version does not run"));
        return;
    }
    let folder = path.join(name);
    if !folder.is_dir() {
        problems.push(format!("the folder {name} is missing"));
        return;
    }
    let mut need = |file: &str| {
        if !folder.join(file).is_file() {
            problems.push(format!("{name}/{file} is missing"));
        }
    };
    match part.files {
        ComponentFiles::Scheduler => need("scheduler_config.json"),
        ComponentFiles::Tokenizer if folder.join("tokenizer.json").is_file() => {}
        ComponentFiles::Tokenizer => ["vocab.json", "merges.txt"].into_iter().for_each(need),
        ComponentFiles::Processor if folder.join("processor_config.json").is_file() => {}
        ComponentFiles::Processor => need("preprocessor_config.json"),
        ComponentFiles::Weights { stem } => {
            need("config.json");
            weights(&folder, &format!("{name}/"), stem, Architecture::of_class(class), problems);
        }
    }
}

/// Looks for the weights of one component: a file, its variant in half precision, or parts with their index. Those of a
/// network that has an `architecture` may lie in a GGUF file instead.
fn weights(folder: &Path, shown: &str, stem: &str, architecture: Option<Architecture>, problems: &mut Vec<String>) {
    let there = |file: &&String| folder.join(file).is_file();
    let wholes = [format!("{stem}.safetensors"), format!("{stem}.fp16.safetensors")];
    let indexes = [format!("{stem}.safetensors.index.json"), format!("{stem}.safetensors.index.fp16.json")];
    let (whole, index) = (wholes.iter().find(there), indexes.iter().find(there));
    let mut packed = gguf_files(folder);
    if architecture.is_some() && !packed.is_empty() {
        packed.extend(whole.or(index).cloned());
        if packed.len() > 1 {
            let files: Vec<_> = packed.iter().map(|file| format!("{shown}{file}")).collect();
            problems.push(format!("{} are there, and only one can be used: leave that one", files.join(" and ")));
        }
        return;
    }
    if whole.is_some() {
        return;
    }
    let Some(index) = index else {
        if let Some(file) = packed.first() {
            problems.push(format!(
                "{shown}{stem}.safetensors is missing, and {shown}{file} is not read: only transformers may be GGUF files"
            ));
            return;
        }
        let pickled =
            ["pytorch_model.bin", "diffusion_pytorch_model.bin"].into_iter().find(|f| folder.join(f).is_file());
        problems.push(match pickled {
            Some(file) => {
                format!(
                    "{shown}{stem}.safetensors is missing, and {shown}{file} is not read: convert it to safetensors"
                )
            }
            None => format!("{shown}{stem}.safetensors is missing"),
        });
        return;
    };
    let map = match read_json(&folder.join(index)) {
        Ok(value) => value.get("weight_map").and_then(Value::as_object).cloned(),
        Err(problem) => {
            problems.push(problem);
            return;
        }
    };
    let Some(map) = map else {
        problems.push(format!("{shown}{index} has no weight_map"));
        return;
    };
    let files: std::collections::BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let missing: Vec<_> =
        files.into_iter().filter(|file| !folder.join(file).is_file()).map(|file| format!("{shown}{file}")).collect();
    if !missing.is_empty() {
        problems.push(format!("{} is missing", missing.join(", ")));
    }
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
