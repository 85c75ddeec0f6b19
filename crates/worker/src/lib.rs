//! Atelier's worker: upscales, edits and makes pictures with libtorch, as the daemon asks over a socket.
//!
//! The only crate that names tch. Opens no database and no network: requests come in, files go out.

pub mod caption;
pub mod context;
pub mod control;
pub mod controlnet;
pub mod device;
pub mod diffusion;
pub mod durable;
pub mod error;
pub mod events;
pub mod language_model;
pub mod lora;
pub mod models;
pub mod nn;
pub mod noise;
pub mod pipeline;
pub mod prompt;
pub mod session;
pub mod sys;
pub mod text_encoder;
pub mod tokenizer;
pub mod torch;
pub mod transformer;
pub mod unet;
pub mod upscale;
pub mod vae;
pub mod vision_encoder;
pub mod vision_language;
pub mod weights;
