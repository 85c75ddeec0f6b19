//! What a model's folder holds, read before any weights are loaded or the device is touched.

use std::{
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use atelier_domain::{
    ErrorCode,
    model::{self, ComponentFiles},
    protocol::ModelRef,
};
use atelier_sampling::SchedulerConfig;
use serde_json::Value;
use tch::{Device, Kind};

use super::Stage;
use crate::{
    diffusion::card::Card,
    error::JobError,
    lora::Component,
    models::ModelError,
    pipeline,
    text_encoder::{CLIP_ALIASES, ClipText, ClipTextConfig},
    tokenizer::Tokenizer,
    weights::{LoadOptions, Weights},
};

/// The name of the part that lies at the top of the folder of a model with a base.
pub const OWN: &str = "controlnet";

/// A CLIP text encoder with its tokenizer.
pub struct TextBlueprint {
    /// The folder's name.
    pub name: &'static str,
    pub config: ClipTextConfig,
    pub tokenizer: Tokenizer,
    /// Whether it projects its pooled output.
    pub projects: bool,
}

/// A component's weights on the disk.
#[derive(Clone, Debug)]
pub struct Files {
    pub folder: PathBuf,
    pub stem: &'static str,
    pub paths: Vec<PathBuf>,
    /// Of the files.
    pub bytes: u64,
    /// Of the tensors, once they are loaded.
    pub held_bytes: u64,
}

/// A model's folder: its files, and what all families have in it.
pub struct Blueprint {
    /// The model that was chosen; a bare ControlNet is one.
    pub model: ModelRef,
    /// What it builds upon, where it is not complete by itself.
    pub base: Option<ModelRef>,
    pub card: Card,
    pub scheduler: SchedulerConfig,
    /// What the networks are computed in.
    pub kind: Kind,
    /// `model_index.json`.
    index: Value,
    /// By name, in the order of the model's parts.
    files: Vec<(&'static str, Files)>,
}

impl Blueprint {
    /// Reads the folder of `model`, and of the base that it needs, the first of `parts` that fits. `device` is where it
    /// will be computed.
    ///
    /// # Errors
    /// A file that is missing, truncated or makes no sense, with its path.
    pub fn read(model: &ModelRef, parts: &[ModelRef], device: Device) -> Result<Self, JobError> {
        let base = match model.family.needs_base() {
            None => None,
            Some(family) => Some(parts.iter().find(|part| part.family == family).cloned().ok_or_else(|| {
                JobError::refused(
                    ErrorCode::NotAvailable,
                    format!("{} works with a {}, and none is installed", model.id, family.class_names()[0]),
                    "Put such a model's folder into a models directory.",
                )
            })?),
        };
        let kind = pipeline::kind_of(model.family, device);
        let main = base.as_ref().unwrap_or(model);
        let folder = main.path.as_path();
        let card = Card::read(model.path.as_path())?;
        let index = read_json(&folder.join("model_index.json"))?;
        let mut files = Vec::new();
        let is_there = |component: &model::Component| !component.optional || folder.join(component.name).is_dir();
        for component in main.family.components().iter().filter(|component| is_there(component)) {
            if let ComponentFiles::Weights { stem } = component.files {
                files.push((component.name, Files::find(&folder.join(component.name), stem, kind)?));
            }
        }
        let scheduler = read_scheduler(&folder.join("scheduler/scheduler_config.json"))?;
        if let (Some(_), Some(stem)) = (&base, model.family.own_weights()) {
            files.push((OWN, Files::find(model.path.as_path(), stem, kind)?));
        }
        Ok(Self { model: model.clone(), base, card, scheduler, kind, index, files })
    }

    /// The model that has all the parts of a pipeline.
    pub fn main(&self) -> &ModelRef {
        self.base.as_ref().unwrap_or(&self.model)
    }

    /// The folder of a part of the pipeline.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.main().path.as_path().join(name)
    }

    /// That a configuration says what cannot be. `file` is relative to the folder of the pipeline.
    pub fn wrong(&self, file: &str, detail: String) -> JobError {
        ModelError::Config { path: self.folder(file), detail }.into()
    }

    /// A flag of `model_index.json`.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.index.get(name).and_then(Value::as_bool).unwrap_or(default)
    }

    /// Any value of `model_index.json`.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.index.get(name)
    }

    pub fn files(&self) -> &[(&'static str, Files)] {
        &self.files
    }

    pub fn files_of(&self, name: &str) -> Option<&Files> {
        self.files.iter().find(|(of, _)| *of == name).map(|(_, files)| files)
    }
}

impl TextBlueprint {
    /// Reads the CLIP text encoder `name` and its tokenizer.
    ///
    /// # Errors
    /// A file that is missing or says what is not computed.
    pub fn read(blueprint: &Blueprint, name: &'static str, projects: bool) -> Result<Self, JobError> {
        let tokenizer = name.replace("text_encoder", "tokenizer");
        Ok(Self {
            name,
            config: ClipTextConfig::read(&blueprint.folder(name)).map_err(ModelError::from)?,
            tokenizer: Tokenizer::open(&blueprint.folder(&tokenizer)).map_err(ModelError::from)?,
            projects,
        })
    }

    /// The encoder, loaded now or before.
    ///
    /// # Errors
    /// Weights that do not fit, or no room for them.
    pub fn load(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<ClipText>, JobError> {
        let component = if self.name == "text_encoder" { Component::TextEncoder } else { Component::TextEncoder2 };
        let load = |weights: &Weights| ClipText::load(weights, &self.config, self.projects);
        stage.part(self.name, CLIP_ALIASES, Some(component), load)
    }

    /// Tokens of one window, with start and end.
    pub fn context(&self) -> usize {
        let most = usize::try_from(self.config.max_position_embeddings).unwrap_or(usize::MAX);
        self.tokenizer.max_length().map_or(most, |length| length.min(most))
    }
}

impl Files {
    /// Maps the component's files and looks at their headers, which shows what is missing or cut off.
    fn find(folder: &Path, stem: &'static str, kind: Kind) -> Result<Self, JobError> {
        let options = LoadOptions::new(tch::Device::Cpu, kind);
        let weights = Weights::open_folder(folder, stem, &options).map_err(ModelError::from)?;
        let paths: Vec<PathBuf> = weights.files().map(Path::to_owned).collect();
        let bytes = paths.iter().map(|path| fs::metadata(path).map_or(0, |meta| meta.len())).sum();
        Ok(Self { folder: folder.into(), stem, paths, bytes, held_bytes: weights.bytes() })
    }
}

fn read_json(path: &Path) -> Result<Value, ModelError> {
    let wrong = |detail| ModelError::Config { path: path.into(), detail };
    let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

fn read_scheduler(path: &Path) -> Result<SchedulerConfig, ModelError> {
    let wrong = |detail| ModelError::Config { path: path.into(), detail };
    let text = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    SchedulerConfig::parse(&text).map_err(|error| wrong(error.to_string()))
}
