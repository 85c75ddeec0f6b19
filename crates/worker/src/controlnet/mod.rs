//! Networks that read a picture (edges, depth, a pose) and steer a UNet with it.
//!
//! Knows no preprocessors and no pipelines. Source: diffusers 0.42.1, `models/controlnets/controlnet.py` and
//! `controlnet_union.py`; "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543.

mod config;
mod hint;
mod union;

use tch::Tensor;

use self::hint::ConditioningEmbedding;
pub use self::{
    config::{ControlNetConfig, UnionConfig},
    union::{ControlNetUnion, UnionHint},
};
use crate::{
    nn::{Context, Conv2d, Layout, Window},
    torch::TorchError,
    unet::{Conditions, ControlResiduals, Encoder, EncoderConfig},
    weights::{Scope, Weights, WeightsError},
};

/// A 1 x 1 convolution for each tensor that the way down leaves, and one for the middle.
#[derive(Debug)]
struct Taps {
    controlnet_down_blocks: Vec<Conv2d>,
    controlnet_mid_block: Conv2d,
}

impl Taps {
    fn load(scope: &Scope<'_>, config: &EncoderConfig) -> Result<Self, WeightsError> {
        let mut channels = vec![config.levels[0].channels];
        for (i, level) in config.levels.iter().enumerate() {
            let downsampler = usize::from(i + 1 != config.levels.len());
            channels.extend(std::iter::repeat_n(level.channels, level.layers + downsampler));
        }
        let down = scope.at("controlnet_down_blocks");
        let tap = |scope: &Scope<'_>, channels| Conv2d::load(scope, channels, channels, Window::POINT);
        let last = config.levels[config.levels.len() - 1].channels;
        Ok(Self {
            controlnet_down_blocks: channels
                .into_iter()
                .enumerate()
                .map(|(i, channels)| tap(&down.at(i), channels))
                .collect::<Result<_, _>>()?,
            controlnet_mid_block: tap(&scope.at("controlnet_mid_block"), last)?,
        })
    }

    /// `skips` as the encoder leaves them, the middle's output → what is added to a UNet.
    fn forward(&self, skips: Vec<Tensor>, middle: &Tensor, scale: f64) -> Result<ControlResiduals, TorchError> {
        let scaled = |conv: &Conv2d, input: &Tensor| -> Result<Tensor, TorchError> {
            let mut output = conv.forward(input)?;
            if (scale - 1.0).abs() > 0.0 {
                let _ = output.f_mul_scalar_(scale)?;
            }
            Ok(output)
        };
        let taps = self.controlnet_down_blocks.iter().zip(skips);
        Ok(ControlResiduals {
            down: taps.map(|(conv, skip)| scaled(conv, &skip)).collect::<Result<_, _>>()?,
            mid: scaled(&self.controlnet_mid_block, middle)?,
        })
    }
}

/// Keeps the mean of each channel, for ControlNets that steer the picture as a whole.
fn pooled(residuals: &ControlResiduals) -> Result<ControlResiduals, TorchError> {
    let pool =
        |tensor: &Tensor| -> Result<Tensor, TorchError> { Ok(tensor.f_mean_dim([2_i64, 3].as_slice(), true, None)?) };
    Ok(ControlResiduals {
        down: residuals.down.iter().map(pool).collect::<Result<_, _>>()?,
        mid: pool(&residuals.mid)?,
    })
}

/// What a hint needs to be to lie over a sample: `factor` times its size.
fn check_hint(hint: &Tensor, sample: &Tensor, channels: i64, factor: i64) -> Result<(), TorchError> {
    let (hint, sample) = (hint.size(), sample.size());
    let fits = hint.len() == 4
        && sample.len() == 4
        && (hint[0] == sample[0] || hint[0] == 1)
        && hint[1] == channels
        // The convolutions that halve it round up.
        && (hint[2] + factor - 1) / factor == sample[2]
        && (hint[3] + factor - 1) / factor == sample[3];
    if fits {
        Ok(())
    } else {
        Err(TorchError::Other(format!(
            "a control picture of {hint:?} for a sample of {sample:?}: this ControlNet takes {channels} channels and \
             {factor} times the sample's size"
        )))
    }
}

/// `ControlNetModel`: for one kind of hint.
#[derive(Debug)]
pub struct ControlNet {
    encoder: Encoder,
    controlnet_cond_embedding: ConditioningEmbedding,
    taps: Taps,
    is_bgr: bool,
    pools: bool,
    layout: Layout,
}

impl ControlNet {
    /// # Errors
    /// No room. What is missing or does not fit is listed by [`Weights::finish`].
    pub fn load(weights: &Weights, config: &ControlNetConfig) -> Result<Self, WeightsError> {
        let root = weights.root();
        Ok(Self {
            encoder: Encoder::load(&root, &config.encoder)?,
            controlnet_cond_embedding: ConditioningEmbedding::load(
                &root.at("controlnet_cond_embedding"),
                &config.hint,
                config.encoder.levels[0].channels,
            )?,
            taps: Taps::load(&root, &config.encoder)?,
            is_bgr: config.is_bgr,
            pools: config.global_pool_conditions,
            layout: Layout::of(root.device()),
        })
    }

    /// What to add to a UNet of the same sizes at this timestep.
    ///
    /// `sample` (B, in, h, w) and `conditions` are the UNet's own, `hint` (B or 1, 3, H, W) is the picture from 0 to 1
    /// in its size, `scale` how much of it counts. Residuals in `conditions` are not looked at.
    ///
    /// # Errors
    /// Shapes that do not fit the network, no memory, or a device's failure.
    pub fn forward(
        &self,
        sample: &Tensor,
        timestep: f64,
        conditions: &Conditions<'_>,
        hint: &Tensor,
        scale: f64,
    ) -> Result<ControlResiduals, TorchError> {
        let Conditions { encoder_hidden_states, added, timestep_cond, slicing, .. } = *conditions;
        self.encoder.check(sample, encoder_hidden_states)?;
        self.controlnet_cond_embedding.check(hint, sample)?;
        let context = Context { encoder_hidden_states, slicing };
        let time = self.encoder.embed(timestep, timestep_cond, added, sample)?.f_silu_()?;
        let hint = if self.is_bgr { hint.f_flip([1])? } else { hint.shallow_clone() };
        let hint = self.controlnet_cond_embedding.forward(&self.layout.of_tensor(&hint)?)?;
        let mut hidden = self.encoder.conv_in.forward(&self.layout.of_tensor(sample)?)?;
        let _ = hidden.f_add_(&hint)?;
        drop(hint);
        let (hidden, skips) = self.encoder.down(hidden, &time, context)?;
        let middle = self.encoder.middle(hidden, &time, context)?;
        let residuals = self.taps.forward(skips, &middle, scale)?;
        if self.pools { pooled(&residuals) } else { Ok(residuals) }
    }
}
