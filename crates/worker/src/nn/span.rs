//! SPAN, the Swift Parameter-free Attention Network, with its re-parametrised convolutions already merged.
//!
//! Source: hongyuanyu/SPAN (Apache-2.0), `basicsr/archs/span_arch.py`; "Swift Parameter-free Attention Network for
//! Efficient Super-Resolution", arXiv 2311.12770. Fields are named as the checkpoint's keys.

use serde::Deserialize;
use tch::Tensor;

use crate::{
    nn::{Conv, Margins},
    torch::{self, Activation, TorchError},
    weights::{Weights, WeightsError},
};

/// 21 convolutions of 3 x 3 lie between an input pixel and an output pixel.
pub const HALO: u32 = 21;

const BLOCKS: u32 = 6;

/// `config.json` of a pack.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SpanConfig {
    pub upscale: u32,
    pub feature_channels: u32,
    pub rgb_mean: [f32; 3],
    pub img_range: f64,
}

/// One attention block; its three convolutions are `c1_r`, `c2_r` and `c3_r`.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the names of the checkpoint's keys")]
struct Block {
    c1_r: Conv,
    c2_r: Conv,
    c3_r: Conv,
}

#[derive(Debug)]
pub struct Span {
    conv_1: Conv,
    blocks: Vec<Block>,
    conv_2: Conv,
    conv_cat: Conv,
    upsampler: Conv,
    /// (1, 3, 1, 1)
    rgb_mean: Tensor,
    img_range: f64,
    upscale: i64,
}

impl Block {
    fn load(weights: &mut Weights, name: &str, channels: i64) -> Result<Self, WeightsError> {
        let mut conv = |part| Conv::load(weights, &format!("{name}.{part}"), channels, channels, 3, 1);
        Ok(Self { c1_r: conv("c1_r")?, c2_r: conv("c2_r")?, c3_r: conv("c3_r")? })
    }

    /// The block's output with the margins `to`, and what its first convolution gave, with the margins `from`.
    fn forward(&self, input: &Tensor, from: Margins, to: Margins) -> Result<(Tensor, Tensor), TorchError> {
        let first = self.c1_r.forward(input, Activation::Silu)?;
        let second = self.c2_r.forward(&first, Activation::Silu)?;
        let third = self.c3_r.forward(&second, Activation::None)?;
        drop(second);
        // Cutting the margins here costs nothing: the attention writes a new tensor anyway.
        let third = from.crop(&third, to)?;
        let mut attention = third.f_sigmoid()?;
        let _ = attention.f_sub_scalar_(0.5)?;
        let mut output = third.f_add(&from.crop(input, to)?)?;
        let _ = output.f_mul_(&attention)?;
        Ok((output, first))
    }
}

impl Span {
    pub fn load(config: &SpanConfig, mut weights: Weights) -> Result<Self, WeightsError> {
        let channels = i64::from(config.feature_channels);
        let upscale = i64::from(config.upscale);
        let w = &mut weights;
        let conv_1 = Conv::load(w, "conv_1", 3, channels, 3, 1)?;
        let blocks = (1..=BLOCKS).map(|i| Block::load(w, &format!("block_{i}"), channels)).collect::<Result<_, _>>()?;
        let conv_2 = Conv::load(w, "conv_2", channels, channels, 3, 1)?;
        let conv_cat = Conv::load(w, "conv_cat", 4 * channels, channels, 1, 0)?;
        let upsampler = Conv::load(w, "upsampler.0", channels, 3 * upscale * upscale, 3, 1)?;
        let rgb_mean = Tensor::from_slice(&config.rgb_mean).view([1, 3, 1, 1]).to_device(w.device());
        weights.finish()?;
        Ok(Self { conv_1, blocks, conv_2, conv_cat, upsampler, rgb_mean, img_range: config.img_range, upscale })
    }

    /// See [`super::Network::forward`].
    ///
    /// Every convolution pads with zeros, which is right where the picture ends and makes one more row and column
    /// wrong on every other side; what is wrong is cut off after each block, and nothing is wrong in the result.
    pub fn forward(&self, input: &Tensor, margins: Margins) -> Result<Tensor, TorchError> {
        let mut input = input.f_sub(&self.rgb_mean)?;
        let _ = input.f_mul_scalar_(self.img_range)?;
        let features = self.conv_1.forward(&torch::channels_last(&input)?, Activation::None)?;
        drop(input);

        let last = margins.at_most(1);
        let mut from = margins;
        let mut hidden = features.shallow_clone();
        let (mut out_1, mut out_5_2) = (None, None);
        for (block, done) in self.blocks.iter().zip(1..) {
            // conv_1 and three convolutions of each block so far.
            let to = margins.at_most(HALO - 1 - 3 * done);
            let (output, first) = block.forward(&hidden, from, to)?;
            if done == 1 {
                out_1 = Some(to.crop(&output, last)?);
            }
            if done == BLOCKS {
                // Upstream passes on the last block's first convolution, whose SiLU works in place there.
                out_5_2 = Some(from.crop(&first, last)?);
            }
            hidden = output;
            from = to;
        }
        let (Some(out_1), Some(out_5_2)) = (out_1, out_5_2) else {
            return Err(TorchError::Other("SPAN has no blocks".into()));
        };
        let out_6 = from.crop(&self.conv_2.forward(&hidden, Activation::None)?, last)?;
        drop(hidden);
        let all = Tensor::f_cat(&[margins.crop(&features, last)?, out_6, out_1, out_5_2], 1)?;
        drop(features);
        let merged = self.conv_cat.forward(&torch::channels_last(&all)?, Activation::None)?;
        drop(all);
        let output = self.upsampler.forward(&merged, Activation::None)?;
        Ok(last.crop(&output, Margins::default())?.f_pixel_shuffle(self.upscale)?)
    }
}
