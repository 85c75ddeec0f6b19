//! The networks: a vision encoder, the Q-Former, and a language model.

use tch::{Kind, Tensor};

use super::{
    config::{Blip2Config, TextConfig},
    qformer::QFormer,
    vision::Vision,
};
use crate::{
    caption::{
        captioner::{Inputs, Speaker},
        generate::CausalLm,
    },
    language_model::{KvCache, Opt, T5Seq2Seq, T5Text},
    nn::Linear,
    torch::TorchError,
    weights::{Weights, WeightsError},
};

/// Names of tensors that are there once more: the language model's embeddings under other names.
pub const IGNORED: &[&str] = &[
    "language_model.lm_head.weight",
    "language_model.encoder.embed_tokens.weight",
    "language_model.decoder.embed_tokens.weight",
    // Of a text that the Q-Former does not read here.
    "qformer.embeddings.word_embeddings.weight",
];

/// `Blip2ForConditionalGeneration`.
pub struct Blip2 {
    vision_model: Vision,
    qformer: QFormer,
    language_projection: Linear,
    language_model: Language,
}

enum Language {
    Opt(Box<Opt>),
    T5(Box<T5Seq2Seq>),
}

impl Blip2 {
    pub fn load(weights: &Weights, config: &Blip2Config) -> Result<Self, WeightsError> {
        let root = weights.root();
        let text = root.at("language_model");
        Ok(Self {
            vision_model: Vision::load(&root.at("vision_model"), &config.vision)?,
            qformer: QFormer::load(&root, &config.qformer, config.num_query_tokens)?,
            language_projection: Linear::load(
                &root.at("language_projection"),
                config.qformer.hidden_size,
                config.text.hidden_size(),
                true,
            )?,
            language_model: match &config.text {
                TextConfig::Opt(config) => Language::Opt(Box::new(Opt::load(&text, config)?)),
                TextConfig::T5(config) => Language::T5(Box::new(T5Seq2Seq::load(&text, config)?)),
            },
        })
    }

    /// `pixels` (1, 3, S, S) → what the language model reads, (1, Q, D).
    pub fn encode_picture(&self, pixels: &Tensor) -> Result<Tensor, TorchError> {
        let seen = self.vision_model.forward(pixels)?;
        let queries = self.qformer.forward(&seen)?;
        self.language_projection.forward(&queries.f_to_kind(seen.f_kind()?)?)
    }
}

impl Speaker for Blip2 {
    fn begin<'a>(&'a self, inputs: &Inputs, max_tokens: usize) -> Result<Box<dyn CausalLm + 'a>, TorchError> {
        let picture = self.encode_picture(&inputs.pixels)?;
        let more = i64::try_from(max_tokens).map_err(|error| TorchError::Other(error.to_string()))?;
        match &self.language_model {
            Language::Opt(model) => {
                let prompt = Tensor::f_cat(&[&picture, &model.embed(&inputs.ids)?], 1)?;
                let (_, length, _) = prompt.size3()?;
                Ok(Box::new(After { model, prompt, cache: model.cache(length + more) }))
            }
            Language::T5(model) => {
                let prompt = Tensor::f_cat(&[&picture, &model.embed(&inputs.ids)?], 1)?;
                Ok(Box::new(Answer { text: model.begin(&prompt, more + 1)?, model }))
            }
        }
    }
}

/// OPT goes on after the picture and the question.
struct After<'a> {
    model: &'a Opt,
    prompt: Tensor,
    cache: KvCache,
}

impl CausalLm for After<'_> {
    fn prefill(&mut self) -> Result<Tensor, TorchError> {
        self.model.forward(&self.prompt, &mut self.cache)
    }

    fn step(&mut self, token: i64) -> Result<Tensor, TorchError> {
        self.model.forward(&self.model.embed(&[token])?, &mut self.cache)
    }
}

/// T5 has read both, and answers.
struct Answer<'a> {
    model: &'a T5Seq2Seq,
    text: T5Text,
}

impl CausalLm for Answer<'_> {
    fn prefill(&mut self) -> Result<Tensor, TorchError> {
        let start = self.model.start_token();
        self.step(start)
    }

    fn step(&mut self, token: i64) -> Result<Tensor, TorchError> {
        Ok(self.model.step(&mut self.text, token)?.f_to_kind(Kind::Float)?)
    }
}
