//! Normalisation over groups of channels, and over features.

use tch::Tensor;

use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
};

#[derive(Debug)]
pub struct GroupNorm {
    /// (C)
    weight: Tensor,
    /// (C)
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    /// Takes `weight` and `bias` (channels). `groups` divides `channels`.
    pub fn load(scope: &Scope<'_>, groups: i64, channels: i64, eps: f64) -> Result<Self, WeightsError> {
        let weight = scope.take("weight", &[channels])?;
        let bias = scope.take("bias", &[channels])?;
        Ok(Self { weight, bias, groups, eps })
    }

    /// (B, C, …) → the same shape, stored as the input is where that is dense.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        Ok(input.f_group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }

    /// As [`Self::forward`], then x · sigmoid(x).
    pub fn forward_silu(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        Ok(self.forward(input)?.f_silu_()?)
    }

    pub const fn groups(&self) -> i64 {
        self.groups
    }

    /// With each group's `mean` and `variance` (1, G, 1) given instead of the input's own: what a piece of a picture
    /// would become within the whole. (B, C, H, W) → the same shape.
    pub fn forward_with(&self, input: &Tensor, mean: &Tensor, variance: &Tensor) -> Result<Tensor, TorchError> {
        let channels = self.weight.size1()?;
        let scale = variance.f_add_scalar(self.eps)?.f_rsqrt()?;
        let scale = scale.f_mul(&self.weight.f_reshape([1, self.groups, channels / self.groups])?)?;
        let shift = self.bias.f_reshape([1, self.groups, channels / self.groups])?.f_sub(&scale.f_mul(mean)?)?;
        let wide = [1, channels, 1, 1];
        Ok(shift.f_reshape(wide)?.f_addcmul(input, &scale.f_reshape(wide)?)?)
    }
}

#[derive(Debug)]
pub struct LayerNorm {
    /// (features)
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes `weight` and `bias` (features).
    pub fn load(scope: &Scope<'_>, features: i64, eps: f64) -> Result<Self, WeightsError> {
        let weight = scope.take("weight", &[features])?;
        let bias = scope.take("bias", &[features])?;
        Ok(Self { weight, bias, eps })
    }

    /// (…, features) → the same shape
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let features = self.weight.size1()?;
        Ok(input.f_layer_norm([features], Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }
}
