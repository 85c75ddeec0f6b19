//! A T5 or UMT5 text encoder with its tokenizer.

use std::rc::Rc;

use tch::Tensor;

use super::{Blueprint, Stage};
use crate::{
    error::JobError,
    lora::Component,
    models::ModelError,
    text_encoder::{T5Config, T5Encoder},
    tokenizer::{Encoded, Tokenizer},
    torch::TorchError,
    weights::Weights,
};

pub struct T5Blueprint {
    /// The folder's name.
    pub name: &'static str,
    pub config: T5Config,
    pub tokenizer: Tokenizer,
}

impl T5Blueprint {
    /// Reads the text encoder `name` and its tokenizer.
    ///
    /// # Errors
    /// A file that is missing or says what is not computed.
    pub fn read(blueprint: &Blueprint, name: &'static str) -> Result<Self, JobError> {
        let tokenizer = name.replace("text_encoder", "tokenizer");
        Ok(Self {
            name,
            config: T5Config::read(&blueprint.folder(name)).map_err(ModelError::from)?,
            tokenizer: Tokenizer::open(&blueprint.folder(&tokenizer)).map_err(ModelError::from)?,
        })
    }

    /// The encoder, loaded now or before.
    ///
    /// # Errors
    /// Weights that do not fit, or no room for them.
    pub fn load(&self, stage: &mut Stage<'_, '_>) -> Result<Rc<T5Encoder>, JobError> {
        let component = match self.name {
            "text_encoder" => Component::TextEncoder,
            "text_encoder_2" => Component::TextEncoder2,
            _ => Component::TextEncoder3,
        };
        stage.part(self.name, &[], Some(component), |weights: &Weights| T5Encoder::load(weights, &self.config))
    }

    /// The tokens of `text`, padded to `length`; where it has more, that is noted.
    pub fn tokens(&self, stage: &mut Stage<'_, '_>, text: &str, length: usize) -> Result<Encoded, JobError> {
        let encoded = self.tokenizer.encode_to(text, length).map_err(ModelError::from)?;
        if encoded.dropped > 0 {
            let dropped = encoded.dropped;
            stage.note(format!(
                "The text is longer than the {length} tokens that T5 reads; the last {dropped} were left out."
            ));
        }
        Ok(encoded)
    }

    /// The hidden states of `length` tokens, (1, length, D), with the padding attended to.
    pub fn encode(&self, stage: &mut Stage<'_, '_>, text: &str, length: usize) -> Result<Tensor, JobError> {
        let encoder = self.load(stage)?;
        let ids = self.tokens(stage, text, length)?.ids;
        let ids = Tensor::f_from_slice(&ids).and_then(|ids| ids.f_unsqueeze(0)?.f_to_device(stage.device()));
        Ok(encoder.forward(&ids.map_err(TorchError::from)?, None)?)
    }
}
