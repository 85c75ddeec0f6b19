//! Pipelines: how a family gets from a text and pictures to latents, what its denoiser sees at each step, and back to a
//! picture. One file for each family; the line in [`read`] is all that the rest knows of it.
//!
//! The loop over the steps, checkpoints and files are [`crate::diffusion`]'s. Nothing here knows protocols or folders of
//! jobs.

pub mod aura_flow;
pub mod autoencoder;
pub mod blueprint;
pub mod flux;
pub mod flux_fill;
pub mod flux_kontext;
pub mod instruct_pix2pix;
pub mod latents;
pub mod qwen_image;
pub mod qwen_image_edit;
pub mod qwen_image_parts;
pub mod size;
pub mod stable_diffusion;
pub mod stable_diffusion_3;
pub mod stable_diffusion_xl;
pub mod stage;
pub mod t5;
pub mod task;
pub mod text;
pub mod unet_conditions;
pub mod unet_parts;

use std::{any::Any, rc::Rc};

use atelier_domain::{Params, model::Family};
use atelier_sampling::{Level, Options, Sampler, SchedulerConfig, Step};
use tch::{Device, Kind, Tensor};

pub use self::{
    autoencoder::Autoencoder,
    blueprint::Blueprint,
    latents::LatentSpace,
    size::{Geometry, Size},
    stage::{Loras, Stage},
    task::{Brought, Mode, Task},
    text::Text,
    unet_conditions::{Guidance, Keep, UNetConditions},
    unet_parts::UNetParts,
};
use crate::{
    diffusion::{card::Card, colors::Colors, pixels::Rgb},
    error::JobError,
    nn::StepCaches,
    noise::Noise,
    torch::TorchError,
    weights::compute_kind,
};

/// What a family does where a job does not say.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub steps: u32,
    pub guidance_scale: f64,
    pub image_guidance_scale: f64,
    /// Of image to image.
    pub strength: f64,
}

/// A family's folder that was read: what its configurations say, and what is done with it.
///
/// The methods stand in the order in which a job calls them.
pub trait Pipeline {
    fn defaults(&self) -> Defaults;

    fn vae(&self) -> &dyn Vae;

    /// Sizes that the model can work in.
    fn geometry(&self, card: &Card) -> Geometry;

    /// The most pictures that a job may bring.
    fn most_pictures(&self) -> usize {
        1
    }

    /// Layers of the text encoder that `params.clip_skip` may take away; 0 where there is no such thing.
    fn clip_layers(&self) -> i64 {
        0
    }

    /// Whether a negative prompt guides beside a guidance that is distilled into the network.
    fn has_true_cfg(&self) -> bool {
        false
    }

    /// Whether that is the only guidance, so that `params.guidance_scale` and `params.true_cfg_scale` mean the same.
    fn has_true_cfg_alone(&self) -> bool {
        false
    }

    /// Whether the model can do this, and has a use for the parameters that are its alone.
    ///
    /// # Errors
    /// A parameter that it has no use for, by name.
    fn check(&self, _blueprint: &Blueprint, _mode: Mode, _params: &Params) -> Result<(), JobError> {
        Ok(())
    }

    /// The place in a `ControlNetUnion`'s list that `params.control_mode` means.
    ///
    /// # Errors
    /// The model has no use for it.
    fn control_kind(&self, params: &Params) -> Result<i64, JobError> {
        match params.control_mode {
            None => Ok(0),
            Some(_) => Err(task::refuse("control_mode", "is for a ControlNet Union")),
        }
    }

    /// The size that a job is worked at. `sources`: of the pictures that it brings, in their order.
    ///
    /// # Errors
    /// A size that the model cannot work in.
    fn size(&self, mode: Mode, sources: &[Size], params: &Params, card: &Card) -> Result<Size, JobError> {
        self.geometry(card).size(mode, sources.last().copied(), params)
    }

    /// Whether the denoiser can honour `params.step_cache`: see [`Denoiser::step_caches`].
    fn has_step_cache(&self) -> bool {
        false
    }

    /// Whether the denoiser can leave blocks out, for [`Task::skip_layer_guidance`].
    fn has_skip_layers(&self) -> bool {
        false
    }

    /// Whether [`Task::sources`] is wanted.
    fn reads_sources(&self) -> bool {
        false
    }

    /// What the sampler is to know of the job.
    fn sampling(&self, _task: &Task, _scheduler: &SchedulerConfig, _options: &mut Options) {}

    /// Loads every part, so that the first step comes without a pause. The parts stay loaded as long as the answer is
    /// kept.
    fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError>;

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

/// How pictures become latents, and latents pictures.
pub trait Vae {
    fn space(&self) -> LatentSpace;

    /// How latents look, where that is known without a picture.
    fn colors(&self) -> Option<Colors>;

    /// The most probable latents (1, C, h, w) of a picture, as the denoiser would have them, in f32.
    fn latents_of(&self, stage: &mut Stage<'_, '_>, picture: &Rgb) -> Result<Tensor, JobError>;

    /// Latents (1, C, h, w) drawn from the posterior of a picture (1, 3, H, W) from -1 to 1, as the denoiser would have
    /// them, in f32.
    fn sample(&self, stage: &mut Stage<'_, '_>, pixels: &Tensor, noise: &mut Noise) -> Result<Tensor, JobError>;

    /// The picture of finished latents, (1, 3, H, W) from 0 to 1 in f32 on the CPU.
    fn decode(&self, stage: &mut Stage<'_, '_>, latents: &Tensor, tiling: Option<bool>) -> Result<Tensor, JobError>;
}

/// Latents (1, C, h, w) in f32 on the device, and what holds for all steps.
pub struct Beginning {
    pub latents: Tensor,
    pub conditions: Box<dyn Conditions>,
}

/// What holds for all steps of one picture.
pub trait Conditions {
    /// Loads what answers at each step.
    fn denoiser<'a>(&'a self, stage: &mut Stage<'_, '_>) -> Result<Box<dyn Denoiser + 'a>, JobError>;

    /// Changes the latents after a step, as an inpainting does that keeps what is around the mask. `next`: how noisy
    /// the step after wants them; `None` after the last.
    fn keep(&self, latents: Tensor, _next: Option<Level>) -> Result<Tensor, TorchError> {
        Ok(latents)
    }
}

/// A loaded denoiser with its conditions.
pub trait Denoiser {
    /// What the model answers for `latents` (1, C, h, w) at `step`, after guidance, in f32. `batched`: all rows of the
    /// guidance at once, which is quicker and takes more memory.
    fn predict(&mut self, latents: &Tensor, step: &Step, batched: bool) -> Result<Tensor, TorchError>;

    /// What it remembers from step to step, which a checkpoint keeps.
    fn step_caches(&self) -> Option<&StepCaches> {
        None
    }
}

/// What the networks of a family are computed in: f32 on a CPU. Those that came after Stable Diffusion XL were trained
/// in bfloat16 and leave the range of f16.
pub fn kind_of(family: Family, device: Device) -> Kind {
    if device == Device::Cpu {
        return Kind::Float;
    }
    let is_early = matches!(
        family,
        Family::StableDiffusion
            | Family::StableDiffusionInpaint
            | Family::InstructPix2Pix
            | Family::StableDiffusionXl
            | Family::StableDiffusionXlInpaint
            | Family::StableDiffusionXlControlNet
            | Family::StableDiffusionXlControlNetUnion
            | Family::ControlNet
            | Family::ControlNetUnion
    );
    compute_kind(device, if is_early { Kind::Half } else { Kind::BFloat16 })
}

/// Reads what the folder of a diffusion model says; `None` for what is none.
///
/// # Errors
/// A file that is missing or makes no sense, parts that do not fit each other.
pub fn read(blueprint: &Blueprint) -> Result<Option<Box<dyn Pipeline>>, JobError> {
    Ok(Some(match blueprint.model.family {
        Family::StableDiffusion | Family::StableDiffusionInpaint => {
            Box::new(stable_diffusion::StableDiffusion::read(blueprint)?)
        }
        Family::InstructPix2Pix => Box::new(instruct_pix2pix::InstructPix2Pix::read(blueprint)?),
        Family::StableDiffusionXl
        | Family::StableDiffusionXlInpaint
        | Family::StableDiffusionXlControlNet
        | Family::StableDiffusionXlControlNetUnion
        | Family::ControlNet
        | Family::ControlNetUnion => Box::new(stable_diffusion_xl::StableDiffusionXl::read(blueprint)?),
        Family::StableDiffusion3 => Box::new(stable_diffusion_3::StableDiffusion3::read(blueprint)?),
        Family::AuraFlow => Box::new(aura_flow::AuraFlow::read(blueprint)?),
        Family::Flux => Box::new(flux::Flux::read(blueprint)?),
        Family::FluxFill => Box::new(flux_fill::FluxFill::read(blueprint)?),
        Family::FluxKontext => Box::new(flux_kontext::FluxKontext::read(blueprint)?),
        Family::QwenImage => Box::new(qwen_image::QwenImage::read(blueprint)?),
        Family::QwenImageEdit | Family::QwenImageEditPlus => Box::new(qwen_image_edit::QwenImageEdit::read(blueprint)?),
        Family::LlavaNext
        | Family::Blip2
        | Family::Qwen2Vl
        | Family::Qwen25Vl
        | Family::Span
        | Family::UpConv7
        | Family::Lora
        | Family::Fake => return Ok(None),
    }))
}
