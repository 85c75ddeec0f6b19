//! Networks that turn pictures into latents and back.
//!
//! Knows no pipelines and no files of pictures.

mod autoencoder;
pub mod autoencoder_kl;
mod bands;
mod chain;
mod frame;
pub mod qwen_image;

pub use self::{
    autoencoder::{Architecture, Autoencoder, Gaussian, Networks, Partition, Scaling},
    autoencoder_kl::{AutoencoderKl, VaeConfig},
    qwen_image::{AutoencoderKlQwenImage, QwenImageVaeConfig},
};
