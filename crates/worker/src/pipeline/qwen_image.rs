//! Qwen-Image: pictures from text, from a picture and text, or within a mask.
//!
//! *Source*: diffusers 0.42.1, `pipelines/qwenimage/pipeline_qwenimage{,_img2img,_inpaint}.py`.

use std::{any::Any, rc::Rc};

use atelier_domain::Params;
use atelier_sampling::{Options, Sampler, SchedulerConfig};

use super::{
    Beginning, Blueprint, Defaults, Geometry, Mode, Pipeline, Stage, Task, Text, Vae,
    qwen_image_parts::{GUIDANCE_SCALE, QwenImageParts, STEPS, STRENGTH, Shown, Template},
    task::makes_pictures,
};
use crate::{diffusion::card::Card, error::JobError, noise::Noise};

/// The wording is what the model was trained with; its tokens up to the prompt are left out.
const TEMPLATE: Template = Template {
    before: "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, \
             spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n",
    after: "<|im_end|>\n<|im_start|>assistant\n",
    dropped: 34,
    kept: Some(512),
};

pub struct QwenImage {
    parts: Rc<QwenImageParts>,
}

impl QwenImage {
    /// # Errors
    /// See [`QwenImageParts::read`].
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        Ok(Self { parts: Rc::new(QwenImageParts::read(blueprint, false)?) })
    }
}

impl Pipeline for QwenImage {
    fn defaults(&self) -> Defaults {
        Defaults { steps: STEPS, guidance_scale: GUIDANCE_SCALE, image_guidance_scale: 1.0, strength: STRENGTH }
    }

    fn vae(&self) -> &dyn Vae {
        &self.parts.vae
    }

    fn geometry(&self, card: &Card) -> Geometry {
        self.parts.geometry(card)
    }

    fn check(&self, blueprint: &Blueprint, mode: Mode, params: &Params) -> Result<(), JobError> {
        makes_pictures(blueprint, mode)?;
        QwenImageParts::check(params)
    }

    fn has_true_cfg_alone(&self) -> bool {
        true
    }

    fn has_step_cache(&self) -> bool {
        true
    }

    fn sampling(&self, task: &Task, _scheduler: &SchedulerConfig, options: &mut Options) {
        self.parts.sampling(task, options);
    }

    fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        self.parts.load_all(stage)
    }

    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        self.parts.encode_text(stage, TEMPLATE, "", &[])
    }

    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        self.parts.begin(stage, text, Shown::Nothing, sampler, noise)
    }
}
