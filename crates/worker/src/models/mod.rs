//! Models: what a folder says, and loading it.

mod cache;

use std::{
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use atelier_domain::{ErrorCode, ErrorInfo, model::Family, protocol::ModelRef};
use serde::Deserialize;
use serde_json::Value;

pub use self::cache::{Cache, Part, Stamp};
use crate::{
    lora::LoraError,
    nn::{self, Config, Network},
    text_encoder,
    tokenizer::TokenizerError,
    weights::{Weights, WeightsError},
};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{}: {detail}", path.display())]
    Config { path: PathBuf, detail: String },
    #[error("{}: the network {class} is not one that this worker computes", path.display())]
    UnknownNetwork { path: PathBuf, class: String },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Something else in the folder: a tokenizer, a scheduler. The message names the file.
    #[error("{0}")]
    Folder(String),
    #[error(transparent)]
    Lora(LoraError),
    #[error("the model {id} takes {bytes} bytes, and models may hold {budget}")]
    OverBudget { id: String, bytes: u64, budget: u64 },
}

impl ModelError {
    pub fn info(&self) -> ErrorInfo {
        let (code, hint) = match self {
            Self::UnknownNetwork { .. } => {
                (ErrorCode::KindNotSupported, "Choose another model; `atelier models list` shows them.")
            }
            Self::OverBudget { .. } => {
                (ErrorCode::OutOfMemory, "Raise worker.memory_budget, or choose a smaller model.")
            }
            Self::Weights(error) if error.is_out_of_memory() => {
                (ErrorCode::OutOfMemory, "Free memory on the device, or choose a smaller model.")
            }
            Self::Weights(WeightsError::Gguf { .. }) => {
                (ErrorCode::ModelIncomplete, "docs/MODELS.md says which GGUF files are read, and where they lie.")
            }
            Self::Lora(LoraError::Unknown { .. } | LoraError::Shape { .. }) => {
                (ErrorCode::InvalidParams, "Choose a LoRA that was made for this model.")
            }
            Self::Lora(LoraError::Method { .. }) => {
                (ErrorCode::InvalidParams, "Choose a LoRA of another kind, or have it converted.")
            }
            Self::Lora(LoraError::Format { .. } | LoraError::Weights(_)) => {
                (ErrorCode::ModelIncomplete, "The LoRA's file is damaged, or no LoRA; install it again.")
            }
            Self::Config { .. } | Self::Folder(_) | Self::Weights(_) => {
                (ErrorCode::ModelIncomplete, "The model's folder is damaged or incomplete; install it again.")
            }
        };
        ErrorInfo::new(code, self.to_string()).with_hint(hint)
    }

    pub const fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Weights(error) if error.is_out_of_memory())
    }
}

impl From<nn::config::ConfigError> for ModelError {
    fn from(error: nn::config::ConfigError) -> Self {
        Self::Folder(error.to_string())
    }
}

impl From<text_encoder::ConfigError> for ModelError {
    fn from(error: text_encoder::ConfigError) -> Self {
        Self::Config { path: error.path, detail: error.detail }
    }
}

impl From<TokenizerError> for ModelError {
    fn from(error: TokenizerError) -> Self {
        Self::Folder(error.to_string())
    }
}

impl From<LoraError> for ModelError {
    fn from(error: LoraError) -> Self {
        match error {
            LoraError::Weights(error) if error.is_out_of_memory() => Self::Weights(error),
            error @ (LoraError::Weights(_)
            | LoraError::Method { .. }
            | LoraError::Format { .. }
            | LoraError::Unknown { .. }
            | LoraError::Shape { .. }) => Self::Lora(error),
        }
    }
}

/// What the folder of a model says about its network.
///
/// # Errors
/// No configuration, or one that makes no sense.
pub fn read_config(folder: &Path) -> Result<Config, ModelError> {
    let path = folder.join(CONFIG);
    let wrong = |detail| ModelError::Config { path: path.clone(), detail };
    let text = fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    let value: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let class = value.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    let family = Family::from_class_name(class);
    let config = if family == Some(Family::Span) {
        Config::Span(Deserialize::deserialize(&value).map_err(|error| wrong(error.to_string()))?)
    } else if family == Some(Family::UpConv7) {
        Config::UpConv7(Deserialize::deserialize(&value).map_err(|error| wrong(error.to_string()))?)
    } else {
        return Err(ModelError::UnknownNetwork { path, class: class.into() });
    };
    config.check().map_err(wrong)?;
    Ok(config)
}

/// An upscaler that is ready to run.
#[derive(Debug)]
pub struct Model {
    pub id: String,
    pub config: Config,
    pub network: Network,
    /// Of the weights' file.
    pub sha256: String,
}

/// The upscaler, loaded now or before. The second value says whether what is loaded has changed.
///
/// # Errors
/// A model that is damaged, or too large.
pub fn upscaler(cache: &mut Cache, wanted: &ModelRef, config: &Config) -> Result<(Rc<Model>, bool), ModelError> {
    let path = wanted.path.as_path().join(WEIGHTS);
    let weights = Weights::open(&path, cache.device())?;
    let variant = format!("{config:?}");
    let part = Part { id: &wanted.id, name: "", variant: &variant, files: vec![path], bytes: weights.bytes() };
    cache.get(part, || {
        let sha256 = weights.sha256();
        let network = Network::load(config, weights)?;
        Ok(Model { id: wanted.id.clone(), config: config.clone(), network, sha256 })
    })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn model(id: &str) -> (ModelRef, Config) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(id);
        let config = read_config(&folder).expect(id);
        let family = Family::Span;
        (ModelRef { id: id.into(), family, path: folder.into() }, config)
    }

    fn ids(cache: &Cache) -> Vec<String> {
        cache.loaded().into_iter().map(|model| model.id).collect()
    }

    #[test]
    fn the_least_recently_used_model_makes_room_but_never_one_that_is_in_use() {
        let size = 410_700 * 4; // span-x2's parameters in f32
        let mut cache = Cache::new(Device::Cpu, 4 * size);
        for id in ["span-x2", "waifu2x-photo"] {
            let (wanted, config) = model(id);
            assert!(upscaler(&mut cache, &wanted, &config).expect(id).1, "{id} is new");
        }
        assert_eq!(cache.loaded()[0].bytes, size);
        let (span, config) = model("span-x2");
        let (in_use, changed) = upscaler(&mut cache, &span, &config).expect("loaded");
        assert!(!changed);
        assert_eq!(ids(&cache), ["waifu2x-photo", "span-x2"]);

        // 4 budgets less what the third and fourth take leave no room for the first two.
        let (wanted, config) = model("waifu2x-photo-denoise1");
        upscaler(&mut cache, &wanted, &config).expect("fits");
        let (wanted, config) = model("span-x4");
        upscaler(&mut cache, &wanted, &config).expect("fits");
        assert_eq!(ids(&cache), ["span-x2", "waifu2x-photo-denoise1", "span-x4"]);

        assert!(cache.evict_unused());
        assert_eq!(ids(&cache), ["span-x2"]);
        drop(in_use);
        assert!(cache.evict_unused());
        assert!(ids(&cache).is_empty());
    }

    #[test]
    fn a_model_over_the_budget_is_refused_with_a_hint() {
        let (wanted, config) = model("span-x2");
        let error = upscaler(&mut Cache::new(Device::Cpu, 1000), &wanted, &config).expect_err("too large").info();
        assert_eq!(error.code, ErrorCode::OutOfMemory);
        assert!(error.hint.contains("worker.memory_budget"), "{}", error.hint);
    }

    #[test]
    fn a_replaced_file_is_loaded_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_, config) = model("span-x2");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/span-x2").join(WEIGHTS);
        let path = folder.path().join(WEIGHTS);
        fs::copy(&source, &path).expect("copied");
        let wanted = ModelRef { id: "mine".into(), family: Family::Span, path: folder.path().into() };
        let mut cache = Cache::new(Device::Cpu, u64::MAX);
        assert!(upscaler(&mut cache, &wanted, &config).expect("loads").1);
        assert!(!upscaler(&mut cache, &wanted, &config).expect("is loaded").1);
        fs::copy(&source, folder.path().join("new")).expect("copied");
        fs::rename(folder.path().join("new"), &path).expect("replaced");
        assert!(upscaler(&mut cache, &wanted, &config).expect("loads").1);
        assert_eq!(cache.loaded().len(), 1);
    }

    #[test]
    fn a_configuration_that_makes_no_sense_names_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        for (text, part) in [
            ("", "config.json"),
            ("{", "config.json"),
            (r#"{"_class_name":"StableDiffusion9"}"#, "StableDiffusion9"),
            (r#"{"_class_name":"SPAN"}"#, "upscale"),
            (
                r#"{"_class_name":"SPAN","upscale":3,"feature_channels":48,"rgb_mean":[0,0,0],"img_range":255}"#,
                "upscale",
            ),
            (r#"{"_class_name":"UpConv7","scale":2,"pad":8,"leaky":0.1}"#, "pad"),
        ] {
            fs::write(folder.path().join(CONFIG), text).expect("written");
            let error = read_config(folder.path()).expect_err(text).to_string();
            assert!(error.contains(part) && error.contains("config.json"), "{error}");
        }
    }
}
