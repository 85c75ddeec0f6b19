//! Text encoders: token ids to hidden states. Know no prompts, windows or weights of words.

mod activation;
pub mod clip;
pub mod t5;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tch::Tensor;

pub use self::{
    activation::Activation,
    clip::{ALIASES as CLIP_ALIASES, ClipOutput, ClipText, ClipTextConfig},
    t5::{T5Config, T5Encoder},
};
use crate::torch::TorchError;

/// `config.json` is missing, no JSON, or says what this code does not compute.
#[derive(Debug, thiserror::Error)]
#[error("{}: {detail}", path.display())]
pub struct ConfigError {
    pub path: PathBuf,
    pub detail: String,
}

/// The `config.json` of a component's folder.
fn read_config(folder: &Path) -> Result<(PathBuf, Value), ConfigError> {
    let path = folder.join("config.json");
    let wrong = |detail: String| ConfigError { path: path.clone(), detail };
    let text = fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    let value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    Ok((path, value))
}

/// The rows of `ids` (B, L), each below `vocabulary`. An id beyond it ends a CUDA process; here it is an error.
pub(crate) fn rows(ids: &Tensor, vocabulary: i64) -> Result<Vec<Vec<i64>>, TorchError> {
    let (_, length) = ids.size2()?;
    let length = usize::try_from(length).map_err(|error| TorchError::Other(error.to_string()))?;
    let flat = Vec::<i64>::try_from(&ids.f_to(tch::Device::Cpu)?.f_contiguous()?.f_view([-1])?)?;
    if let Some(id) = flat.iter().find(|id| !(0..vocabulary).contains(id)) {
        return Err(TorchError::Other(format!("the token {id} is none of the model's {vocabulary}")));
    }
    Ok(flat.chunks(length.max(1)).map(<[i64]>::to_vec).collect())
}
