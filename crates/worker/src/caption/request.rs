//! From the daemon's request to an order that can be carried out: picture decoded, model chosen, question asked.

use std::path::{Path, PathBuf};

use atelier_domain::{
    ErrorCode,
    protocol::{ModelRef, PROTOCOL_VERSION, Run},
};
use atelier_imaging::{Limits, decode};
use serde_json::json;

use super::{REVISION, captioner, captioner::Captioner, captioner::Inputs, generate::Choice};
use crate::{
    context::Context,
    diffusion::pixels::Rgb,
    error::JobError,
    models::ModelError,
    pipeline::Size,
    upscale::checkpoint::{fingerprint as hash, sha256},
};

/// Tokens of an answer where a job does not say: two long paragraphs.
const MAX_TOKENS: u32 = 256;

/// What is to be said, and by whom.
pub struct Order {
    pub model: ModelRef,
    pub captioner: Box<dyn Captioner>,
    pub inputs: Inputs,
    /// As it was asked, or the family's own.
    pub question: String,
    pub choice: Choice,
    /// The weights.
    pub files: Vec<PathBuf>,
}

/// sha256 of what went into a job.
pub struct Hashed<'a> {
    pub inputs: &'a [String],
    pub weights: &'a [String],
}

/// sha256 of the inputs in their order.
pub fn hash_inputs(run: &Run) -> Result<Vec<String>, JobError> {
    run.inputs.iter().map(|path| sha256(path.as_path()).map_err(image_error(path.as_path()))).collect()
}

/// All that a request says about its result.
pub fn fingerprint(run: &Run, inputs: &[String], context: &Context<'_>) -> String {
    hash(&json!({
        "protocol": PROTOCOL_VERSION,
        "worker": env!("CARGO_PKG_VERSION"),
        "revision": REVISION,
        "device": context.device.name,
        "threads": context.device.threads,
        "kind": run.kind,
        "params": run.params,
        "models": run.models,
        "model_given": run.model_given,
        "inputs": inputs,
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

/// The picture, upright, in RGB.
pub fn picture(run: &Run) -> Result<Rgb, JobError> {
    let [path] = &run.inputs[..] else {
        return Err(JobError::refused(
            ErrorCode::InvalidParams,
            format!("a job of kind {} takes one picture, and {} were given", run.kind, run.inputs.len()),
            "Send one job for each picture.",
        ));
    };
    let limits = Limits { max_pixels: run.max_pixels, max_bytes: u64::MAX };
    let path = path.as_path();
    let picture = decode(path, &limits).map_err(|error| JobError::Image { name: name_of(path), error })?;
    let size = Size { width: picture.width.into(), height: picture.height.into() };
    Ok(Rgb::of(&picture, size))
}

impl Order {
    /// Reads the model's folder and puts picture and question into tokens; loads nothing.
    pub fn take(run: &Run, picture: &Rgb, context: &Context<'_>) -> Result<Self, JobError> {
        let (model, captioner) = choose(run)?;
        let asked = run.params.prompt.as_deref().map(str::trim).filter(|prompt| !prompt.is_empty());
        let question = asked.unwrap_or_else(|| captioner.question()).to_owned();
        let inputs = captioner.prepare(picture, &question)?;
        let generation = captioner.generation();
        let max_tokens = run.params.max_tokens.unwrap_or(MAX_TOKENS) as usize;
        let choice = Choice {
            max_tokens: room(&inputs, captioner.context(), max_tokens, run.params.max_tokens.is_some())?,
            end: generation.end.clone(),
            temperature: run.params.temperature.unwrap_or(0.0),
            top_p: run.params.top_p.unwrap_or(1.0),
            seed: run.params.seed.unwrap_or(0),
            repetition_penalty: generation.repetition_penalty,
        };
        let weights = captioner::open(&*captioner, context.cache.device(), None)?;
        let files = weights.files().map(Into::into).collect();
        Ok(Self { model, captioner, inputs, question, choice, files })
    }
}

/// How long the answer may become: as asked, and never beyond what the model was made for.
fn room(inputs: &Inputs, context: i64, wanted: usize, is_asked: bool) -> Result<usize, JobError> {
    let context = usize::try_from(context).unwrap_or(usize::MAX);
    let read = inputs.length();
    let left = context.saturating_sub(read);
    if left == 0 {
        return Err(JobError::refused(
            ErrorCode::InvalidParams,
            format!(
                "params.prompt: picture and question are {read} tokens; the model takes {context}, its answer included"
            ),
            "Ask a shorter question.",
        ));
    }
    if is_asked && left < wanted {
        return Err(JobError::refused(
            ErrorCode::InvalidParams,
            format!(
                "params.max_tokens: {wanted} tokens after {read} of picture and question; the model takes {context}"
            ),
            "Ask for a shorter answer, or a shorter question.",
        ));
    }
    Ok(wanted.min(left))
}

/// The first model whose folder can be read; the one that was asked for must be.
fn choose(run: &Run) -> Result<(ModelRef, Box<dyn Captioner>), JobError> {
    let mut last = None;
    for model in &run.models {
        match captioner::read(model) {
            Ok(captioner) => return Ok((model.clone(), captioner)),
            Err(error) if run.model_given => return Err(error.into()),
            Err(error) => {
                tracing::warn!(job = %run.job, model = model.id, %error, "the model is left out");
                last = Some(error);
            }
        }
    }
    Err(last.map_or_else(no_model, ModelError::into))
}

fn no_model() -> JobError {
    JobError::refused(
        ErrorCode::UnknownModel,
        "no model that captions is installed",
        "Look at models.dirs in the configuration, and at `atelier models list`.",
    )
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn inputs(before: usize, tokens: usize) -> Result<Inputs, Box<dyn std::error::Error>> {
        let pixels = Tensor::f_zeros([1, 3, 1, 1], (Kind::Float, Device::Cpu))?;
        Ok(Inputs { ids: vec![7; tokens], said: Vec::new(), before, pixels, size: [1, 1] })
    }

    #[test]
    fn an_answer_has_the_room_that_picture_and_question_leave() -> Result<(), Box<dyn std::error::Error>> {
        let inputs = inputs(30, 50)?;
        assert_eq!(room(&inputs, 1000, 256, false).ok(), Some(256));
        assert_eq!(room(&inputs, 96, 256, false).ok(), Some(16));
        assert_eq!(room(&inputs, 96, 16, true).ok(), Some(16));
        let error = room(&inputs, 96, 17, true).expect_err("too long an answer").info("cpu");
        assert!(error.message.starts_with("params.max_tokens: 17 tokens after 80 "), "{error}");
        for (context, is_asked) in [(80, true), (80, false), (10, false)] {
            let error = room(&inputs, context, 17, is_asked).expect_err("too long a question").info("cpu");
            assert!(error.message.starts_with("params.prompt: picture and question are 80 tokens"), "{error}");
        }
        Ok(())
    }
}
