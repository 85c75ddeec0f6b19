//! A 2-D convolution with any stride.

use tch::{Device, Tensor};

use crate::{
    torch::{self, Activation, TorchError},
    weights::{Scope, WeightsError},
};

/// How a convolution's window is laid over the picture, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub kernel: i64,
    pub stride: i64,
    /// Zeros on every side.
    pub padding: i64,
}

impl Window {
    /// 1 x 1.
    pub const POINT: Self = Self { kernel: 1, stride: 1, padding: 0 };
    /// 3 x 3, the picture keeps its size.
    pub const SAME: Self = Self { kernel: 3, stride: 1, padding: 1 };

    /// An odd kernel with which the picture keeps its size.
    pub const fn same(kernel: i64) -> Self {
        Self { kernel, stride: 1, padding: (kernel - 1) / 2 }
    }
}

#[derive(Debug)]
pub struct Conv2d {
    /// (out, in, kernel, kernel)
    weight: Tensor,
    bias: Tensor,
    window: Window,
    /// Through oneDNN, with the activation in the same pass.
    fused: bool,
}

impl Conv2d {
    /// Takes `weight` (out, in, kernel, kernel) and `bias` (out).
    pub fn load(scope: &Scope<'_>, channels_in: i64, channels_out: i64, window: Window) -> Result<Self, WeightsError> {
        let weight = scope.take("weight", &[channels_out, channels_in, window.kernel, window.kernel])?;
        let bias = scope.take("bias", &[channels_out])?;
        let fused = scope.device() == Device::Cpu && torch::has_fused_convolution();
        Ok(Self { weight, bias, window, fused })
    }

    /// (B, in, H, W) → (B, out, H', W'), stored as the input is.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let Window { stride, padding, .. } = self.window;
        Ok(input.f_conv2d(&self.weight, Some(&self.bias), [stride; 2], [padding; 2], [1, 1], 1)?)
    }

    /// As [`Self::forward`], then x · sigmoid(x).
    pub fn forward_silu(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        if self.fused && self.window.stride == 1 {
            return torch::fused_convolution(input, &self.weight, &self.bias, self.window.padding, Activation::Silu);
        }
        Ok(self.forward(input)?.f_silu_()?)
    }
}
