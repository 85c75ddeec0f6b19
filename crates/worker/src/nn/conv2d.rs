//! A 2-D convolution with any stride.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use crate::{
    torch::{self, Activation, TorchError},
    weights::{Pages, Scope, WeightsError},
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
    Packed(RefCell<Packed>),
}

impl Weight {
    /// `weight`, which lies in the file's `pages` if anywhere, to be packed where that helps.
    fn of(scope: &Scope<'_>, weight: Tensor, pages: Pages) -> Self {
        if has_onednn(scope) {
            return Self::Packed(RefCell::new(Packed { weight, pages, sizes: None, last: [0; 4] }));
        }
        Self::Plain(weight)
    }
}

/// A weight as oneDNN reads it for inputs of some sizes.
#[derive(Debug)]
struct Packed {
    weight: Tensor,
    /// Below the weight as it was stored.
    pages: Pages,
    /// None at first, when the weight is as it was stored.
    sizes: Option<[i64; 4]>,
    /// Of the last input.
    last: [i64; 4],
}

impl Packed {
    /// The weight for an input of `sizes`. It is packed at the first call, and anew at the second in a row of the same
    /// other sizes: a single one, such as a tile at an edge, is not worth it.
    fn for_sizes(&mut self, window: (i64, i64), sizes: [i64; 4]) -> Result<&Tensor, TorchError> {
        let is_new = match self.sizes {
            None => true,
            Some(packed) => packed != sizes && self.last == sizes,
        };
        if is_new {
            if self.sizes.is_some() {
                self.weight = self.weight.f_to_dense(None, false)?;
            }
            self.weight = torch::pack_convolution(&self.weight, window, sizes)?;
            self.pages.release();
            self.sizes = Some(sizes);
        }
        self.last = sizes;
        Ok(&self.weight)
    }
}

impl Conv2d {
    /// Takes `weight` (out, in, kernel, kernel) and `bias` (out).
    pub fn load(scope: &Scope<'_>, channels_in: i64, channels_out: i64, window: Window) -> Result<Self, WeightsError> {
        let shape = [channels_out, channels_in, window.kernel, window.kernel];
        let (weight, pages) = scope.take_with_pages("weight", &shape)?;
        Ok(Self { weight: Weight::of(scope, weight, pages), bias: scope.take("bias", &[channels_out])?, window })
    }

    /// A convolution over time and space as it acts on the one frame of a picture, where all frames before are zeros:
    /// its last slice in time. Takes `weight` (out, in, `frames`, kernel, kernel) and `bias` (out).
    pub fn load_last_frame(
        scope: &Scope<'_>,
        channels_in: i64,
        channels_out: i64,
        window: Window,
        frames: i64,
    ) -> Result<Self, WeightsError> {
        let shape = [channels_out, channels_in, frames, window.kernel, window.kernel];
        let (weight, mut pages) = scope.take_with_pages("weight", &shape)?;
        // A tensor that is missing has no elements, and is listed when all weights are taken.
        let weight = if weight.defined() {
            let last = weight.f_select(2, frames - 1).and_then(|last| last.f_contiguous());
            last.map_err(|error| scope.failed(error.into()))?
        } else {
            weight
        };
        if frames > 1 {
            // It is a copy: the file is no longer looked at.
            pages.release();
        }
        Ok(Self { weight: Weight::of(scope, weight, pages), bias: scope.take("bias", &[channels_out])?, window })
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
            Weight::Packed(packed) => {
                let (batch, channels, height, width) = input.size4()?;
                let mut packed = packed.borrow_mut();
                let weight = packed.for_sizes((stride, padding), [batch, channels, height, width])?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_weight_serves_inputs_of_any_size() -> Result<(), TorchError> {
        let _guard = torch::InferenceMode::enter();
        let random = |sizes: &[i64]| Tensor::f_randn(sizes, (Kind::Float, Device::Cpu));
        for window in [Window::SAME, Window::POINT, Window { kernel: 3, stride: 2, padding: 1 }] {
            let (kernel, stride, padding) = (window.kernel, window.stride, window.padding);
            let (weight, bias) = (random(&[48, 24, kernel, kernel])?, random(&[48])?);
            let packed = Packed { weight: weight.shallow_clone(), pages: Pages::none(), sizes: None, last: [0; 4] };
            let conv = Conv2d { weight: Weight::Packed(RefCell::new(packed)), bias: bias.shallow_clone(), window };
            // The second of two in a row packs anew; a single one does not.
            for (batch, side) in [(1, 8), (1, 8), (2, 5), (1, 8), (2, 5), (2, 5), (2, 5), (3, 33), (3, 33), (1, 8)] {
                let input = torch::channels_last(&random(&[batch, 24, side, side + 1])?)?;
                let expected = input.f_conv2d(&weight, Some(&bias), [stride; 2], [padding; 2], [1, 1], 1)?;
                let difference = conv.forward(&input)?.f_sub(&expected)?.f_abs()?.f_max()?.f_double_value(&[])?;
                assert!(difference < 1e-4, "{window:?} {batch} {side}: {difference:e}");
                let expected = expected.f_silu()?;
                let difference = conv.forward_silu(&input)?.f_sub(&expected)?.f_abs()?.f_max()?.f_double_value(&[])?;
                assert!(difference < 1e-4, "{window:?} {batch} {side}, with SiLU: {difference:e}");
            }
        }
        Ok(())
    }
}
