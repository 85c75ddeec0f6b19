//! FLUX.1 Fill: paints within a mask. The transformer sees the picture without what is masked, and the mask pixel by
//! pixel, as more features of each patch.
//!
//! *Source*: Black Forest Labs, FLUX.1 Fill, and diffusers 0.42.1, `pipelines/flux/pipeline_flux_fill.py`.

use std::{any::Any, rc::Rc};

use atelier_domain::{ErrorCode, Params};
use atelier_sampling::{Options, Sampler, SchedulerConfig};
use tch::Tensor;

use super::{
    Beginning, Blueprint, Defaults, Geometry, LatentSpace, Mode, Pipeline, Stage, Task, Text, Vae,
    flux::{Beside, FluxParts},
    latents,
};
use crate::{diffusion::card::Card, error::JobError, noise::Noise, torch::TorchError, transformer::patches::PATCH};

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
        let (mask, masked) = latents::masked(stage.task)?;
        let masked = self.parts.vae.sample(stage, &masked, noise)?;
        let mask = mask.f_pixel_unshuffle(self.parts.space().downscale).map_err(TorchError::from)?;
        let mask = mask.f_to_device(masked.device()).map_err(TorchError::from)?;
        Ok(Tensor::f_cat(&[masked, mask], 1).map_err(TorchError::from)?)
    }
}

impl Pipeline for FluxFill {
    fn defaults(&self) -> Defaults {
        Defaults { steps: 50, guidance_scale: 30.0, image_guidance_scale: 1.0, strength: 1.0 }
    }

    fn vae(&self) -> &dyn Vae {
        &self.parts.vae
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
        let level = latents::first_level(sampler);
        // The source's latents are drawn even where they have no part in the beginning.
        let begun = latents::from_picture(stage, &self.parts.vae, level, sigma, true, noise)?;
        let extra = self.extra(stage, noise)?;
        Ok(self.parts.begin(stage, text, &begun.latents, Beside { extra: Some(extra), ..Beside::default() })?)
    }
}
