//! LoRAs: low-rank changes to a model's weights, from kohya's, diffusers' and PEFT's files.
//!
//! A file is read and understood as a whole with [`LoraFile::open`]. [`resolve`] then finds the tensors of a component
//! that the files change, before any is loaded; what it gives is added to each tensor as it is taken (see
//! [`crate::weights::Deltas`]). The model's files are never written, so that loading again is all it takes to be rid of
//! a LoRA. Knows no pipeline.

mod file;
mod fuse;
mod keys;
mod names;
mod published_names;

use std::path::PathBuf;

pub use self::{
    file::LoraFile,
    fuse::{LoraUse, Resolved, resolve},
    keys::Component,
};
use crate::weights::WeightsError;

#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("{}: {key} is part of {method}, which is not computed; only plain LoRA and LoCon are", path.display())]
    Method { path: PathBuf, key: String, method: &'static str },
    #[error("{}: no LoRA: {detail}", path.display())]
    Format { path: PathBuf, detail: String },
    #[error(
        "{}: made for another model: its {component} has nothing for {}",
        path.display(),
        crate::weights::some_of(keys)
    )]
    Unknown { path: PathBuf, component: Component, keys: Vec<String> },
    #[error("{}: made for another model: {key} changes {changes:?}, but the model has {has:?}", path.display())]
    Shape { path: PathBuf, key: String, changes: [i64; 2], has: Vec<i64> },
}
