//! What a UNet sees besides the latents, and guidance.

use std::rc::Rc;

use atelier_sampling::{Level, Step};
use tch::{Kind, Tensor};

use super::{Conditions, Denoiser, Stage, UNetParts, unet_parts::LoadedControl};
use crate::{
    controlnet::UnionHint,
    error::JobError,
    torch::TorchError,
    unet::{self, Added, ControlResiduals, UNet2DCondition},
};

/// How the denoiser's answers become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guidance {
    /// There is only one.
    None,
    /// Classifier-free: rows are negative, positive.
    Classifier { scale: f64 },
    /// InstructPix2Pix: rows are text and picture, picture alone, neither.
    Instruct { text_scale: f64, image_scale: f64 },
}

impl Guidance {
    pub const fn rows(self) -> i64 {
        match self {
            Self::None => 1,
            Self::Classifier { .. } => 2,
            Self::Instruct { .. } => 3,
        }
    }

    /// What a denoiser answers for all rows, in f32: `forward` is asked for rows `first` to `first + rows`, all at once
    /// where `batched`, which is quicker and takes more memory.
    pub fn answers(
        self,
        batched: bool,
        forward: impl Fn(i64, i64) -> Result<Tensor, TorchError>,
    ) -> Result<Tensor, TorchError> {
        let rows = self.rows();
        let output = if batched || rows == 1 {
            forward(0, rows)?
        } else {
            Tensor::f_cat(&(0..rows).map(|row| forward(row, 1)).collect::<Result<Vec<_>, _>>()?, 0)?
        };
        Ok(output.f_to_kind(Kind::Float)?)
    }

    /// As [`Self::answers`], combined.
    pub fn ask(
        self,
        batched: bool,
        forward: impl Fn(i64, i64) -> Result<Tensor, TorchError>,
    ) -> Result<Tensor, TorchError> {
        self.combine(&self.answers(batched, forward)?)
    }

    /// One answer (1, …) from those of all rows.
    pub fn combine(self, output: &Tensor) -> Result<Tensor, TorchError> {
        let row = |index: i64| output.f_narrow(0, index, 1);
        match self {
            Self::None => Ok(output.shallow_clone()),
            Self::Classifier { scale } => {
                let (negative, positive) = (row(0)?, row(1)?);
                Ok(negative.f_add(&positive.f_sub(&negative)?.f_mul_scalar(scale)?)?)
            }
            Self::Instruct { text_scale, image_scale } => {
                let (text, image, neither) = (row(0)?, row(1)?, row(2)?);
                let by_text = text.f_sub(&image)?.f_mul_scalar(text_scale)?;
                let by_image = image.f_sub(&neither)?.f_mul_scalar(image_scale)?;
                Ok(neither.f_add(&by_text)?.f_add(&by_image)?)
            }
        }
    }
}

/// What an inpainting with an ordinary denoiser keeps of the source.
#[derive(Debug)]
pub struct Keep {
    /// (1, 1, h, w): 1 is painted anew.
    pub mask: Tensor,
    /// (1, C, h, w)
    pub source: Tensor,
    pub normal: Tensor,
}

impl Keep {
    /// `latents` within the mask, and the source around it, as noisy as the next step wants it; clean after the last.
    pub fn around(&self, latents: &Tensor, next: Option<Level>) -> Result<Tensor, TorchError> {
        let Self { mask, source, normal } = self;
        let proper = match next {
            Some(level) => super::latents::mix(level, source, normal)?,
            None => source.shallow_clone(),
        };
        let around = mask.f_neg()?.f_add_scalar(1.0)?.f_mul(&proper)?;
        Ok(around.f_add(&mask.f_mul(latents)?)?)
    }
}

/// A control picture.
#[derive(Debug)]
pub struct Hint {
    /// (1, 3, H, W) from 0 to 1.
    pub picture: Tensor,
    pub kind: i64,
    pub scale: f64,
}

/// What holds for all steps. Rows are the guidance's.
pub struct UNetConditions {
    pub parts: Rc<UNetParts>,
    pub guidance: Guidance,
    /// (rows, L, D)
    pub embeds: Tensor,
    pub added: Option<Added>,
    /// (rows, C, h, w), after the latents' channels.
    pub extra: Option<Tensor>,
    pub hint: Option<Hint>,
    pub keep: Option<Keep>,
}

impl Conditions for UNetConditions {
    fn denoiser<'a>(&'a self, stage: &mut Stage<'_, '_>) -> Result<Box<dyn Denoiser + 'a>, JobError> {
        let unet = self.parts.load_unet(stage)?;
        let control = self.parts.load_control(stage)?;
        Ok(Box::new(UNetDenoiser { conditions: self, unet, control }))
    }

    fn keep(&self, latents: Tensor, next: Option<Level>) -> Result<Tensor, TorchError> {
        match &self.keep {
            Some(keep) => keep.around(&latents, next),
            None => Ok(latents),
        }
    }
}

struct UNetDenoiser<'a> {
    conditions: &'a UNetConditions,
    unet: Rc<UNet2DCondition>,
    control: Option<LoadedControl>,
}

impl Denoiser for UNetDenoiser<'_> {
    fn predict(&mut self, latents: &Tensor, step: &Step, batched: bool) -> Result<Tensor, TorchError> {
        let conditions = self.conditions;
        let scaled = latents.f_mul_scalar(step.input_scale)?.f_to_kind(conditions.embeds.f_kind()?)?;
        conditions.guidance.ask(batched, |first, rows| self.forward(&scaled, step, first, rows))
    }
}

impl UNetDenoiser<'_> {
    /// Rows `first` to `first + rows`.
    fn forward(&self, scaled: &Tensor, step: &Step, first: i64, rows: i64) -> Result<Tensor, TorchError> {
        let given = self.conditions;
        let rows_of = |tensor: &Tensor| tensor.f_narrow(0, first, rows);
        let sample = if rows == 1 { scaled.shallow_clone() } else { scaled.f_repeat([rows, 1, 1, 1])? };
        let embeds = rows_of(&given.embeds)?;
        let added = match &given.added {
            None => None,
            Some(added) => {
                Some(Added { text_embeds: rows_of(&added.text_embeds)?, time_ids: rows_of(&added.time_ids)? })
            }
        };
        let mut conditions = unet::Conditions { added: added.as_ref(), ..unet::Conditions::text(&embeds) };
        let residuals = self.residuals(&sample, step, &conditions)?;
        conditions.residuals = residuals.as_ref();
        let sample = match &given.extra {
            None => sample,
            Some(extra) => Tensor::f_cat(&[sample, rows_of(extra)?], 1)?,
        };
        self.unet.forward(&sample, step.timestep, &conditions)
    }

    fn residuals(
        &self,
        sample: &Tensor,
        step: &Step,
        conditions: &unet::Conditions<'_>,
    ) -> Result<Option<ControlResiduals>, TorchError> {
        let (Some(control), Some(hint)) = (&self.control, &self.conditions.hint) else { return Ok(None) };
        Ok(Some(match control {
            LoadedControl::Single(network) => {
                network.forward(sample, step.timestep, conditions, &hint.picture, hint.scale)?
            }
            LoadedControl::Union(network) => {
                let hint = UnionHint { picture: &hint.picture, kind: hint.kind, scale: hint.scale };
                network.forward(sample, step.timestep, conditions, &[hint])?
            }
        }))
    }
}
