//! Jobs of diffusion models, through the very code that the worker runs, in this process.
#![allow(clippy::unwrap_used, reason = "tests")]

mod edit;
mod flux;
mod gguf;
mod offload;
mod qwen_image;
mod refusals;
mod resume;
mod scarcity;
mod sd3;
mod support;
