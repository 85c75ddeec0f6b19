//! A decoder that goes on after a prompt, which may hold a picture.

use tch::{Kind, Tensor};

use super::generate::CausalLm;
use crate::{
    language_model::{Decoder, KvCache, LanguageHead, Rotary, decoder::Pass},
    torch::TorchError,
};

pub struct Decoding<'a> {
    decoder: &'a Decoder,
    head: &'a LanguageHead,
    rotary: Rotary,
    cache: KvCache,
    /// (1, L, D); read once.
    prompt: Tensor,
    /// (L), or (3, L).
    positions: Tensor,
    /// Of the next token.
    next: i64,
}

impl<'a> Decoding<'a> {
    /// After `prompt` (1, L, D), embedded; its tokens stand at 0, 1, … .
    pub fn new(
        decoder: &'a Decoder,
        head: &'a LanguageHead,
        prompt: Tensor,
        max_tokens: usize,
    ) -> Result<Self, TorchError> {
        let (_, length, _) = prompt.size3()?;
        let positions = Tensor::f_arange(length, (Kind::Int64, decoder.device()))?;
        Self::at(decoder, head, prompt, positions, length, max_tokens)
    }

    /// As [`Self::new`], at these `positions`, (L) or (3, L), with the answer from `next` on.
    pub fn at(
        decoder: &'a Decoder,
        head: &'a LanguageHead,
        prompt: Tensor,
        positions: Tensor,
        next: i64,
        max_tokens: usize,
    ) -> Result<Self, TorchError> {
        let (_, length, _) = prompt.size3()?;
        let rotary = decoder.config().rotary(decoder.device())?;
        let cache = decoder.cache(length + i64::try_from(max_tokens).unwrap_or(i64::MAX - length));
        Ok(Self { decoder, head, rotary, cache, prompt, positions, next })
    }

    /// The prompt's hidden states (1, L, D), before the head. Read once, by this or by [`CausalLm::prefill`].
    pub fn hidden_states(&mut self) -> Result<Tensor, TorchError> {
        let (prompt, positions) = (self.prompt.shallow_clone(), self.positions.shallow_clone());
        self.read(&prompt, &positions)
    }

    fn read(&mut self, embedded: &Tensor, positions: &Tensor) -> Result<Tensor, TorchError> {
        let angles = self.rotary.at(positions, self.decoder.kind())?;
        let pass = Pass { angles: &angles, mask: None, cache: Some(&mut self.cache) };
        self.decoder.forward(embedded, pass)
    }
}

impl CausalLm for Decoding<'_> {
    fn prefill(&mut self) -> Result<Tensor, TorchError> {
        let hidden = self.hidden_states()?;
        self.head.last(&hidden)
    }

    fn step(&mut self, token: i64) -> Result<Tensor, TorchError> {
        let positions = Tensor::f_from_slice(&[self.next])?.f_to_device(self.decoder.device())?;
        self.next += 1;
        let embedded = self.decoder.embed(&[token])?;
        let hidden = self.read(&embedded, &positions)?;
        self.head.last(&hidden)
    }
}
