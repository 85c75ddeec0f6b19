//! What the denoiser sees besides the latents, and guidance.

use atelier_sampling::{Level, Step};
use tch::{Kind, Tensor};

use super::stage::LoadedControl;
use crate::{
    controlnet::UnionHint,
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

    fn combine(self, output: &Tensor) -> Result<Tensor, TorchError> {
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

/// What an inpainting with an ordinary UNet keeps of the source.
#[derive(Debug)]
pub struct Keep {
    /// (1, 1, h, w): 1 is painted anew.
    pub mask: Tensor,
    /// (1, C, h, w)
    pub source: Tensor,
    pub normal: Tensor,
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
#[derive(Debug)]
pub struct Conditions {
    pub guidance: Guidance,
    /// (rows, L, D)
    pub embeds: Tensor,
    pub added: Option<Added>,
    /// (rows, C, h, w), after the latents' channels.
    pub extra: Option<Tensor>,
    pub hint: Option<Hint>,
    pub keep: Option<Keep>,
}

impl Conditions {
    /// What the model answers for `latents` (1, C, h, w) at `step`, after guidance, in f32. `batched`: all rows at
    /// once, which is quicker and takes more memory.
    pub fn predict(
        &self,
        unet: &UNet2DCondition,
        control: Option<&LoadedControl>,
        latents: &Tensor,
        step: &Step,
        batched: bool,
    ) -> Result<Tensor, TorchError> {
        let kind = self.embeds.f_kind()?;
        let scaled = latents.f_mul_scalar(step.input_scale)?.f_to_kind(kind)?;
        let rows = self.guidance.rows();
        let output = if batched || rows == 1 {
            self.forward(unet, control, &scaled, step, 0, rows)?
        } else {
            let one = |row| self.forward(unet, control, &scaled, step, row, 1);
            Tensor::f_cat(&(0..rows).map(one).collect::<Result<Vec<_>, _>>()?, 0)?
        };
        self.guidance.combine(&output.f_to_kind(Kind::Float)?)
    }

    /// Rows `first` to `first + rows`.
    fn forward(
        &self,
        unet: &UNet2DCondition,
        control: Option<&LoadedControl>,
        scaled: &Tensor,
        step: &Step,
        first: i64,
        rows: i64,
    ) -> Result<Tensor, TorchError> {
        let rows_of = |tensor: &Tensor| tensor.f_narrow(0, first, rows);
        let sample = if rows == 1 { scaled.shallow_clone() } else { scaled.f_repeat([rows, 1, 1, 1])? };
        let embeds = rows_of(&self.embeds)?;
        let added = match &self.added {
            None => None,
            Some(added) => {
                Some(Added { text_embeds: rows_of(&added.text_embeds)?, time_ids: rows_of(&added.time_ids)? })
            }
        };
        let mut conditions = unet::Conditions { added: added.as_ref(), ..unet::Conditions::text(&embeds) };
        let residuals = self.residuals(control, &sample, step, &conditions)?;
        conditions.residuals = residuals.as_ref();
        let sample = match &self.extra {
            None => sample,
            Some(extra) => Tensor::f_cat(&[sample, rows_of(extra)?], 1)?,
        };
        unet.forward(&sample, step.timestep, &conditions)
    }

    fn residuals(
        &self,
        control: Option<&LoadedControl>,
        sample: &Tensor,
        step: &Step,
        conditions: &unet::Conditions<'_>,
    ) -> Result<Option<ControlResiduals>, TorchError> {
        let (Some(control), Some(hint)) = (control, &self.hint) else { return Ok(None) };
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

    /// Puts the source back around the mask, as noisy as the next step wants it; clean after the last.
    pub fn keep(&self, latents: Tensor, next: Option<Level>) -> Result<Tensor, TorchError> {
        let Some(Keep { mask, source, normal }) = &self.keep else { return Ok(latents) };
        let proper = match next {
            Some(level) => super::latents::mix(level, source, normal)?,
            None => source.shallow_clone(),
        };
        let around = mask.f_neg()?.f_add_scalar(1.0)?.f_mul(&proper)?;
        Ok(around.f_add(&mask.f_mul(&latents)?)?)
    }
}
