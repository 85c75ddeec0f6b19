//! The `AutoencoderKL` of a folder.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::{
    Blueprint, LatentSpace, Stage, Vae,
    latents::{self, signed},
};
use crate::{
    diffusion::{
        colors::{Colors, Scaling},
        pixels::Rgb,
    },
    error::JobError,
    models::ModelError,
    noise::Noise,
    torch::TorchError,
    vae::{Architecture as _, AutoencoderKl, Gaussian, VaeConfig},
    weights::Weights,
};

pub struct Autoencoder {
    pub config: VaeConfig,
    downscale: i64,
}

impl Autoencoder {
    /// # Errors
    /// A configuration that is missing or says what is not computed.
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        let config = VaeConfig::open(&blueprint.folder("vae/config.json")).map_err(ModelError::from)?;
        Ok(Self { downscale: config.downscale(), config })
    }

    pub const fn space(&self) -> LatentSpace {
        LatentSpace { channels: self.config.latent_channels, downscale: self.downscale }
    }

    pub fn load(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<AutoencoderKl>, JobError> {
        stage.part("vae", &[], None, |weights: &Weights| AutoencoderKl::load(weights, &self.config))
    }

    /// The posterior of a picture (1, 3, H, W) from -1 to 1.
    pub fn encode(&self, stage: &mut Stage<'_, '_>, pixels: &Tensor) -> Result<Gaussian, JobError> {
        let vae = self.load(stage)?;
        let (_, _, height, width) = pixels.size4().map_err(TorchError::from)?;
        let partition = latents::partition(height / self.downscale, width / self.downscale, stage.task.tiling);
        let pixels = pixels.f_to_device(stage.device()).map_err(TorchError::from)?;
        Ok(vae.encode(&pixels.f_to_kind(vae.kind()).map_err(TorchError::from)?, partition)?)
    }

    /// The most probable latents of a picture, scaled for the denoiser, in f32.
    pub fn mode(&self, stage: &mut Stage<'_, '_>, pixels: &Tensor) -> Result<Tensor, JobError> {
        let mean = self.encode(stage, pixels)?.mean.f_to_kind(Kind::Float).map_err(TorchError::from)?;
        Ok(self.load(stage)?.scale(&mean)?)
    }
}

impl Vae for Autoencoder {
    fn space(&self) -> LatentSpace {
        Self::space(self)
    }

    fn colors(&self) -> Option<Colors> {
        let config = &self.config;
        let scaling = match (&config.latents_mean, &config.latents_std) {
            (Some(_), _) | (_, Some(_)) => return None,
            (None, None) => Scaling::Whole {
                channels: config.latent_channels,
                factor: config.scaling_factor,
                shift: config.shift_factor.unwrap_or(0.0),
            },
        };
        Colors::known(&scaling)
    }

    fn latents_of(&self, stage: &mut Stage<'_, '_>, picture: &Rgb) -> Result<Tensor, JobError> {
        self.mode(stage, &signed(picture)?)
    }

    fn sample(&self, stage: &mut Stage<'_, '_>, pixels: &Tensor, noise: &mut Noise) -> Result<Tensor, JobError> {
        let gaussian = self.encode(stage, pixels)?;
        let drawn = noise.normal(&gaussian.mean.size())?;
        let latents = gaussian.sample(&drawn)?.f_to_kind(Kind::Float).map_err(TorchError::from)?;
        Ok(self.load(stage)?.scale(&latents)?)
    }

    fn decode(&self, stage: &mut Stage<'_, '_>, latents: &Tensor, tiling: Option<bool>) -> Result<Tensor, JobError> {
        let vae = self.load(stage)?;
        let (_, _, height, width) = latents.size4().map_err(TorchError::from)?;
        let pixels = vae.decode(&vae.unscale(latents)?, latents::partition(height, width, tiling))?;
        Ok(latents::unsigned(&pixels)?)
    }
}
