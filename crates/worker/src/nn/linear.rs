//! A linear layer.

use tch::Tensor;

use super::conv2d::has_onednn;
use crate::{
    torch::{self, LinearActivation, TorchError},
    weights::{Scope, WeightsError},
};

/// With fewer rows than this, calling oneDNN takes longer than what it saves.
const ROWS: i64 = 16;

/// y = x · Wᵀ + b, over the last dimension.
#[derive(Debug)]
pub struct Linear {
    /// (out, in)
    weight: Tensor,
    bias: Option<Tensor>,
    /// Through oneDNN, with the activation in the same pass.
    fused: bool,
}

impl Linear {
    /// Takes `weight` (out, in), and `bias` (out) where there is one.
    pub fn load(scope: &Scope<'_>, features_in: i64, features_out: i64, bias: bool) -> Result<Self, WeightsError> {
        let weight = scope.take("weight", &[features_out, features_in])?;
        let bias = if bias { Some(scope.take("bias", &[features_out])?) } else { None };
        Ok(Self { weight, bias, fused: has_onednn(scope) })
    }

    /// A convolution of 1 x 1 as a linear layer over the channels: takes `weight` (out, in, 1, 1) and `bias` (out).
    pub fn load_pointwise(scope: &Scope<'_>, channels_in: i64, channels_out: i64) -> Result<Self, WeightsError> {
        let weight = scope.take("weight", &[channels_out, channels_in, 1, 1])?;
        // A tensor that is missing has no elements, and is listed when all weights are taken.
        let weight = if weight.defined() { weight.view([channels_out, channels_in]) } else { weight };
        Ok(Self { weight, bias: Some(scope.take("bias", &[channels_out])?), fused: has_onednn(scope) })
    }

    /// From tensors at hand: `weight` (out, in), `bias` (out).
    pub const fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, fused: false }
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
        let half = |start| Self {
            weight: weight.narrow(0, start, features_out),
            bias: Some(bias.narrow(0, start, features_out)),
            fused: has_onednn(scope),
        };
        Ok((half(0), half(features_out)))
    }

    /// (…, in) → (…, out)
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        self.forward_then(input, LinearActivation::None)
    }

    /// As [`Self::forward`], then the activation.
    pub fn forward_then(&self, input: &Tensor, activation: LinearActivation) -> Result<Tensor, TorchError> {
        let sizes = input.size();
        if self.fused && sizes[..sizes.len().saturating_sub(1)].iter().product::<i64>() >= ROWS {
            return torch::fused_linear(input, &self.weight, self.bias.as_ref(), activation);
        }
        let mut output = input.f_linear(&self.weight, self.bias.as_ref())?;
        match activation {
            LinearActivation::None => Ok(output),
            LinearActivation::Gelu => Ok(output.f_gelu_("none")?),
            LinearActivation::GeluTanh => Ok(output.f_gelu_("tanh")?),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn onednn_gives_what_torch_gives() -> Result<(), TorchError> {
        let _guard = torch::InferenceMode::enter();
        let random = |sizes: &[i64]| Tensor::f_randn(sizes, (Kind::Float, Device::Cpu));
        let (weight, bias) = (random(&[20, 12])?, random(&[20])?);
        for bias in [None, Some(&bias)] {
            let layer = |fused| Linear {
                weight: weight.shallow_clone(),
                bias: bias.map(Tensor::shallow_clone),
                fused: fused && torch::has_fused_convolution(),
            };
            for sizes in [vec![1, 12], vec![40, 12], vec![2, 33, 12], vec![3, 2, 5, 12]] {
                let input = random(&sizes)?;
                for activation in [LinearActivation::None, LinearActivation::Gelu, LinearActivation::GeluTanh] {
                    let fused = layer(true).forward_then(&input, activation)?;
                    let plain = layer(false).forward_then(&input, activation)?;
                    let difference = fused.f_sub(&plain)?.f_abs()?.f_max()?.f_double_value(&[])?;
                    assert!(difference < 1e-5, "{sizes:?} {activation:?}: {difference:e}");
                }
            }
        }
        Ok(())
    }
}
