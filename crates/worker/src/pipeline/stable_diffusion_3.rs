//! Stable Diffusion 3 and 3.5: text to image, image to image, and inpainting with the ordinary transformer.
//!
//! Three text encoders: the hidden states of two CLIPs side by side, filled up with zeros to T5's width, then T5's as more
//! tokens. A folder may do without T5, whose tokens are zeros then.
//!
//! *Source*: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arXiv 2403.03206, and
//! diffusers 0.42.1, `pipelines/stable_diffusion_3/pipeline_stable_diffusion_3{,_img2img,_inpaint}.py`. Its inpainting forgets
//! the VAE's shift before it decodes; this one does not.

use std::{any::Any, rc::Rc};

use atelier_domain::Params;
use atelier_sampling::{Level, Options, Sampler, SchedulerConfig, Shift, Step};
use tch::{Kind, Tensor};

use super::{
    Autoencoder, Beginning, Blueprint, Conditions, Defaults, Denoiser, Geometry, Guidance, Keep, Mode, Pipeline, Size,
    Stage, Task, Text, Vae,
    blueprint::TextBlueprint,
    stable_diffusion::{classifier, rows, start},
    t5::T5Blueprint,
    task::{makes_pictures, refuse},
    text::Negative,
};
use crate::{
    diffusion::card::Card,
    error::JobError,
    lora::Component,
    models::ModelError,
    nn::{StepCache, StepCaches},
    noise::Noise,
    torch::TorchError,
    transformer::{Sd3Conditions, Sd3Config, Sd3Transformer},
    weights::Weights,
};

/// Tokens that T5 reads, with all padding.
const T5_TOKENS: usize = 256;
const T5_ROWS: i64 = 256;
/// Blocks that skip-layer guidance leaves out, and the share of the steps in which it does so: what Stability AI
/// recommends for 3.5 medium.
const SKIPPED: [usize; 3] = [7, 8, 9];
const SKIPPING: (f64, f64) = (0.01, 0.2);

pub struct StableDiffusion3 {
    parts: Rc<Parts>,
}

/// What the folder says of its parts.
struct Parts {
    clips: [TextBlueprint; 2],
    t5: Option<T5Blueprint>,
    transformer: Sd3Config,
    vae: Autoencoder,
}

impl StableDiffusion3 {
    /// # Errors
    /// A configuration that is missing or says what is not computed, or parts that do not fit each other.
    pub fn read(blueprint: &Blueprint) -> Result<Self, JobError> {
        let clip = |name| TextBlueprint::read(blueprint, name, true);
        let has_t5 = blueprint.files_of("text_encoder_3").is_some();
        let transformer = Sd3Config::open(&blueprint.folder("transformer/config.json")).map_err(ModelError::from)?;
        let parts = Parts {
            clips: [clip("text_encoder")?, clip("text_encoder_2")?],
            t5: if has_t5 { Some(T5Blueprint::read(blueprint, "text_encoder_3")?) } else { None },
            transformer,
            vae: Autoencoder::read(blueprint)?,
        };
        parts.fit(blueprint)?;
        Ok(Self { parts: Rc::new(parts) })
    }
}

impl Parts {
    /// Whether the parts fit each other.
    fn fit(&self, blueprint: &Blueprint) -> Result<(), JobError> {
        let wrong = |detail: String| Err(blueprint.wrong("transformer/config.json", detail));
        let (transformer, latent) = (&self.transformer, self.vae.config.latent_channels);
        if transformer.in_channels != latent || transformer.out_channels != latent {
            let (inputs, outputs) = (transformer.in_channels, transformer.out_channels);
            return wrong(format!(
                "in_channels is {inputs} and out_channels {outputs}, which does not go with latents of {latent} channels"
            ));
        }
        let sum = |of: fn(&TextBlueprint) -> i64| self.clips.iter().map(of).sum::<i64>();
        let (joint, pooled) = (transformer.joint_attention_dim, transformer.pooled_projection_dim);
        let projected = sum(|clip| clip.config.projection_dim);
        if projected != pooled {
            return wrong(format!("pooled_projection_dim is {pooled}, and the text encoders give {projected}"));
        }
        let width = sum(|clip| clip.config.hidden_size);
        if width > joint {
            return wrong(format!("joint_attention_dim is {joint}, and two of the text encoders give {width}"));
        }
        if let Some(t5) = self.t5.as_ref().filter(|t5| t5.config.d_model != joint) {
            return wrong(format!("joint_attention_dim is {joint}, and text_encoder_3 gives {}", t5.config.d_model));
        }
        Ok(())
    }

    fn load_transformer(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<Sd3Transformer>, JobError> {
        let load = |weights: &Weights| Sd3Transformer::load(weights, &self.transformer);
        stage.part("transformer", &[], Some(Component::Denoiser), load)
    }

    /// Pixels for one patch.
    fn unit(&self) -> i64 {
        self.vae.space().downscale * self.transformer.patch_size
    }

    /// A text's tokens (1, 77 + 256, D), and its gist (1, P). `skip`: layers of CLIP that are left out beside the last.
    fn encode(&self, stage: &mut Stage<'_, '_>, text: &str, skip: usize) -> Result<(Tensor, Tensor), JobError> {
        let context = self.clips[0].context();
        let (mut hidden, mut pooled) = (Vec::new(), Vec::new());
        for clip in &self.clips {
            let encoded = clip.tokenizer.encode_to(text, context).map_err(ModelError::from)?;
            if encoded.dropped > 0 {
                let rest = if self.t5.is_some() { "T5 reads on" } else { "the rest was left out" };
                stage.note(format!("CLIP has seen the first {context} tokens of the text; {rest}."));
            }
            let encoder = clip.load(stage)?;
            let output = encoder.forward(&row(stage, &encoded.ids)?)?;
            let layer = output.hidden.len().checked_sub(2 + skip).and_then(|layer| output.hidden.get(layer));
            let layer = layer.ok_or_else(|| TorchError::Other(format!("{skip} layers of CLIP cannot be skipped")))?;
            hidden.push(layer.shallow_clone());
            pooled.push(output.projected.unwrap_or(output.pooled));
        }
        let own = Tensor::f_cat(&hidden, -1).map_err(TorchError::from)?;
        let joint = self.transformer.joint_attention_dim;
        let more = match &self.t5 {
            Some(t5) => t5.encode(stage, text, T5_TOKENS)?,
            None => Tensor::f_zeros([1, T5_ROWS, joint], (stage.kind(), stage.device())).map_err(TorchError::from)?,
        };
        Ok((together(&own, &more, joint)?, Tensor::f_cat(&pooled, -1).map_err(TorchError::from)?))
    }
}

/// Ids as a batch of one, on the device.
fn row(stage: &Stage<'_, '_>, ids: &[i64]) -> Result<Tensor, TorchError> {
    Ok(Tensor::f_from_slice(ids)?.f_unsqueeze(0)?.f_to_device(stage.device())?)
}

/// `own` (1, L, d) filled up to the width of `more` (1, M, D), then `more`.
fn together(own: &Tensor, more: &Tensor, width: i64) -> Result<Tensor, TorchError> {
    let filled = own.f_constant_pad_nd([0, width - own.size3()?.2])?;
    Ok(Tensor::f_cat(&[filled, more.f_to_kind(own.f_kind()?)?], 1)?)
}

impl Pipeline for StableDiffusion3 {
    fn defaults(&self) -> Defaults {
        Defaults { steps: 28, guidance_scale: 7.0, image_guidance_scale: 1.0, strength: 0.6 }
    }

    fn vae(&self) -> &dyn Vae {
        &self.parts.vae
    }

    fn geometry(&self, card: &Card) -> Geometry {
        let unit = self.parts.unit();
        let native = self.parts.transformer.sample_size * self.parts.vae.space().downscale;
        let native = Size::square(card.size.map_or(native, i64::from));
        let most_pixels = if card.size.is_some() { native.area() } else { native.area().max(512 * 512) };
        Geometry { multiple: unit, unit, native, most_pixels, shortest: unit }
    }

    fn clip_layers(&self) -> i64 {
        self.parts.clips.iter().map(|clip| clip.config.num_hidden_layers).min().unwrap_or(0)
    }

    fn has_step_cache(&self) -> bool {
        true
    }

    fn check(&self, blueprint: &Blueprint, mode: Mode, params: &Params) -> Result<(), JobError> {
        if params.prompt_weighting == Some(true) {
            return Err(refuse("prompt_weighting", "is for models whose denoiser reads CLIP's tokens alone"));
        }
        if params.skip_layer_guidance.is_some_and(|scale| scale > 0.0) {
            self.check_skipping(mode, params)?;
        }
        makes_pictures(blueprint, mode)
    }

    fn has_skip_layers(&self) -> bool {
        true
    }

    fn size(&self, mode: Mode, sources: &[Size], params: &Params, card: &Card) -> Result<Size, JobError> {
        let size = self.geometry(card).size(mode, sources.last().copied(), params)?;
        let longest = self.parts.transformer.pos_embed_max_size * self.parts.unit();
        within(size, longest)?;
        Ok(size)
    }

    fn sampling(&self, task: &Task, _scheduler: &SchedulerConfig, options: &mut Options) {
        let patches = task.size.area() / self.parts.unit().pow(2);
        options.shift = Some(Shift::SequenceLength(usize::try_from(patches).unwrap_or(usize::MAX)));
    }

    fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        let mut parts: Vec<Rc<dyn Any>> = Vec::new();
        for clip in &self.parts.clips {
            parts.push(clip.load(stage)?);
        }
        if let Some(t5) = &self.parts.t5 {
            parts.push(t5.load(stage)?);
        }
        parts.push(self.parts.load_transformer(stage)?);
        parts.push(self.parts.vae.load(stage)?);
        Ok(parts)
    }

    fn encode_text(&self, stage: &mut Stage<'_, '_>) -> Result<Text, JobError> {
        if self.parts.t5.is_none() {
            stage.note("The folder has no text_encoder_3 (T5): the text was read by the two CLIPs alone.".into());
        }
        let task = stage.task;
        let (embeds, pooled) = self.parts.encode(stage, &task.prompt, task.clip_skip)?;
        let negative = match classifier(stage) {
            Guidance::None | Guidance::Instruct { .. } => None,
            Guidance::Classifier { .. } => {
                let text = task.negative_prompt.as_deref().unwrap_or_default();
                let (embeds, pooled) = self.parts.encode(stage, text, 0)?;
                Some(Negative { embeds, pooled: Some(pooled) })
            }
        };
        Ok(Text { embeds, pooled: Some(pooled), negative })
    }

    fn begin(
        &self,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        let guidance = classifier(stage);
        let start = start(stage, &self.parts.vae, true, sampler, noise)?;
        let pooled = text.pooled.as_ref().unwrap_or(&text.embeds);
        let negative = text.negative.as_ref().and_then(|negative| negative.pooled.as_ref()).unwrap_or(pooled);
        let of_kind = |tensor: Tensor| tensor.f_to_kind(stage.kind()).map_err(TorchError::from);
        let conditions = Given {
            parts: self.parts.clone(),
            guidance,
            embeds: of_kind(rows(guidance, &text.embeds, text.negative_embeds())?)?,
            pooled: of_kind(rows(guidance, pooled, negative)?)?,
            skipping: stage.task.skip_layer_guidance.map(|scale| Skipping::new(scale, sampler)),
            keep: start.keep,
            step_cache: stage.task.step_cache,
        };
        let latents = start.latents.f_to_kind(Kind::Float).map_err(TorchError::from)?;
        Ok(Beginning { latents, conditions: Box::new(conditions) })
    }
}

impl StableDiffusion3 {
    /// # Errors
    /// Skip-layer guidance where diffusers has none, or with nothing to guide away from.
    fn check_skipping(&self, mode: Mode, params: &Params) -> Result<(), JobError> {
        let layers = self.parts.transformer.num_layers;
        if mode != Mode::Text {
            return Err(refuse("skip_layer_guidance", "is for pictures from a text alone"));
        }
        if params.guidance_scale.is_some_and(|scale| scale <= 1.0) {
            return Err(refuse("skip_layer_guidance", "goes with a guidance_scale above 1"));
        }
        if SKIPPED.iter().any(|&layer| layer >= layers) {
            return Err(refuse(
                "skip_layer_guidance",
                &format!("leaves out blocks 7 to 9, and this model has {layers}"),
            ));
        }
        Ok(())
    }
}

/// That no side is longer than the transformer has places for.
///
/// # Errors
/// One is.
pub(super) fn within(size: Size, longest: i64) -> Result<(), JobError> {
    for (name, side) in [("width", size.width), ("height", size.height)] {
        if side > longest {
            return Err(refuse(
                name,
                &format!("{side} is more than the {longest} pixels that this model has places for"),
            ));
        }
    }
    Ok(())
}

/// Guidance away from what is made without some of the blocks.
struct Skipping {
    scale: f64,
    /// Of the steps in which it is done.
    timesteps: Vec<f64>,
}

impl Skipping {
    fn new(scale: f64, sampler: &Sampler) -> Self {
        let steps = sampler.steps();
        #[expect(clippy::cast_precision_loss, reason = "a number of steps")]
        let (begin, end) = (SKIPPING.0 * steps.len() as f64, SKIPPING.1 * steps.len() as f64);
        #[expect(clippy::cast_precision_loss, reason = "a number of steps")]
        let is_within = |index: usize| index as f64 > begin && (index as f64) < end;
        let timesteps = steps.iter().enumerate().filter(|(index, _)| is_within(*index));
        Self { scale, timesteps: timesteps.map(|(_, step)| step.timestep).collect() }
    }

    fn is_due(&self, step: &Step) -> bool {
        self.timesteps.iter().any(|timestep| timestep.to_bits() == step.timestep.to_bits())
    }
}

/// What holds for all steps. Rows are the guidance's.
struct Given {
    parts: Rc<Parts>,
    guidance: Guidance,
    /// (rows, L, D)
    embeds: Tensor,
    /// (rows, P)
    pooled: Tensor,
    skipping: Option<Skipping>,
    keep: Option<Keep>,
    step_cache: Option<f64>,
}

impl Conditions for Given {
    fn denoiser<'a>(&'a self, stage: &mut Stage<'_, '_>) -> Result<Box<dyn Denoiser + 'a>, JobError> {
        let rows = usize::try_from(self.guidance.rows()).unwrap_or(1);
        let caches = self.step_cache.map(|threshold| StepCaches::new(threshold, rows));
        Ok(Box::new(Sd3Denoiser { given: self, transformer: self.parts.load_transformer(stage)?, caches }))
    }

    fn keep(&self, latents: Tensor, next: Option<Level>) -> Result<Tensor, TorchError> {
        match &self.keep {
            Some(keep) => keep.around(&latents, next),
            None => Ok(latents),
        }
    }
}

struct Sd3Denoiser<'a> {
    given: &'a Given,
    transformer: Rc<Sd3Transformer>,
    caches: Option<StepCaches>,
}

impl Denoiser for Sd3Denoiser<'_> {
    fn predict(&mut self, latents: &Tensor, step: &Step, batched: bool) -> Result<Tensor, TorchError> {
        let given = self.given;
        let scaled = latents.f_mul_scalar(step.input_scale)?.f_to_kind(given.embeds.f_kind()?)?;
        let forward = |first: i64, rows: i64, skip_layers: &[usize], cache: Option<&StepCache>| {
            let (embeds, pooled) = (given.embeds.f_narrow(0, first, rows)?, given.pooled.f_narrow(0, first, rows)?);
            let conditions = Sd3Conditions { encoder_hidden_states: &embeds, pooled_projections: &pooled, skip_layers };
            self.transformer.forward_cached(&scaled.f_repeat([rows, 1, 1, 1])?, step.timestep, &conditions, cache)
        };
        let answers = given.guidance.answers(batched && self.caches.is_none(), |first, rows| {
            let row = usize::try_from(first).unwrap_or_default();
            forward(first, rows, &[], self.caches.as_ref().and_then(|caches| caches.row(row)))
        })?;
        let combined = given.guidance.combine(&answers)?;
        let due = given.skipping.as_ref().filter(|skipping| given.guidance.rows() == 2 && skipping.is_due(step));
        let Some(Skipping { scale, .. }) = due else { return Ok(combined) };
        let without = forward(1, 1, &SKIPPED, None)?.f_to_kind(Kind::Float)?;
        let away = answers.f_narrow(0, 1, 1)?.f_sub(&without)?.f_mul_scalar(*scale)?;
        Ok(combined.f_add(&away)?)
    }

    fn step_caches(&self) -> Option<&StepCaches> {
        self.caches.as_ref()
    }
}
