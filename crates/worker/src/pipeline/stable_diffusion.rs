//! Stable Diffusion 1.x: text to image, image to image, and inpainting with an ordinary or a nine-channel UNet.
//!
//! *Source*: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", and diffusers 0.42.1,
//! `pipelines/stable_diffusion/pipeline_stable_diffusion{,_img2img,_inpaint}.py`.

use std::{any::Any, rc::Rc};

use atelier_domain::Params;
use atelier_sampling::{Level, Sampler};
use tch::{Kind, Tensor};

use super::{
    Beginning, Blueprint, Defaults, Geometry, Guidance, Keep, LatentSpace, Mode, Pipeline, Stage, Text, UNetConditions,
    UNetParts, Vae, latents,
    text::{self, Hidden, Negative},
};
use crate::{diffusion::card::Card, error::JobError, noise::Noise, prompt::HiddenState, torch::TorchError};

pub struct StableDiffusion {
    parts: Rc<UNetParts>,
}

impl StableDiffusion {
    /// # Errors
    /// See [`UNetParts::read`].
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        Ok(Self { parts: Rc::new(UNetParts::read(blueprint, TEXT_ENCODERS)?) })
    }
}

/// The one text encoder does not project what it pools.
pub const TEXT_ENCODERS: &[(&str, bool)] = &[("text_encoder", false)];

impl Pipeline for StableDiffusion {
    fn defaults(&self) -> Defaults {
        Defaults { steps: 30, guidance_scale: 7.5, image_guidance_scale: 1.0, strength: 0.8 }
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

    fn control_kind(&self, params: &Params) -> Result<i64, JobError> {
        self.parts.control_kind(params)
    }

    fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        self.parts.load_all(stage)
    }

    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        let is_guided = classifier(stage) != Guidance::None;
        encode_text(stage, &self.parts, is_guided)
    }

    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        let guidance = classifier(stage);
        let start = start(stage, &self.parts.vae, self.parts.extra_channels() == 0, sampler, noise)?;
        let kind = stage.kind();
        let embeds = rows(guidance, &text.embeds, text.negative_embeds())?.f_to_kind(kind).map_err(TorchError::from)?;
        let parts = self.parts.clone();
        let conditions = UNetConditions { parts, guidance, embeds, added: None, extra: None, hint: None, keep: None };
        start.finish(stage, conditions)
    }
}

/// Guidance by the prompt against its negative, where its scale is above 1.
pub fn classifier(stage: &Stage<'_, '_>) -> Guidance {
    let scale = stage.task.guidance_scale;
    if scale > 1.0 { Guidance::Classifier { scale } } else { Guidance::None }
}

/// Negative, then positive; only the positive without guidance.
pub fn rows(guidance: Guidance, positive: &Tensor, negative: &Tensor) -> Result<Tensor, TorchError> {
    match guidance {
        Guidance::None => Ok(positive.shallow_clone()),
        Guidance::Classifier { .. } | Guidance::Instruct { .. } => Ok(Tensor::f_cat(&[negative, positive], 0)?),
    }
}

/// The last hidden state of the one text encoder, or an earlier one with the final norm.
pub fn encode_text(stage: &mut Stage<'_, '_>, parts: &UNetParts, is_guided: bool) -> Result<Text, JobError> {
    let positive = match stage.task.clip_skip {
        0 => HiddenState::Last,
        layers => HiddenState::SkipNormed(layers),
    };
    let hidden = Hidden { positive, negative: HiddenState::Last };
    let negative = stage.task.negative_prompt.clone().unwrap_or_default();
    let (positive, negative) =
        text::encode_pair(stage, &parts.text[0], is_guided.then_some(negative.as_str()), hidden)?;
    Ok(Text {
        embeds: positive.embeds,
        pooled: None,
        negative: negative.map(|negative| Negative { embeds: negative.embeds, pooled: None }),
    })
}

/// Where the latents begin, and what an inpainting needs beside them. Shared with SDXL and Stable Diffusion 3, whose
/// pipelines do the same.
pub struct Start {
    pub latents: Tensor,
    extra: Option<Tensor>,
    pub keep: Option<Keep>,
}

/// `is_ordinary`: the denoiser sees no mask, and an inpainting puts the source back around it at each step.
pub fn start(
    stage: &mut Stage<'_, '_>,
    vae: &dyn Vae,
    is_ordinary: bool,
    sampler: &Sampler,
    noise: &mut Noise,
) -> Result<Start, JobError> {
    let sigma = sampler.init_noise_sigma();
    let level = latents::first_level(sampler);
    match stage.task.mode {
        Mode::Text | Mode::Control | Mode::Instruct => {
            let latents = vae.space().normal(stage, noise)?.f_mul_scalar(sigma).map_err(TorchError::from)?;
            Ok(Start { latents, extra: None, keep: None })
        }
        Mode::Image => {
            let begun = latents::from_picture(stage, vae, level, sigma, true, noise)?;
            Ok(Start { latents: begun.latents, extra: None, keep: None })
        }
        Mode::Inpaint => inpaint(stage, vae, is_ordinary, (level, sigma), noise),
    }
}

fn inpaint(
    stage: &mut Stage<'_, '_>,
    vae: &dyn Vae,
    is_ordinary: bool,
    (level, sigma): (Level, f64),
    noise: &mut Noise,
) -> Result<Start, JobError> {
    let begun = latents::from_picture(stage, vae, level, sigma, is_ordinary, noise)?;
    let (mask, masked) = mask(stage, vae.space())?;
    // Drawn also where only the nine-channel UNet looks at it: the generator must stand where diffusers' does.
    let masked = vae.sample(stage, &masked, noise)?;
    let (extra, keep) = match begun.source {
        Some(source) if is_ordinary => (None, Some(Keep { mask, source, normal: begun.normal })),
        Some(_) | None => (Some(Tensor::f_cat(&[&mask, &masked], 1).map_err(TorchError::from)?), None),
    };
    Ok(Start { latents: begun.latents, extra, keep })
}

/// The mask in the latents' size (1, 1, h, w), and the picture with grey in its place (1, 3, H, W).
pub fn mask(stage: &Stage<'_, '_>, space: LatentSpace) -> Result<(Tensor, Tensor), TorchError> {
    let [_, _, height, width] = space.shape(stage.task.size);
    let (mask, masked) = latents::masked(stage.task)?;
    let small = mask.f_upsample_nearest2d([height, width], None, None)?;
    Ok((small.f_to_device(stage.device())?, masked))
}

impl Start {
    /// Adds itself to the other conditions.
    pub fn finish(self, stage: &Stage<'_, '_>, mut conditions: UNetConditions) -> Result<Beginning, JobError> {
        if let Some(extra) = self.extra {
            let extra = extra.f_to_kind(stage.kind()).map_err(TorchError::from)?;
            let rows = conditions.guidance.rows();
            conditions.extra = Some(extra.f_repeat([rows, 1, 1, 1]).map_err(TorchError::from)?);
        }
        conditions.keep = self.keep;
        let latents = self.latents.f_to_kind(Kind::Float).map_err(TorchError::from)?;
        Ok(Beginning { latents, conditions: Box::new(conditions) })
    }
}
