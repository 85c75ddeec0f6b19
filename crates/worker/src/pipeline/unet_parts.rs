//! The parts of the pipelines around a UNet: CLIP text encoders, the UNet, an `AutoencoderKL`, perhaps a ControlNet.

use std::{any::Any, rc::Rc};

use atelier_domain::{ControlMode, ErrorCode, Params, model::Family};

use super::{
    Autoencoder, Blueprint, Geometry, LatentSpace, Mode, Size, Stage,
    blueprint::{OWN, TextBlueprint},
    task::refuse,
};
use crate::{
    controlnet::{ControlNet, ControlNetConfig, ControlNetUnion, UnionConfig},
    diffusion::card::Card,
    error::JobError,
    lora::Component,
    models::ModelError,
    unet::{UNet2DCondition, UNetConfig},
    weights::Weights,
};

#[derive(Clone, Debug)]
pub enum ControlBlueprint {
    Single(ControlNetConfig),
    Union(UnionConfig),
}

pub enum LoadedControl {
    Single(Rc<ControlNet>),
    Union(Rc<ControlNetUnion>),
}

/// What the folder says of them.
pub struct UNetParts {
    pub text: Vec<TextBlueprint>,
    pub unet: UNetConfig,
    pub vae: Autoencoder,
    pub control: Option<ControlBlueprint>,
}

impl UNetParts {
    /// `text_encoders`: each with whether it projects its pooled output.
    ///
    /// # Errors
    /// A configuration that is missing or says what is not computed, or parts that do not fit each other.
    pub fn read(blueprint: &Blueprint, text_encoders: &[(&'static str, bool)]) -> Result<Self, JobError> {
        let text = text_encoders.iter().map(|&(name, projects)| TextBlueprint::read(blueprint, name, projects));
        let text = text.collect::<Result<_, _>>()?;
        let unet = UNetConfig::open(&blueprint.folder("unet/config.json")).map_err(ModelError::from)?;
        let vae = Autoencoder::read(blueprint)?;
        let parts = Self { text, unet, vae, control: read_control(blueprint)? };
        parts.fit(blueprint)?;
        Ok(parts)
    }

    /// Whether the parts fit each other.
    fn fit(&self, blueprint: &Blueprint) -> Result<(), JobError> {
        let wrong = |detail: String| Err(blueprint.wrong("unet/config.json", detail));
        let (latent, inputs) = (self.vae.config.latent_channels, self.unet.encoder.in_channels);
        let family = blueprint.main().family;
        let paints = [Family::StableDiffusion, Family::StableDiffusionInpaint, Family::StableDiffusionXlInpaint];
        let extra: &[i64] = if family == Family::InstructPix2Pix {
            &[latent]
        } else if paints.contains(&family) {
            &[0, latent + 1]
        } else {
            &[0]
        };
        if !extra.iter().any(|extra| latent + extra == inputs) || self.unet.out_channels != latent {
            return wrong(format!(
                "in_channels is {inputs} and out_channels {}, which does not go with latents of {latent} channels",
                self.unet.out_channels
            ));
        }
        if self.unet.encoder.time_cond_proj_dim.is_some() {
            return wrong("time_cond_proj_dim is set: networks distilled for one guidance are not supported".into());
        }
        if blueprint.flag("requires_aesthetics_score", false) {
            let detail = "requires_aesthetics_score is set: a refiner is not supported".into();
            return Err(blueprint.wrong("model_index.json", detail));
        }
        let width: i64 = self.text.iter().map(|text| text.config.hidden_size).sum();
        if let Some(level) = self.unet.encoder.levels.iter().find(|level| level.cross_attention_dim != width) {
            let dim = level.cross_attention_dim;
            return wrong(format!("cross_attention_dim is {dim}, and the text encoders give {width}"));
        }
        Ok(())
    }

    pub fn space(&self) -> LatentSpace {
        self.vae.space()
    }

    pub fn geometry(&self, card: &Card) -> Geometry {
        let unit = self.space().downscale;
        let native = card.size.map_or_else(
            || {
                let [height, width] = self.unet.sample_size.unwrap_or([64, 64]);
                Size { width: width * unit, height: height * unit }
            },
            |side| Size::square(side.into()),
        );
        let most_pixels = if card.size.is_some() { native.area() } else { native.area().max(512 * 512) };
        // As diffusers asks for; 8 is a multiple of what smaller VAEs need.
        Geometry { multiple: unit.max(8), unit, native, most_pixels, shortest: unit }
    }

    pub fn clip_layers(&self) -> i64 {
        self.text.iter().map(|text| text.config.num_hidden_layers).min().unwrap_or(0)
    }

    /// Channels of the UNet's input beyond the latents.
    pub const fn extra_channels(&self) -> i64 {
        self.unet.encoder.in_channels - self.vae.config.latent_channels
    }

    pub fn check(&self, blueprint: &Blueprint, mode: Mode) -> Result<(), JobError> {
        if mode != Mode::Inpaint && mode != Mode::Instruct && self.extra_channels() > 0 {
            return Err(JobError::refused(
                ErrorCode::KindNotSupported,
                format!("the UNet of {} is made for inpainting alone", blueprint.main().id),
                "Ask for inpaint, or choose another model.",
            ));
        }
        Ok(())
    }

    pub fn control_kind(&self, params: &Params) -> Result<i64, JobError> {
        match (&self.control, params.control_mode) {
            (Some(ControlBlueprint::Union(config)), mode) => {
                let mode = mode.unwrap_or(ControlMode::Canny);
                let index = i64::from(mode.index());
                if index >= config.num_control_type {
                    let known = config.num_control_type;
                    return Err(refuse(
                        "control_mode",
                        &format!("{mode:?} is none of the {known} kinds of this model"),
                    ));
                }
                Ok(index)
            }
            (Some(ControlBlueprint::Single(_)) | None, Some(_)) => {
                Err(refuse("control_mode", "is for a ControlNet Union; this one is made for one kind of picture"))
            }
            (Some(ControlBlueprint::Single(_)) | None, None) => Ok(0),
        }
    }

    pub fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        let mut parts: Vec<Rc<dyn Any>> = Vec::new();
        for text in &self.text {
            parts.push(text.load(stage)?);
        }
        parts.push(self.load_unet(stage)?);
        match self.load_control(stage)? {
            Some(LoadedControl::Single(network)) => parts.push(network),
            Some(LoadedControl::Union(network)) => parts.push(network),
            None => {}
        }
        parts.push(self.vae.load(stage)?);
        Ok(parts)
    }

    pub fn load_unet(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<UNet2DCondition>, JobError> {
        let load = |weights: &Weights| UNet2DCondition::load(weights, &self.unet);
        stage.part("unet", &[], Some(Component::Denoiser), load)
    }

    pub fn load_control(&self, stage: &mut Stage<'_, '_>) -> Result<Option<LoadedControl>, JobError> {
        Ok(match &self.control {
            None => None,
            Some(ControlBlueprint::Single(config)) => {
                Some(LoadedControl::Single(stage.part(OWN, &[], None, |weights| ControlNet::load(weights, config))?))
            }
            Some(ControlBlueprint::Union(config)) => {
                Some(LoadedControl::Union(
                    stage.part(OWN, &[], None, |weights| ControlNetUnion::load(weights, config))?,
                ))
            }
        })
    }
}

fn read_control(blueprint: &Blueprint) -> Result<Option<ControlBlueprint>, JobError> {
    let folder = match &blueprint.base {
        Some(_) => blueprint.model.path.as_path().to_owned(),
        None => blueprint.folder(OWN),
    };
    let config = folder.join("config.json");
    let family = blueprint.model.family;
    if matches!(family, Family::ControlNet | Family::StableDiffusionXlControlNet) {
        let config = ControlNetConfig::open(&config).map_err(ModelError::from)?;
        return Ok(Some(ControlBlueprint::Single(config)));
    }
    if matches!(family, Family::ControlNetUnion | Family::StableDiffusionXlControlNetUnion) {
        let config = UnionConfig::open(&config).map_err(ModelError::from)?;
        return Ok(Some(ControlBlueprint::Union(config)));
    }
    Ok(None)
}
