//! Qwen-Image-Edit, also within a mask, and -Edit-Plus (2509, 2511), which takes one to three pictures.
//!
//! *Source*: diffusers 0.42.1, `pipelines/qwenimage/pipeline_qwenimage_edit{,_inpaint,_plus}.py`.

use std::{any::Any, fmt::Write as _, rc::Rc};

use atelier_domain::{ErrorCode, Params, model::Family};
use atelier_sampling::{Options, Sampler, SchedulerConfig};

use super::{
    Beginning, Blueprint, Defaults, Geometry, Mode, Pipeline, Size, Stage, Task, Text, Vae,
    qwen_image_parts::{GUIDANCE_SCALE, QwenImageParts, STEPS, STRENGTH, Shown, Template, fitted},
};
use crate::{
    diffusion::{
        card::Card,
        pixels::{Rgb, side},
    },
    error::JobError,
    noise::Noise,
    vision_language::qwen2_vl::chat::IMAGE_PAD,
};

/// The wording is what the models were trained with; its tokens up to the pictures are left out.
const TEMPLATE: Template = Template {
    before: "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, \
             background), then explain how the user's text instruction should alter or modify the image. Generate a new \
             image that meets the user's requirements while maintaining consistency with the original input where \
             appropriate.<|im_end|>\n<|im_start|>user\n",
    after: "<|im_end|>\n<|im_start|>assistant\n",
    dropped: 64,
    kept: None,
};
/// A square of this side is the area in which the text encoder of -Edit-Plus sees pictures.
const CONDITION_SIDE: i64 = 384;
const MOST_PICTURES: usize = 3;

/// In what the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// One picture, which the text encoder sees as the denoiser does.
    Edit,
    /// Up to three, numbered, which the text encoder sees in fewer pixels.
    Plus,
}

pub struct QwenImageEdit {
    parts: Rc<QwenImageParts>,
    variant: Variant,
    /// Pixels in which the denoiser sees each picture.
    area: i64,
    /// Pixels in which the text encoder does.
    condition_area: i64,
}

impl QwenImageEdit {
    /// # Errors
    /// See [`QwenImageParts::read`].
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        let parts = Rc::new(QwenImageParts::read(blueprint, true)?);
        let area = parts.geometry(&blueprint.card).native.area();
        let condition = blueprint.card.condition_size.map_or(CONDITION_SIDE, i64::from);
        let is_plus = blueprint.model.family == Family::QwenImageEditPlus;
        Ok(Self {
            parts,
            variant: if is_plus { Variant::Plus } else { Variant::Edit },
            area,
            condition_area: if is_plus { condition * condition } else { area },
        })
    }

    /// The pictures in their own proportions, of about so many pixels.
    fn pictures(stage: &Stage<'_, '_>, area: i64) -> Result<Vec<Rgb>, JobError> {
        let one = |picture: &Rgb| {
            let wide = |side: usize| i64::try_from(side).unwrap_or(i64::MAX);
            let size = fitted(Size { width: wide(picture.width), height: wide(picture.height) }, area)?;
            Ok(picture.clone().resized(side(size.width), side(size.height)))
        };
        stage.task.sources.iter().map(one).collect()
    }

    /// What the text encoder reads before the prompt: a place for each picture.
    fn shown(&self, pictures: usize) -> String {
        let mut shown = String::new();
        for number in 1..=pictures {
            if self.variant == Variant::Plus {
                let _ = write!(shown, "Picture {number}: ");
            }
            let _ = write!(shown, "<|vision_start|>{IMAGE_PAD}<|vision_end|>");
        }
        shown
    }
}

impl Pipeline for QwenImageEdit {
    fn defaults(&self) -> Defaults {
        Defaults { steps: STEPS, guidance_scale: GUIDANCE_SCALE, image_guidance_scale: 1.0, strength: STRENGTH }
    }

    fn vae(&self) -> &dyn Vae {
        &self.parts.vae
    }

    fn geometry(&self, card: &Card) -> Geometry {
        self.parts.geometry(card)
    }

    fn most_pictures(&self) -> usize {
        match self.variant {
            Variant::Edit => 1,
            Variant::Plus => MOST_PICTURES,
        }
    }

    fn check(&self, blueprint: &Blueprint, mode: Mode, params: &Params) -> Result<(), JobError> {
        let (what, hint) = match (self.variant, mode) {
            (_, Mode::Instruct) | (Variant::Edit, Mode::Inpaint) => return QwenImageParts::check(params),
            (Variant::Edit, _) => ("edits a picture by instruction, as a whole or within a mask", "edit or inpaint"),
            (Variant::Plus, _) => ("edits pictures by instruction", "edit"),
        };
        Err(JobError::refused(
            ErrorCode::KindNotSupported,
            format!("{} {what}", blueprint.model.id),
            format!("Ask for {hint}, or choose another model."),
        ))
    }

    fn size(&self, _mode: Mode, sources: &[Size], params: &Params, card: &Card) -> Result<Size, JobError> {
        for source in sources {
            fitted(*source, self.condition_area)?;
        }
        self.parts.edit_size(sources, params, card)
    }

    fn reads_sources(&self) -> bool {
        true
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
        let pictures = Self::pictures(stage, self.condition_area)?;
        self.parts.encode_text(stage, TEMPLATE, &self.shown(pictures.len()), &pictures)
    }

    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        if stage.task.mode == Mode::Inpaint {
            return self.parts.begin(stage, text, Shown::Source, sampler, noise);
        }
        let pictures = Self::pictures(stage, self.area)?;
        self.parts.begin(stage, text, Shown::Pictures(&pictures), sampler, noise)
    }
}
