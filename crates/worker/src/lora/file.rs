//! A LoRA's file, read and checked as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde_json::Value;
use tch::Tensor;

use super::{
    Component, LoraError,
    keys::{self, Name, Part},
};
use crate::{
    torch::TorchError,
    weights::{LoadOptions, Weights, WeightsError, some_of},
};

/// The key under which diffusers stores PEFT's configuration, as JSON.
const PEFT_CONFIG: &str = "lora_adapter_metadata";

/// One changed module.
#[derive(Debug)]
pub(super) struct Layer {
    /// As the file spells it, for messages.
    pub key: String,
    pub component: Component,
    pub name: Name,
    /// (rank, in) in f32, on the CPU; `in` is all of a convolution's inputs.
    pub down: Tensor,
    /// (out, rank)
    pub up: Tensor,
    /// alpha / rank
    pub scale: f64,
}

/// The changes that a file makes, of whichever model.
pub struct LoraFile {
    path: PathBuf,
    pub(super) layers: Vec<Layer>,
    weights: Weights,
}

#[derive(Default)]
struct Found {
    key: String,
    down: Option<Tensor>,
    up: Option<Tensor>,
    alpha: Option<f64>,
}

impl LoraFile {
    /// Reads the file.
    ///
    /// # Errors
    /// No safetensors file, a method other than LoRA, keys that are no LoRA's, or halves without the other half.
    pub fn open(path: &Path) -> Result<Self, LoraError> {
        let weights = Weights::open_file(path, &LoadOptions::cpu())?;
        let format = |detail: String| LoraError::Format { path: path.into(), detail };
        let config = PeftConfig::read(&weights).map_err(format)?;
        let mut found: BTreeMap<(Component, Name), Found> = BTreeMap::new();
        let mut unknown = Vec::new();
        for (key, shape) in weights.shapes() {
            if let Some(method) = keys::other_method(&key) {
                return Err(LoraError::Method { path: path.into(), key, method });
            }
            let Some(parsed) = keys::parse(&key) else {
                unknown.push(key);
                continue;
            };
            let tensor = weights.take_number(&key, &shape)?;
            let layer = found.entry((parsed.component, parsed.name)).or_default();
            let again = match parsed.part {
                Part::Down => layer.down.replace(tensor).is_some(),
                Part::Up => layer.up.replace(tensor).is_some(),
                Part::Alpha => layer.alpha.replace(number(&tensor).map_err(|error| torch(path, error))?).is_some(),
            };
            if again {
                return Err(format(format!("{key} is there twice, under two names")));
            }
            if layer.key.is_empty() || parsed.part == Part::Down {
                layer.key = key;
            }
        }
        if !unknown.is_empty() {
            return Err(format(format!("unexpected: {}", some_of(&unknown))));
        }
        if found.is_empty() {
            return Err(format("it holds no tensors".into()));
        }
        let layers = found.into_iter().map(|((component, name), found)| {
            let key = found.key.clone();
            let alpha = found.alpha.or_else(|| config.alpha(component, &name));
            layer(component, name, found, alpha, config.root_scaled)
                .map_err(|detail| format(format!("{key}: {detail}")))
        });
        Ok(Self { path: path.into(), layers: layers.collect::<Result<_, _>>()?, weights })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of the file, in hexadecimal digits.
    pub fn sha256(&self) -> String {
        self.weights.sha256()
    }

    /// The parts of a pipeline that it changes.
    pub fn components(&self) -> BTreeSet<Component> {
        self.layers.iter().map(|layer| layer.component).collect()
    }
}

fn torch(path: &Path, error: TorchError) -> LoraError {
    LoraError::Weights(WeightsError::Torch { path: path.into(), error })
}

fn number(tensor: &Tensor) -> Result<f64, TorchError> {
    if tensor.numel() == 1 {
        return Ok(tensor.f_view([1])?.f_double_value(&[0])?);
    }
    Err(TorchError::Other(format!("an alpha of the shape {:?} is no number", tensor.size())))
}

fn layer(
    component: Component,
    name: Name,
    found: Found,
    alpha: Option<f64>,
    root_scaled: bool,
) -> Result<Layer, String> {
    let (down, up) = match (found.down, found.up) {
        (Some(down), Some(up)) => (down, up),
        (None, Some(_)) => return Err("its other half, down or lora_A, is missing".into()),
        (Some(_), None) => return Err("its other half, up or lora_B, is missing".into()),
        (None, None) => return Err("it is an alpha without a layer".into()),
    };
    let (down_size, up_size) = (down.size(), up.size());
    let rank = down_size.first().copied().unwrap_or(0);
    // A convolution's second half has one tap.
    let is_plain = matches!(up_size[..], [out, r] | [out, r, 1] | [out, r, 1, 1] if r == rank && out > 0);
    if rank < 1 || !is_plain || !(2..=4).contains(&down_size.len()) || down_size.contains(&0) {
        return Err(format!("the halves {down_size:?} and {up_size:?} do not make one change"));
    }
    let matrix = |tensor: &Tensor, rows: i64| tensor.f_reshape([rows, -1]).map_err(|error| error.to_string());
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    let rank_f = rank as f64;
    let divisor = if root_scaled { rank_f.sqrt() } else { rank_f };
    let scale = alpha.map_or(1.0, |alpha| alpha / divisor);
    if !scale.is_finite() {
        return Err("its alpha is no number".into());
    }
    Ok(Layer { key: found.key, component, name, down: matrix(&down, rank)?, up: matrix(&up, up_size[0])?, scale })
}

/// What newer diffusers files say beside the tensors.
#[derive(Default)]
struct PeftConfig {
    values: serde_json::Map<String, Value>,
    /// alpha is divided by the root of the rank.
    root_scaled: bool,
}

impl PeftConfig {
    fn read(weights: &Weights) -> Result<Self, String> {
        let Some(text) = weights.metadata().get(PEFT_CONFIG) else { return Ok(Self::default()) };
        let values: serde_json::Map<String, Value> =
            serde_json::from_str(text).map_err(|error| format!("{PEFT_CONFIG}: {error}"))?;
        let is_set = |end: &str| values.iter().any(|(key, value)| key.ends_with(end) && value.as_bool() == Some(true));
        if is_set("use_dora") {
            return Err(format!("{PEFT_CONFIG} says use_dora, and DoRA is not computed"));
        }
        let root_scaled = is_set("use_rslora");
        Ok(Self { values, root_scaled })
    }

    fn alpha(&self, component: Component, name: &Name) -> Option<f64> {
        let Name::Dotted(name) = name else { return None };
        let prefixes: &[&str] = match component {
            Component::Denoiser => &["unet.", "transformer.", ""],
            Component::TextEncoder => &["text_encoder."],
            Component::TextEncoder2 => &["text_encoder_2."],
            Component::TextEncoder3 => &["text_encoder_3."],
        };
        prefixes.iter().find_map(|prefix| {
            let alpha = self.values.get(&format!("{prefix}lora_alpha"))?.as_f64()?;
            let patterns = self.values.get(&format!("{prefix}alpha_pattern")).and_then(Value::as_object);
            let own = patterns.into_iter().flatten().find(|(pattern, _)| {
                name == *pattern || name.strip_suffix(pattern.as_str()).is_some_and(|rest| rest.ends_with('.'))
            });
            Some(own.and_then(|(_, alpha)| alpha.as_f64()).unwrap_or(alpha))
        })
    }
}
