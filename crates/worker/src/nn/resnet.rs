//! The residual block of two convolutions, and what halves and doubles pictures around it.
//!
//! Source: diffusers 0.42.1, `models/resnet.py`, `models/downsampling.py`, `models/upsampling.py`.

use tch::Tensor;

use super::{Conv2d, GroupNorm, Linear, Window};
use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// The sizes of a residual block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResnetSizes {
    pub channels_in: i64,
    pub channels_out: i64,
    /// Features of the time embedding, where there is one.
    pub time: Option<i64>,
    pub groups: i64,
    pub eps: f64,
}

#[derive(Debug)]
pub struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock2D {
    pub fn load(scope: &Scope<'_>, sizes: ResnetSizes) -> Result<Self, WeightsError> {
        let ResnetSizes { channels_in, channels_out, time, groups, eps } = sizes;
        let time_emb_proj =
            time.map(|features| Linear::load(&scope.at("time_emb_proj"), features, channels_out, true)).transpose()?;
        let conv_shortcut = (channels_in != channels_out)
            .then(|| Conv2d::load(&scope.at("conv_shortcut"), channels_in, channels_out, Window::POINT))
            .transpose()?;
        Ok(Self {
            norm1: GroupNorm::load(&scope.at("norm1"), groups, channels_in, eps)?,
            conv1: Conv2d::load(&scope.at("conv1"), channels_in, channels_out, Window::SAME)?,
            time_emb_proj,
            norm2: GroupNorm::load(&scope.at("norm2"), groups, channels_out, eps)?,
            conv2: Conv2d::load(&scope.at("conv2"), channels_out, channels_out, Window::SAME)?,
            conv_shortcut,
        })
    }

    /// `input` (B, in, H, W), `time` (B or 1, features) after its SiLU → (B, out, H, W)
    ///
    /// Takes the input so that its memory is free as soon as it is not needed.
    pub fn forward(&self, input: Tensor, time: Option<&Tensor>) -> Result<Tensor, TorchError> {
        let normed = self.norm1.forward_silu(&input)?;
        let hidden = self.convolve(&normed, time)?;
        drop(normed);
        let normed = self.norm2.forward_silu(&hidden)?;
        drop(hidden);
        self.finish(normed, input)
    }

    /// Whether as many channels come out as go in.
    pub const fn keeps_shape(&self) -> bool {
        self.conv_shortcut.is_none()
    }

    /// The norms before [`Self::convolve`] and before [`Self::finish`], each with its SiLU.
    pub const fn norms(&self) -> [&GroupNorm; 2] {
        [&self.norm1, &self.norm2]
    }

    /// The first convolution: (B, in, H, W), normed → (B, out, H, W)
    pub fn convolve(&self, normed: &Tensor, time: Option<&Tensor>) -> Result<Tensor, TorchError> {
        let mut hidden = self.conv1.forward(normed)?;
        if let (Some(project), Some(time)) = (&self.time_emb_proj, time) {
            let shift = project.forward(time)?.f_unsqueeze(2)?.f_unsqueeze(3)?;
            let _ = hidden.f_add_(&shift)?;
        }
        Ok(hidden)
    }

    /// The second convolution, and the block's input added: (B, out, H, W), normed → the same shape
    pub fn finish(&self, normed: Tensor, input: Tensor) -> Result<Tensor, TorchError> {
        let mut output = self.conv2.forward(&normed)?;
        drop(normed);
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward(&input)?,
            None => input,
        };
        Ok(output.f_add_(&shortcut)?)
    }
}

/// Halves a picture: a convolution of 3 x 3 with stride 2.
#[derive(Debug)]
pub struct Downsample2D {
    conv: Conv2d,
    /// Zeros on every side; with 0, one row below and one column to the right.
    padding: i64,
}

impl Downsample2D {
    pub fn load(scope: &Scope<'_>, channels: i64, padding: i64) -> Result<Self, WeightsError> {
        let window = Window { kernel: 3, stride: 2, padding };
        Ok(Self { conv: Conv2d::load(&scope.at("conv"), channels, channels, window)?, padding })
    }

    /// (B, C, H, W) → (B, C, ⌈H / 2⌉, ⌈W / 2⌉), rounded down without padding
    pub fn forward(&self, input: &Tensor) -> Result<Tensor, TorchError> {
        if self.padding == 0 {
            return self.conv.forward(&input.f_constant_pad_nd([0, 1, 0, 1])?);
        }
        self.conv.forward(input)
    }
}

/// Doubles a picture, each pixel becoming four, and a convolution of 3 x 3 after it.
#[derive(Debug)]
pub struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    pub fn load(scope: &Scope<'_>, channels: i64) -> Result<Self, WeightsError> {
        Ok(Self { conv: Conv2d::load(&scope.at("conv"), channels, channels, Window::SAME)? })
    }

    /// (B, C, H, W) → (B, C, `height`, `width`), where another size than the double is wanted.
    pub fn forward_to(&self, input: Tensor, [height, width]: [i64; 2]) -> Result<Tensor, TorchError> {
        let large = input.f_upsample_nearest2d([height, width], None, None)?;
        drop(input);
        self.conv.forward(&large)
    }

    /// (B, C, H, W) → (B, C, 2 · H, 2 · W)
    pub fn forward(&self, input: Tensor) -> Result<Tensor, TorchError> {
        let (_, _, height, width) = input.size4()?;
        self.forward_to(input, [2 * height, 2 * width])
    }
}
