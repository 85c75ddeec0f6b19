//! A linear layer.

use tch::Tensor;

use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// y = x · Wᵀ + b, over the last dimension.
#[derive(Debug)]
pub struct Linear {
    /// (out, in)
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight` (out, in), and `bias` (out) where there is one.
    pub fn load(scope: &Scope<'_>, features_in: i64, features_out: i64, bias: bool) -> Result<Self, WeightsError> {
        let weight = scope.take("weight", &[features_out, features_in])?;
        let bias = if bias { Some(scope.take("bias", &[features_out])?) } else { None };
        Ok(Self { weight, bias })
    }

    /// A convolution of 1 x 1 as a linear layer over the channels: takes `weight` (out, in, 1, 1) and `bias` (out).
    pub fn load_pointwise(scope: &Scope<'_>, channels_in: i64, channels_out: i64) -> Result<Self, WeightsError> {
        let weight = scope.take("weight", &[channels_out, channels_in, 1, 1])?;
        // A tensor that is missing has no elements, and is listed when all weights are taken.
        let weight = if weight.defined() { weight.view([channels_out, channels_in]) } else { weight };
        Ok(Self { weight, bias: Some(scope.take("bias", &[channels_out])?) })
    }

    /// From tensors at hand: `weight` (out, in), `bias` (out).
    pub const fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// (…, in) → (…, out)
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        Ok(input.f_linear(&self.weight, self.bias.as_ref())?)
    }

    /// Two layers of `features_out` whose weights lie in one tensor, one after the other. Takes `weight` (2 · out, in)
    /// and `bias` (2 · out), and shares them.
    pub fn load_halves(scope: &Scope<'_>, features_in: i64, features_out: i64) -> Result<(Self, Self), WeightsError> {
        let weight = scope.take("weight", &[2 * features_out, features_in])?;
        let bias = scope.take("bias", &[2 * features_out])?;
        if !weight.defined() || !bias.defined() {
            // Missing; listed when all weights are taken.
            return Ok((Self::new(weight, Some(bias)), Self::new(Tensor::new(), None)));
        }
        let half = |start| Self::new(weight.narrow(0, start, features_out), Some(bias.narrow(0, start, features_out)));
        Ok((half(0), half(features_out)))
    }
}
