//! One level of a UNet on the way down and on the way up: residual blocks, each with an attention after it or none.
//!
//! Source: diffusers 0.42.1, `models/unets/unet_2d_blocks.py`.

use tch::Tensor;

use super::config::{Depth, EncoderConfig, Level};
use crate::{
    nn::{Context, Downsample2D, ResnetBlock2D, ResnetSizes, Transformer2D, TransformerSizes, Upsample2D},
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// What the parts of a block are made with.
#[derive(Clone, Copy)]
pub(super) struct BlockSizes<'a> {
    pub(super) config: &'a EncoderConfig,
    pub(super) level: &'a Level,
    /// None without attention.
    pub(super) depth: Option<&'a Depth>,
}

/// Pairs of a residual block and an attention.
#[derive(Debug)]
pub(super) struct CrossAttnBlock {
    resnets: Vec<ResnetBlock2D>,
    /// As many as residual blocks, or none.
    attentions: Vec<Transformer2D>,
}

impl CrossAttnBlock {
    /// `channels_in` are those of each residual block.
    fn load(scope: &Scope<'_>, sizes: &BlockSizes<'_>, channels_in: &[i64]) -> Result<Self, WeightsError> {
        let mut block = Self { resnets: Vec::new(), attentions: Vec::new() };
        for (i, &channels_in) in channels_in.iter().enumerate() {
            let resnet = ResnetSizes {
                channels_in,
                channels_out: sizes.level.channels,
                time: Some(sizes.config.time_embedding_dim),
                groups: sizes.config.norm_num_groups,
                eps: sizes.config.norm_eps,
            };
            block.resnets.push(ResnetBlock2D::load(&scope.at("resnets").at(i), resnet)?);
            if let Some(depth) = sizes.depth {
                let scope = scope.at("attentions").at(i);
                let only_cross_attention = sizes.level.only_cross_attention;
                block.attentions.push(Self::attention(&scope, sizes, depth.at(i), only_cross_attention)?);
            }
        }
        Ok(block)
    }

    pub(super) fn attention(
        scope: &Scope<'_>,
        sizes: &BlockSizes<'_>,
        layers: i64,
        only_cross_attention: bool,
    ) -> Result<Transformer2D, WeightsError> {
        let sizes = TransformerSizes {
            channels: sizes.level.channels,
            heads: sizes.level.heads,
            layers,
            context: sizes.level.cross_attention_dim,
            groups: sizes.config.norm_num_groups,
            use_linear_projection: sizes.config.use_linear_projection,
            only_cross_attention,
        };
        Transformer2D::load(scope, sizes)
    }

    fn pair(&self, i: usize, hidden: Tensor, time: &Tensor, context: Context<'_>) -> Result<Tensor, TorchError> {
        let hidden = self.resnets[i].forward(hidden, Some(time))?;
        match self.attentions.get(i) {
            Some(attention) => attention.forward(&hidden, context),
            None => Ok(hidden),
        }
    }
}

#[derive(Debug)]
pub(super) struct DownBlock2D {
    pairs: CrossAttnBlock,
    /// `downsamplers.0`
    downsampler: Option<Downsample2D>,
}

impl DownBlock2D {
    pub(super) fn load(
        scope: &Scope<'_>,
        sizes: &BlockSizes<'_>,
        channels_in: i64,
        downsample: bool,
    ) -> Result<Self, WeightsError> {
        let channels = sizes.level.channels;
        let inputs: Vec<i64> = (0..sizes.level.layers).map(|i| if i == 0 { channels_in } else { channels }).collect();
        let padding = sizes.config.downsample_padding;
        Ok(Self {
            pairs: CrossAttnBlock::load(scope, sizes, &inputs)?,
            downsampler: downsample
                .then(|| Downsample2D::load(&scope.at("downsamplers").at(0), channels, padding))
                .transpose()?,
        })
    }

    /// Adds every part's output to `skips`.
    pub(super) fn forward(
        &self,
        mut hidden: Tensor,
        time: &Tensor,
        context: Context<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor, TorchError> {
        for i in 0..self.pairs.resnets.len() {
            hidden = self.pairs.pair(i, hidden, time, context)?;
            skips.push(hidden.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            hidden = downsampler.forward(&hidden)?;
            skips.push(hidden.shallow_clone());
        }
        Ok(hidden)
    }
}

#[derive(Debug)]
pub(super) struct UpBlock2D {
    pairs: CrossAttnBlock,
    /// `upsamplers.0`
    upsampler: Option<Upsample2D>,
}

impl UpBlock2D {
    /// `channels_in` come from below; `skipped` are those of the level's own input on the way down.
    pub(super) fn load(
        scope: &Scope<'_>,
        sizes: &BlockSizes<'_>,
        channels_in: i64,
        skipped: i64,
        upsample: bool,
    ) -> Result<Self, WeightsError> {
        let (channels, layers) = (sizes.level.channels, sizes.level.layers + 1);
        let inputs: Vec<i64> = (0..layers)
            .map(|i| {
                let from_below = if i == 0 { channels_in } else { channels };
                let from_beside = if i + 1 == layers { skipped } else { channels };
                from_below + from_beside
            })
            .collect();
        Ok(Self {
            pairs: CrossAttnBlock::load(scope, sizes, &inputs)?,
            upsampler: upsample.then(|| Upsample2D::load(&scope.at("upsamplers").at(0), channels)).transpose()?,
        })
    }

    /// `skip` gives what the way down left, the latest first. The result has the size of what it would give next, so
    /// that sizes need not be divisible.
    pub(super) fn forward(
        &self,
        mut hidden: Tensor,
        time: &Tensor,
        context: Context<'_>,
        skips: &mut Skips<'_>,
    ) -> Result<Tensor, TorchError> {
        for i in 0..self.pairs.resnets.len() {
            let joined = Tensor::f_cat(&[hidden, skips.pop()?], 1)?;
            hidden = self.pairs.pair(i, joined, time, context)?;
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward_to(hidden, skips.next_size()?),
            None => Ok(hidden),
        }
    }
}

/// What the way down left, with what a ControlNet adds to it.
pub(super) struct Skips<'a> {
    own: Vec<Tensor>,
    added: Option<&'a [Tensor]>,
}

impl<'a> Skips<'a> {
    /// # Errors
    /// Not as many residuals as the network has.
    pub(super) fn new(own: Vec<Tensor>, added: Option<&'a [Tensor]>) -> Result<Self, TorchError> {
        match added {
            Some(added) if added.len() != own.len() => Err(TorchError::Other(format!(
                "a ControlNet of {} residuals for a UNet that takes {}",
                added.len(),
                own.len()
            ))),
            Some(_) | None => Ok(Self { own, added }),
        }
    }

    fn pop(&mut self) -> Result<Tensor, TorchError> {
        let own = self.own.pop().ok_or_else(|| TorchError::Other("the way up is longer than the way down".into()))?;
        match self.added.and_then(|added| added.get(self.own.len())) {
            Some(added) => Ok(own.f_add(added)?),
            None => Ok(own),
        }
    }

    fn next_size(&self) -> Result<[i64; 2], TorchError> {
        let next = self.own.last();
        let next = next.ok_or_else(|| TorchError::Other("the way up is longer than the way down".into()))?;
        let (_, _, height, width) = next.size4()?;
        Ok([height, width])
    }
}
