//! Transformer blocks over a picture's pixels as tokens, which attend to each other and to the text.
//!
//! Source: diffusers 0.42.1, `models/transformers/transformer_2d.py` (continuous input) and `models/attention.py`
//! (`BasicTransformerBlock` with `layer_norm`).

use tch::Tensor;

use super::{
    Attention, AttentionSizes, Blocks, FeedForward, FeedForwardKind, GroupNorm, LayerNorm, Linear, Slicing, picture_of,
    tokens_of,
};
use crate::{
    torch::TorchError,
    weights::{Scope, WeightsError},
};

const LAYER_NORM_EPS: f64 = 1e-5;
const GROUP_NORM_EPS: f64 = 1e-6;

/// The sizes of a [`Transformer2D`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransformerSizes {
    pub channels: i64,
    /// Divides `channels`.
    pub heads: i64,
    pub layers: i64,
    /// Features of the text.
    pub context: i64,
    pub groups: i64,
    /// `proj_in` and `proj_out` are stored as linear layers, not as convolutions of 1 x 1.
    pub use_linear_projection: bool,
    /// The first attention attends to the text as well.
    pub only_cross_attention: bool,
}

/// What all transformer blocks of a network get to see.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// (B, L, D)
    pub encoder_hidden_states: &'a Tensor,
    pub slicing: Slicing,
}

#[derive(Debug)]
struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
    only_cross_attention: bool,
}

impl BasicTransformerBlock {
    fn load(scope: &Scope<'_>, sizes: TransformerSizes) -> Result<Self, WeightsError> {
        let TransformerSizes { channels, heads, context, only_cross_attention, .. } = sizes;
        let norm = |name| LayerNorm::load(&scope.at(name), channels, LAYER_NORM_EPS);
        let attention = |name, context| {
            let sizes = AttentionSizes { query: channels, context, heads, head: channels / heads };
            Attention::load(&scope.at(name), sizes, false)
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: attention("attn1", if only_cross_attention { context } else { channels })?,
            norm2: norm("norm2")?,
            attn2: attention("attn2", context)?,
            norm3: norm("norm3")?,
            ff: FeedForward::load(&scope.at("ff"), channels, 4 * channels, FeedForwardKind::GeGlu)?,
            only_cross_attention,
        })
    }

    /// (B, H · W, C) → the same shape
    fn forward(&self, mut hidden_states: Tensor, context: Context<'_>) -> Result<Tensor, TorchError> {
        let text = Some(context.encoder_hidden_states);
        let first = if self.only_cross_attention { text } else { None };
        let mut output = self.attn1.forward(&self.norm1.forward(&hidden_states)?, first, context.slicing)?;
        hidden_states = output.f_add_(&hidden_states)?;
        output = self.attn2.forward(&self.norm2.forward(&hidden_states)?, text, context.slicing)?;
        hidden_states = output.f_add_(&hidden_states)?;
        output = self.ff.forward(&self.norm3.forward(&hidden_states)?)?;
        Ok(output.f_add_(&hidden_states)?)
    }
}

/// A norm, a projection, transformer blocks, a projection, and the input added.
#[derive(Debug)]
pub struct Transformer2D {
    norm: GroupNorm,
    proj_in: Linear,
    transformer_blocks: Blocks<BasicTransformerBlock>,
    proj_out: Linear,
}

impl Transformer2D {
    pub fn load(scope: &Scope<'_>, sizes: TransformerSizes) -> Result<Self, WeightsError> {
        let channels = sizes.channels;
        let project = |name| {
            let scope = scope.at(name);
            if sizes.use_linear_projection {
                Linear::load(&scope, channels, channels, true)
            } else {
                Linear::load_pointwise(&scope, channels, channels)
            }
        };
        let count = usize::try_from(sizes.layers).unwrap_or(0);
        Ok(Self {
            norm: GroupNorm::load(&scope.at("norm"), sizes.groups, channels, GROUP_NORM_EPS)?,
            proj_in: project("proj_in")?,
            transformer_blocks: Blocks::load(&scope.at("transformer_blocks"), count, move |_, scope| {
                BasicTransformerBlock::load(scope, sizes)
            })?,
            proj_out: project("proj_out")?,
        })
    }

    /// (B, C, H, W) → the same shape
    pub fn forward(&self, input: &Tensor, context: Context<'_>) -> Result<Tensor, TorchError> {
        let (_, _, height, width) = input.size4()?;
        let mut tokens = self.proj_in.forward(&tokens_of(&self.norm.forward(input)?)?)?;
        self.transformer_blocks.each(|_, block| {
            tokens = block.forward(std::mem::replace(&mut tokens, Tensor::new()), context)?;
            Ok(())
        })?;
        tokens = self.proj_out.forward(&tokens)?;
        let mut output = picture_of(&tokens, height, width)?;
        // Tokens are pictures whose channels come last; another layout is kept.
        if input.is_contiguous() { Ok(input.f_add(&output)?) } else { Ok(output.f_add_(input)?) }
    }
}
