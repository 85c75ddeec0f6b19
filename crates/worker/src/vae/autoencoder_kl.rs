//! `AutoencoderKL`: pictures to latents and back, for Stable Diffusion 1, 2, XL and 3, InstructPix2Pix, FLUX and others.
//!
//! Source: diffusers 0.42.1, `models/autoencoders/autoencoder_kl.py` and `vae.py`; "High-Resolution Image Synthesis
//! with Latent Diffusion Models", arXiv 2112.10752.

use serde_json::json;
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

/// `config.json`
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the file's keys")]
pub struct VaeConfig {
    pub in_channels: i64,
    pub out_channels: i64,
    pub latent_channels: i64,
    /// Of each resolution, the largest first.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of each resolution in the encoder; the decoder has one more.
    pub layers_per_block: i64,
    pub norm_num_groups: i64,
    pub mid_block_add_attention: bool,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    /// The denoiser's latents are (z - shift) · scale.
    pub scaling_factor: f64,
    pub shift_factor: Option<f64>,
    /// Of each channel: with both, the denoiser's latents are (z - mean) · scale / std instead, as Playground's.
    pub latents_mean: Option<Vec<f64>>,
    pub latents_std: Option<Vec<f64>>,
    /// Half precision overflows in it: it is loaded in f32 then.
    pub force_upcast: bool,
    /// Side of the pictures that it was trained with.
    pub sample_size: i64,
}

impl VaeConfig {
    fn first(&self) -> i64 {
        self.block_out_channels[0]
    }

    fn last(&self) -> i64 {
        self.block_out_channels[self.block_out_channels.len() - 1]
    }
}

impl Architecture for VaeConfig {
    fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
        let r = &mut reader;
        let block_out_channels = r.sizes("block_out_channels")?.unwrap_or_else(|| vec![64]);
        for (key, only) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let types = r.names(key, &[only], &format!("\"{only}\""), |name| (name == only).then_some(()))?;
            if types.len() != block_out_channels.len() {
                let problem = format!("and there are {} {key}", types.len());
                return Err(r.unsupported("block_out_channels", json!(block_out_channels), problem));
            }
        }
        r.only("act_fn", &[json!("silu"), json!("swish")])?;
        let norm_num_groups = r.size_or("norm_num_groups", 32)?;
        if let Some(channels) = block_out_channels.iter().find(|channels| *channels % norm_num_groups != 0) {
            let problem = format!("which does not divide block_out_channels' {channels}");
            return Err(r.unsupported("norm_num_groups", norm_num_groups.into(), problem));
        }
        let scaling_factor = r.float_or("scaling_factor", 0.18215)?;
        if !scaling_factor.is_finite() || scaling_factor == 0.0 {
            return Err(r.unsupported("scaling_factor", json!(scaling_factor), "and pictures need one"));
        }
        let latent_channels = r.size_or("latent_channels", 4)?;
        let config = Self {
            in_channels: r.size_or("in_channels", 3)?,
            out_channels: r.size_or("out_channels", 3)?,
            latent_channels,
            layers_per_block: r.size_or("layers_per_block", 1)?,
            norm_num_groups,
            mid_block_add_attention: r.flag_or("mid_block_add_attention", true)?,
            use_quant_conv: r.flag_or("use_quant_conv", true)?,
            use_post_quant_conv: r.flag_or("use_post_quant_conv", true)?,
            scaling_factor,
            shift_factor: r.float("shift_factor")?,
            latents_mean: means(r, latent_channels, None)?,
            latents_std: deviations(r, latent_channels, None)?,
            force_upcast: r.flag_or("force_upcast", true)?,
            sample_size: r.size_or("sample_size", 32)?,
            block_out_channels,
        };
        reader.finish()?;
        Ok(config)
    }

    fn picture_channels(&self) -> i64 {
        self.in_channels
    }

    fn latent_channels(&self) -> i64 {
        self.latent_channels
    }

    fn downscale(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    fn scaling(&self) -> Scaling<'_> {
        match (&self.latents_mean, &self.latents_std) {
            (Some(mean), Some(std)) => Scaling::EachChannel { mean, std, factor: self.scaling_factor },
            (_, _) => Scaling::Whole {
                channels: self.latent_channels,
                factor: self.scaling_factor,
                shift: self.shift_factor.unwrap_or(0.0),
            },
        }
    }

    fn kind(&self, kind: Kind) -> Kind {
        if self.force_upcast && kind == Kind::Half { Kind::Float } else { kind }
    }

    fn networks(&self, root: &Scope<'_>) -> Result<Networks, WeightsError> {
        Ok(Networks { encoder: self.encoder(root)?, decoder: self.decoder(root)? })
    }

    /// Not clamped.
    fn finish(&self, pixels: Tensor) -> Result<Tensor, TorchError> {
        Ok(pixels)
    }
}

impl VaeConfig {
    fn encoder(&self, root: &Scope<'_>) -> Result<Chain, WeightsError> {
        let mut chain = Builder::new(self.norm_num_groups, Layout::of(root.device()));
        let scope = root.at("encoder");
        chain.conv(&scope.at("conv_in"), self.in_channels, self.first())?;
        let mut from = self.first();
        for (i, &to) in self.block_out_channels.iter().enumerate() {
            let block = scope.at("down_blocks").at(i);
            for layer in 0..self.layers_per_block {
                chain.resnet(&block.at("resnets").at(layer), if layer == 0 { from } else { to }, to)?;
            }
            if i + 1 < self.block_out_channels.len() {
                chain.down(&block.at("downsamplers.0"), to)?;
            }
            from = to;
        }
        chain.middle(&scope.at("mid_block"), self.last(), self.mid_block_add_attention)?;
        chain.norm_silu(&scope.at("conv_norm_out"), self.last())?;
        chain.conv(&scope.at("conv_out"), self.last(), 2 * self.latent_channels)?;
        if self.use_quant_conv {
            chain.point(&root.at("quant_conv"), 2 * self.latent_channels)?;
        }
        Ok(chain.build())
    }

    fn decoder(&self, root: &Scope<'_>) -> Result<Chain, WeightsError> {
        let mut chain = Builder::new(self.norm_num_groups, Layout::of(root.device()));
        let scope = root.at("decoder");
        if self.use_post_quant_conv {
            chain.point(&root.at("post_quant_conv"), self.latent_channels)?;
        }
        chain.conv(&scope.at("conv_in"), self.latent_channels, self.last())?;
        chain.middle(&scope.at("mid_block"), self.last(), self.mid_block_add_attention)?;
        let mut from = self.last();
        for (i, &to) in self.block_out_channels.iter().rev().enumerate() {
            let block = scope.at("up_blocks").at(i);
            for layer in 0..=self.layers_per_block {
                chain.resnet(&block.at("resnets").at(layer), if layer == 0 { from } else { to }, to)?;
            }
            if i + 1 < self.block_out_channels.len() {
                chain.up(&block.at("upsamplers.0"), to)?;
            }
            from = to;
        }
        chain.norm_silu(&scope.at("conv_norm_out"), self.first())?;
        chain.conv(&scope.at("conv_out"), self.first(), self.out_channels)?;
        Ok(chain.build())
    }
}

pub type AutoencoderKl = Autoencoder<VaeConfig>;
