//! All that a model's folder says, read and checked before any weights are loaded or the device is touched.

use std::{
    fs,
    path::{Path, PathBuf},
};

use atelier_domain::{
    ErrorCode,
    model::{ComponentFiles, DIFFUSERS_STEM, Family, TRANSFORMERS_STEM},
    protocol::ModelRef,
};
use atelier_sampling::SchedulerConfig;
use serde_json::Value;
use tch::Kind;

use crate::{
    controlnet::{ControlNetConfig, UnionConfig},
    diffusion::card::Card,
    error::JobError,
    models::ModelError,
    text_encoder::ClipTextConfig,
    tokenizer::Tokenizer,
    unet::UNetConfig,
    vae::VaeConfig,
    weights::{LoadOptions, Weights},
};

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub width: i64,
    pub height: i64,
}

impl Size {
    pub const fn area(self) -> i64 {
        self.width * self.height
    }
}

/// A text encoder with its tokenizer.
pub struct TextBlueprint {
    /// The folder's name.
    pub name: &'static str,
    pub config: ClipTextConfig,
    pub tokenizer: Tokenizer,
    /// Whether it projects its pooled output.
    pub projects: bool,
}

#[derive(Clone, Debug)]
pub enum ControlBlueprint {
    Single(ControlNetConfig),
    Union(UnionConfig),
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

/// A model that can be run, without its weights.
pub struct Blueprint {
    /// The model that was chosen; a bare ControlNet is one.
    pub model: ModelRef,
    /// What it builds upon, where it is not complete by itself.
    pub base: Option<ModelRef>,
    pub card: Card,
    pub text: Vec<TextBlueprint>,
    pub unet: UNetConfig,
    pub vae: VaeConfig,
    pub control: Option<ControlBlueprint>,
    pub scheduler: SchedulerConfig,
    /// `model_index.json`.
    index: Value,
    /// By name, in the order of the model's parts.
    files: Vec<(&'static str, Files)>,
}

impl Blueprint {
    /// Reads the folder of `model`, and of the base that it needs, the first of `parts` that fits. `kind` is what will be
    /// computed in.
    ///
    /// # Errors
    /// A file that is missing, truncated or makes no sense, with its path; a value that is not computed, with its key.
    pub fn read(model: &ModelRef, parts: &[ModelRef], kind: Kind) -> Result<Self, JobError> {
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
        let main = base.as_ref().unwrap_or(model);
        let folder = main.path.as_path();
        let card = Card::read(model.path.as_path())?;
        let index = read_json(&folder.join("model_index.json"))?;
        let mut files = Vec::new();
        let mut text = Vec::new();
        for component in main.family.components() {
            if let ComponentFiles::Weights { stem } = component.files {
                files.push((component.name, Files::find(&folder.join(component.name), stem, kind)?));
            }
            if component.files == (ComponentFiles::Weights { stem: TRANSFORMERS_STEM }) {
                text.push(TextBlueprint::read(folder, component.name)?);
            }
        }
        let control = Self::read_control(model, &mut files, kind)?;
        let scheduler = read_scheduler(&folder.join("scheduler/scheduler_config.json"))?;
        let blueprint = Self {
            unet: UNetConfig::open(&folder.join("unet/config.json")).map_err(ModelError::from)?,
            vae: VaeConfig::open(&folder.join("vae/config.json")).map_err(ModelError::from)?,
            model: model.clone(),
            base,
            card,
            text,
            control,
            scheduler,
            index,
            files,
        };
        blueprint.check()?;
        Ok(blueprint)
    }

    fn read_control(
        model: &ModelRef,
        files: &mut Vec<(&'static str, Files)>,
        kind: Kind,
    ) -> Result<Option<ControlBlueprint>, JobError> {
        let path = model.path.as_path();
        let is_bare = model.family.needs_base().is_some();
        let folder = if is_bare { path.to_owned() } else { path.join("controlnet") };
        let config = folder.join("config.json");
        let control = match model.family {
            Family::ControlNet | Family::StableDiffusionXlControlNet => {
                ControlBlueprint::Single(ControlNetConfig::open(&config).map_err(ModelError::from)?)
            }
            Family::ControlNetUnion | Family::StableDiffusionXlControlNetUnion => {
                ControlBlueprint::Union(UnionConfig::open(&config).map_err(ModelError::from)?)
            }
            Family::Span
            | Family::UpConv7
            | Family::StableDiffusion
            | Family::StableDiffusionInpaint
            | Family::InstructPix2Pix
            | Family::StableDiffusionXl
            | Family::StableDiffusionXlInpaint
            | Family::Lora
            | Family::Fake => return Ok(None),
        };
        if is_bare {
            files.push(("controlnet", Files::find(&folder, DIFFUSERS_STEM, kind)?));
        }
        Ok(Some(control))
    }

    /// Whether the parts fit each other.
    fn check(&self) -> Result<(), JobError> {
        let wrong = |detail: String| {
            let path = self.main().path.as_path().join("unet/config.json");
            Err(JobError::Model(ModelError::Config { path, detail }))
        };
        let (latent, inputs) = (self.vae.latent_channels, self.unet.encoder.in_channels);
        let extra = match self.main().family {
            Family::InstructPix2Pix => vec![latent],
            Family::StableDiffusionInpaint | Family::StableDiffusionXlInpaint => vec![0, latent + 1],
            _ if self.model.family == Family::StableDiffusion => vec![0, latent + 1],
            Family::Span
            | Family::UpConv7
            | Family::StableDiffusion
            | Family::StableDiffusionXl
            | Family::StableDiffusionXlControlNet
            | Family::StableDiffusionXlControlNetUnion
            | Family::ControlNet
            | Family::ControlNetUnion
            | Family::Lora
            | Family::Fake => vec![0],
        };
        if !extra.iter().any(|extra| latent + extra == inputs) || self.unet.out_channels != latent {
            return wrong(format!(
                "in_channels is {inputs} and out_channels {}, which does not go with latents of {latent} channels",
                self.unet.out_channels
            ));
        }
        if self.unet.encoder.time_cond_proj_dim.is_some() {
            return wrong("time_cond_proj_dim is set: networks distilled for one guidance are not supported".into());
        }
        if self.flag("requires_aesthetics_score", false) {
            let path = self.main().path.as_path().join("model_index.json");
            let detail = "requires_aesthetics_score is set: a refiner is not supported".into();
            return Err(JobError::Model(ModelError::Config { path, detail }));
        }
        let width: i64 = self.text.iter().map(|text| text.config.hidden_size).sum();
        if let Some(level) = self.unet.encoder.levels.iter().find(|level| level.cross_attention_dim != width) {
            let dim = level.cross_attention_dim;
            return wrong(format!("cross_attention_dim is {dim}, and the text encoders give {width}"));
        }
        Ok(())
    }

    /// The model that has all the parts of a pipeline.
    pub fn main(&self) -> &ModelRef {
        self.base.as_ref().unwrap_or(&self.model)
    }

    /// A flag of `model_index.json`.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.index.get(name).and_then(Value::as_bool).unwrap_or(default)
    }

    pub fn files(&self) -> &[(&'static str, Files)] {
        &self.files
    }

    pub fn files_of(&self, name: &str) -> Option<&Files> {
        self.files.iter().find(|(of, _)| *of == name).map(|(_, files)| files)
    }

    /// Pixels for one latent.
    pub fn downscale(&self) -> i64 {
        self.vae.downscale()
    }

    /// Channels of the UNet's input beyond the latents.
    pub fn extra_channels(&self) -> i64 {
        self.unet.encoder.in_channels - self.vae.latent_channels
    }

    /// The size of what is made from a text alone.
    pub fn native_size(&self) -> Size {
        if let Some(side) = self.card.size {
            return Size { width: side.into(), height: side.into() };
        }
        let [height, width] = self.unet.sample_size.unwrap_or([64, 64]);
        Size { width: width * self.downscale(), height: height * self.downscale() }
    }

    /// Pictures of more pixels are brought down to as many, where a job does not say otherwise.
    pub fn most_pixels(&self) -> i64 {
        if self.card.size.is_some() { self.native_size().area() } else { self.native_size().area().max(512 * 512) }
    }
}

impl TextBlueprint {
    fn read(folder: &Path, name: &'static str) -> Result<Self, JobError> {
        let tokenizer = if name == "text_encoder" { "tokenizer" } else { "tokenizer_2" };
        Ok(Self {
            name,
            config: ClipTextConfig::read(&folder.join(name)).map_err(ModelError::from)?,
            tokenizer: Tokenizer::open(&folder.join(tokenizer)).map_err(ModelError::from)?,
            projects: name == "text_encoder_2",
        })
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
