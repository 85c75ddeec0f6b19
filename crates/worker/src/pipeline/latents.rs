//! Pictures into latents and back.

use atelier_sampling::{Level, Sampler};
use tch::{Kind, Tensor};

use super::{Mode, Size, Stage, Task, Vae};
use crate::{
    diffusion::pixels::Rgb,
    error::JobError,
    noise::Noise,
    torch::{self, TorchError},
};

/// (1, 3, H, W) from -1 to 1, as diffusers makes it of a picture.
pub fn signed(picture: &Rgb) -> Result<Tensor, TorchError> {
    Ok(picture.tensor()?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)
}

/// The mask (1, 1, H, W), 1 where it is painted anew, and the picture with grey in its place (1, 3, H, W).
pub fn masked(task: &Task) -> Result<(Tensor, Tensor), TorchError> {
    let (Some(picture), Some(mask)) = (&task.picture, &task.mask) else {
        return Err(TorchError::Other("an inpainting without its mask".into()));
    };
    let values: Vec<f32> = mask.iter().map(|&value| f32::from(u8::from(value >= 128))).collect();
    let mask = torch::from_vec(values, &[1, 1, task.size.height, task.size.width])?;
    let masked = signed(picture)?.f_mul(&mask.f_neg()?.f_add_scalar(1.0)?)?;
    Ok((mask, masked))
}

/// How noisy the first step wants its latents.
pub fn first_level(sampler: &Sampler) -> Level {
    let noise = sampler.init_noise_sigma();
    sampler.steps().first().map_or(Level { signal: 0.0, noise }, |step| step.level)
}

/// `signal · clean + noise · normal`.
pub fn mix(level: Level, clean: &Tensor, normal: &Tensor) -> Result<Tensor, TorchError> {
    Ok(clean.f_mul_scalar(level.signal)?.f_add(&normal.f_mul_scalar(level.noise)?)?)
}

/// What a denoiser works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSpace {
    pub channels: i64,
    /// Pixels for one latent.
    pub downscale: i64,
}

impl LatentSpace {
    /// The shape of the latents of a picture.
    pub const fn shape(self, size: Size) -> [i64; 4] {
        [1, self.channels, size.height / self.downscale, size.width / self.downscale]
    }

    /// Normal numbers for the latents of the task, on the device.
    pub fn normal(self, stage: &Stage<'_, '_>, noise: &mut Noise) -> Result<Tensor, TorchError> {
        Ok(noise.normal_of_batch(&self.shape(stage.task.size))?.f_to_device(stage.device())?)
    }
}

/// A picture that a VAE gave, (1, 3, H, W) from -1 to 1, as one from 0 to 1 in f32 on the CPU.
pub fn unsigned(pixels: &Tensor) -> Result<Tensor, TorchError> {
    let pixels = pixels.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)?;
    Ok(pixels.f_mul_scalar(0.5)?.f_add_scalar(0.5)?.f_clamp(0.0, 1.0)?)
}

/// Where image to image and inpainting begin, with the draws in diffusers' order.
pub struct FromPicture {
    pub latents: Tensor,
    /// The source's own latents, where they were needed.
    pub source: Option<Tensor>,
    pub normal: Tensor,
}

/// Latents of the task's picture, as noisy as the first step wants them; pure noise for an inpainting at full strength.
pub fn from_picture(
    stage: &mut Stage<'_, '_>,
    vae: &dyn Vae,
    level: Level,
    init_noise_sigma: f64,
    needs_source: bool,
    noise: &mut Noise,
) -> Result<FromPicture, JobError> {
    let is_full = stage.task.mode == Mode::Inpaint && stage.task.strength >= 1.0;
    let source = match &stage.task.picture {
        Some(picture) if needs_source || !is_full => Some(vae.sample(stage, &signed(picture)?, noise)?),
        Some(_) | None => None,
    };
    let normal = vae.space().normal(stage, noise)?;
    let latents = match &source {
        Some(source) if !is_full => mix(level, source, &normal)?,
        Some(_) | None => normal.f_mul_scalar(init_noise_sigma).map_err(TorchError::from)?,
    };
    Ok(FromPicture { latents, source, normal })
}
