//! A job's request, settled: every number decided and checked against the model, before anything is loaded.

use atelier_domain::{ErrorCode, JobKind, Params};

use super::{Blueprint, Pipeline, Size};
use crate::{diffusion::pixels::Rgb, error::JobError};

/// What is made of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// From the text alone.
    Text,
    /// From a picture, as far as `strength` lets it.
    Image,
    /// Within a mask.
    Inpaint,
    /// By instruction.
    Instruct,
    /// From the text, guided by a picture.
    Control,
}

/// Everything a pipeline needs to know.
pub struct Task {
    pub mode: Mode,
    pub prompt: String,
    pub negative_prompt: Option<String>,
    pub weighting: bool,
    pub clip_skip: usize,
    pub steps: usize,
    pub guidance_scale: f64,
    pub image_guidance_scale: f64,
    /// Of the negative prompt, where the other guidance is distilled into the network; 1 is none.
    pub true_cfg_scale: f64,
    /// Above 0, at most 1.
    pub strength: f64,
    /// The size the model works in.
    pub size: Size,
    /// The last of the pictures, in that size.
    pub picture: Option<Rgb>,
    /// All pictures in their own sizes, where [`Pipeline::reads_sources`].
    pub sources: Vec<Rgb>,
    /// In that size: 0 keeps, 255 paints anew.
    pub mask: Option<Vec<u8>>,
    pub control_scale: f64,
    /// Of a Union's list.
    pub control_kind: i64,
    pub tiling: Option<bool>,
    /// The threshold of a step cache; none where there is to be none.
    pub step_cache: Option<f64>,
    /// How far to guide away from what is made without some of the blocks; none where there is to be no such guidance.
    pub skip_layer_guidance: Option<f64>,
}

/// What a job brings besides its parameters.
pub struct Brought {
    pub kind: JobKind,
    /// The pictures' sizes, in their order.
    pub sources: Vec<Size>,
    pub has_mask: bool,
    /// In the model's words.
    pub prompt: String,
}

/// A sampling run's most expensive size: a side of more latents is a mistake.
pub const MOST_LATENTS: i64 = 2048;

impl Task {
    /// Decides everything but the pixels, which are brought to [`Self::size`] afterwards.
    ///
    /// # Errors
    /// A parameter that the model has no use for or cannot honour, by name.
    pub fn settle(
        brought: Brought,
        params: &Params,
        blueprint: &Blueprint,
        pipeline: &dyn Pipeline,
    ) -> Result<Self, JobError> {
        let defaults = pipeline.defaults();
        let card = &blueprint.card;
        let mode = mode(&brought)?;
        if mode == Mode::Text && params.strength.is_some() {
            return Err(refuse("strength", "is for a picture, and none came along"));
        }
        if matches!(mode, Mode::Instruct | Mode::Control) && params.strength.is_some() {
            return Err(refuse("strength", "is not for this model: it starts from noise"));
        }
        if mode != Mode::Instruct && params.image_guidance_scale.is_some() {
            return Err(refuse("image_guidance_scale", "is for models that follow instructions"));
        }
        let has_one = pipeline.has_true_cfg_alone();
        if params.true_cfg_scale.is_some() && !pipeline.has_true_cfg() && !has_one {
            return Err(refuse(
                "true_cfg_scale",
                "is for models whose guidance is distilled; guidance_scale is this one's",
            ));
        }
        if brought.sources.len() > pipeline.most_pictures() {
            return Err(JobError::refused(
                ErrorCode::InvalidParams,
                format!(
                    "{} takes {} picture(s) at the most, and {} were given",
                    blueprint.model.id,
                    pipeline.most_pictures(),
                    brought.sources.len()
                ),
                "Send one job for each picture.",
            ));
        }
        let step_cache = params.step_cache.filter(|threshold| *threshold > 0.0);
        if step_cache.is_some() && !pipeline.has_step_cache() {
            return Err(refuse("step_cache", "is for transformers, which this model has none of"));
        }
        let skip_layer_guidance = params.skip_layer_guidance.filter(|scale| *scale > 0.0);
        if skip_layer_guidance.is_some() && !pipeline.has_skip_layers() {
            return Err(refuse("skip_layer_guidance", "is for Stable Diffusion 3"));
        }
        pipeline.check(blueprint, mode, params)?;
        let size = pipeline.size(mode, &brought.sources, params, card)?;
        let layers = pipeline.clip_layers();
        let clip_skip = params.clip_skip.unwrap_or(0);
        if clip_skip > 0 && layers == 0 {
            return Err(refuse("clip_skip", "is for models with a CLIP text encoder whose layers are read"));
        }
        if i64::from(clip_skip) >= layers.saturating_sub(1) && clip_skip > 0 {
            return Err(refuse("clip_skip", &format!("{clip_skip} of {layers} layers leaves too few")));
        }
        let asked = if has_one { params.true_cfg_scale.or(params.guidance_scale) } else { params.guidance_scale };
        let guidance_scale = asked.or(card.guidance_scale).unwrap_or(defaults.guidance_scale);
        Ok(Self {
            mode,
            prompt: brought.prompt,
            negative_prompt: params.negative_prompt.clone(),
            weighting: params.prompt_weighting.unwrap_or(false),
            clip_skip: clip_skip as usize,
            steps: params.steps.or(card.steps).unwrap_or(defaults.steps) as usize,
            guidance_scale,
            image_guidance_scale: params
                .image_guidance_scale
                .or(card.image_guidance_scale)
                .unwrap_or(defaults.image_guidance_scale),
            true_cfg_scale: if has_one { guidance_scale } else { params.true_cfg_scale.unwrap_or(1.0) },
            strength: params.strength.unwrap_or(if mode == Mode::Inpaint { 1.0 } else { defaults.strength }),
            size,
            picture: None,
            sources: Vec::new(),
            mask: None,
            control_scale: params.control_scale.unwrap_or(1.0),
            control_kind: pipeline.control_kind(params)?,
            tiling: params.tiling,
            step_cache,
            skip_layer_guidance,
        })
    }
}

/// A parameter that cannot be honoured.
pub fn refuse(name: &str, what: &str) -> JobError {
    JobError::refused(ErrorCode::InvalidParams, format!("params.{name}: {what}"), "Change it, or leave it out.")
}

/// What a model of pictures from text does, and from a picture and text, and within a mask.
///
/// # Errors
/// Something else is asked for.
pub fn makes_pictures(blueprint: &Blueprint, mode: Mode) -> Result<(), JobError> {
    match mode {
        Mode::Text | Mode::Image | Mode::Inpaint => Ok(()),
        Mode::Instruct | Mode::Control => Err(JobError::refused(
            ErrorCode::KindNotSupported,
            format!("{} makes pictures from a text, from a picture and a text, or within a mask", blueprint.model.id),
            "Ask for generate or inpaint, or choose another model.",
        )),
    }
}

fn mode(brought: &Brought) -> Result<Mode, JobError> {
    let mode = match (brought.kind, brought.sources.last(), brought.has_mask) {
        (JobKind::Inpaint, Some(_), true) => Mode::Inpaint,
        (JobKind::Inpaint, _, _) => {
            return Err(JobError::refused(
                ErrorCode::InvalidRequest,
                "an inpaint job needs a picture and a mask of the same size",
                "Send the mask as the part `mask`: white is painted anew.",
            ));
        }
        (_, _, true) => {
            return Err(JobError::refused(
                ErrorCode::InvalidRequest,
                format!("a mask came along, and a job of kind {} has no use for it", brought.kind),
                "Ask for inpaint, or leave out the mask.",
            ));
        }
        (JobKind::Edit, Some(_), _) => Mode::Instruct,
        (JobKind::Control, Some(_), _) => Mode::Control,
        (JobKind::Generate, Some(_), _) => Mode::Image,
        (JobKind::Generate, None, _) => Mode::Text,
        (kind, _, _) => {
            return Err(JobError::refused(
                ErrorCode::InvalidRequest,
                format!("a job of kind {kind} needs a picture"),
                "Send it as `images` in JSON or as a part `image`.",
            ));
        }
    };
    Ok(mode)
}
