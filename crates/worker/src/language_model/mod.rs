//! Language models: embedded tokens to scores of the next one, with a memory of what was computed before.
//!
//! Know no pictures, prompts or tokenizers. What puts pictures into them lies in `caption/` and `text_encoder/`.

mod cache;
pub mod decoder;
pub mod opt;
mod rotary;
pub mod t5;

pub use self::{
    cache::KvCache,
    decoder::{Decoder, DecoderConfig, LanguageHead},
    opt::{Opt, OptConfig},
    rotary::{Angles, Rotary},
    t5::{T5Seq2Seq, T5Seq2SeqConfig, T5Text},
};
