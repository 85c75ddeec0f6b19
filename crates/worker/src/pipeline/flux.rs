//! FLUX.1 dev and schnell: pictures from a text, from a picture and a text, or within a mask.
//!
//! The transformer sees latents as a sequence of 2 x 2 patches. Guidance is a condition that was distilled into it (dev),
//! or there is none (schnell); `true_cfg_scale` guides by a negative prompt besides, at twice the work.
//!
//! *Source*: Black Forest Labs, FLUX.1, and diffusers 0.42.1, `pipelines/flux/pipeline_flux{,_img2img,_inpaint}.py`.

use std::{any::Any, rc::Rc};

use atelier_domain::Params;
use atelier_sampling::{Level, Options, Sampler, SchedulerConfig, Shift, Step};
use tch::{Kind, Tensor};

use super::{
    Autoencoder, Beginning, Blueprint, Conditions, Defaults, Denoiser, Geometry, Guidance, Keep, LatentSpace, Mode,
    Pipeline, Size, Stage, Task, Text, Vae,
    blueprint::TextBlueprint,
    stable_diffusion::{rows, start},
    t5::T5Blueprint,
    task::{makes_pictures, refuse},
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
    transformer::{
        FluxConfig, FluxTransformer, Rope,
        flux::FluxConditions,
        patches::{self, PATCH},
    },
    weights::Weights,
};

/// The side in latents for which the model was made.
const NATIVE: i64 = 128;
/// Tokens of a text, with all padding: of the network with a distilled guidance, and of the one without.
const TOKENS: [usize; 2] = [512, 256];

pub struct Flux {
    parts: Rc<FluxParts>,
}

impl Flux {
    /// # Errors
    /// See [`FluxParts::read`].
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        Ok(Self { parts: Rc::new(FluxParts::read(blueprint, |_| 0)?) })
    }
}

/// What the folder says of its parts.
pub struct FluxParts {
    clip: TextBlueprint,
    t5: T5Blueprint,
    transformer: FluxConfig,
    pub vae: Autoencoder,
}

impl FluxParts {
    /// `extra`: features of a token beside the patch's own, from what the VAE says.
    ///
    /// # Errors
    /// A configuration that is missing or says what is not computed, or parts that do not fit each other.
    pub fn read(blueprint: &Blueprint, extra: impl Fn(LatentSpace) -> i64) -> Result<Self, JobError> {
        let transformer = FluxConfig::open(&blueprint.folder("transformer/config.json")).map_err(ModelError::from)?;
        let parts = Self {
            clip: TextBlueprint::read(blueprint, "text_encoder", false)?,
            t5: T5Blueprint::read(blueprint, "text_encoder_2")?,
            transformer,
            vae: Autoencoder::read(blueprint)?,
        };
        parts.fit(blueprint, extra(parts.space()))?;
        Ok(parts)
    }

    /// Whether the parts fit each other.
    fn fit(&self, blueprint: &Blueprint, extra: i64) -> Result<(), JobError> {
        let transformer = &self.transformer;
        let patch = PATCH * PATCH * self.vae.config.latent_channels;
        for (key, found, wanted, of) in [
            ("in_channels", transformer.in_channels, patch + extra, "a token of this pipeline has"),
            ("out_channels", transformer.out_channels, patch, "a patch of the VAE's latents has"),
            ("joint_attention_dim", transformer.joint_attention_dim, self.t5.config.d_model, "text_encoder_2 gives"),
            (
                "pooled_projection_dim",
                transformer.pooled_projection_dim,
                self.clip.config.hidden_size,
                "text_encoder gives",
            ),
        ] {
            if found != wanted {
                return Err(blueprint.wrong("transformer/config.json", format!("{key} is {found}, and {of} {wanted}")));
            }
        }
        Ok(())
    }

    /// Guidance as a condition of the network.
    fn distilled(&self, task: &Task) -> Option<f64> {
        self.transformer.guidance_embeds.then_some(task.guidance_scale)
    }

    /// What is asked for needs what the network has.
    ///
    /// # Errors
    /// A parameter that has no use here, by name.
    pub fn check(&self, params: &Params) -> Result<(), JobError> {
        if params.prompt_weighting == Some(true) {
            return Err(refuse(
                "prompt_weighting",
                "is for models whose denoiser reads CLIP's tokens, and this one reads T5's",
            ));
        }
        if params.true_cfg_scale.is_some_and(|scale| scale > 1.0) && params.negative_prompt.is_none() {
            return Err(refuse("true_cfg_scale", "guides away from a negative prompt, and none was given"));
        }
        Ok(())
    }

    pub fn space(&self) -> LatentSpace {
        self.vae.space()
    }

    /// Sides are whole patches; diffusers cuts them down to that, here they are refused where a job says them.
    pub fn geometry(&self, card: &Card) -> Geometry {
        let unit = PATCH * self.space().downscale;
        let native = Size::square(card.size.map_or(NATIVE * self.space().downscale, i64::from));
        Geometry { multiple: unit, unit, native, most_pixels: native.area(), shortest: unit }
    }

    /// How many patches the job's picture has decides how far the noise levels are shifted.
    pub fn sampling(&self, task: &Task, options: &mut Options) {
        let patches = task.size.area() / (PATCH * self.space().downscale).pow(2);
        options.sigmas = Some(Options::flow_sigmas(options.steps));
        options.shift = Some(Shift::SequenceLength(usize::try_from(patches).unwrap_or(usize::MAX)));
    }

    pub fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        let clip = self.clip.load(stage)?;
        let t5 = self.t5.load(stage)?;
        let transformer = self.load_transformer(stage)?;
        Ok(vec![clip, t5, transformer, self.vae.load(stage)?])
    }

    fn load_transformer(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<FluxTransformer>, JobError> {
        let load = |weights: &Weights| FluxTransformer::load(weights, &self.transformer);
        stage.part("transformer", &[], Some(Component::Denoiser), load)
    }

    /// T5's hidden states, and CLIP's pooled text.
    pub fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        let task = stage.task;
        let (embeds, pooled) = self.encode(stage, &task.prompt)?;
        let negative = match (&task.negative_prompt, true_cfg(task)) {
            (Some(negative), Guidance::Classifier { .. }) => {
                let (embeds, pooled) = self.encode(stage, negative)?;
                Some(Negative { embeds, pooled: Some(pooled) })
            }
            (Some(_), _) => {
                stage.note("The negative prompt has no effect without a true_cfg_scale above 1.".into());
                None
            }
            (None, _) => None,
        };
        Ok(Text { embeds, pooled: Some(pooled), negative })
    }

    fn encode(&self, stage: &mut Stage<'_, '_>, text: &str) -> Result<(Tensor, Tensor), JobError> {
        let [most, few] = TOKENS;
        let embeds = self.t5.encode(stage, text, if self.transformer.guidance_embeds { most } else { few })?;
        let context = self.clip.context();
        let encoded = self.clip.tokenizer.encode_to(text, context).map_err(ModelError::from)?;
        if encoded.dropped > 0 {
            stage.note(format!("CLIP has seen the first {context} tokens of the text; T5 reads on."));
        }
        let encoder = self.clip.load(stage)?;
        let ids = Tensor::f_from_slice(&encoded.ids).and_then(|ids| ids.f_unsqueeze(0)?.f_to_device(stage.device()));
        Ok((embeds, encoder.forward(&ids.map_err(TorchError::from)?)?.pooled))
    }

    /// Where the denoising begins, with what the transformer sees.
    pub fn begin(
        self: &Rc<Self>,
        stage: &Stage<'_, '_>,
        text: &Text,
        latents: &Tensor,
        beside: Beside,
    ) -> Result<Beginning, TorchError> {
        let guidance = true_cfg(stage.task);
        let kind = stage.kind();
        let pooled = text.pooled.as_ref().unwrap_or(&text.embeds);
        let negative = text.negative.as_ref().and_then(|negative| negative.pooled.as_ref()).unwrap_or(pooled);
        let mut positions = patches_of(latents, 0)?;
        if let Some(source) = &beside.source {
            positions = Tensor::f_cat(&[positions, patches_of(source, 1)?], 0)?;
        }
        let packed = |latents: &Tensor| Ok::<_, TorchError>(patches::pack(latents)?.f_to_kind(kind)?);
        let conditions = FluxTokens {
            parts: self.clone(),
            guidance,
            embeds: rows(guidance, &text.embeds, text.negative_embeds())?.f_to_kind(kind)?,
            pooled: rows(guidance, pooled, negative)?.f_to_kind(kind)?,
            distilled: self.distilled(stage.task),
            extra: beside.extra.as_ref().map(packed).transpose()?,
            context: beside.source.as_ref().map(packed).transpose()?,
            positions,
            keep: beside.keep,
            step_cache: stage.task.step_cache,
        };
        Ok(Beginning { latents: latents.f_to_kind(Kind::Float)?, conditions: Box::new(conditions) })
    }
}

/// What there is beside the latents that are denoised.
#[derive(Debug, Default)]
pub struct Beside {
    /// More channels of the same latents, (1, E, h, w).
    pub extra: Option<Tensor>,
    /// Latents of a picture to look at, (1, C, h', w').
    pub source: Option<Tensor>,
    /// Of a picture that is painted anew in part.
    pub keep: Option<Keep>,
}

fn patches_of(latents: &Tensor, first: i64) -> Result<Tensor, TorchError> {
    let (_, _, height, width) = latents.size4()?;
    patches::positions(height, width, first)
}

/// Guidance by the negative prompt, where there is one and its scale is above 1.
fn true_cfg(task: &Task) -> Guidance {
    match &task.negative_prompt {
        Some(_) if task.true_cfg_scale > 1.0 => Guidance::Classifier { scale: task.true_cfg_scale },
        Some(_) | None => Guidance::None,
    }
}

impl Pipeline for Flux {
    fn defaults(&self) -> Defaults {
        let (steps, guidance_scale) = if self.parts.transformer.guidance_embeds { (28, 3.5) } else { (4, 0.0) };
        Defaults { steps, guidance_scale, image_guidance_scale: 1.0, strength: 0.6 }
    }

    fn vae(&self) -> &dyn Vae {
        &self.parts.vae
    }

    fn geometry(&self, card: &Card) -> Geometry {
        self.parts.geometry(card)
    }

    fn has_true_cfg(&self) -> bool {
        true
    }

    fn has_step_cache(&self) -> bool {
        true
    }

    fn check(&self, blueprint: &Blueprint, mode: Mode, params: &Params) -> Result<(), JobError> {
        makes_pictures(blueprint, mode)?;
        self.parts.check(params)
    }

    fn sampling(&self, task: &Task, _scheduler: &SchedulerConfig, options: &mut Options) {
        self.parts.sampling(task, options);
    }

    fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        self.parts.load_all(stage)
    }

    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        self.parts.encode_text(stage)
    }

    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        let start = start(stage, &self.parts.vae, true, sampler, noise)?;
        Ok(self.parts.begin(stage, text, &start.latents, Beside { keep: start.keep, ..Beside::default() })?)
    }
}

/// What holds for all steps. Rows are the guidance's.
struct FluxTokens {
    parts: Rc<FluxParts>,
    guidance: Guidance,
    /// (rows, T, D)
    embeds: Tensor,
    /// (rows, P)
    pooled: Tensor,
    distilled: Option<f64>,
    /// (1, L, E): more features of the patches that are denoised.
    extra: Option<Tensor>,
    /// (1, M, in): the patches of another picture, after those that are denoised.
    context: Option<Tensor>,
    /// (L + M, 3), of all patches.
    positions: Tensor,
    keep: Option<Keep>,
    step_cache: Option<f64>,
}

impl Conditions for FluxTokens {
    fn denoiser<'a>(&'a self, stage: &mut Stage<'_, '_>) -> Result<Box<dyn Denoiser + 'a>, JobError> {
        let transformer = self.parts.load_transformer(stage)?;
        let text = self.embeds.size3().map_err(TorchError::from)?.1;
        let rope = transformer.rope(text, &self.positions)?;
        let rows = usize::try_from(self.guidance.rows()).unwrap_or(1);
        let caches = self.step_cache.map(|threshold| StepCaches::new(threshold, rows));
        Ok(Box::new(FluxDenoiser { conditions: self, transformer, rope, caches }))
    }

    fn keep(&self, latents: Tensor, next: Option<Level>) -> Result<Tensor, TorchError> {
        match &self.keep {
            Some(keep) => keep.around(&latents, next),
            None => Ok(latents),
        }
    }
}

struct FluxDenoiser<'a> {
    conditions: &'a FluxTokens,
    transformer: Rc<FluxTransformer>,
    rope: Rope,
    caches: Option<StepCaches>,
}

impl Denoiser for FluxDenoiser<'_> {
    fn predict(&mut self, latents: &Tensor, step: &Step, batched: bool) -> Result<Tensor, TorchError> {
        let conditions = self.conditions;
        let (_, _, height, width) = latents.size4()?;
        let tokens = patches::pack(latents)?.f_mul_scalar(step.input_scale)?.f_to_kind(conditions.embeds.f_kind()?)?;
        let length = tokens.size3()?.1;
        let tokens = match &conditions.extra {
            Some(extra) => Tensor::f_cat(&[&tokens, extra], 2)?,
            None => tokens,
        };
        let tokens = match &conditions.context {
            Some(context) => Tensor::f_cat(&[&tokens, context], 1)?,
            None => tokens,
        };
        let output = conditions.guidance.ask(batched && self.caches.is_none(), |first, rows| {
            Ok(self.forward(&tokens, step, first, rows)?.f_narrow(1, 0, length)?)
        })?;
        patches::unpack(&output, height, width)
    }

    fn step_caches(&self) -> Option<&StepCaches> {
        self.caches.as_ref()
    }
}

impl FluxDenoiser<'_> {
    /// Rows `first` to `first + rows`.
    fn forward(&self, tokens: &Tensor, step: &Step, first: i64, rows: i64) -> Result<Tensor, TorchError> {
        let given = self.conditions;
        let tokens = if rows == 1 { tokens.shallow_clone() } else { tokens.f_repeat([rows, 1, 1])? };
        let conditions = FluxConditions {
            encoder_hidden_states: &given.embeds.f_narrow(0, first, rows)?,
            pooled_projections: &given.pooled.f_narrow(0, first, rows)?,
            guidance: given.distilled,
            rope: &self.rope,
        };
        let row = usize::try_from(first).unwrap_or_default();
        let cache = self.caches.as_ref().and_then(|caches| caches.row(row));
        self.transformer.forward_cached(&tokens, step.timestep, &conditions, cache)
    }
}
