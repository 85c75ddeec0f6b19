//! AuraFlow, and Pony V7, whose folder is of the same kind: pictures from a text.
//!
//! *Source*: fal, AuraFlow, and diffusers 0.42.1, `pipelines/aura_flow/pipeline_aura_flow.py`.

use std::{any::Any, rc::Rc};

use atelier_domain::{ErrorCode, Params};
use atelier_sampling::{Options, Sampler, SchedulerConfig, Shift, Step};
use tch::{Kind, Tensor};

use super::{
    Autoencoder, Beginning, Blueprint, Conditions, Defaults, Denoiser, Geometry, Guidance, Mode, Pipeline, Size, Stage,
    Task, Text, Vae,
    stable_diffusion::{classifier, rows},
    stable_diffusion_3::within,
    t5::T5Blueprint,
    task::refuse,
    text::Negative,
};
use crate::{
    diffusion::card::Card,
    error::JobError,
    lora::Component,
    models::ModelError,
    nn::StepCaches,
    noise::Noise,
    torch::TorchError,
    transformer::{AuraFlowConfig, AuraFlowTransformer, patches::PATCH},
    weights::Weights,
};

/// Tokens of a text, with all padding.
const TOKENS: usize = 256;
/// What diffusers makes where nobody says a size; the first version has no places for as much.
const NATIVE: i64 = 1024;

pub struct AuraFlow {
    parts: Rc<Parts>,
}

/// What the folder says of its parts.
struct Parts {
    text: T5Blueprint,
    transformer: AuraFlowConfig,
    vae: Autoencoder,
}

impl AuraFlow {
    /// # Errors
    /// A configuration that is missing or says what is not computed, or parts that do not fit each other.
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        let config = blueprint.folder("transformer/config.json");
        let parts = Parts {
            text: T5Blueprint::read(blueprint, "text_encoder")?,
            transformer: AuraFlowConfig::open(&config).map_err(ModelError::from)?,
            vae: Autoencoder::read(blueprint)?,
        };
        let wrong = |detail: String| Err(blueprint.wrong("transformer/config.json", detail));
        let (transformer, latent) = (&parts.transformer, parts.vae.config.latent_channels);
        if transformer.in_channels != latent || transformer.out_channels != latent {
            let (inputs, outputs) = (transformer.in_channels, transformer.out_channels);
            return wrong(format!(
                "in_channels is {inputs} and out_channels {outputs}, which does not go with latents of {latent} channels"
            ));
        }
        let (joint, width) = (transformer.joint_attention_dim, parts.text.config.d_model);
        if joint != width {
            return wrong(format!("joint_attention_dim is {joint}, and text_encoder gives {width}"));
        }
        Ok(Self { parts: Rc::new(parts) })
    }
}

impl Parts {
    fn load_transformer(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<AuraFlowTransformer>, JobError> {
        let load = |weights: &Weights| AuraFlowTransformer::load(weights, &self.transformer);
        stage.part("transformer", &[], Some(Component::Denoiser), load)
    }

    /// Pixels for one patch.
    fn unit(&self) -> i64 {
        self.vae.space().downscale * PATCH
    }

    /// The longest side that the transformer has places for.
    fn longest(&self) -> i64 {
        self.transformer.pos_embed_side * self.unit()
    }

    /// A text's tokens (1, 256, D), zero where there are none.
    fn encode(&self, stage: &mut Stage<'_, '_>, text: &str) -> Result<Tensor, JobError> {
        let encoder = self.text.load(stage)?;
        let encoded = self.text.tokens(stage, text, TOKENS)?;
        let row = |numbers: &[i64]| {
            let row = Tensor::f_from_slice(numbers).and_then(|row| row.f_unsqueeze(0)?.f_to_device(stage.device()));
            row.map_err(TorchError::from)
        };
        let (ids, mask) = (row(&encoded.ids)?, row(&encoded.mask)?);
        let hidden = encoder.forward(&ids, Some(&mask))?;
        Ok(hidden.f_mul(&mask.f_unsqueeze(-1).map_err(TorchError::from)?).map_err(TorchError::from)?)
    }
}

impl Pipeline for AuraFlow {
    fn defaults(&self) -> Defaults {
        Defaults { steps: 50, guidance_scale: 3.5, image_guidance_scale: 1.0, strength: 1.0 }
    }

    fn vae(&self) -> &dyn Vae {
        &self.parts.vae
    }

    fn geometry(&self, card: &Card) -> Geometry {
        let unit = self.parts.unit();
        let native = Size::square(card.size.map_or(NATIVE.min(self.parts.longest()), i64::from));
        Geometry { multiple: unit, unit, native, most_pixels: native.area(), shortest: unit }
    }

    fn has_step_cache(&self) -> bool {
        true
    }

    fn check(&self, blueprint: &Blueprint, mode: Mode, params: &Params) -> Result<(), JobError> {
        if params.prompt_weighting == Some(true) {
            return Err(refuse("prompt_weighting", "is for models whose denoiser reads CLIP's tokens alone"));
        }
        match mode {
            Mode::Text => Ok(()),
            Mode::Image | Mode::Inpaint | Mode::Instruct | Mode::Control => Err(JobError::refused(
                ErrorCode::KindNotSupported,
                format!("{} makes pictures from a text alone", blueprint.model.id),
                "Leave out the picture, or choose another model.",
            )),
        }
    }

    fn size(&self, mode: Mode, sources: &[Size], params: &Params, card: &Card) -> Result<Size, JobError> {
        let size = self.geometry(card).size(mode, sources.last().copied(), params)?;
        within(size, self.parts.longest())?;
        Ok(size)
    }

    fn sampling(&self, task: &Task, _scheduler: &SchedulerConfig, options: &mut Options) {
        let patches = task.size.area() / self.parts.unit().pow(2);
        options.shift = Some(Shift::SequenceLength(usize::try_from(patches).unwrap_or(usize::MAX)));
    }

    fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        let text = self.parts.text.load(stage)?;
        let transformer = self.parts.load_transformer(stage)?;
        Ok(vec![text, transformer, self.parts.vae.load(stage)?])
    }

    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        let task = stage.task;
        let embeds = self.parts.encode(stage, &task.prompt)?;
        let negative = match classifier(stage) {
            Guidance::None | Guidance::Instruct { .. } => None,
            Guidance::Classifier { .. } => {
                let text = task.negative_prompt.as_deref().unwrap_or_default();
                Some(Negative { embeds: self.parts.encode(stage, text)?, pooled: None })
            }
        };
        Ok(Text { embeds, pooled: None, negative })
    }

    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        let guidance = classifier(stage);
        let latents = self.parts.vae.space().normal(stage, noise)?.f_mul_scalar(sampler.init_noise_sigma());
        let embeds = rows(guidance, &text.embeds, text.negative_embeds())?.f_to_kind(stage.kind());
        let embeds = embeds.map_err(TorchError::from)?;
        let conditions = Given { parts: self.parts.clone(), guidance, embeds, step_cache: stage.task.step_cache };
        Ok(Beginning { latents: latents.map_err(TorchError::from)?, conditions: Box::new(conditions) })
    }
}

/// What holds for all steps. Rows are the guidance's.
struct Given {
    parts: Rc<Parts>,
    guidance: Guidance,
    /// (rows, L, D)
    embeds: Tensor,
    step_cache: Option<f64>,
}

impl Conditions for Given {
    fn denoiser<'a>(&'a self, stage: &mut Stage<'_, '_>) -> Result<Box<dyn Denoiser + 'a>, JobError> {
        let rows = usize::try_from(self.guidance.rows()).unwrap_or(1);
        let caches = self.step_cache.map(|threshold| StepCaches::new(threshold, rows));
        Ok(Box::new(AuraFlowDenoiser { given: self, transformer: self.parts.load_transformer(stage)?, caches }))
    }
}

struct AuraFlowDenoiser<'a> {
    given: &'a Given,
    transformer: Rc<AuraFlowTransformer>,
    caches: Option<StepCaches>,
}

impl Denoiser for AuraFlowDenoiser<'_> {
    fn predict(&mut self, latents: &Tensor, step: &Step, batched: bool) -> Result<Tensor, TorchError> {
        let given = self.given;
        let scaled = latents.f_mul_scalar(step.input_scale)?.f_to_kind(given.embeds.f_kind()?)?;
        // Divided in f32, for the last bit.
        let timestep = Tensor::f_full([1], step.timestep, (Kind::Float, tch::Device::Cpu))?.f_div_scalar(1000.0)?;
        let timestep = timestep.f_double_value(&[0])?;
        given.guidance.ask(batched && self.caches.is_none(), |first, rows| {
            let embeds = given.embeds.f_narrow(0, first, rows)?;
            let row = usize::try_from(first).unwrap_or_default();
            let cache = self.caches.as_ref().and_then(|caches| caches.row(row));
            self.transformer.forward_cached(&scaled.f_repeat([rows, 1, 1, 1])?, timestep, &embeds, cache)
        })
    }

    fn step_caches(&self) -> Option<&StepCaches> {
        self.caches.as_ref()
    }
}
