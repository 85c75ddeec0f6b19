//! InstructPix2Pix: Stable Diffusion 1.x whose UNet also sees the source's latents, with two guidances.
//!
//! *Source*: Brooks, Holynski and Efros, "InstructPix2Pix", and diffusers 0.42.1,
//! `pipelines/stable_diffusion/pipeline_stable_diffusion_instruct_pix2pix.py`.

use atelier_sampling::Sampler;
use tch::Tensor;

use super::{Beginning, Conditions, Defaults, Guidance, Pipeline, Stage, Text, latents, stable_diffusion};
use crate::{error::JobError, noise::Noise, torch::TorchError};

pub struct InstructPix2Pix;

impl Pipeline for InstructPix2Pix {
    fn defaults(&self) -> Defaults {
        Defaults { steps: 30, guidance_scale: 7.5, image_guidance_scale: 1.5, strength: 1.0 }
    }

    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        let is_guided = guidance(stage) != Guidance::None;
        stable_diffusion::encode_text(stage, is_guided)
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
        let source = latents::encode(stage, &pixels)?.mean;
        let start =
            latents::normal(stage, noise)?.f_mul_scalar(sampler.init_noise_sigma()).map_err(TorchError::from)?;
        let conditions = conditions(stage, guidance, text, &source)?;
        Ok(Beginning { latents: start, conditions })
    }
}

fn guidance(stage: &Stage<'_, '_>) -> Guidance {
    let (text_scale, image_scale) = (stage.task.guidance_scale, stage.task.image_guidance_scale);
    if text_scale > 1.0 && image_scale >= 1.0 { Guidance::Instruct { text_scale, image_scale } } else { Guidance::None }
}

fn conditions(
    stage: &Stage<'_, '_>,
    guidance: Guidance,
    text: &Text,
    source: &Tensor,
) -> Result<Conditions, TorchError> {
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
    Ok(Conditions { guidance, embeds, added: None, extra: Some(extra), hint: None, keep: None })
}
