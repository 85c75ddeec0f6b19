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

pub mod chat;
mod config;
mod image;
mod norm;
mod positions;
mod rope;
mod vision;
mod windows;

use tch::{Device, Kind, Tensor};

use self::positions::Positions;
pub use self::{
    config::{Generation, Qwen2VlConfig, Reach, VisionConfig, VisionMlp},
    image::{Grid, ImageProcessor, Patches, PictureError},
    positions::Numbering,
    vision::{VisionOutput, VisionTower},
};
use crate::{
    language_model::{Decoder, KvCache, LanguageHead, decoder::Pass},
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
    model: Decoder,
    lm_head: Option<LanguageHead>,
    config: Qwen2VlConfig,
}

/// A text that goes on.
#[derive(Debug)]
pub struct Decoding {
    cache: KvCache,
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
        let model = Decoder::load(&root.at("model"), &config.language)?;
        let lm_head = match usage {
            Use::Text | Use::Pictures => None,
            Use::Answers => Some(LanguageHead::load(&root.at("lm_head"), &model)?),
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

    /// `ids` (B, L), i64; `mask` (B, L), 0 for tokens that are not there. `pictures` are those of all rows, in the order
    /// of their places. → (B, L, D), after the last norm; 0 where the mask is.
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
        let (_, length) = ids.size2()?;
        let ids = rows(ids, self.config.language.vocab_size)?;
        let mask = mask.map(|mask| rows(&mask.f_to_kind(Kind::Int64)?, 2)).transpose()?;
        let mut pictures = Pictures::of(self, pictures, numbering)?;
        let mut hidden = Vec::with_capacity(ids.len());
        for (row, ids) in ids.iter().enumerate() {
            let is_there = |at: &usize| mask.as_ref().is_none_or(|mask| mask[row][*at] != 0);
            let there: Vec<usize> = (0..ids.len()).filter(is_there).collect();
            let row: Vec<i64> = there.iter().map(|&at| ids[at]).collect();
            let (embedded, positions) = pictures.put_into(&row)?;
            let states = self.forward(&embedded, &positions, None)?;
            hidden.push(spread(&states, &there, length)?);
        }
        pictures.finish()?;
        Ok(Tensor::f_cat(&hidden, 0)?)
    }

    /// Reads one row of tokens with its pictures, from the first or after a restart with the tokens said so far.
    /// At most `room` further tokens will be read. → how it goes on, and the logits (V) of the next token in f32.
    ///
    /// # Errors
    /// As [`Self::hidden_states`]; or loaded for another use.
    pub fn begin(
        &self,
        ids: &[i64],
        pictures: Option<&Patches>,
        room: usize,
    ) -> Result<(Decoding, Tensor), TorchError> {
        let mut pictures = Pictures::of(self, pictures, Numbering::Axes)?;
        let (embedded, positions) = pictures.put_into(ids)?;
        pictures.finish()?;
        let mut cache = self.model.cache(wide(ids.len() + room));
        let hidden = self.forward(&embedded, &positions, Some(&mut cache))?;
        Ok((Decoding { cache, next: positions.next }, self.logits(&hidden)?))
    }

    /// Reads one more token. → the logits (V) of the one after it in f32.
    ///
    /// # Errors
    /// An unknown token, loaded for another use, no room, or a device's failure.
    pub fn next(&self, decoding: &mut Decoding, token: i64) -> Result<Tensor, TorchError> {
        let positions = Positions::single(decoding.next);
        let hidden = self.forward(&self.model.embed(&[token])?, &positions, Some(&mut decoding.cache))?;
        decoding.next += 1;
        self.logits(&hidden)
    }

    /// Vectors (1, L, D) of tokens → their hidden states.
    fn forward(
        &self,
        embedded: &Tensor,
        positions: &Positions,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor, TorchError> {
        let rotary = self.config.language.rotary(self.device())?;
        let angles = rotary.at(&positions.tensor(self.device())?, embedded.f_kind()?)?;
        self.model.forward(embedded, Pass { angles: &angles, mask: None, cache })
    }

    /// Of the last token of hidden states (1, L, D): (V)
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, TorchError> {
        self.lm_head.as_ref().ok_or_else(|| missing("output layer"))?.last(hidden)
    }
}

/// The pictures of a call, as vectors that are yet to be put into their places.
struct Pictures<'a> {
    model: &'a Qwen2Vl,
    /// (tokens, D)
    seen: Option<Tensor>,
    taken: i64,
    grids: std::vec::IntoIter<Grid>,
    numbering: Numbering,
}

impl<'a> Pictures<'a> {
    fn of(model: &'a Qwen2Vl, pictures: Option<&Patches>, numbering: Numbering) -> Result<Self, TorchError> {
        let seen = pictures.map(|pictures| model.see(pictures)).transpose()?.map(|seen| seen.merged);
        let grids = pictures.map_or_else(Vec::new, |pictures| pictures.grids.clone());
        Ok(Self { model, seen, taken: 0, grids: grids.into_iter(), numbering })
    }

    /// The vectors (1, L, D) of a row's tokens, with those of its pictures in their places, and its positions.
    fn put_into(&mut self, ids: &[i64]) -> Result<(Tensor, Positions), TorchError> {
        let embedded = self.model.model.embed(ids)?;
        let Some(seen) = &self.seen else { return Ok((embedded, Positions::sequence(ids.len()))) };
        let config = &self.model.config;
        let positions = match self.numbering {
            Numbering::Axes => Positions::of(ids, &mut self.grids, config)?,
            Numbering::Sequence => Positions::sequence(ids.len()),
        };
        let places: Vec<i64> =
            (0..).zip(ids).filter(|(_, id)| **id == config.image_token_id).map(|(at, _)| at).collect();
        let (count, (tokens, _)) = (wide(places.len()), seen.size2()?);
        if self.taken + count > tokens {
            return Err(unfit(self.taken + count, tokens));
        }
        let seen = seen.f_narrow(0, self.taken, count)?.f_to_kind(embedded.f_kind()?)?.f_unsqueeze(0)?;
        self.taken += count;
        let places = Tensor::f_from_slice(&places)?.f_to(embedded.device())?;
        Ok((embedded.f_index_copy(1, &places, &seen)?, positions))
    }

    /// # Errors
    /// A picture that no text has a place for.
    fn finish(self) -> Result<(), TorchError> {
        let tokens = self.seen.as_ref().map_or(Ok(0), |seen| seen.size2().map(|(tokens, _)| tokens))?;
        if self.taken == tokens { Ok(()) } else { Err(unfit(self.taken, tokens)) }
    }
}

/// States (1, l, D) of the tokens that are there, among zeros: (1, L, D).
fn spread(states: &Tensor, there: &[usize], length: i64) -> Result<Tensor, TorchError> {
    let (_, count, features) = states.size3()?;
    if count == length {
        return Ok(states.shallow_clone());
    }
    let there: Vec<i64> = there.iter().map(|&at| wide(at)).collect();
    let there = Tensor::f_from_slice(&there)?.f_to(states.device())?;
    let empty = Tensor::f_zeros([1, length, features], (states.f_kind()?, states.device()))?;
    Ok(empty.f_index_copy(1, &there, states)?)
}

fn wide(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn unfit(places: i64, tokens: i64) -> TorchError {
    TorchError::Other(format!("the text has {places} places for the pictures' {tokens} tokens"))
}

fn missing(part: &str) -> TorchError {
    TorchError::Other(format!("the model was loaded without its {part}"))
}
