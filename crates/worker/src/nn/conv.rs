//! A 2-D convolution with stride 1, and an activation after it.

use tch::{Device, Tensor};

use crate::{
    torch::{self, Activation, TorchError},
    weights::{Weights, WeightsError},
};

#[derive(Debug)]
pub struct Conv {
    /// (out, in, kernel, kernel)
    weight: Tensor,
    bias: Tensor,
    padding: i64,
    /// Through oneDNN, with the activation fused.
    fused: bool,
}

impl Conv {
    /// Takes `name.weight` and `name.bias`.
    pub fn load(
        weights: &mut Weights,
        name: &str,
        channels_in: i64,
        channels_out: i64,
        kernel: i64,
        padding: i64,
    ) -> Result<Self, WeightsError> {
        let weight = weights.take(&format!("{name}.weight"), &[channels_out, channels_in, kernel, kernel])?;
        let bias = weights.take(&format!("{name}.bias"), &[channels_out])?;
        let fused = weights.device() == Device::Cpu && torch::has_fused_convolution();
        Ok(Self { weight, bias, padding, fused })
    }

    /// (B, in, H, W) → (B, out, H', W')
    pub fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor, TorchError> {
        if self.fused {
            return torch::fused_convolution(input, &self.weight, &self.bias, (1, self.padding), activation);
        }
        let padding = [self.padding; 2];
        let output = input.f_conv2d(&self.weight, Some(&self.bias), [1, 1], padding, [1, 1], 1)?;
        activation.apply(output)
    }
}
