//! What networks are made of, and the upscalers' networks: SPAN and waifu2x's UpConv7.
//!
//! An upscaler computes a piece of a picture exactly as it would within the whole: it is handed the piece with a margin
//! of up to `halo` pixels, less only where the picture itself ends. The layers of the diffusion models are named as
//! in diffusers, their fields as the checkpoints' keys. Knows no jobs or tiles.

mod attention;
mod blocks;
pub mod config;
mod conv;
mod conv2d;
mod embedding;
mod feed_forward;
mod layout;
mod linear;
mod margins;
mod norm;
mod resnet;
pub mod span;
mod step_cache;
mod transformer;
pub mod upconv7;

use tch::Tensor;

pub use self::{
    attention::{Attention, AttentionSizes, Slicing, attend},
    blocks::Blocks,
    conv::Conv,
    conv2d::{Conv2d, Window},
    embedding::{Sinusoid, TimestepEmbedding, guidance_embedding},
    feed_forward::{FeedForward, FeedForwardKind},
    layout::{Layout, picture_of, tokens_of},
    linear::Linear,
    margins::Margins,
    norm::{GroupNorm, LayerNorm},
    resnet::{Downsample2D, ResnetBlock2D, ResnetSizes, Upsample2D},
    span::{Span, SpanConfig},
    step_cache::{Pass, StepCache, StepCaches},
    transformer::{Context, Transformer2D, TransformerSizes},
    upconv7::{UpConv7, UpConv7Config},
};
use crate::{
    torch::TorchError,
    weights::{Weights, WeightsError},
};

/// What a network is, without its weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    Span(SpanConfig),
    UpConv7(UpConv7Config),
}

impl Config {
    /// # Errors
    /// What this network cannot be, with the key's name.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Span(config) if ![2, 4].contains(&config.upscale) => Err("upscale is not 2 or 4".into()),
            Self::Span(config) if !(1..=512).contains(&config.feature_channels) => {
                Err("feature_channels is not within 1 to 512".into())
            }
            Self::UpConv7(config) if config.scale != 2 => Err("scale is not 2".into()),
            Self::UpConv7(config) if config.pad != upconv7::HALO => Err("pad is not 7".into()),
            Self::UpConv7(config) if config.denoise.is_some_and(|level| level > 3) => {
                Err("denoise is not within 0 to 3".into())
            }
            Self::Span(_) | Self::UpConv7(_) => Ok(()),
        }
    }

    /// How many times wider and higher the output is.
    pub const fn scale(&self) -> u32 {
        match self {
            Self::Span(config) => config.upscale,
            Self::UpConv7(config) => config.scale,
        }
    }

    /// How many pixels around a piece of input its output depends on.
    pub const fn halo(&self) -> u32 {
        match self {
            Self::Span(_) => span::HALO,
            Self::UpConv7(_) => upconv7::HALO,
        }
    }

    /// The level of noise that it removes, where that is what it is for.
    pub const fn denoise(&self) -> Option<u8> {
        match self {
            Self::Span(_) => None,
            Self::UpConv7(config) => config.denoise,
        }
    }
}

/// An upscaler with its weights.
#[derive(Debug)]
pub enum Network {
    Span(Span),
    UpConv7(UpConv7),
}

impl Network {
    /// # Errors
    /// Weights that are not this network's.
    pub fn load(config: &Config, weights: Weights) -> Result<Self, WeightsError> {
        Ok(match config {
            Config::Span(config) => Self::Span(Span::load(config, weights)?),
            Config::UpConv7(config) => Self::UpConv7(UpConv7::load(config, weights)?),
        })
    }

    /// Upscales a piece of a picture.
    ///
    /// `input` is (1, 3, H, W) in f32, RGB from 0 to 1. `margins` says how much of it surrounds the piece that is
    /// asked for; a margin of less than the halo means that the picture ends there. The result is (1, 3, h · scale,
    /// w · scale) for a piece of h x w, about 0 to 1 but not clamped.
    ///
    /// # Errors
    /// No memory, or a device's failure.
    pub fn forward(&self, input: &Tensor, margins: Margins) -> Result<Tensor, TorchError> {
        match self {
            Self::Span(network) => network.forward(input, margins),
            Self::UpConv7(network) => network.forward(input, margins),
        }
    }
}
