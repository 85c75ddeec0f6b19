//! How pictures lie in memory while a network computes.

use tch::{Device, Tensor};

use crate::torch::{self, TorchError};

/// The order of a (B, C, H, W) tensor's elements. Operations keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// B, C, H, W
    Contiguous,
    /// B, H, W, C: convolutions need not reorder on the CPU, and pictures become tokens without a copy.
    ChannelsLast,
}

impl Layout {
    /// What is quickest on `device`.
    pub const fn of(device: Device) -> Self {
        match device {
            Device::Cpu => Self::ChannelsLast,
            Device::Cuda(_) | Device::Mps | Device::Vulkan => Self::Contiguous,
        }
    }

    /// `tensor` (B, C, H, W) in this layout; itself where it is already.
    pub fn of_tensor(self, tensor: &Tensor) -> Result<Tensor, TorchError> {
        match self {
            Self::Contiguous => Ok(tensor.f_contiguous()?),
            Self::ChannelsLast => torch::channels_last(tensor),
        }
    }
}

/// (B, C, H, W) → (B, H · W, C). No copy where channels come last.
pub fn tokens_of(picture: &Tensor) -> Result<Tensor, TorchError> {
    Ok(picture.f_flatten(2, 3)?.f_transpose(1, 2)?.f_contiguous()?)
}

/// (B, H · W, C) → (B, C, H, W), without a copy.
pub fn picture_of(tokens: &Tensor, height: i64, width: i64) -> Result<Tensor, TorchError> {
    let (batch, _, channels) = tokens.size3()?;
    Ok(tokens.f_reshape([batch, height, width, channels])?.f_permute([0, 3, 1, 2])?)
}
