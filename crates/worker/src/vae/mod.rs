//! Networks that turn pictures into latents and back.
//!
//! Knows no pipelines and no files of pictures.

pub mod autoencoder_kl;
mod chain;
mod frame;
pub mod qwen_image;
mod tiles;

pub use self::{
    autoencoder_kl::{AutoencoderKl, Gaussian, Partition, VaeConfig},
    qwen_image::{AutoencoderKlQwenImage, QwenImageVaeConfig},
};
