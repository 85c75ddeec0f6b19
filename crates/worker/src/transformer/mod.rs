//! Diffusion transformers: the denoisers that attend to the text and to the picture's patches together.
//!
//! One file for each network, and small ones for what they share: projections into heads and joint attention
//! ([`joint`]), rotary positions ([`rope`]), adaptive norms ([`modulation`]), patches ([`patches`]). Tensors of tokens
//! are (B, L, features). Knows no prompts, samplers or pipelines.

pub mod aura_flow;
pub mod flux;
pub mod joint;
pub mod modulation;
pub mod patches;
pub mod qwen_image;
pub mod rms_norm;
pub mod rope;
pub mod sd3;
pub mod text_projection;

pub use self::{
    aura_flow::{AuraFlowConfig, AuraFlowTransformer},
    flux::{FluxConfig, FluxTransformer},
    joint::{HeadNorm, Heads, Names, Projections},
    modulation::{Modulation, modulate, norm},
    qwen_image::{QwenImageConfig, QwenImageTransformer},
    rms_norm::RmsNorm,
    rope::Rope,
    sd3::{Sd3Conditions, Sd3Config, Sd3Transformer},
    text_projection::TextProjection,
};
