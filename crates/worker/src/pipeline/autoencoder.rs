//! The VAE of a folder.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::{
    Blueprint, LatentSpace, Stage, Vae,
    latents::{self, signed},
};
use crate::{
    diffusion::{colors::Colors, pixels::Rgb},
    error::JobError,
    models::ModelError,
    noise::Noise,
    torch::TorchError,
    vae::{self, Architecture, Gaussian, Partition, VaeConfig},
    weights::Weights,
};

/// A band of a large picture is as large as a picture of this side in pixels.
const BAND: i64 = 512;

pub struct Autoencoder<C = VaeConfig> {
    pub config: C,
}

impl<C: Architecture> Autoencoder<C> {
    /// # Errors
    /// A configuration that is missing or says what is not computed.
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        let config = C::open(&blueprint.folder("vae/config.json")).map_err(ModelError::from)?;
        Ok(Self { config })
    }

    pub fn space(&self) -> LatentSpace {
        LatentSpace { channels: self.config.latent_channels(), downscale: self.config.downscale() }
    }

    pub fn load(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<vae::Autoencoder<C>>, JobError> {
        stage.part("vae", &[], None, |weights: &Weights| vae::Autoencoder::load(weights, &self.config))
    }

    /// The posterior of a picture (1, 3, H, W) from -1 to 1.
    pub fn encode(&self, stage: &mut Stage<'_, '_>, pixels: &Tensor) -> Result<Gaussian, JobError> {
        let vae = self.load(stage)?;
        let (_, _, height, width) = pixels.size4().map_err(TorchError::from)?;
        let partition = partition(vae.encoding_bytes([height, width]), stage.working_room(), stage.task.tiling);
        let pixels = pixels.f_to_device(stage.device()).map_err(TorchError::from)?;
        Ok(vae.encode(&pixels, partition)?)
    }

    /// The VAE's latents as the denoiser's, in f32.
    fn scaled(&self, latents: &Tensor) -> Result<Tensor, JobError> {
        let latents = latents.f_to_kind(Kind::Float).map_err(TorchError::from)?;
        Ok(self.config.scaling().scale(&latents)?)
    }
}

impl<C: Architecture> Vae for Autoencoder<C> {
    fn space(&self) -> LatentSpace {
        Self::space(self)
    }

    fn colors(&self) -> Option<Colors> {
        Colors::known(self.config.scaling())
    }

    fn latents_of(&self, stage: &mut Stage<'_, '_>, picture: &Rgb) -> Result<Tensor, JobError> {
        self.scaled(&self.encode(stage, &signed(picture)?)?.mean)
    }

    fn sample(&self, stage: &mut Stage<'_, '_>, pixels: &Tensor, noise: &mut Noise) -> Result<Tensor, JobError> {
        let gaussian = self.encode(stage, pixels)?;
        let drawn = noise.normal(&gaussian.mean.size())?;
        self.scaled(&gaussian.sample(&drawn)?)
    }

    fn decode(&self, stage: &mut Stage<'_, '_>, latents: &Tensor, tiling: Option<bool>) -> Result<Tensor, JobError> {
        let vae = self.load(stage)?;
        let (_, _, height, width) = latents.size4().map_err(TorchError::from)?;
        let partition = partition(vae.decoding_bytes([height, width]), stage.working_room(), tiling);
        Ok(latents::unsigned(&vae.decode(&self.config.scaling().unscale(latents)?, partition)?)?)
    }
}

/// How the VAE is to take a picture that takes so many bytes as a whole, where there is so much room.
fn partition(bytes: u64, room: u64, tiling: Option<bool>) -> Partition {
    if tiling.unwrap_or(bytes > room) { Partition::Bands(BAND) } else { Partition::Whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_taken_in_bands_where_there_is_no_room_or_somebody_wants_it() {
        assert_eq!(partition(5, 5, None), Partition::Whole);
        assert_eq!(partition(6, 5, None), Partition::Bands(BAND));
        assert_eq!(partition(6, 5, Some(false)), Partition::Whole);
        assert_eq!(partition(1, 5, Some(true)), Partition::Bands(BAND));
    }
}
