//! The denoiser of Stable Diffusion 1, 2 and XL, of InstructPix2Pix and of inpainting: `UNet2DConditionModel`.
//!
//! Knows no prompts, samplers or pipelines. Source: diffusers 0.42.1, `models/unets/unet_2d_condition.py`.

mod blocks;
mod config;
mod encoder;

use tch::Tensor;

use self::blocks::{BlockSizes, Skips, UpBlock2D};
pub(crate) use self::encoder::{Encoder, sinusoid};
pub use self::{
    config::{Depth, EncoderConfig, Level, MidBlock, TextTime, UNetConfig},
    encoder::Added,
};
use crate::{
    nn::{Context, Conv2d, GroupNorm, Layout, Slicing, Window},
    torch::TorchError,
    weights::{Weights, WeightsError},
};

/// What a ControlNet adds to a UNet, or several of them together.
#[derive(Debug)]
pub struct ControlResiduals {
    /// One for `conv_in` and for every part of the way down, in order: (B, C, H, W), or (B, C, 1, 1) for all pixels.
    pub down: Vec<Tensor>,
    /// After the middle.
    pub mid: Tensor,
}

impl ControlResiduals {
    /// Adds those of another ControlNet.
    ///
    /// # Errors
    /// Residuals of another UNet.
    pub fn add(&mut self, other: &Self) -> Result<(), TorchError> {
        if self.down.len() != other.down.len() {
            let (ours, theirs) = (self.down.len(), other.down.len());
            return Err(TorchError::Other(format!("ControlNets of {ours} and {theirs} residuals do not go together")));
        }
        for (own, other) in self.down.iter_mut().zip(&other.down) {
            *own = own.f_add(other)?;
        }
        self.mid = self.mid.f_add(&other.mid)?;
        Ok(())
    }
}

/// What a sample is denoised under.
#[derive(Clone, Copy, Debug)]
pub struct Conditions<'a> {
    /// (B, L, D): the text's words.
    pub encoder_hidden_states: &'a Tensor,
    /// Where the network has `addition_embed_type` `text_time`, and only there.
    pub added: Option<&'a Added>,
    /// (B, `time_cond_proj_dim`), see [`crate::nn::guidance_embedding`].
    pub timestep_cond: Option<&'a Tensor>,
    pub residuals: Option<&'a ControlResiduals>,
    pub slicing: Slicing,
}

impl<'a> Conditions<'a> {
    /// The text alone.
    pub const fn text(encoder_hidden_states: &'a Tensor) -> Self {
        Self { encoder_hidden_states, added: None, timestep_cond: None, residuals: None, slicing: Slicing::Whole }
    }
}

#[derive(Debug)]
pub struct UNet2DCondition {
    encoder: Encoder,
    up_blocks: Vec<UpBlock2D>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    center_input_sample: bool,
    layout: Layout,
}

impl UNet2DCondition {
    /// # Errors
    /// No room. What is missing or does not fit is listed by [`Weights::finish`].
    pub fn load(weights: &Weights, config: &UNetConfig) -> Result<Self, WeightsError> {
        let root = weights.root();
        let (encoder, first) = (&config.encoder, config.encoder.levels[0].channels);
        let mut up_blocks = Vec::new();
        let mut channels_in = encoder.levels[encoder.levels.len() - 1].channels;
        for (i, (at, level)) in encoder.levels.iter().enumerate().rev().enumerate() {
            let sizes = BlockSizes { config: encoder, level, depth: config.up[at].as_ref() };
            let skipped = encoder.levels[at.saturating_sub(1)].channels;
            up_blocks.push(UpBlock2D::load(&root.at("up_blocks").at(i), &sizes, channels_in, skipped, at != 0)?);
            channels_in = level.channels;
        }
        Ok(Self {
            encoder: Encoder::load(&root, encoder)?,
            up_blocks,
            conv_norm_out: GroupNorm::load(
                &root.at("conv_norm_out"),
                encoder.norm_num_groups,
                first,
                encoder.norm_eps,
            )?,
            conv_out: Conv2d::load(
                &root.at("conv_out"),
                first,
                config.out_channels,
                Window::same(config.conv_out_kernel),
            )?,
            center_input_sample: config.center_input_sample,
            layout: Layout::of(root.device()),
        })
    }

    /// What the network makes of a sample at one timestep: noise, velocity or the sample itself, as it was trained.
    ///
    /// `sample` (B, in, H, W) of any height and width, in the kind of the weights → (B, out, H, W)
    ///
    /// # Errors
    /// Shapes that do not fit the network, no memory, or a device's failure.
    pub fn forward(&self, sample: &Tensor, timestep: f64, conditions: &Conditions<'_>) -> Result<Tensor, TorchError> {
        let Conditions { encoder_hidden_states, added, timestep_cond, residuals, slicing } = *conditions;
        self.encoder.check(sample, encoder_hidden_states)?;
        let context = Context { encoder_hidden_states, slicing };
        // The blocks all begin with the SiLU of it.
        let time = self.encoder.embed(timestep, timestep_cond, added, sample)?.f_silu_()?;

        let sample = self.layout.of_tensor(sample)?;
        let sample = if self.center_input_sample { sample.f_mul_scalar(2)?.f_sub_scalar(1)? } else { sample };
        let hidden = self.encoder.conv_in.forward(&sample)?;
        drop(sample);
        let (hidden, skips) = self.encoder.down(hidden, &time, context)?;
        let mut skips = Skips::new(skips, residuals.map(|residuals| residuals.down.as_slice()))?;
        let mut hidden = self.encoder.middle(hidden, &time, context)?;
        if let Some(residuals) = residuals {
            hidden = hidden.f_add(&residuals.mid)?;
        }
        for block in &self.up_blocks {
            hidden = block.forward(hidden, &time, context, &mut skips)?;
        }
        let normed = self.conv_norm_out.forward_silu(&hidden)?;
        drop(hidden);
        Ok(self.conv_out.forward(&normed)?.f_contiguous()?)
    }
}
