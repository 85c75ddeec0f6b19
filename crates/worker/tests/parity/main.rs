//! The networks and pipelines against the tensors that diffusers and transformers gave: one file for each component.
//!
//! `fixture` finds the recorded cases and compares. They are made by `tools/fixtures/make`; with `ATELIER_PARITY_DIR`
//! set to a folder of fresh ones (another seed, another size), the same tests run on those. With
//! `ATELIER_PARITY_REPORT` set to a folder, every comparison is noted there for `tools/fixtures/report`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod aura_flow;
mod captions;
mod controlnet;
mod fixture;
mod flux;
mod keys;
mod loras;
mod pipelines;
mod qwen_image;
mod qwen_vl;
mod sd3;
mod text_encoders;
mod transformer_keys;
mod unet;
mod vae;
mod variants;
