//! Two linear layers with a SiLU between them, for the pooled text (`PixArtAlphaTextProjection` in diffusers).

use tch::Tensor;

use crate::{
    nn::Linear,
    torch::TorchError,
    weights::{Scope, WeightsError},
};

#[derive(Debug)]
pub struct TextProjection {
    linear_1: Linear,
    linear_2: Linear,
}

impl TextProjection {
    pub fn load(scope: &Scope<'_>, features_in: i64, features_out: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            linear_1: Linear::load(&scope.at("linear_1"), features_in, features_out, true)?,
            linear_2: Linear::load(&scope.at("linear_2"), features_out, features_out, true)?,
        })
    }

    /// (B, in) → (B, out)
    pub fn forward(&self, pooled: &Tensor) -> Result<Tensor, TorchError> {
        self.linear_2.forward(&self.linear_1.forward(pooled)?.f_silu_()?)
    }
}
