//! InstructPix2Pix: Stable Diffusion 1.x whose UNet also sees the source's latents, with two guidances.
//!
//! *Source*: Brooks, Holynski and Efros, "InstructPix2Pix", and diffusers 0.42.1,
//! `pipelines/stable_diffusion/pipeline_stable_diffusion_instruct_pix2pix.py`.

use std::{any::Any, rc::Rc};

use atelier_domain::Params;
use atelier_sampling::Sampler;
use tch::Tensor;

use super::{
    Beginning, Blueprint, Defaults, Geometry, Guidance, Mode, Pipeline, Stage, Text, UNetConditions, UNetParts, Vae,
    latents, stable_diffusion,
};
use crate::{diffusion::card::Card, error::JobError, noise::Noise, torch::TorchError};

pub struct InstructPix2Pix {
    parts: Rc<UNetParts>,
}

impl InstructPix2Pix {
    /// # Errors
    /// See [`UNetParts::read`].
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        Ok(Self { parts: Rc::new(UNetParts::read(blueprint, stable_diffusion::TEXT_ENCODERS)?) })
    }
}

impl Pipeline for InstructPix2Pix {
    fn defaults(&self) -> Defaults {
        Defaults { steps: 30, guidance_scale: 7.5, image_guidance_scale: 1.5, strength: 1.0 }
    }

    fn vae(&self) -> &dyn Vae {
        &self.parts.vae
    }

    fn geometry(&self, card: &Card) -> Geometry {
        self.parts.geometry(card)
    }

    fn clip_layers(&self) -> i64 {
        self.parts.clip_layers()
    }

    fn check(&self, blueprint: &Blueprint, mode: Mode, _params: &Params) -> Result<(), JobError> {
        self.parts.check(blueprint, mode)
    }

    fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        self.parts.load_all(stage)
    }

    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        let is_guided = guidance(stage) != Guidance::None;
        stable_diffusion::encode_text(stage, &self.parts, is_guided)
    }

    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        let guidance = guidance(stage);
        let pixels = match &stage.task.picture {
            Some(picture) => latents::signed(picture)?,
            None => return Err(TorchError::Other("an instruction without a picture".into()).into()),
        };
        // The most probable latents, and not scaled: what the UNet was trained on.
        let source = self.parts.vae.encode(stage, &pixels)?.mean;
        let normal = self.parts.space().normal(stage, noise)?;
        let latents = normal.f_mul_scalar(sampler.init_noise_sigma()).map_err(TorchError::from)?;
        let conditions = self.conditions(stage, guidance, text, &source)?;
        Ok(Beginning { latents, conditions: Box::new(conditions) })
    }
}

fn guidance(stage: &Stage<'_, '_>) -> Guidance {
    let (text_scale, image_scale) = (stage.task.guidance_scale, stage.task.image_guidance_scale);
    if text_scale > 1.0 && image_scale >= 1.0 { Guidance::Instruct { text_scale, image_scale } } else { Guidance::None }
}

impl InstructPix2Pix {
    fn conditions(
        &self,
        stage: &Stage<'_, '_>,
        guidance: Guidance,
        text: &Text,
        source: &Tensor,
    ) -> Result<UNetConditions, TorchError> {
        let kind = stage.kind();
        let source = source.f_to_kind(kind)?;
        let (embeds, extra) = if guidance == Guidance::None {
            (text.embeds.shallow_clone(), source)
        } else {
            let negative = text.negative_embeds();
            let nothing = source.f_zeros_like()?;
            (Tensor::f_cat(&[&text.embeds, negative, negative], 0)?, Tensor::f_cat(&[&source, &source, &nothing], 0)?)
        };
        let embeds = embeds.f_to_kind(kind)?;
        let parts = self.parts.clone();
        Ok(UNetConditions { parts, guidance, embeds, added: None, extra: Some(extra), hint: None, keep: None })
    }
}
