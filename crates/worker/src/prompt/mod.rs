//! Prompts of the Stable Diffusion family: LoRAs named in the text, words with weights, and texts longer than the
//! encoder's context, which are encoded window by window.
//!
//! Nothing is cut without being counted. With weighting off, a prompt that fits the context becomes exactly what
//! diffusers makes of it.

mod encode;
mod lora_tags;
mod weighting;
mod windows;

pub use self::{
    encode::{HiddenState, PromptEmbeds, encode},
    lora_tags::{LoraTag, extract as extract_loras},
    weighting::{Piece, parse as parse_weights},
    windows::{LongPrompt, PromptOptions, Windows},
};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    #[error("the prompt says {tag}, but a LoRA is named <lora:NAME:WEIGHT>: {detail}")]
    LoraTag { tag: String, detail: &'static str },
}
