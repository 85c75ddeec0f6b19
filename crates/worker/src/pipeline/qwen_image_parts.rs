//! What the pipelines of Qwen-Image share: their parts, prompts, latents as patches, and guidance.
//!
//! *Source*: diffusers 0.42.1, `pipelines/qwenimage/`; "Qwen-Image Technical Report", arXiv 2508.02324.

use std::{any::Any, iter, rc::Rc};

use atelier_domain::{ErrorCode, Params};
use atelier_sampling::{Level, Options, Sampler, Shift, Step};
use tch::{Kind, Tensor};

use super::{
    Autoencoder, Beginning, Blueprint, Conditions, Denoiser, Geometry, Keep, LatentSpace, Mode, Size, Stage, Task,
    Text, Vae, stable_diffusion::start, task::refuse, text::Negative,
};
use crate::{
    diffusion::{card::Card, pixels::Rgb},
    error::JobError,
    lora::Component,
    models::ModelError,
    nn::StepCaches,
    noise::Noise,
    tokenizer::Tokenizer,
    torch::TorchError,
    transformer::{
        QwenImageConfig, QwenImageTransformer,
        patches::{PATCH, pack, unpack},
        qwen_image::Places,
    },
    vae::QwenImageVaeConfig,
    vision_language::qwen2_vl::{
        self, ImageProcessor, Numbering, Patches, PictureError, Qwen2Vl, Qwen2VlConfig, Use, chat,
    },
    weights::Weights,
};

/// Sides of pictures that are edited become multiples of this.
const GRID: f64 = 32.0;
/// Latents a side of the square that the models were made for.
const NATIVE_LATENTS: i64 = 128;
/// One side of a picture may be so many times the other.
const MOST_RATIO: f64 = 20.0;
/// Steps of a model that was not made for fewer.
pub const STEPS: u32 = 50;
pub const GUIDANCE_SCALE: f64 = 4.0;
/// How far a picture is made anew.
pub const STRENGTH: f64 = 0.6;

/// How a prompt is put to the text encoder, and what of the answer counts.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Before the prompt, and before the pictures.
    pub before: &'static str,
    pub after: &'static str,
    /// Tokens at the beginning that the denoiser does not see.
    pub dropped: i64,
    /// Tokens after these that it sees at the most.
    pub kept: Option<i64>,
}

/// What the denoiser sees beside the latents that it is at.
#[derive(Clone, Copy)]
pub enum Shown<'p> {
    Nothing,
    /// What is edited, in the sizes in which it is to be seen.
    Pictures(&'p [Rgb]),
    /// What is painted anew within a mask: the very latents that are kept around it.
    Source,
}

/// What the folder says of the parts.
pub struct QwenImageParts {
    tokenizer: Tokenizer,
    text: Qwen2VlConfig,
    /// Where the text encoder sees pictures.
    processor: Option<ImageProcessor>,
    transformer: QwenImageConfig,
    pub vae: Autoencoder<QwenImageVaeConfig>,
}

impl QwenImageParts {
    /// # Errors
    /// A configuration that is missing or says what is not computed, or parts that do not fit each other.
    pub fn read(blueprint: &Blueprint, sees: bool) -> Result<Self, JobError> {
        let processor = || ImageProcessor::open(&blueprint.folder("processor")).map_err(ModelError::from);
        let transformer = blueprint.folder("transformer/config.json");
        let parts = Self {
            tokenizer: Tokenizer::open(&blueprint.folder("tokenizer")).map_err(ModelError::from)?,
            text: Qwen2VlConfig::open(&blueprint.folder("text_encoder")).map_err(ModelError::from)?,
            processor: if sees { Some(processor()?) } else { None },
            transformer: QwenImageConfig::open(&transformer).map_err(ModelError::from)?,
            vae: Autoencoder::read(blueprint)?,
        };
        parts.fit(blueprint)?;
        Ok(parts)
    }

    /// Whether the parts fit each other.
    fn fit(&self, blueprint: &Blueprint) -> Result<(), JobError> {
        let (transformer, channels) = (&self.transformer, self.vae.config.z_dim);
        let width = self.text.language.hidden_size;
        let detail = if transformer.patch_size != PATCH {
            format!("patch_size is {}, and only {PATCH} is supported", transformer.patch_size)
        } else if transformer.in_channels != PATCH * PATCH * channels || transformer.out_channels != channels {
            format!(
                "in_channels is {} and out_channels {}, which does not go with latents of {channels} channels",
                transformer.in_channels, transformer.out_channels
            )
        } else if transformer.joint_attention_dim != width {
            format!("joint_attention_dim is {}, and the text encoder gives {width}", transformer.joint_attention_dim)
        } else {
            return Ok(());
        };
        Err(blueprint.wrong("transformer/config.json", detail))
    }

    pub fn space(&self) -> LatentSpace {
        self.vae.space()
    }

    /// Latents come in patches, which must be whole.
    pub fn geometry(&self, card: &Card) -> Geometry {
        let unit = PATCH * self.space().downscale;
        let native = Size::square(card.size.map_or(NATIVE_LATENTS * self.space().downscale, i64::from));
        Geometry { multiple: unit, unit, native, most_pixels: native.area(), shortest: unit }
    }

    /// # Errors
    /// A parameter that none of these models has a use for.
    pub fn check(params: &Params) -> Result<(), JobError> {
        if params.image_guidance_scale.is_some() {
            return Err(refuse("image_guidance_scale", "is for InstructPix2Pix; this model has guidance_scale alone"));
        }
        if let (Some(one), Some(other)) = (params.guidance_scale, params.true_cfg_scale)
            && (one - other).abs() > f64::EPSILON
        {
            return Err(refuse("true_cfg_scale", "is the same as guidance_scale here, and another was given there"));
        }
        if params.prompt_weighting == Some(true) {
            return Err(refuse("prompt_weighting", "is not for this model: it reads sentences"));
        }
        Ok(())
    }

    /// The size that an edit is worked at: the area that the model was made for, in the proportions of the last of the
    /// pictures; or what was asked for.
    ///
    /// # Errors
    /// Proportions that are extreme, sides that are too large or too small.
    pub fn edit_size(&self, sources: &[Size], params: &Params, card: &Card) -> Result<Size, JobError> {
        let geometry = self.geometry(card);
        for source in sources {
            fitted(*source, geometry.native.area())?;
        }
        let source = sources.last().copied();
        if params.width.is_some() || params.height.is_some() {
            return geometry.size(Mode::Instruct, source, params);
        }
        let size = match source {
            Some(source) => fitted(source, geometry.native.area())?,
            None => geometry.native,
        };
        geometry.check(size)?;
        Ok(size)
    }

    /// The noise levels are those of a run over so many patches.
    pub fn sampling(&self, task: &Task, options: &mut Options) {
        let [_, _, height, width] = self.space().shape(task.size);
        options.sigmas = Some(Options::flow_sigmas(task.steps));
        let patches = (height / PATCH) * (width / PATCH);
        options.shift = Some(Shift::SequenceLength(usize::try_from(patches).unwrap_or_default()));
    }

    pub fn load_all(&self, stage: &mut Stage<'_, '_>) -> Result<Vec<Rc<dyn Any>>, JobError> {
        Ok(vec![self.load_text(stage)?, self.load_transformer(stage)?, self.vae.load(stage)?])
    }

    fn load_text(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<Qwen2Vl>, JobError> {
        let usage = if self.processor.is_some() { Use::Pictures } else { Use::Text };
        stage.part("text_encoder", qwen2_vl::ALIASES, Some(Component::TextEncoder), |weights: &Weights| {
            // Of a model that answers; nobody asks it.
            weights.leave("lm_head.");
            Qwen2Vl::load(weights, &self.text, usage)
        })
    }

    fn load_transformer(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<QwenImageTransformer>, JobError> {
        let load = |weights: &Weights| QwenImageTransformer::load(weights, &self.transformer);
        stage.part("transformer", &[], Some(Component::Denoiser), load)
    }

    /// The prompt and, where there is guidance, its negative, each after `pictures`, which are in the sizes in which
    /// the text encoder is to see them.
    pub fn encode_text(
        &self,
        stage: &mut Stage<'_, '_>,
        template: Template,
        shown: &str,
        pictures: &[Rgb],
    ) -> Result<Text, JobError> {
        let network = self.load_text(stage)?;
        let patches = self.patches(pictures)?;
        let (prompt, negative) = (stage.task.prompt.clone(), stage.task.negative_prompt.clone());
        let mut one = |prompt: &str| self.hidden_states(stage, &network, template, shown, prompt, patches.as_ref());
        let embeds = one(&prompt)?;
        let negative = match negative {
            Some(negative) if stage.task.guidance_scale > 1.0 => Some(negative),
            Some(_) => None,
            None => {
                if stage.task.guidance_scale > 1.0 {
                    let note = "There is no guidance without a negative prompt; one space is enough to switch it on.";
                    stage.note(note.into());
                }
                None
            }
        };
        let negative = negative.map(|negative| {
            let embeds = self.hidden_states(stage, &network, template, shown, &negative, patches.as_ref())?;
            Ok::<_, JobError>(Negative { embeds, pooled: None })
        });
        Ok(Text { embeds, pooled: None, negative: negative.transpose()? })
    }

    fn patches(&self, pictures: &[Rgb]) -> Result<Option<Patches>, JobError> {
        let Some(processor) = self.processor.as_ref().filter(|_| !pictures.is_empty()) else { return Ok(None) };
        let one = |picture: &Rgb| processor.patches(&picture.samples, picture.width, picture.height);
        let patches = pictures.iter().map(one).collect::<Result<Vec<_>, _>>().map_err(|error| match error {
            PictureError::Torch(error) => error.into(),
            error @ PictureError::Ratio { .. } => {
                JobError::refused(ErrorCode::InvalidParams, error.to_string(), "Crop the picture first.")
            }
        })?;
        Ok(Some(Patches::join(&patches)?))
    }

    /// (1, L, D)
    fn hidden_states(
        &self,
        stage: &mut Stage<'_, '_>,
        network: &Qwen2Vl,
        template: Template,
        shown: &str,
        prompt: &str,
        patches: Option<&Patches>,
    ) -> Result<Tensor, JobError> {
        let text = format!("{}{shown}{prompt}{}", template.before, template.after);
        let ids = self.tokenizer.encode(&text).map_err(ModelError::from)?;
        let tokens: Vec<i64> =
            patches.iter().flat_map(|patches| &patches.grids).map(|grid| grid.tokens(&self.text.vision)).collect();
        let Some(mut ids) = chat::spread(&ids, self.text.image_token_id, &tokens) else {
            let (message, hint) = ("the prompt holds <|image_pad|>, which stands for a picture", "Leave it out.");
            return Err(JobError::refused(ErrorCode::InvalidParams, message, hint));
        };
        if let Some(kept) = template.kept {
            let most = usize::try_from(template.dropped + kept).unwrap_or(usize::MAX);
            if ids.len() > most {
                let (found, most) = (ids.len(), most);
                stage.note(format!("The prompt has {found} tokens with its frame; the model reads the first {most}."));
                ids.truncate(most);
            }
        }
        let ids = Tensor::f_from_slice(&ids).and_then(|ids| ids.f_unsqueeze(0)).map_err(TorchError::from)?;
        let hidden = network.hidden_states(&ids, None, patches, Numbering::Axes)?;
        let (_, length, _) = hidden.size3().map_err(TorchError::from)?;
        let left = length - template.dropped;
        if left < 1 {
            let path = stage.blueprint.folder("tokenizer");
            let detail = format!("it makes {length} tokens of a prompt whose first {} are left out", template.dropped);
            return Err(ModelError::Config { path, detail }.into());
        }
        Ok(hidden.f_narrow(1, template.dropped, left).map_err(TorchError::from)?)
    }

    /// Where the denoising begins, and the conditions under which that becomes a picture.
    pub fn begin(
        self: &Rc<Self>,
        stage: &mut Stage<'_, '_>,
        text: &Text,
        shown: Shown<'_>,
        sampler: &Sampler,
        noise: &mut Noise,
    ) -> Result<Beginning, JobError> {
        let start = start(stage, &self.vae, true, sampler, noise)?;
        let sources = match shown {
            Shown::Nothing => Vec::new(),
            Shown::Pictures(pictures) => {
                pictures.iter().map(|picture| self.vae.latents_of(stage, picture)).collect::<Result<_, _>>()?
            }
            Shown::Source => start.keep.iter().map(|keep| keep.source.shallow_clone()).collect(),
        };
        let shape = |latents: &Tensor| latents.size4().map(|(_, _, height, width)| [height / PATCH, width / PATCH]);
        let shapes = iter::once(&start.latents).chain(&sources).map(shape).collect::<Result<_, _>>();
        let sources = sources.iter().map(pack).collect::<Result<Vec<_>, _>>()?;
        let sources =
            if sources.is_empty() { None } else { Some(Tensor::f_cat(&sources, 1).map_err(TorchError::from)?) };
        let negative = text.negative.as_ref().map(|negative| negative.embeds.shallow_clone());
        let conditions = QwenImageConditions {
            parts: self.clone(),
            embeds: text.embeds.shallow_clone(),
            negative,
            scale: stage.task.guidance_scale,
            step_cache: stage.task.step_cache,
            shapes: shapes.map_err(TorchError::from)?,
            sources,
            keep: start.keep,
        };
        Ok(Beginning { latents: start.latents, conditions: Box::new(conditions) })
    }
}

/// The size of about so many pixels in the proportions of `source`, whose sides are multiples of 32. Halves are rounded
/// to the even one, as Python does.
///
/// # Errors
/// One side is more than twenty times the other, or comes to nothing.
pub fn fitted(source: Size, area: i64) -> Result<Size, JobError> {
    #[expect(clippy::cast_precision_loss, reason = "sides of pictures")]
    let (ratio, area) = (source.width as f64 / source.height as f64, area as f64);
    let width = (area * ratio).sqrt();
    let height = width / ratio;
    #[expect(clippy::cast_possible_truncation, reason = "the side of an area")]
    let side = |side: f64| ((side / GRID).round_ties_even() * GRID) as i64;
    let size = Size { width: side(width), height: side(height) };
    if !(1.0 / MOST_RATIO..=MOST_RATIO).contains(&ratio) || size.width < 1 || size.height < 1 {
        return Err(JobError::refused(
            ErrorCode::InvalidParams,
            format!(
                "a picture of {} x {} pixels has proportions too extreme for this model",
                source.width, source.height
            ),
            format!("Crop it first; one side may be {MOST_RATIO} times the other."),
        ));
    }
    Ok(size)
}

/// What holds for all steps.
struct QwenImageConditions {
    parts: Rc<QwenImageParts>,
    /// (1, L, D)
    embeds: Tensor,
    /// (1, L', D), where there is guidance.
    negative: Option<Tensor>,
    scale: f64,
    /// The threshold of a step cache.
    step_cache: Option<f64>,
    /// Rows and columns of patches: of what is denoised, then of the sources.
    shapes: Vec<[i64; 2]>,
    /// The patches of what is edited (1, S, 4 · C).
    sources: Option<Tensor>,
    /// Of a picture that is painted anew in part.
    keep: Option<Keep>,
}

impl Conditions for QwenImageConditions {
    fn denoiser<'a>(&'a self, stage: &mut Stage<'_, '_>) -> Result<Box<dyn Denoiser + 'a>, JobError> {
        let network = self.parts.load_transformer(stage)?;
        let places = |embeds: &Tensor| network.places(embeds.size3()?.1, &self.shapes);
        let rows = if self.negative.is_some() { 2 } else { 1 };
        Ok(Box::new(QwenImageDenoiser {
            caches: self.step_cache.map(|threshold| StepCaches::new(threshold, rows)),
            places: places(&self.embeds)?,
            negative_places: self.negative.as_ref().map(places).transpose()?,
            conditions: self,
            network,
        }))
    }

    fn keep(&self, latents: Tensor, next: Option<Level>) -> Result<Tensor, TorchError> {
        match &self.keep {
            Some(keep) => keep.around(&latents, next),
            None => Ok(latents),
        }
    }
}

struct QwenImageDenoiser<'a> {
    conditions: &'a QwenImageConditions,
    network: Rc<QwenImageTransformer>,
    places: Places,
    negative_places: Option<Places>,
    /// For the prompt, and for what is unwanted.
    caches: Option<StepCaches>,
}

impl Denoiser for QwenImageDenoiser<'_> {
    /// The rows of the guidance differ in their texts' lengths, and are never computed together.
    fn predict(&mut self, latents: &Tensor, step: &Step, _batched: bool) -> Result<Tensor, TorchError> {
        let (_, _, height, width) = latents.size4()?;
        let target = pack(&latents.f_mul_scalar(step.input_scale)?)?;
        let length = target.size3()?.1;
        let patches = match &self.conditions.sources {
            Some(sources) => Tensor::f_cat(&[&target, sources], 1)?,
            None => target,
        };
        let answer = |row, embeds: &Tensor, places: &Places| -> Result<Tensor, TorchError> {
            let cache = self.caches.as_ref().and_then(|caches| caches.row(row));
            let output = self.network.forward_cached(&patches, embeds, step.timestep / 1000.0, places, cache)?;
            Ok(output.f_narrow(1, 0, length)?.f_to_kind(Kind::Float)?)
        };
        let positive = answer(0, &self.conditions.embeds, &self.places)?;
        let output = match (&self.conditions.negative, &self.negative_places) {
            (Some(embeds), Some(places)) => guided(&positive, &answer(1, embeds, places)?, self.conditions.scale)?,
            (_, _) => positive,
        };
        unpack(&output, height, width)
    }

    fn step_caches(&self) -> Option<&StepCaches> {
        self.caches.as_ref()
    }
}

/// Guidance whose result is, patch by patch, as long as the answer to the prompt. (1, S, 4 · C) each.
fn guided(positive: &Tensor, negative: &Tensor, scale: f64) -> Result<Tensor, TorchError> {
    let combined = negative.f_add(&positive.f_sub(negative)?.f_mul_scalar(scale)?)?;
    let length = |tensor: &Tensor| tensor.f_norm_scalaropt_dim(2.0, [-1_i64].as_slice(), true);
    let rescale = length(positive)?.f_div(&length(&combined)?)?;
    Ok(combined.f_mul(&rescale)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_get_the_sizes_that_the_pipelines_give_them() {
        let size = |width, height| Size { width, height };
        let (megapixel, small) = (1024 * 1024, 384 * 384);
        for (source, area, wanted) in [
            (size(1920, 1080), megapixel, size(1376, 768)),
            (size(1920, 1080), small, size(512, 288)),
            (size(3024, 4032), megapixel, size(896, 1184)),
            (size(3024, 4032), small, size(320, 448)),
            (size(4000, 3000), megapixel, size(1184, 896)),
            (size(500, 333), megapixel, size(1248, 832)),
            (size(10, 1), megapixel, size(3232, 320)),
            (size(1, 1), megapixel, size(1024, 1024)),
        ] {
            assert_eq!(fitted(source, area).expect("a size"), wanted, "{source:?}");
        }
        for source in [size(3000, 1), size(1, 3000), size(2101, 100)] {
            let error = fitted(source, megapixel).expect_err("extreme").info("cpu");
            assert!(error.message.contains("extreme"), "{}", error.message);
        }
        assert!(fitted(size(2000, 100), megapixel).is_ok());
    }

    #[test]
    fn guidance_keeps_the_length_of_each_patch() -> Result<(), TorchError> {
        let positive = Tensor::from_slice(&[3.0_f32, 4.0, 1.0, 0.0]).f_reshape([1, 2, 2])?;
        let negative = Tensor::from_slice(&[0.0_f32, 4.0, 0.0, 0.0]).f_reshape([1, 2, 2])?;
        let got = Vec::<f32>::try_from(guided(&positive, &negative, 4.0)?.flatten(0, -1))?;
        // (12, 4) at the length 5, and (4, 0) at the length 1.
        let scale = 5.0 / 160.0_f32.sqrt();
        for (got, wanted) in got.into_iter().zip([12.0 * scale, 4.0 * scale, 1.0, 0.0]) {
            assert!((got - wanted).abs() < 1e-5, "{got} stands for {wanted}");
        }
        Ok(())
    }
}
