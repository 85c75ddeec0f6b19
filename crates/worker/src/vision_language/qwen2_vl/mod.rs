//! Qwen2-VL and Qwen2.5-VL: a vision tower and a language model, in two uses.
//!
//! **As an encoder of texts with pictures**, which Qwen-Image and Qwen-Image-Edit take. Open the folder's weights with
//! [`ALIASES`] and [`IGNORED`], and load without the parts that are not needed:
//!
//! ```text
//! let config = Qwen2VlConfig::open(folder)?;
//! let options = LoadOptions::cpu().with_aliases(qwen2_vl::ALIASES).with_ignored(qwen2_vl::IGNORED);
//! let weights = Weights::open_folder(folder, "model", &options)?;
//! let model = Qwen2Vl::load(&weights, &config, Use::Pictures)?;   // or Use::Text, without the vision tower
//! weights.finish()?;
//!
//! let processor = ImageProcessor::open(processor_folder)?;
//! let patches = processor.patches(&samples, width, height)?;      // 8-bit RGB; Patches::join for several
//! let tokens: Vec<i64> = patches.grids.iter().map(|grid| grid.tokens(&config.vision)).collect();
//! let ids = chat::spread(&ids, config.image_token_id, &tokens);   // one <|image_pad|> for each picture before
//! // (B, L) and (B, L) -> (B, L, D): transformers' `hidden_states[-1]`, which is after the last norm.
//! let hidden = model.hidden_states(&ids, Some(&mask), Some(&patches), Numbering::Axes)?;
//! ```
//!
//! [`Numbering::Axes`] is what the models were trained with. diffusers up to 0.42.1 with transformers from 5.0 on
//! gives [`Numbering::Sequence`], a fault of theirs; a recording of its pipelines is compared with that, or is made
//! with a text encoder that is also given `mm_token_type_ids`. The reference for pixels is `Qwen2VLImageProcessorPil`.
//!
//! **As a model that answers** ([`Use::Answers`]): [`Qwen2Vl::begin`] takes the question, and [`Qwen2Vl::next`] one
//! token after the other; both give the logits of the token that comes then.
//!
//! Knows no jobs, prompts or sampling.

mod cache;
pub mod chat;
mod config;
mod image;
mod language;
mod norm;
mod positions;
mod rope;
mod vision;
mod windows;

use tch::{Device, Kind, Tensor};

use self::positions::Positions;
pub use self::{
    cache::KeyValues,
    config::{Generation, LanguageConfig, Qwen2VlConfig, Reach, VisionConfig, VisionMlp},
    image::{Grid, ImageProcessor, Patches, PictureError},
    language::LanguageModel,
    positions::Numbering,
    vision::{VisionOutput, VisionTower},
};
use crate::{
    nn::Linear,
    text_encoder::rows,
    torch::TorchError,
    weights::{Alias, Weights, WeightsError},
};

/// transformers 4.52 to 4.57 put both networks into `model`; files on the hub, and those of version 5, have them as
/// before.
pub const ALIASES: &[Alias] =
    &[Alias::prefix("model.language_model.", "model."), Alias::prefix("model.visual.", "visual.")];

/// The output layer, which an encoder does not need, and a model whose output layer is the token embedding may hold
/// once more.
pub const IGNORED: &[&str] = &["lm_head.weight"];

/// What is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Hidden states of texts.
    Text,
    /// Hidden states of texts with pictures.
    Pictures,
    /// Answers to questions about pictures.
    Answers,
}

/// `Qwen2VLForConditionalGeneration`, or `Qwen2_5_VLForConditionalGeneration`.
pub struct Qwen2Vl {
    visual: Option<VisionTower>,
    model: LanguageModel,
    lm_head: Option<Linear>,
    config: Qwen2VlConfig,
}

/// A text that goes on.
#[derive(Debug)]
pub struct Decoding {
    cache: KeyValues,
    next: i64,
}

impl Qwen2Vl {
    /// Takes the tensors that `usage` needs; the caller finishes the weights, which were opened with [`ALIASES`] and
    /// [`IGNORED`].
    pub fn load(weights: &Weights, config: &Qwen2VlConfig, usage: Use) -> Result<Self, WeightsError> {
        let root = weights.root();
        let visual = match usage {
            Use::Text => {
                weights.leave("visual.");
                None
            }
            Use::Pictures | Use::Answers => {
                Some(VisionTower::load(&root.at("visual"), &config.vision, config.generation)?)
            }
        };
        let model = LanguageModel::load(&root.at("model"), &config.language)?;
        let lm_head = match usage {
            Use::Text | Use::Pictures => None,
            Use::Answers if config.tie_word_embeddings => Some(Linear::new(model.embedding().shallow_clone(), None)),
            Use::Answers => {
                let language = &config.language;
                Some(Linear::load(&root.at("lm_head"), language.hidden_size, language.vocab_size, false)?)
            }
        };
        Ok(Self { visual, model, lm_head, config: config.clone() })
    }

    pub const fn config(&self) -> &Qwen2VlConfig {
        &self.config
    }

    pub fn device(&self) -> Device {
        self.model.device()
    }

    pub fn kind(&self) -> Kind {
        self.model.kind()
    }

    /// The vectors that stand for pictures among a text's tokens.
    ///
    /// # Errors
    /// Loaded without the vision tower, patches that do not make the pictures, or a device's failure.
    pub fn see(&self, patches: &Patches) -> Result<VisionOutput, TorchError> {
        let visual = self.visual.as_ref().ok_or_else(|| missing("vision tower"))?;
        visual.forward(patches)
    }

    /// `ids` (B, L), i64; `mask` (B, L), 0 for tokens that none attends to. `pictures` are those of all rows, in the
    /// order of their places. → (B, L, D), after the last norm.
    ///
    /// # Errors
    /// An unknown token, places that do not fit the pictures, or a device's failure.
    pub fn hidden_states(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        pictures: Option<&Patches>,
        numbering: Numbering,
    ) -> Result<Tensor, TorchError> {
        let (embeddings, positions) = self.embed(ids, mask, pictures, numbering)?;
        let positions = Positions::tensor(&positions, self.device())?;
        self.model.forward(embeddings, &positions, mask, None)
    }

    /// Reads one row of tokens with its pictures, from the first or after a restart with the tokens said so far.
    /// → how it goes on, and the logits (V) of the next token in f32.
    ///
    /// # Errors
    /// As [`Self::hidden_states`]; or loaded for another use.
    pub fn begin(&self, ids: &[i64], pictures: Option<&Patches>) -> Result<(Decoding, Tensor), TorchError> {
        let ids = Tensor::f_from_slice(ids)?.f_unsqueeze(0)?;
        let (embeddings, positions) = self.embed(&ids, None, pictures, Numbering::Axes)?;
        let next = positions.first().map_or(0, |row| row.next);
        let mut cache = KeyValues::default();
        let positions = Positions::tensor(&positions, self.device())?;
        let hidden = self.model.forward(embeddings, &positions, None, Some(&mut cache))?;
        Ok((Decoding { cache, next }, self.logits(&hidden)?))
    }

    /// Reads one more token. → the logits (V) of the one after it in f32.
    ///
    /// # Errors
    /// An unknown token, loaded for another use, or a device's failure.
    pub fn next(&self, decoding: &mut Decoding, token: i64) -> Result<Tensor, TorchError> {
        let ids = Tensor::f_from_slice(&[token])?.f_unsqueeze(0)?;
        rows(&ids, self.config.language.vocab_size)?;
        let embeddings = self.model.embed(&ids.f_to(self.device())?)?;
        let positions = Tensor::f_full([3, 1, 1], decoding.next, (Kind::Int64, self.device()))?;
        let hidden = self.model.forward(embeddings, &positions, None, Some(&mut decoding.cache))?;
        decoding.next += 1;
        self.logits(&hidden)
    }

    /// Of the last token of hidden states (1, L, D): (V)
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, TorchError> {
        let head = self.lm_head.as_ref().ok_or_else(|| missing("output layer"))?;
        let last = hidden.f_select(0, 0)?.f_narrow(0, -1, 1)?;
        Ok(head.forward(&last)?.f_select(0, 0)?.f_to_kind(Kind::Float)?)
    }

    /// The vectors (B, L, D) of `ids`, with those of the pictures in their places, and every row's positions.
    fn embed(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        pictures: Option<&Patches>,
        numbering: Numbering,
    ) -> Result<(Tensor, Vec<Positions>), TorchError> {
        let config = &self.config;
        let (_, length) = ids.size2()?;
        let ids_of = rows(ids, config.language.vocab_size)?;
        let shown = mask.map(|mask| rows(&mask.f_to_kind(Kind::Int64)?, 2)).transpose()?;
        let ids = ids.f_to(self.device())?;
        let embeddings = self.model.embed(&ids)?;
        let plain = usize::try_from(length).unwrap_or(0);
        let Some(pictures) = pictures else {
            return Ok((embeddings, vec![Positions::sequence(plain); ids_of.len()]));
        };
        let seen = self.see(pictures)?.merged;
        let is_place = ids.f_eq(config.image_token_id)?;
        let places = is_place.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        let (tokens, _) = seen.size2()?;
        if places != tokens {
            return Err(TorchError::Other(format!("the text has {places} places for the pictures' {tokens} tokens")));
        }
        let embeddings =
            embeddings.f_masked_scatter(&is_place.f_unsqueeze(-1)?, &seen.f_to_kind(embeddings.kind())?)?;
        if numbering == Numbering::Sequence {
            return Ok((embeddings, vec![Positions::sequence(plain); ids_of.len()]));
        }
        let mut grids = pictures.grids.iter().copied();
        let positions = ids_of.iter().enumerate().map(|(row, ids)| {
            let mask = shown.as_ref().map(|rows| rows[row].as_slice());
            Positions::of(ids, mask, &mut grids, config)
        });
        Ok((embeddings, positions.collect::<Result<_, _>>()?))
    }
}

fn missing(part: &str) -> TorchError {
    TorchError::Other(format!("the model was loaded without its {part}"))
}
