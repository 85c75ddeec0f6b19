//! The half of a UNet that a ControlNet copies: the time embedding, the way down, and the middle.

use tch::Tensor;

use super::{
    blocks::{BlockSizes, CrossAttnBlock, DownBlock2D},
    config::{EncoderConfig, MidBlock, TextTime},
};
use crate::{
    nn::{Context, Conv2d, ResnetBlock2D, ResnetSizes, Sinusoid, TimestepEmbedding, Transformer2D, Window},
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// What SDXL is conditioned with besides the text's words.
#[derive(Debug)]
pub struct Added {
    /// (B, P): the text as a whole.
    pub text_embeds: Tensor,
    /// (B, 6): height and width of the original, top and left of the crop, height and width of the target.
    pub time_ids: Tensor,
}

#[derive(Debug)]
struct AddEmbedding {
    sizes: TextTime,
    sinusoid: Sinusoid,
    embedding: TimestepEmbedding,
}

impl AddEmbedding {
    fn load(scope: &Scope<'_>, config: &EncoderConfig, sizes: TextTime) -> Result<Self, WeightsError> {
        Ok(Self {
            sizes,
            sinusoid: sinusoid(scope, config, sizes.time_embed_dim)?,
            embedding: TimestepEmbedding::load(
                &scope.at("add_embedding"),
                sizes.input_dim,
                config.time_embedding_dim,
                None,
            )?,
        })
    }

    fn forward(&self, added: &Added) -> Result<Tensor, TorchError> {
        let (batch, features) = added.text_embeds.size2()?;
        let (_, count) = added.time_ids.size2()?;
        if features + count * self.sizes.time_embed_dim != self.sizes.input_dim {
            return Err(TorchError::Other(format!(
                "text_embeds of {features} and {count} time_ids do not make {} features",
                self.sizes.input_dim
            )));
        }
        let sizes = self.sinusoid.forward(&added.time_ids.f_flatten(0, 1)?)?.f_reshape([batch, -1])?;
        let sizes = sizes.f_to_kind(added.text_embeds.f_kind()?)?;
        self.embedding.forward(&Tensor::f_cat(&[&added.text_embeds, &sizes], 1)?, None)
    }
}

/// Sinusoids for this network, on the device of its weights.
pub(crate) fn sinusoid(scope: &Scope<'_>, config: &EncoderConfig, dim: i64) -> Result<Sinusoid, WeightsError> {
    Sinusoid::new(dim, config.flip_sin_to_cos, config.freq_shift, scope.device())
        .map_err(|error| WeightsError::Torch { path: scope.full("time_proj").into(), error })
}

#[derive(Debug)]
struct Mid {
    /// `resnets.0`
    first: ResnetBlock2D,
    /// `attentions.0` and `resnets.1`
    rest: Option<(Transformer2D, ResnetBlock2D)>,
}

#[derive(Debug)]
pub(crate) struct Encoder {
    pub(crate) conv_in: Conv2d,
    time_proj: Sinusoid,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<AddEmbedding>,
    down_blocks: Vec<DownBlock2D>,
    mid_block: Option<Mid>,
    in_channels: i64,
    cross_attention_dims: Vec<i64>,
}

impl Encoder {
    pub(crate) fn load(scope: &Scope<'_>, config: &EncoderConfig) -> Result<Self, WeightsError> {
        let first = config.levels[0].channels;
        let last = config.levels.len() - 1;
        let down = scope.at("down_blocks");
        let mut down_blocks = Vec::new();
        let mut channels_in = first;
        for (i, level) in config.levels.iter().enumerate() {
            let depth = level.down_has_attention.then_some(&level.depth);
            let sizes = BlockSizes { config, level, depth };
            down_blocks.push(DownBlock2D::load(&down.at(i), &sizes, channels_in, i != last)?);
            channels_in = level.channels;
        }
        let time_embedding = TimestepEmbedding::load(
            &scope.at("time_embedding"),
            first,
            config.time_embedding_dim,
            config.time_cond_proj_dim,
        )?;
        Ok(Self {
            conv_in: Conv2d::load(
                &scope.at("conv_in"),
                config.in_channels,
                first,
                Window::same(config.conv_in_kernel),
            )?,
            time_proj: sinusoid(scope, config, first)?,
            time_embedding,
            add_embedding: config.addition.map(|sizes| AddEmbedding::load(scope, config, sizes)).transpose()?,
            down_blocks,
            mid_block: config.mid_block.map(|kind| Mid::load(&scope.at("mid_block"), config, kind)).transpose()?,
            in_channels: config.in_channels,
            cross_attention_dims: config.levels.iter().map(|level| level.cross_attention_dim).collect(),
        })
    }

    /// What conditions the residual blocks, before their SiLU: (1 or B, features).
    ///
    /// # Errors
    /// `added` where the network has no place for it, or none where it needs it.
    pub(crate) fn embed(
        &self,
        timestep: f64,
        timestep_cond: Option<&Tensor>,
        added: Option<&Added>,
        like: &Tensor,
    ) -> Result<Tensor, TorchError> {
        let sinusoids = self.time_proj.of(timestep)?.f_to_kind(like.f_kind()?)?;
        let time = self.time_embedding.forward(&sinusoids, timestep_cond)?;
        match (&self.add_embedding, added) {
            (None, None) => Ok(time),
            (Some(embedding), Some(added)) => Ok(embedding.forward(added)?.f_add(&time)?),
            (Some(_), None) => Err(TorchError::Other("this UNet needs text_embeds and time_ids".into())),
            (None, Some(_)) => Err(TorchError::Other("this UNet has no place for text_embeds and time_ids".into())),
        }
    }

    /// # Errors
    /// Shapes that do not fit the network.
    pub(crate) fn check(&self, sample: &Tensor, encoder_hidden_states: &Tensor) -> Result<(), TorchError> {
        let (sample, text) = (sample.size(), encoder_hidden_states.size());
        if sample.len() != 4 || sample[1] != self.in_channels || sample.iter().any(|size| *size < 1) {
            let channels = self.in_channels;
            return Err(TorchError::Other(format!("a sample of {sample:?} for a network of {channels} channels")));
        }
        let fits = text.len() == 3
            && text[0] == sample[0]
            && text[1] >= 1
            && self.cross_attention_dims.iter().all(|dim| *dim == text[2]);
        if fits {
            Ok(())
        } else {
            let dims = &self.cross_attention_dims;
            Err(TorchError::Other(format!("a text of {text:?} for a sample of {sample:?} and attention to {dims:?}")))
        }
    }

    /// (B, C, H, W) after `conv_in` → the smallest level, and what the way up needs, the largest first: the input
    /// itself, and what each residual block and each downsampler gave.
    pub(crate) fn down(
        &self,
        sample: Tensor,
        time: &Tensor,
        context: Context<'_>,
    ) -> Result<(Tensor, Vec<Tensor>), TorchError> {
        let mut skips = vec![sample.shallow_clone()];
        let mut hidden = sample;
        for block in &self.down_blocks {
            hidden = block.forward(hidden, time, context, &mut skips)?;
        }
        Ok((hidden, skips))
    }

    /// (B, C, H, W) → the same shape
    pub(crate) fn middle(&self, hidden: Tensor, time: &Tensor, context: Context<'_>) -> Result<Tensor, TorchError> {
        let Some(mid) = &self.mid_block else { return Ok(hidden) };
        let hidden = mid.first.forward(hidden, Some(time))?;
        let Some((attention, second)) = &mid.rest else { return Ok(hidden) };
        let attended = attention.forward(&hidden, context)?;
        drop(hidden);
        second.forward(attended, Some(time))
    }
}

impl Mid {
    fn load(scope: &Scope<'_>, config: &EncoderConfig, kind: MidBlock) -> Result<Self, WeightsError> {
        let level = &config.levels[config.levels.len() - 1];
        let sizes = BlockSizes { config, level, depth: None };
        let resnet = |i: usize| -> Result<ResnetBlock2D, WeightsError> {
            let channels = level.channels;
            let sizes = ResnetSizes {
                channels_in: channels,
                channels_out: channels,
                time: Some(config.time_embedding_dim),
                groups: config.norm_num_groups,
                eps: config.norm_eps,
            };
            ResnetBlock2D::load(&scope.at("resnets").at(i), sizes)
        };
        let rest = match kind {
            MidBlock::Resnet => None,
            // It attends to itself first, whatever only_cross_attention says of the other blocks.
            MidBlock::CrossAttention => Some((
                CrossAttnBlock::attention(&scope.at("attentions").at(0), &sizes, level.depth.at(0), false)?,
                resnet(1)?,
            )),
        };
        Ok(Self { first: resnet(0)?, rest })
    }
}
