//! `AutoencoderKL`: pictures to latents and back, for Stable Diffusion 1, 2, XL and 3, InstructPix2Pix, FLUX and others.
//!
//! Source: diffusers 0.42.1, `models/autoencoders/autoencoder_kl.py` and `vae.py`; "High-Resolution Image Synthesis
//! with Latent Diffusion Models", arXiv 2112.10752.

use std::{ops::ControlFlow, path::Path};

use serde_json::json;
use tch::{Kind, Tensor};

use super::{
    chain::{Builder, Chain, Own},
    tiles::{Stop, Tiles},
};
use crate::{
    nn::{
        Layout,
        config::{ConfigError, ConfigReader},
    },
    torch::TorchError,
    weights::{Scope, Weights, WeightsError},
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
    /// Of each channel, where latents are to be normalised by both instead.
    pub latents_mean: Option<Vec<f64>>,
    pub latents_std: Option<Vec<f64>>,
    /// Half precision overflows in it: it is loaded in f32 then.
    pub force_upcast: bool,
    /// Side of the pictures that it was trained with.
    pub sample_size: i64,
}

impl VaeConfig {
    /// Reads `config.json` in the VAE's folder.
    ///
    /// # Errors
    /// No such file, or a value that this VAE does not compute, with its key.
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        Self::read(ConfigReader::open(path)?)
    }

    pub fn read(mut reader: ConfigReader) -> Result<Self, ConfigError> {
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
        let config = Self {
            in_channels: r.size_or("in_channels", 3)?,
            out_channels: r.size_or("out_channels", 3)?,
            latent_channels: r.size_or("latent_channels", 4)?,
            layers_per_block: r.size_or("layers_per_block", 1)?,
            norm_num_groups,
            mid_block_add_attention: r.flag_or("mid_block_add_attention", true)?,
            use_quant_conv: r.flag_or("use_quant_conv", true)?,
            use_post_quant_conv: r.flag_or("use_post_quant_conv", true)?,
            scaling_factor,
            shift_factor: r.float("shift_factor")?,
            latents_mean: r.floats("latents_mean")?,
            latents_std: r.floats("latents_std")?,
            force_upcast: r.flag_or("force_upcast", true)?,
            sample_size: r.size_or("sample_size", 32)?,
            block_out_channels,
        };
        reader.finish()?;
        Ok(config)
    }

    /// How many times smaller latents are than the picture.
    pub fn downscale(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    fn first(&self) -> i64 {
        self.block_out_channels[0]
    }

    fn last(&self) -> i64 {
        self.block_out_channels[self.block_out_channels.len() - 1]
    }
}

/// How a batch passes the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partition {
    /// All pictures at once.
    #[default]
    Whole,
    /// One picture after the other.
    Slices,
    /// One picture after the other, and its large layers in pieces of this many pixels a side. Takes several passes
    /// over them, and the memory of a piece, of the picture and of the small layers; [`TILED_DIFFERENCE`] at the most
    /// beside the result for whole pictures.
    Tiles(i64),
}

/// What tiles may change in a picture from 0 to 1; usually it is a hundredth of it.
pub const TILED_DIFFERENCE: f64 = 1.0 / 255.0;

/// The latents' distribution, each element on its own.
#[derive(Debug)]
pub struct Gaussian {
    /// (B, C, h, w)
    pub mean: Tensor,
    /// From -30 to 20.
    pub logvar: Tensor,
}

impl Gaussian {
    pub(super) fn from_moments(moments: &Tensor) -> Result<Self, TorchError> {
        let channels = moments.size4()?.1 / 2;
        let mean = moments.f_narrow(1, 0, channels)?.f_contiguous()?;
        let logvar = moments.f_narrow(1, channels, channels)?.f_clamp(-30.0, 20.0)?.f_contiguous()?;
        Ok(Self { mean, logvar })
    }

    /// The most probable latents.
    pub const fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// `noise` is normal, of the mean's shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor, TorchError> {
        let std = self.logvar.f_mul_scalar(0.5)?.f_exp_()?;
        let noise = noise.f_to_device(std.device())?.f_to_kind(std.f_kind()?)?;
        Ok(self.mean.f_add(&std.f_mul(&noise)?)?)
    }
}

#[derive(Debug)]
pub struct AutoencoderKl {
    encoder: Chain,
    decoder: Chain,
    config: VaeConfig,
    kind: Kind,
}

impl AutoencoderKl {
    /// # Errors
    /// No room. What is missing or does not fit is listed by [`Weights::finish`].
    pub fn load(weights: &Weights, config: &VaeConfig) -> Result<Self, WeightsError> {
        let root = weights.root();
        let root = if config.force_upcast && root.kind() == Kind::Half { root.in_kind(Kind::Float) } else { root };
        Ok(Self {
            encoder: encoder(&root, config)?,
            decoder: decoder(&root, config)?,
            config: config.clone(),
            kind: root.kind(),
        })
    }

    pub const fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Of what [`Self::encode`] and [`Self::decode`] give.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// `pixels` (B, in, H, W) from -1 to 1 → latents of (B, latent, ⌊H / downscale⌋, ⌊W / downscale⌋)
    ///
    /// # Errors
    /// Another number of channels, a picture smaller than a latent, no memory.
    pub fn encode(&self, pixels: &Tensor, partition: Partition) -> Result<Gaussian, TorchError> {
        let moments = self.encode_unless(pixels, partition, &|| ControlFlow::Continue(()))?;
        moments.ok_or_else(|| TorchError::Other("encoding has stopped by itself".into()))
    }

    /// As [`Self::encode`]; none where `stop` said so, which is asked before each picture and each tile.
    pub fn encode_unless(
        &self,
        pixels: &Tensor,
        partition: Partition,
        stop: Stop<'_>,
    ) -> Result<Option<Gaussian>, TorchError> {
        let (_, channels, height, width) = pixels.size4()?;
        let least = self.config.downscale();
        if channels != self.config.in_channels || height < least || width < least {
            return Err(TorchError::Other(format!("a picture of {:?} is not for this VAE", pixels.size())));
        }
        let pixels = pixels.f_to_kind(self.kind)?;
        let moments = run(&self.encoder, &pixels, partition, 1, stop)?;
        moments.map(|moments| Gaussian::from_moments(&moments)).transpose()
    }

    /// `latents` (B, latent, h, w), un-scaled → (B, out, downscale · h, downscale · w), about -1 to 1, not clamped
    ///
    /// # Errors
    /// Another number of channels, no memory.
    pub fn decode(&self, latents: &Tensor, partition: Partition) -> Result<Tensor, TorchError> {
        let pixels = self.decode_unless(latents, partition, &|| ControlFlow::Continue(()))?;
        pixels.ok_or_else(|| TorchError::Other("decoding has stopped by itself".into()))
    }

    /// As [`Self::decode`]; none where `stop` said so, which is asked before each picture and each tile.
    pub fn decode_unless(
        &self,
        latents: &Tensor,
        partition: Partition,
        stop: Stop<'_>,
    ) -> Result<Option<Tensor>, TorchError> {
        let (_, channels, height, width) = latents.size4()?;
        if channels != self.config.latent_channels || height < 1 || width < 1 {
            return Err(TorchError::Other(format!("latents of {:?} are not for this VAE", latents.size())));
        }
        let latents = latents.f_to_kind(self.kind)?;
        let pixels = run(&self.decoder, &latents, partition, self.config.downscale(), stop)?;
        pixels.map(|pixels| Ok(pixels.f_contiguous()?)).transpose()
    }

    /// The VAE's latents as the denoiser's: (z - shift) · scale.
    pub fn scale(&self, latents: &Tensor) -> Result<Tensor, TorchError> {
        let shifted = latents.f_sub_scalar(self.config.shift_factor.unwrap_or(0.0))?;
        Ok(shifted.f_mul_scalar(self.config.scaling_factor)?)
    }

    /// The denoiser's latents as the VAE's: z / scale + shift.
    pub fn unscale(&self, latents: &Tensor) -> Result<Tensor, TorchError> {
        let wide = latents.f_div_scalar(self.config.scaling_factor)?;
        Ok(wide.f_add_scalar(self.config.shift_factor.unwrap_or(0.0))?)
    }
}

fn encoder(root: &Scope<'_>, config: &VaeConfig) -> Result<Chain, WeightsError> {
    let mut chain = Builder::new(config.norm_num_groups, Layout::of(root.device()));
    let scope = root.at("encoder");
    chain.conv(&scope.at("conv_in"), config.in_channels, config.first())?;
    let mut from = config.first();
    for (i, &to) in config.block_out_channels.iter().enumerate() {
        let block = scope.at("down_blocks").at(i);
        for layer in 0..config.layers_per_block {
            chain.resnet(&block.at("resnets").at(layer), if layer == 0 { from } else { to }, to)?;
        }
        if i + 1 < config.block_out_channels.len() {
            chain.down(&block.at("downsamplers.0"), to)?;
        }
        from = to;
    }
    chain.middle(&scope.at("mid_block"), config.last(), config.mid_block_add_attention)?;
    chain.norm_silu(&scope.at("conv_norm_out"), config.last())?;
    chain.conv(&scope.at("conv_out"), config.last(), 2 * config.latent_channels)?;
    if config.use_quant_conv {
        chain.point(&root.at("quant_conv"), 2 * config.latent_channels)?;
    }
    Ok(chain.build())
}

fn decoder(root: &Scope<'_>, config: &VaeConfig) -> Result<Chain, WeightsError> {
    let mut chain = Builder::new(config.norm_num_groups, Layout::of(root.device()));
    let scope = root.at("decoder");
    if config.use_post_quant_conv {
        chain.point(&root.at("post_quant_conv"), config.latent_channels)?;
    }
    chain.conv(&scope.at("conv_in"), config.latent_channels, config.last())?;
    chain.middle(&scope.at("mid_block"), config.last(), config.mid_block_add_attention)?;
    let mut from = config.last();
    for (i, &to) in config.block_out_channels.iter().rev().enumerate() {
        let block = scope.at("up_blocks").at(i);
        for layer in 0..=config.layers_per_block {
            chain.resnet(&block.at("resnets").at(layer), if layer == 0 { from } else { to }, to)?;
        }
        if i + 1 < config.block_out_channels.len() {
            chain.up(&block.at("upsamplers.0"), to)?;
        }
        from = to;
    }
    chain.norm_silu(&scope.at("conv_norm_out"), config.first())?;
    chain.conv(&scope.at("conv_out"), config.first(), config.out_channels)?;
    Ok(chain.build())
}

/// `unit` is the number of the picture's pixels in one of the input's.
pub(super) fn run(
    chain: &Chain,
    input: &Tensor,
    partition: Partition,
    unit: i64,
    stop: Stop<'_>,
) -> Result<Option<Tensor>, TorchError> {
    let whole = |input: &Tensor| chain.forward(0..chain.len(), chain.layout().of_tensor(input)?, &mut Own);
    if partition == Partition::Whole {
        return if stop().is_break() { Ok(None) } else { whole(input).map(Some) };
    }
    let mut outputs = Vec::new();
    for picture in input.f_split(1, 0)? {
        if stop().is_break() {
            return Ok(None);
        }
        let output = match partition {
            Partition::Tiles(side) => tiled(chain, &picture, side, unit, stop)?,
            Partition::Whole | Partition::Slices => Some(whole(&picture)?),
        };
        let Some(output) = output else { return Ok(None) };
        outputs.push(output);
    }
    if outputs.len() == 1 { Ok(outputs.pop()) } else { Ok(Some(Tensor::f_cat(&outputs, 0)?)) }
}

fn tiled(chain: &Chain, picture: &Tensor, side: i64, unit: i64, stop: Stop<'_>) -> Result<Option<Tensor>, TorchError> {
    let (_, _, height, width) = picture.size4()?;
    let tile = (side / unit).max(1);
    let picture = chain.layout().of_tensor(picture)?;
    let Some(range) = chain.large([height, width], [tile, tile]) else {
        return chain.forward(0..chain.len(), picture, &mut Own).map(Some);
    };
    let small = chain.forward(0..range.start, picture, &mut Own)?;
    let large = Tiles::new(chain, range.clone(), side, stop).forward(&small)?;
    drop(small);
    large.map(|large| chain.forward(range.end..chain.len(), large, &mut Own)).transpose()
}
