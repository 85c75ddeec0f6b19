//! Networks that turn pictures into latents and back.
//!
//! Knows no pipelines and no files of pictures.

pub mod autoencoder_kl;
mod chain;
mod tiles;

pub use self::autoencoder_kl::{AutoencoderKl, Gaussian, Partition, VaeConfig};
