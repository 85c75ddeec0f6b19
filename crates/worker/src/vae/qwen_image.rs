//! `AutoencoderKLQwenImage`: pictures to latents and back, for Qwen-Image. A VAE for videos, of which this is the path
//! of one frame.
//!
//! Source: diffusers 0.42.1, `models/autoencoders/autoencoder_kl_qwenimage.py`.

use tch::{Kind, Tensor};

use super::{
    autoencoder::{Architecture, Autoencoder, Networks, Scaling, deviations, means},
    chain::{Builder, Chain},
};
use crate::{
    nn::{
        Layout,
        config::{ConfigError, ConfigReader},
    },
    torch::TorchError,
    weights::{Scope, WeightsError},
};

/// Of each channel of the published VAE's latents.
pub const MEAN: [f64; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
];
pub const STD: [f64; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.9160,
];

/// `config.json`
#[derive(Clone, Debug, PartialEq)]
pub struct QwenImageVaeConfig {
    /// Channels of the largest resolution; the others are multiples.
    pub base_dim: i64,
    /// Channels of the latents.
    pub z_dim: i64,
    /// Of each resolution, the largest first.
    pub dim_mult: Vec<i64>,
    /// Residual blocks of each resolution in the encoder; the decoder has one more.
    pub num_res_blocks: i64,
    /// Where the encoder would halve the number of frames too, for each halving of the sides.
    pub temperal_downsample: Vec<bool>,
    pub input_channels: i64,
    /// The denoiser's latents are (z - mean) / std, for each channel.
    pub latents_mean: Vec<f64>,
    pub latents_std: Vec<f64>,
}

impl QwenImageVaeConfig {
    /// Channels of each resolution, the largest first.
    fn channels(&self) -> Vec<i64> {
        self.dim_mult.iter().map(|mult| self.base_dim * mult).collect()
    }
}

impl Architecture for QwenImageVaeConfig {
    fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let r = &mut reader;
        let dim_mult = r.sizes("dim_mult")?.unwrap_or_else(|| vec![1, 2, 4, 4]);
        let halvings = dim_mult.len() - 1;
        let found = r.take("temperal_downsample");
        let flags = match &found {
            value if value.is_null() => Some(vec![false, true, true]),
            value => value.as_array().and_then(|list| list.iter().map(serde_json::Value::as_bool).collect()),
        };
        let temperal_downsample = match flags {
            Some(flags) if flags.len() == halvings => flags,
            Some(_) | None => {
                let problem = format!("and dim_mult's {} sizes need {halvings} flags", dim_mult.len());
                return Err(r.unsupported("temperal_downsample", found, problem));
            }
        };
        let base_dim = r.size_or("base_dim", 96)?;
        // What a layer doubles the picture with has half of its block's channels, and the next block begins with these.
        if let Some(odd) = dim_mult[1..].iter().find(|mult| base_dim * **mult % 2 != 0) {
            return Err(r.unsupported("base_dim", base_dim.into(), format!("and {odd} times that cannot be halved")));
        }
        // Dropout is training's.
        r.float("dropout")?;
        let z_dim = r.size_or("z_dim", 16)?;
        let config = Self {
            base_dim,
            z_dim,
            dim_mult,
            num_res_blocks: r.size_or("num_res_blocks", 2)?,
            temperal_downsample,
            input_channels: r.size_or("input_channels", 3)?,
            latents_mean: means(r, z_dim, Some(&MEAN))?.unwrap_or_default(),
            latents_std: deviations(r, z_dim, Some(&STD))?.unwrap_or_default(),
        };
        // Attention at other scales than the last (`attn_scales`) is refused there: only an empty list is.
        reader.finish()?;
        Ok(config)
    }

    fn picture_channels(&self) -> i64 {
        self.input_channels
    }

    fn latent_channels(&self) -> i64 {
        self.z_dim
    }

    fn downscale(&self) -> i64 {
        1 << self.temperal_downsample.len()
    }

    fn scaling(&self) -> Scaling<'_> {
        Scaling::EachChannel { mean: &self.latents_mean, std: &self.latents_std, factor: 1.0 }
    }

    fn kind(&self, kind: Kind) -> Kind {
        kind
    }

    fn networks(&self, root: &Scope<'_>) -> Result<Networks, WeightsError> {
        Ok(Networks { encoder: self.encoder(root)?, decoder: self.decoder(root)? })
    }

    /// From -1 to 1.
    fn finish(&self, mut pixels: Tensor) -> Result<Tensor, TorchError> {
        Ok(pixels.f_clamp_(-1.0, 1.0)?)
    }
}

impl QwenImageVaeConfig {
    fn encoder(&self, root: &Scope<'_>) -> Result<Chain, WeightsError> {
        let mut chain = Builder::new(1, Layout::of(root.device()));
        let scope = root.at("encoder");
        let channels = self.channels();
        chain.frame_conv(&scope.at("conv_in"), self.input_channels, self.base_dim)?;
        let (mut from, mut number) = (self.base_dim, 0);
        // All blocks and all that halve lie in one list.
        let mut next = || {
            number += 1;
            scope.at("down_blocks").at(number - 1)
        };
        for (i, &to) in channels.iter().enumerate() {
            for _ in 0..self.num_res_blocks {
                chain.frame_resnet(&next(), from, to)?;
                from = to;
            }
            if let Some(in_time) = self.temperal_downsample.get(i) {
                chain.frame_down(&next(), to, *in_time)?;
            }
        }
        chain.frame_middle(&scope.at("mid_block"), from)?;
        chain.frame_norm_silu(&scope.at("norm_out"), from)?;
        chain.frame_conv(&scope.at("conv_out"), from, 2 * self.z_dim)?;
        chain.frame_point(&root.at("quant_conv"), 2 * self.z_dim)?;
        Ok(chain.build())
    }

    fn decoder(&self, root: &Scope<'_>) -> Result<Chain, WeightsError> {
        let mut chain = Builder::new(1, Layout::of(root.device()));
        let scope = root.at("decoder");
        let channels = self.channels();
        let mut from = channels[channels.len() - 1];
        chain.frame_point(&root.at("post_quant_conv"), self.z_dim)?;
        chain.frame_conv(&scope.at("conv_in"), self.z_dim, from)?;
        chain.frame_middle(&scope.at("mid_block"), from)?;
        let mut in_time = self.temperal_downsample.iter().rev();
        for (i, &to) in channels.iter().rev().enumerate() {
            let block = scope.at("up_blocks").at(i);
            for layer in 0..=self.num_res_blocks {
                chain.frame_resnet(&block.at("resnets").at(layer), from, to)?;
                from = to;
            }
            if let Some(in_time) = in_time.next() {
                chain.frame_up(&block.at("upsamplers.0"), to, *in_time)?;
                from = to / 2;
            }
        }
        chain.frame_norm_silu(&scope.at("norm_out"), from)?;
        chain.frame_conv(&scope.at("conv_out"), from, self.input_channels)?;
        Ok(chain.build())
    }
}

pub type AutoencoderKlQwenImage = Autoencoder<QwenImageVaeConfig>;
