//! Pipelines: how a family gets from a text and pictures to latents, what its denoiser sees at each step, and back to a
//! picture. One file for each family; the line in [`of`] is all that the rest knows of it.
//!
//! The loop over the steps, checkpoints and files are [`crate::diffusion`]'s. Nothing here knows protocols or folders of
//! jobs.

pub mod blueprint;
pub mod conditions;
pub mod instruct_pix2pix;
pub mod latents;
pub mod stable_diffusion;
pub mod stable_diffusion_xl;
pub mod stage;
pub mod task;
pub mod text;

use atelier_domain::model::Family;
use atelier_sampling::Sampler;

pub use self::{
    blueprint::{Blueprint, ControlBlueprint, Size},
    conditions::{Conditions, Guidance, Keep},
    stage::{Loras, Stage},
    task::{Brought, Mode, Task},
    text::Text,
};
use crate::{error::JobError, noise::Noise};

/// What a family does where a job does not say.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub steps: u32,
    pub guidance_scale: f64,
    pub image_guidance_scale: f64,
    /// Of image to image.
    pub strength: f64,
}

/// One family.
pub trait Pipeline: Sync {
    fn defaults(&self) -> Defaults;

    /// The prompts as the denoiser takes them. Asked once for all pictures of a job.
    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError>;

    /// Where the denoising of one picture begins, and under which conditions. Draws from `noise` what diffusers' own
    /// pipeline draws, in its order.
    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError>;
}

/// Latents (1, C, h, w) in f32 on the device, and what holds for all steps.
#[derive(Debug)]
pub struct Beginning {
    pub latents: tch::Tensor,
    pub conditions: Conditions,
}

/// The pipeline of a family; `None` for what is none.
pub fn of(family: Family) -> Option<&'static dyn Pipeline> {
    match family {
        Family::StableDiffusion | Family::StableDiffusionInpaint => Some(&stable_diffusion::StableDiffusion),
        Family::InstructPix2Pix => Some(&instruct_pix2pix::InstructPix2Pix),
        Family::StableDiffusionXl
        | Family::StableDiffusionXlInpaint
        | Family::StableDiffusionXlControlNet
        | Family::StableDiffusionXlControlNetUnion
        | Family::ControlNet
        | Family::ControlNetUnion => Some(&stable_diffusion_xl::StableDiffusionXl),
        Family::Span | Family::UpConv7 | Family::Lora | Family::Fake => None,
    }
}
