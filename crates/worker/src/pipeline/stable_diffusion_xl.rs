//! SDXL: two text encoders, sizes as conditions, ControlNets.
//!
//! *Source*: Podell et al., "SDXL", and diffusers 0.42.1, `pipelines/stable_diffusion_xl/` and
//! `pipelines/controlnet/pipeline_controlnet{,_union}_sd_xl.py`.

use std::{any::Any, rc::Rc};

use atelier_domain::Params;
use atelier_sampling::Sampler;
use tch::{Kind, Tensor};

use super::{
    Beginning, Blueprint, Defaults, Geometry, Guidance, Mode, Pipeline, Stage, Text, UNetConditions, UNetParts, Vae,
    stable_diffusion::{classifier, rows, start},
    text::{self, Hidden, Negative},
    unet_conditions::Hint,
};
use crate::{
    diffusion::card::Card, error::JobError, noise::Noise, prompt::HiddenState, torch::TorchError, unet::Added,
};

pub struct StableDiffusionXl {
    parts: Rc<UNetParts>,
}

impl StableDiffusionXl {
    /// # Errors
    /// See [`UNetParts::read`].
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        let text_encoders = &[("text_encoder", false), ("text_encoder_2", true)];
        Ok(Self { parts: Rc::new(UNetParts::read(blueprint, text_encoders)?) })
    }
}

impl Pipeline for StableDiffusionXl {
    fn defaults(&self) -> Defaults {
        Defaults { steps: 30, guidance_scale: 5.0, image_guidance_scale: 1.0, strength: 0.75 }
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
        let skip = stage.task.clip_skip;
        let hidden = Hidden { positive: HiddenState::Skip(skip + 1), negative: HiddenState::Skip(1) };
        // Without a negative prompt SDXL is guided away from nothing at all, not from an empty text.
        let zeros = stage.task.negative_prompt.is_none() && stage.blueprint.flag("force_zeros_for_empty_prompt", true);
        let negative = stage.task.negative_prompt.clone().unwrap_or_default();
        let negative = (is_guided && !zeros).then_some(negative.as_str());
        let (first, first_negative) = text::encode_pair(stage, &self.parts.text[0], negative, hidden)?;
        let (second, second_negative) = text::encode_pair(stage, &self.parts.text[1], negative, hidden)?;
        let together = |one: &Tensor, other: &Tensor| Ok::<_, TorchError>(Tensor::f_cat(&[one, other], -1)?);
        let embeds = together(&first.embeds, &second.embeds)?;
        let negative = match (first_negative, second_negative) {
            (Some(one), Some(other)) => {
                Some(Negative { embeds: together(&one.embeds, &other.embeds)?, pooled: Some(other.pooled) })
            }
            (_, _) if is_guided => Some(Negative {
                embeds: embeds.f_zeros_like().map_err(TorchError::from)?,
                pooled: Some(second.pooled.f_zeros_like().map_err(TorchError::from)?),
            }),
            (_, _) => None,
        };
        Ok(Text { embeds, pooled: Some(second.pooled), negative })
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
        let conditions = conditions(stage, &self.parts, guidance, text)?;
        start.finish(stage, conditions)
    }
}

fn conditions(
    stage: &Stage<'_, '_>,
    parts: &Rc<UNetParts>,
    guidance: Guidance,
    text: &Text,
) -> Result<UNetConditions, TorchError> {
    let kind = stage.kind();
    let embeds = rows(guidance, &text.embeds, text.negative_embeds())?.f_to_kind(kind)?;
    let pooled = text.pooled.as_ref().unwrap_or(&text.embeds);
    let negative = text.negative.as_ref().and_then(|negative| negative.pooled.as_ref()).unwrap_or(pooled);
    let added =
        Added { text_embeds: rows(guidance, pooled, negative)?.f_to_kind(kind)?, time_ids: time_ids(stage, guidance)? };
    let hint = match (&stage.task.picture, stage.task.mode) {
        (Some(picture), Mode::Control) => Some(Hint {
            picture: picture.tensor()?.f_to_device(stage.device())?.f_to_kind(kind)?,
            kind: stage.task.control_kind,
            scale: stage.task.control_scale,
        }),
        (_, Mode::Text | Mode::Image | Mode::Inpaint | Mode::Instruct | Mode::Control) => None,
    };
    Ok(UNetConditions { parts: parts.clone(), guidance, embeds, added: Some(added), extra: None, hint, keep: None })
}

/// (rows, 6): the picture was never another size and never cropped.
fn time_ids(stage: &Stage<'_, '_>, guidance: Guidance) -> Result<Tensor, TorchError> {
    let size = stage.task.size;
    let ids = [size.height, size.width, 0, 0, size.height, size.width];
    let row = Tensor::f_from_slice(&ids)?.f_to_kind(Kind::Float)?.f_reshape([1, 6])?;
    Ok(row.f_repeat([guidance.rows(), 1])?.f_to_device(stage.device())?.f_to_kind(stage.kind())?)
}
