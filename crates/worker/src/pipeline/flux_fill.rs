//! FLUX.1 Fill: paints within a mask. The transformer sees the picture without what is masked, and the mask pixel by
//! pixel, as more features of each patch.
//!
//! *Source*: Black Forest Labs, FLUX.1 Fill, and diffusers 0.42.1, `pipelines/flux/pipeline_flux_fill.py`.

use std::{any::Any, rc::Rc};

use atelier_domain::{ErrorCode, Params};
use atelier_sampling::{Level, Options, Sampler, SchedulerConfig};
use tch::Tensor;

use super::{
    Beginning, Blueprint, Defaults, Geometry, LatentSpace, Mode, Pipeline, Stage, Task, Text,
    flux::{Beside, FluxParts},
    latents,
};
use crate::{
    diffusion::{card::Card, pixels::Rgb, preview::Colors},
    error::JobError,
    noise::Noise,
    torch::{self, TorchError},
    transformer::patches::PATCH,
};

pub struct FluxFill {
    parts: Rc<FluxParts>,
}

impl FluxFill {
    /// # Errors
    /// See [`FluxParts::read`].
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        // The picture's latents, and the mask's pixels.
        let extra = |space: LatentSpace| PATCH * PATCH * (space.channels + space.downscale * space.downscale);
        Ok(Self { parts: Rc::new(FluxParts::read(blueprint, extra)?) })
    }

    /// What is seen beside the latents, (1, E, h, w), with the draws in diffusers' order.
    fn extra(&self, stage: &mut Stage<'_, '_>, noise: &mut Noise) -> Result<Tensor, JobError> {
        let (mask, masked) = mask(stage)?;
        let masked = self.parts.vae.sample(stage, &masked, noise)?;
        let mask = mask.f_pixel_unshuffle(self.parts.space().downscale).map_err(TorchError::from)?;
        let mask = mask.f_to_device(masked.device()).map_err(TorchError::from)?;
        Ok(Tensor::f_cat(&[masked, mask], 1).map_err(TorchError::from)?)
    }
}

/// The mask (1, 1, H, W), 1 where it is painted anew, and the picture with grey in its place (1, 3, H, W).
fn mask(stage: &Stage<'_, '_>) -> Result<(Tensor, Tensor), TorchError> {
    let (Some(picture), Some(mask)) = (&stage.task.picture, &stage.task.mask) else {
        return Err(TorchError::Other("an inpainting without its mask".into()));
    };
    let values: Vec<f32> = mask.iter().map(|&value| f32::from(u8::from(value >= 128))).collect();
    let size = stage.task.size;
    let mask = torch::from_vec(values, &[1, 1, size.height, size.width])?;
    let masked = latents::signed(picture)?.f_mul(&mask.f_neg()?.f_add_scalar(1.0)?)?;
    Ok((mask, masked))
}

impl Pipeline for FluxFill {
    fn defaults(&self) -> Defaults {
        Defaults { steps: 50, guidance_scale: 30.0, image_guidance_scale: 1.0, strength: 1.0 }
    }

    fn space(&self) -> LatentSpace {
        self.parts.space()
    }

    fn geometry(&self, card: &Card) -> Geometry {
        self.parts.geometry(card)
    }

    fn has_step_cache(&self) -> bool {
        true
    }

    fn check(&self, blueprint: &Blueprint, mode: Mode, params: &Params) -> Result<(), JobError> {
        if mode != Mode::Inpaint {
            return Err(JobError::refused(
                ErrorCode::KindNotSupported,
                format!("{} paints within a mask", blueprint.model.id),
                "Ask for inpaint, or choose another model.",
            ));
        }
        self.parts.check(params)
    }

    fn sampling(&self, task: &Task, _scheduler: &SchedulerConfig, options: &mut Options) {
        self.parts.sampling(task, options);
    }

    fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        self.parts.load_all(stage)
    }

    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        self.parts.encode_text(stage)
    }

    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        let sigma = sampler.init_noise_sigma();
        let level = sampler.steps().first().map_or(Level { signal: 0.0, noise: sigma }, |step| step.level);
        // The source's latents are drawn even where they have no part in the beginning.
        let begun = latents::from_picture(stage, &self.parts.vae, level, sigma, true, noise)?;
        let extra = self.extra(stage, noise)?;
        Ok(self.parts.begin(stage, text, &begun.latents, Beside { extra: Some(extra), ..Beside::default() })?)
    }

    fn colors(&self) -> Option<Colors> {
        self.parts.vae.colors()
    }

    fn latents_of(&self, stage: &mut Stage<'_, '_>, picture: &Rgb) -> Result<Option<Tensor>, JobError> {
        self.parts.vae.latents_of(stage, picture)
    }

    fn decode(&self, stage: &mut Stage<'_, '_>, latents: &Tensor, tiling: Option<bool>) -> Result<Tensor, JobError> {
        self.parts.vae.decode(stage, latents, tiling)
    }
}
