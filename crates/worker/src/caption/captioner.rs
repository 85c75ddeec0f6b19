//! What a family of captioning models is to the runner. One file for each family; the line in [`read`] is all that the
//! rest knows of it.

use std::path::{Path, PathBuf};

use atelier_domain::{ErrorCode, model::Family, protocol::ModelRef};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{blip2, generate::CausalLm, llava_next, qwen2_vl};
use crate::{
    diffusion::pixels::Rgb,
    error::JobError,
    models::ModelError,
    tokenizer::Tokenizer,
    torch::TorchError,
    weights::{Alias, LoadOptions, OnProgress, Weights, WeightsError, compute_kind},
};

/// A model's folder, read and checked. No weights are loaded.
pub trait Captioner {
    /// What is asked where a job asks nothing; empty where the model needs no question.
    fn question(&self) -> &'static str;

    fn tokenizer(&self) -> &Tokenizer;

    fn generation(&self) -> &Generation;

    /// The most tokens, of picture, question and answer, that the model was made for.
    fn context(&self) -> i64;

    /// The picture and the question as the networks take them.
    ///
    /// # Errors
    /// A picture or a question that the model cannot take.
    fn prepare(&self, picture: &Rgb, question: &str) -> Result<Inputs, JobError>;

    /// Where the weights lie, and how their names are spelt elsewhere.
    fn files(&self) -> Files<'_>;

    /// Takes the networks' tensors; the caller finishes the weights.
    fn load(&self, weights: &Weights) -> Result<Box<dyn Speaker>, WeightsError>;
}

/// A model with its weights.
pub trait Speaker {
    /// The picture encoded, and the question before the answer. At most `max_tokens` will be asked for.
    fn begin<'a>(&'a self, inputs: &Inputs, max_tokens: usize) -> Result<Box<dyn CausalLm + 'a>, TorchError>;
}

/// A picture and a question, ready for the networks.
#[derive(Debug)]
pub struct Inputs {
    /// Tokens of the prompt, with those that stand for the picture where the family has such.
    pub ids: Vec<i64>,
    /// Tokens that count as said where what was said is said less readily.
    pub said: Vec<i64>,
    /// Places of the picture before `ids`, where it is not among them.
    pub before: usize,
    /// On the CPU in f32; the shape is the family's.
    pub pixels: Tensor,
    /// What the family must know of the picture's shape: height and width, in its own unit.
    pub size: [i64; 2],
}

impl Inputs {
    /// In tokens.
    pub fn length(&self) -> usize {
        self.before + self.ids.len()
    }
}

/// The weights of a folder.
#[derive(Clone, Debug)]
pub struct Files<'a> {
    pub folder: &'a Path,
    pub aliases: &'static [Alias],
    pub ignored: &'static [&'static str],
}

/// What `generation_config.json` says, or the configuration where there is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Tokens that end a text.
    pub end: Vec<i64>,
    pub repetition_penalty: f64,
}

impl Generation {
    /// `fallback` are the configurations in which older folders keep the token that ends a text, the nearest first, and
    /// `usual` is that of the language model's family, which no file need name.
    ///
    /// # Errors
    /// A file that is damaged.
    pub fn read(folder: &Path, fallback: &[&Value], usual: i64) -> Result<Self, ModelError> {
        let path = folder.join("generation_config.json");
        let own = read_json(&path)?.unwrap_or(Value::Null);
        let found =
            std::iter::once(&own).chain(fallback.iter().copied()).find_map(|config| tokens(&config["eos_token_id"]));
        let end = found.unwrap_or_else(|| vec![usual]);
        let repetition_penalty = own["repetition_penalty"].as_f64().unwrap_or(1.0);
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            let detail = format!("repetition_penalty is {repetition_penalty}, and not above 0");
            return Err(ModelError::Config { path, detail });
        }
        Ok(Self { end, repetition_penalty })
    }
}

/// One token, or a list of them.
fn tokens(value: &Value) -> Option<Vec<i64>> {
    match value.as_array() {
        Some(list) => list.iter().map(Value::as_i64).collect::<Option<Vec<_>>>().filter(|list| !list.is_empty()),
        None => value.as_i64().map(|token| vec![token]),
    }
}

/// The JSON at `path`; `None` where there is no such file.
///
/// # Errors
/// A file that cannot be read, or is no JSON.
pub fn read_json(path: &Path) -> Result<Option<Value>, ModelError> {
    let wrong = |detail: String| ModelError::Config { path: path.into(), detail };
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| wrong(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// A question that holds a token of the model's own, such as the one that stands for the picture.
pub fn refuse_marks(question: &str, marks: &[&str]) -> Result<(), JobError> {
    match marks.iter().find(|mark| question.contains(**mark)) {
        None => Ok(()),
        Some(mark) => Err(JobError::refused(
            ErrorCode::InvalidParams,
            format!("params.prompt: holds {mark}, which stands for the picture"),
            "Ask without it; the picture is put before the question.",
        )),
    }
}

/// Where the weights of a captioner are, opened but not loaded.
pub fn open(captioner: &dyn Captioner, device: Device, progress: Option<OnProgress>) -> Result<Weights, ModelError> {
    let files = captioner.files();
    let mut options = LoadOptions::new(device, compute_kind(device, Kind::Half))
        .with_aliases(files.aliases)
        .with_ignored(files.ignored);
    options.progress = progress;
    Ok(Weights::open_folder(files.folder, atelier_domain::model::TRANSFORMERS_STEM, &options)?)
}

/// The captioner of a model's folder.
///
/// # Errors
/// A family that does not caption, or a folder that is damaged.
pub fn read(model: &ModelRef) -> Result<Box<dyn Captioner>, ModelError> {
    let folder: PathBuf = model.path.as_path().into();
    #[expect(clippy::wildcard_enum_match_arm, reason = "families that draw need not be named here")]
    match model.family {
        Family::LlavaNext => Ok(Box::new(llava_next::Folder::read(folder)?)),
        Family::Blip2 => Ok(Box::new(blip2::Folder::read(folder)?)),
        Family::Qwen2Vl | Family::Qwen25Vl => Ok(Box::new(qwen2_vl::Folder::read(folder)?)),
        _ => Err(ModelError::UnknownNetwork { path: folder, class: model.family.class_names()[0].into() }),
    }
}
