//! A job's request, settled: every number decided and checked against the model, before anything is loaded.

use atelier_domain::{ControlMode, ErrorCode, JobKind, Params};

use super::{Blueprint, ControlBlueprint, Pipeline, Size};
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
    /// Above 0, at most 1.
    pub strength: f64,
    /// The size the model works in.
    pub size: Size,
    /// In that size.
    pub picture: Option<Rgb>,
    /// In that size: 0 keeps, 255 paints anew.
    pub mask: Option<Vec<u8>>,
    pub control_scale: f64,
    /// Of a Union's list.
    pub control_kind: i64,
    pub tiling: Option<bool>,
}

/// What a job brings besides its parameters.
pub struct Brought {
    pub kind: JobKind,
    /// The source's size, where there is one.
    pub source: Option<Size>,
    pub has_mask: bool,
    /// In the model's words.
    pub prompt: String,
}

/// A sampling run's most expensive size: a side of more latents is a mistake.
const MOST_LATENTS: i64 = 2048;

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
        if mode != Mode::Inpaint && mode != Mode::Instruct && blueprint.extra_channels() > 0 {
            return Err(JobError::refused(
                ErrorCode::KindNotSupported,
                format!("the UNet of {} is made for inpainting alone", blueprint.main().id),
                "Ask for inpaint, or choose another model.",
            ));
        }
        let size = size(mode, brought.source, params, blueprint)?;
        let layers = blueprint.text.iter().map(|text| text.config.num_hidden_layers).min().unwrap_or(0);
        let clip_skip = params.clip_skip.unwrap_or(0);
        if i64::from(clip_skip) >= layers.saturating_sub(1) && clip_skip > 0 {
            return Err(refuse("clip_skip", &format!("{clip_skip} of {layers} layers leaves too few")));
        }
        Ok(Self {
            mode,
            prompt: brought.prompt,
            negative_prompt: params.negative_prompt.clone(),
            weighting: params.prompt_weighting.unwrap_or(false),
            clip_skip: clip_skip as usize,
            steps: params.steps.or(card.steps).unwrap_or(defaults.steps) as usize,
            guidance_scale: params.guidance_scale.or(card.guidance_scale).unwrap_or(defaults.guidance_scale),
            image_guidance_scale: params
                .image_guidance_scale
                .or(card.image_guidance_scale)
                .unwrap_or(defaults.image_guidance_scale),
            strength: params.strength.unwrap_or(if mode == Mode::Inpaint { 1.0 } else { defaults.strength }),
            size,
            picture: None,
            mask: None,
            control_scale: params.control_scale.unwrap_or(1.0),
            control_kind: control_kind(params, blueprint)?,
            tiling: params.tiling,
        })
    }
}

fn refuse(name: &str, what: &str) -> JobError {
    JobError::refused(ErrorCode::InvalidParams, format!("params.{name}: {what}"), "Change it, or leave it out.")
}

fn mode(brought: &Brought) -> Result<Mode, JobError> {
    let mode = match (brought.kind, brought.source, brought.has_mask) {
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

fn control_kind(params: &Params, blueprint: &Blueprint) -> Result<i64, JobError> {
    match (&blueprint.control, params.control_mode) {
        (Some(ControlBlueprint::Union(config)), mode) => {
            let mode = mode.unwrap_or(ControlMode::Canny);
            let index = i64::from(mode.index());
            if index >= config.num_control_type {
                let known = config.num_control_type;
                return Err(refuse("control_mode", &format!("{mode:?} is none of the {known} kinds of this model")));
            }
            Ok(index)
        }
        (Some(ControlBlueprint::Single(_)) | None, Some(_)) => {
            Err(refuse("control_mode", "is for a ControlNet Union; this one is made for one kind of picture"))
        }
        (Some(ControlBlueprint::Single(_)) | None, None) => Ok(0),
    }
}

/// The size that a job is worked at, as diffusers decides it; large sources are brought down to what the model was
/// made for.
fn size(mode: Mode, source: Option<Size>, params: &Params, blueprint: &Blueprint) -> Result<Size, JobError> {
    let unit = blueprint.downscale();
    let asked = (params.width.map(i64::from), params.height.map(i64::from));
    let size = match (mode, source) {
        (Mode::Text, _) | (_, None) => {
            let native = blueprint.native_size();
            let size = Size { width: asked.0.unwrap_or(native.width), height: asked.1.unwrap_or(native.height) };
            // As diffusers asks for; 8 is a multiple of what smaller VAEs need.
            let step = unit.max(8);
            for (name, side) in [("width", size.width), ("height", size.height)] {
                if side % step != 0 {
                    let (below, above) = (side / step * step, (side / step + 1) * step);
                    return Err(refuse(
                        name,
                        &format!("{side} is no multiple of {step}, which this model needs; try {below} or {above}"),
                    ));
                }
            }
            size
        }
        (_, Some(source)) => {
            let fitted = match asked {
                (Some(width), Some(height)) => Size { width, height },
                (Some(width), None) => Size { width, height: follow(width, source.width, source.height) },
                (None, Some(height)) => Size { width: follow(height, source.height, source.width), height },
                (None, None) => brought_down(source, blueprint.most_pixels()),
            };
            Size { width: fitted.width / unit * unit, height: fitted.height / unit * unit }
        }
    };
    let smallest = unit * blueprint.unet.downscale();
    if size.width < smallest.min(unit) || size.height < smallest.min(unit) {
        return Err(JobError::refused(
            ErrorCode::InvalidParams,
            format!("{} x {} pixels is too small for this model", size.width, size.height),
            format!("It needs {unit} pixels or more on each side, and proportions that are not extreme."),
        ));
    }
    if size.width.max(size.height) > MOST_LATENTS * unit {
        return Err(refuse("width", &format!("{} x {} pixels is too large", size.width, size.height)));
    }
    Ok(size)
}

const fn follow(side: i64, of: i64, other: i64) -> i64 {
    (side * other + of / 2) / of
}

/// The largest size of the same proportions with at most so many pixels; never larger than it is.
fn brought_down(size: Size, most_pixels: i64) -> Size {
    if size.area() <= most_pixels {
        return size;
    }
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "sides of pictures")]
    let side = |side: i64, other: i64| (most_pixels as f64 * side as f64 / other as f64).sqrt() as i64;
    Size { width: side(size.width, size.height), height: side(size.height, size.width) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_come_down_with_their_proportions_and_small_ones_stay() {
        let size = |width, height| Size { width, height };
        assert_eq!(brought_down(size(4000, 3000), 256 * 256), size(295, 221));
        assert_eq!(brought_down(size(100, 90), 256 * 256), size(100, 90));
        assert_eq!(brought_down(size(1024, 1024), 512 * 512), size(512, 512));
        assert_eq!(follow(512, 3000, 2000), 341);
    }
}
