//! From the daemon's request to an order that can be carried out: pictures decoded, model chosen, numbers settled.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use atelier_domain::{
    Detail, ErrorCode, Fit, JobKind, Preprocessor,
    model::Family,
    protocol::{self, ModelRef, PROTOCOL_VERSION, Run},
};
use atelier_imaging::{Limits, Picture, canny::canny, classic::Operation, decode};
use atelier_sampling::{Options, Sampler, SamplingError, Start};
use serde_json::json;
use tch::Device;

use super::{
    REVISION,
    card::Meaning,
    pixels::{self, Rgb},
};
use crate::{
    error::JobError,
    lora::{Component, LoraFile, LoraUse},
    models::ModelError,
    pipeline::{self, Blueprint, Loras, Mode, Pipeline, Size, Task},
    prompt,
    upscale::{
        checkpoint::{fingerprint as hash, sha256},
        fits_format,
    },
};

/// The usual thresholds of an edge detector for ControlNets.
const CANNY: (i32, i32) = (100, 200);
/// Steps from one preview to the next where a job does not say.
const PREVIEW_EVERY: u32 = 5;

/// sha256 of the inputs in their order, the mask last.
pub fn hash_inputs(run: &Run) -> Result<Vec<String>, JobError> {
    let paths = run.inputs.iter().chain(&run.mask);
    paths.map(|path| sha256(path.as_path()).map_err(image_error(path.as_path()))).collect()
}

/// All that a request says about its result.
pub fn fingerprint(run: &Run, inputs: &[String], device: &protocol::Device) -> String {
    hash(&json!({
        "protocol": PROTOCOL_VERSION,
        "worker": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "device": device.name,
        "threads": device.threads,
        "kind": run.kind,
        "params": run.params,
        "models": run.models,
        "parts": run.parts,
        "model_given": run.model_given,
        "inputs": inputs,
        "mask": run.mask.is_some(),
        "output": run.output,
        "max_pixels": run.max_pixels,
    }))
}

fn image_error(path: &Path) -> impl FnOnce(std::io::Error) -> JobError {
    let name = name_of(path);
    move |error| JobError::Image { name, error: error.into() }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The pictures of a job.
pub struct Brought {
    /// The last is the one whose size and metadata the result has.
    sources: Vec<Picture>,
    mask: Option<Picture>,
}

impl Brought {
    pub fn read(run: &Run) -> Result<Self, JobError> {
        let limits = Limits { max_pixels: run.max_pixels, max_bytes: u64::MAX };
        let read = |path: &Path| decode(path, &limits).map_err(|error| JobError::Image { name: name_of(path), error });
        let sources = run.inputs.iter().map(|path| read(path.as_path())).collect::<Result<Vec<_>, _>>()?;
        let mask = run.mask.as_ref().map(|path| read(path.as_path())).transpose()?;
        if let (Some(source), Some(mask)) = (sources.last(), &mask)
            && (source.width, source.height) != (mask.width, mask.height)
        {
            return Err(JobError::refused(
                ErrorCode::InvalidRequest,
                format!(
                    "the mask has {} x {} pixels and the picture {} x {}",
                    mask.width, mask.height, source.width, source.height
                ),
                "Send a mask of the picture's own size.",
            ));
        }
        Ok(Self { sources, mask })
    }
}

/// What is to be done.
pub enum Order {
    Classic(Box<Classic>),
    Diffusion(Box<Diffusion>),
}

/// An exact operation in place of the model.
pub struct Classic {
    pub model: ModelRef,
    pub instruction: String,
    pub operation: Operation,
    pub source: Picture,
}

/// A run of a model.
pub struct Diffusion {
    pub blueprint: Blueprint,
    pub pipeline: Box<dyn Pipeline>,
    pub task: Task,
    pub sampler: Sampler,
    pub seed: u64,
    pub images: u32,
    pub preview_every: u32,
    /// Guided or none.
    pub detail: Detail,
    pub fit: Fit,
    pub source: Option<Picture>,
    pub loras: Loras,
    /// What the model took the prompt for, by name.
    pub instruction: Option<String>,
    pub notes: Vec<String>,
}

impl Diffusion {
    /// All files that the result depends on.
    pub fn files(&self) -> Vec<PathBuf> {
        let weights = self.blueprint.files().iter().flat_map(|(_, files)| files.paths.iter().cloned());
        weights.chain(self.loras.paths.iter().cloned()).collect()
    }
}

impl Order {
    /// Settles everything that can be settled without loading.
    ///
    /// # Errors
    /// What cannot be done, by file, key or parameter.
    pub fn take(run: &Run, mut brought: Brought, device: Device) -> Result<Self, JobError> {
        let (blueprint, pipeline) = choose(run, device)?;
        let asked = run.params.prompt.as_deref().unwrap_or_default();
        let (prompt, tags) = prompt::extract_loras(asked).map_err(|error| {
            JobError::refused(ErrorCode::InvalidParams, format!("params.prompt: {error}"), "Correct the tag.")
        })?;
        let meaning = match run.kind {
            JobKind::Edit => blueprint.card.understand(prompt.trim())?,
            JobKind::Generate
            | JobKind::Inpaint
            | JobKind::Control
            | JobKind::Upscale
            | JobKind::Caption
            | JobKind::Video
            | JobKind::TalkingHead
            | JobKind::Speech => Meaning::Free,
        };
        let sources = brought.sources.iter().map(size_of).collect();
        let (prompt, instruction, own_detail) = match meaning {
            Meaning::Free => (prompt, None, None),
            Meaning::Known { name, say, detail } => (say, Some(name), detail),
            Meaning::Classic { name: instruction, operation } => {
                let Some(source) = brought.sources.pop() else {
                    return Err(JobError::refused(ErrorCode::InvalidRequest, "an edit needs a picture", "Send it."));
                };
                let (width, height) = operation
                    .size(source.width, source.height, run.max_pixels)
                    .map_err(|error| JobError::refused(ErrorCode::InvalidParams, error.to_string(), ""))?;
                fits_format(width.max(height).into(), run.output.format, "a smaller size")?;
                let model = blueprint.model;
                return Ok(Self::Classic(Box::new(Classic { model, instruction, operation, source })));
            }
        };
        let loras = loras(run, &tags)?;
        let brought_task = pipeline::Brought { kind: run.kind, sources, has_mask: run.mask.is_some(), prompt };
        let mut task = Task::settle(brought_task, &run.params, &blueprint, pipeline.as_ref())?;
        let sampler = sampler(run, &blueprint, pipeline.as_ref(), &task)?;
        let mut notes = left_out(&loras, &blueprint);
        notes.extend(brought.sources.iter().flat_map(|source| source.notes.iter().cloned()));
        if pipeline.reads_sources() {
            task.sources = brought.sources.iter().map(Rgb::whole).collect();
        }
        let source = brought.sources.pop();
        task.picture = source.as_ref().map(|source| Rgb::of(source, task.size));
        task.mask = brought.mask.as_ref().map(|mask| pixels::mask(mask, task.size));
        if task.mode == Mode::Control {
            notes.extend(preprocess(run, &mut task));
        }
        let detail = detail(run, &blueprint, &task, own_detail)?;
        let fit = run.params.fit.or(blueprint.card.fit).unwrap_or(match task.mode {
            Mode::Instruct => Fit::Source,
            Mode::Text | Mode::Image | Mode::Inpaint | Mode::Control => Fit::Model,
        });
        let longest = match (&source, fit, detail) {
            (Some(source), Fit::Source, _) | (Some(source), _, Detail::Guided) => {
                source.width.max(source.height).into()
            }
            (_, _, _) => u64::try_from(task.size.width.max(task.size.height)).unwrap_or(u64::MAX),
        };
        fits_format(longest, run.output.format, "a smaller size")?;
        Ok(Self::Diffusion(Box::new(Diffusion {
            pipeline,
            sampler,
            seed: run.params.seed.unwrap_or(0),
            images: run.params.num_images.unwrap_or(1).max(1),
            preview_every: run.params.preview_every.unwrap_or(PREVIEW_EVERY),
            detail,
            fit,
            source,
            loras,
            instruction,
            notes,
            task,
            blueprint,
        })))
    }
}

fn size_of(picture: &Picture) -> Size {
    Size { width: picture.width.into(), height: picture.height.into() }
}

/// The first model whose folder can be read; the one that was asked for must be.
fn choose(run: &Run, device: Device) -> Result<(Blueprint, Box<dyn Pipeline>), JobError> {
    let mut last = None;
    for model in &run.models {
        let read = Blueprint::read(model, &run.parts, device).and_then(|blueprint| match pipeline::read(&blueprint)? {
            Some(pipeline) => Ok((blueprint, pipeline)),
            None => Err(ModelError::UnknownNetwork {
                path: model.path.as_path().into(),
                class: model.family.class_names()[0].into(),
            }
            .into()),
        });
        match read {
            Ok(read) => return Ok(read),
            Err(error) if run.model_given => return Err(error),
            Err(error) => {
                tracing::warn!(job = %run.job, model = model.id, %error, "the model is left out");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        JobError::refused(
            ErrorCode::UnknownModel,
            format!("no model that does {} is installed", run.kind),
            "Look at models.dirs in the configuration, and at `atelier models list`.",
        )
    }))
}

fn sampler(run: &Run, blueprint: &Blueprint, pipeline: &dyn Pipeline, task: &Task) -> Result<Sampler, JobError> {
    let config = match &run.params.sampler {
        None => Ok(blueprint.scheduler.clone()),
        Some(name) => blueprint.scheduler.with_sampler(name),
    };
    let is_full = task.mode == Mode::Inpaint && task.strength >= 1.0;
    let start = match task.mode {
        Mode::Image | Mode::Inpaint if !is_full => Start::Strength(task.strength),
        Mode::Text | Mode::Image | Mode::Inpaint | Mode::Instruct | Mode::Control => Start::Noise,
    };
    let mut options = Options { start, ..Options::new(task.steps) };
    config
        .and_then(|config| {
            pipeline.sampling(task, &config, &mut options);
            Sampler::new(&config, &options)
        })
        .map_err(|error| {
            let (code, hint) = match &error {
                SamplingError::UnknownSampler { .. }
                | SamplingError::NotForFlow { .. }
                | SamplingError::OnlyForFlow { .. }
                | SamplingError::NoSteps
                | SamplingError::Steps { .. }
                | SamplingError::Strength { .. }
                | SamplingError::StrengthLeavesNothing { .. }
                | SamplingError::Eta { .. }
                | SamplingError::Sigmas { .. } => (ErrorCode::InvalidParams, "Change the parameter, or leave it out."),
                SamplingError::NotJson { .. }
                | SamplingError::NoClass
                | SamplingError::UnknownClass { .. }
                | SamplingError::Key { .. }
                | SamplingError::NoShift
                | SamplingError::Mu { .. }
                | SamplingError::NotFinite { .. }
                | SamplingError::State { .. } => {
                    (ErrorCode::ModelIncomplete, "Name another sampler in params.sampler, or install the model again.")
                }
            };
            JobError::refused(code, format!("{}: {error}", blueprint.main().id), hint)
        })
}

/// What `detail` comes to.
fn detail(run: &Run, blueprint: &Blueprint, task: &Task, own: Option<Detail>) -> Result<Detail, JobError> {
    let asked = run.params.detail.unwrap_or_default();
    if asked == Detail::Guided && run.params.fit == Some(Fit::Model) {
        return Err(JobError::refused(
            ErrorCode::InvalidParams,
            "params.fit: detail = \"guided\" gives the source's size, and fit = \"model\" another",
            "Leave out one of them.",
        ));
    }
    let is_edit = task.mode == Mode::Instruct && run.params.fit != Some(Fit::Model);
    Ok(match asked {
        Detail::Auto if is_edit => match own.or(blueprint.card.detail) {
            Some(Detail::Guided) => Detail::Guided,
            Some(Detail::Auto | Detail::None) | None => Detail::None,
        },
        Detail::Guided => Detail::Guided,
        Detail::Auto | Detail::None => Detail::None,
    })
}

/// Turns the picture into a control picture, and says what was done.
fn preprocess(run: &Run, task: &mut Task) -> Option<String> {
    let asked = run.params.preprocessor.unwrap_or(Preprocessor::None);
    if asked == Preprocessor::None {
        return None;
    }
    let picture = task.picture.as_mut()?;
    let edges = canny(&picture.samples, picture.width, picture.height, CANNY.0, CANNY.1);
    picture.samples = edges.into_iter().flat_map(|edge| [edge; 3]).collect();
    (asked != Preprocessor::Canny)
        .then(|| format!("The preprocessor {} is not there; Canny was used instead.", asked.as_str()))
}

/// The LoRAs of the parameters and of the prompt's tags.
fn loras(run: &Run, tags: &[prompt::LoraTag]) -> Result<Loras, JobError> {
    let listed = run.params.loras.iter().flat_map(|loras| &loras.0);
    let mut wanted: Vec<(&str, f64, f64)> = listed.map(|lora| (lora.name.as_str(), lora.weight, lora.weight)).collect();
    wanted.extend(tags.iter().map(|tag| (tag.name.as_str(), tag.text_encoder_weight, tag.denoiser_weight)));
    let mut loras = Loras::default();
    for (name, text_encoder_weight, denoiser_weight) in wanted {
        let Some(part) = run.parts.iter().find(|part| part.family == Family::Lora && part.id == name) else {
            let known: Vec<&str> =
                run.parts.iter().filter(|part| part.family == Family::Lora).map(|part| part.id.as_str()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(JobError::refused(
                ErrorCode::UnknownModel,
                format!("the LoRA {name:?} is not installed"),
                format!("Installed are: {known}. Put its .safetensors file into loras/ of a models directory."),
            ));
        };
        let file = LoraFile::open(part.path.as_path()).map_err(ModelError::from)?;
        loras.variant = format!("{}+{name}:{text_encoder_weight}:{denoiser_weight}", loras.variant);
        loras.paths.push(part.path.as_path().into());
        loras.uses.push(LoraUse { file: Rc::new(file), denoiser_weight, text_encoder_weight });
    }
    Ok(loras)
}

/// What LoRAs change that the model does not have: kohya's of FLUX.1 name T5 as Stable Diffusion 3's third encoder, and T5
/// may not be in the folder. diffusers leaves them out too.
fn left_out(loras: &Loras, blueprint: &Blueprint) -> Vec<String> {
    let mut notes = Vec::new();
    for lora in &loras.uses {
        for component in lora.file.components() {
            if component != Component::Denoiser && blueprint.files_of(&component.to_string()).is_none() {
                let path = lora.file.path().display();
                notes.push(format!("{path} changes {component}, which this model does not have; that was left out."));
            }
        }
    }
    notes
}
