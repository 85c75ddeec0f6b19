//! Layers of the VAEs for videos (Qwen-Image, Wan), as they act on one frame.
//!
//! Their convolutions look back in time only. A picture is the first frame, all before it counts as zeros, and so of a
//! kernel over three frames the last slice is all that acts. What changes the number of frames waits for a second one.
//!
//! Source: diffusers 0.42.1, `models/autoencoders/autoencoder_kl_qwenimage.py`.

use tch::{Kind, Tensor};

use crate::{
    nn::{Conv2d, Linear, Slicing, Window, attend, picture_of, tokens_of},
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// The least length of a vector that is divided by its length.
const EPS: f64 = 1e-12;

/// Each pixel's channels brought to the root mean square of 1, times `gamma`.
#[derive(Debug)]
pub(super) struct FrameNorm {
    /// (1, C, 1, 1), times √C.
    gain: Tensor,
}

impl FrameNorm {
    /// Takes `gamma` (C, 1, …) of so many dimensions.
    pub(super) fn load(scope: &Scope<'_>, channels: i64, dimensions: usize) -> Result<Self, WeightsError> {
        let mut shape = vec![1; dimensions];
        shape[0] = channels;
        let gamma = scope.take("gamma", &shape)?;
        if !gamma.defined() {
            // Missing; listed when all weights are taken.
            return Ok(Self { gain: gamma });
        }
        #[expect(clippy::cast_precision_loss, reason = "a number of channels is small")]
        let root = (channels as f64).sqrt();
        let gain = gamma.f_reshape([1, channels, 1, 1]).and_then(|gamma| gamma.f_mul_scalar(root));
        Ok(Self { gain: gain.map_err(|error| scope.failed(error.into()))? })
    }

    /// (B, C, H, W) → the same shape; measured in f32.
    fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let kind = input.f_kind()?;
        let wide = input.f_to_kind(Kind::Float)?;
        let length = wide.f_norm_scalaropt_dim(2.0, [1_i64].as_slice(), true)?.f_clamp_min_(EPS)?;
        Ok(wide.f_div(&length)?.f_to_kind(kind)?.f_mul_(&self.gain)?)
    }

    /// As above, then x · sigmoid(x).
    pub(super) fn forward_silu(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        Ok(self.forward(input)?.f_silu_()?)
    }
}

#[derive(Debug)]
pub(super) struct FrameResnet {
    norm1: FrameNorm,
    conv1: Conv2d,
    norm2: FrameNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl FrameResnet {
    pub(super) fn load(scope: &Scope<'_>, from: i64, to: i64) -> Result<Self, WeightsError> {
        let shortcut = || Conv2d::load_last_frame(&scope.at("conv_shortcut"), from, to, Window::POINT, 1);
        Ok(Self {
            norm1: FrameNorm::load(&scope.at("norm1"), from, 4)?,
            conv1: Conv2d::load_last_frame(&scope.at("conv1"), from, to, Window::SAME, 3)?,
            norm2: FrameNorm::load(&scope.at("norm2"), to, 4)?,
            conv2: Conv2d::load_last_frame(&scope.at("conv2"), to, to, Window::SAME, 3)?,
            conv_shortcut: if from == to { None } else { Some(shortcut()?) },
        })
    }

    /// Whether as many channels come out as go in.
    pub(super) const fn keeps_shape(&self) -> bool {
        self.conv_shortcut.is_none()
    }

    /// (B, C, H, W) → (B, C', H, W)
    pub(super) fn forward(&self, input: Tensor) -> Result<Tensor, TorchError> {
        let hidden = self.conv1.forward(&self.norm1.forward_silu(&input)?)?;
        let normed = self.norm2.forward_silu(&hidden)?;
        drop(hidden);
        let mut output = self.conv2.forward(&normed)?;
        drop(normed);
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward(&input)?,
            None => input,
        };
        Ok(output.f_add_(&shortcut)?)
    }
}

/// The pixels of a frame attend to each other, in one head.
#[derive(Debug)]
pub(super) struct FrameAttention {
    norm: FrameNorm,
    to_qkv: Linear,
    proj: Linear,
}

impl FrameAttention {
    pub(super) fn load(scope: &Scope<'_>, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self {
            norm: FrameNorm::load(&scope.at("norm"), channels, 3)?,
            to_qkv: Linear::load_pointwise(&scope.at("to_qkv"), channels, 3 * channels)?,
            proj: Linear::load_pointwise(&scope.at("proj"), channels, channels)?,
        })
    }

    /// (B, C, H, W) → the same shape
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        let (_, _, height, width) = input.size4()?;
        let mut parts = self.to_qkv.forward(&tokens_of(&self.norm.forward(input)?)?)?.f_chunk(3, -1)?.into_iter();
        let (Some(query), Some(key), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(TorchError::Other("a tensor in three parts has fewer".into()));
        };
        let attended = attend(&query, &key, &value, 1, Slicing::Whole)?;
        Ok(picture_of(&self.proj.forward(&attended)?, height, width)?.f_add(input)?)
    }
}

/// Halves a picture.
#[derive(Debug)]
pub(super) struct FrameDown {
    /// `resample.1`; the 0 are zeros below and to the right.
    conv: Conv2d,
}

impl FrameDown {
    /// `in_time`: it would also halve the number of frames.
    pub(super) fn load(scope: &Scope<'_>, channels: i64, in_time: bool) -> Result<Self, WeightsError> {
        if in_time {
            time_conv(scope, channels, channels)?;
        }
        let window = Window { kernel: 3, stride: 2, padding: 0 };
        Ok(Self { conv: Conv2d::load(&scope.at("resample.1"), channels, channels, window)? })
    }

    /// (B, C, H, W) → (B, C, ⌊H / 2⌋, ⌊W / 2⌋)
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        self.conv.forward(&input.f_constant_pad_nd([0, 1, 0, 1])?)
    }
}

/// Doubles a picture and halves its channels.
#[derive(Debug)]
pub(super) struct FrameUp {
    /// `resample.1`; the 0 makes four pixels of one.
    conv: Conv2d,
}

impl FrameUp {
    /// `in_time`: it would also double the number of frames.
    pub(super) fn load(scope: &Scope<'_>, channels: i64, in_time: bool) -> Result<Self, WeightsError> {
        if in_time {
            time_conv(scope, channels, 2 * channels)?;
        }
        Ok(Self { conv: Conv2d::load(&scope.at("resample.1"), channels, channels / 2, Window::SAME)? })
    }

    /// (B, C, H, W) → (B, C / 2, 2 · H, 2 · W)
    pub(super) fn forward(&self, input: Tensor) -> Result<Tensor, TorchError> {
        let (_, _, height, width) = input.size4()?;
        let large = input.f_upsample_nearest2d([2 * height, 2 * width], None, None)?;
        drop(input);
        self.conv.forward(&large)
    }
}

/// Takes what only a second frame would meet, so that the weights are known to be whole.
fn time_conv(scope: &Scope<'_>, from: i64, to: i64) -> Result<(), WeightsError> {
    let scope = scope.at("time_conv");
    let (_, mut pages) = scope.take_with_pages("weight", &[to, from, 3, 1, 1])?;
    pages.release();
    scope.take("bias", &[to]).map(drop)
}
