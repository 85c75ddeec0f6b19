//! A place in the tree of a component's names.

use std::fmt::Display;

use tch::{Device, Kind, Tensor};

use super::{Weights, WeightsError, shards::Pages};
use crate::torch::TorchError;

/// Hands a module the tensors below its own name: `weights.root().at("down_blocks").at(0).take("weight", &[3])` is the
/// tensor `down_blocks.0.weight`.
pub struct Scope<'a> {
    pub(super) weights: &'a Weights,
    /// Empty, or ends with a dot.
    pub(super) prefix: String,
    pub(super) kind: Kind,
}

impl<'a> Scope<'a> {
    pub(super) const fn root(weights: &'a Weights, kind: Kind) -> Self {
        Self { weights, prefix: String::new(), kind }
    }

    /// The place `name` below this one. A name with dots goes down several steps.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        Self { weights: self.weights, prefix: format!("{}{name}.", self.prefix), kind: self.kind }
    }

    /// The same place, whose floating-point tensors come in another kind.
    #[must_use]
    pub fn in_kind(&self, kind: Kind) -> Self {
        Self { weights: self.weights, prefix: self.prefix.clone(), kind }
    }

    /// The tensor `name`, which must have this shape. Where it is missing or does not fit, that is noted for
    /// [`Weights::finish`], and the answer is an empty tensor.
    ///
    /// # Errors
    /// The device has no room, or loading was interrupted.
    pub fn take(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        self.weights.take_as(&self.full(name), shape, self.kind)
    }

    /// As [`Self::take`], with the file's pages below the tensor, which can be given back once the tensor is gone.
    pub fn take_with_pages(&self, name: &str, shape: &[i64]) -> Result<(Tensor, Pages), WeightsError> {
        let entry = self.weights.entries.borrow().get(&self.full(name)).cloned();
        let tensor = self.take(name, shape)?;
        let pages = entry.map(|entry| self.weights.source.shards[entry.shard].range(&entry));
        Ok((tensor, Pages(pages)))
    }

    /// As [`Self::take`], but a tensor that is missing is none.
    pub fn take_optional(&self, name: &str, shape: &[i64]) -> Result<Option<Tensor>, WeightsError> {
        if self.has(name) { self.take(name, shape).map(Some) } else { Ok(None) }
    }

    /// Whether there is a tensor of this name that nobody has taken.
    pub fn has(&self, name: &str) -> bool {
        self.weights.has(&self.full(name))
    }

    /// What the work on a taken tensor failed with, as an error of these weights.
    pub fn failed(&self, error: TorchError) -> WeightsError {
        WeightsError::Torch { path: self.weights.named.clone(), error }
    }

    /// The tensor's whole name.
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn device(&self) -> Device {
        self.weights.device()
    }

    /// Of the floating-point tensors that [`Self::take`] gives.
    pub const fn kind(&self) -> Kind {
        self.kind
    }
}
