//! A 2-D convolution with any stride.

use tch::{Device, Kind, Tensor};

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
    weight: Weight,
    bias: Tensor,
    window: Window,
}

#[derive(Debug)]
enum Weight {
    /// (out, in, kernel, kernel)
    Plain(Tensor),
    /// The same as oneDNN reads it.
    Packed(Tensor),
}

impl Conv2d {
    /// Takes `weight` (out, in, kernel, kernel) and `bias` (out).
    pub fn load(scope: &Scope<'_>, channels_in: i64, channels_out: i64, window: Window) -> Result<Self, WeightsError> {
        let shape = [channels_out, channels_in, window.kernel, window.kernel];
        let weight = if has_onednn(scope) {
            let pack = |weight| torch::pack_convolution(&weight, window.stride, window.padding);
            Weight::Packed(scope.take_made("weight", &shape, pack)?)
        } else {
            Weight::Plain(scope.take("weight", &shape)?)
        };
        Ok(Self { weight, bias: scope.take("bias", &[channels_out])?, window })
    }

    /// (B, in, H, W) → (B, out, H', W'), stored as the input is.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        self.forward_then(input, Activation::None)
    }

    /// As [`Self::forward`], then x · sigmoid(x).
    pub fn forward_silu(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        self.forward_then(input, Activation::Silu)
    }

    fn forward_then(&self, input: &Tensor, activation: Activation) -> Result<Tensor, TorchError> {
        let Window { stride, padding, .. } = self.window;
        match &self.weight {
            Weight::Packed(weight) => {
                torch::fused_convolution(input, weight, &self.bias, (stride, padding), activation)
            }
            Weight::Plain(weight) => {
                let output = input.f_conv2d(weight, Some(&self.bias), [stride; 2], [padding; 2], [1, 1], 1)?;
                activation.apply(output)
            }
        }
    }
}

/// Whether oneDNN computes with the scope's tensors.
pub(super) fn has_onednn(scope: &Scope<'_>) -> bool {
    scope.device() == Device::Cpu
        && matches!(scope.kind(), Kind::Float | Kind::BFloat16)
        && torch::has_fused_convolution()
}
