//! A small picture of unfinished latents, without the VAE: each colour as a weighted sum of the latents' channels.
//!
//! The weights are fitted where a picture and its latents are at hand, and known for the published VAEs of Stable
//! Diffusion; other models have no previews.

use std::path::Path;

use atelier_domain::OutputFormat;
use atelier_imaging::{
    Color, EncodeSpec, ImageError, Metadata, Samples, encode,
    resize::{Filter, resize_u8},
};
use tch::{Device, Kind, Tensor};

use super::pixels::Rgb;
use crate::{durable, torch::TorchError};

/// The file in the job's folder.
pub const FILE: &str = "preview.jpg";
/// The longer side of a preview.
const SIDE: usize = 256;

/// Red, green and blue of each of four channels, of Stable Diffusion 1.x; the colours are -1 to 1.
const STABLE_DIFFUSION: [[f32; 3]; 4] =
    [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]];
/// The same of SDXL.
const STABLE_DIFFUSION_XL: [[f32; 3]; 4] =
    [[0.392, 0.405, 0.455], [-0.263, -0.020, 0.065], [0.057, 0.169, -0.076], [-0.311, -0.236, -0.208]];

/// Weights for one model's latents.
pub struct Colors {
    /// (C + 1, 3): the last row is added.
    weights: Tensor,
}

impl Colors {
    /// Those of a published VAE, told apart by its scaling factor.
    pub fn known(latent_channels: i64, scaling_factor: f64) -> Option<Self> {
        let table = match latent_channels {
            4 if (scaling_factor - 0.18215).abs() < 1e-6 => STABLE_DIFFUSION,
            4 if (scaling_factor - 0.13025).abs() < 1e-6 => STABLE_DIFFUSION_XL,
            _ => return None,
        };
        // From -1..1 to 0..1.
        let rows = table.into_iter().flatten().map(|weight| weight / 2.0).chain([0.5; 3]).collect::<Vec<f32>>();
        let weights = Tensor::f_from_slice(&rows).and_then(|rows| rows.f_reshape([5, 3])).ok()?;
        Some(Self { weights })
    }

    /// The weights that make `picture` of its own latents (1, C, h, w), scaled as the denoiser's, best.
    pub fn fitted(latents: &Tensor, picture: &Rgb) -> Result<Self, TorchError> {
        let (_, _, height, width) = latents.size4()?;
        let small = picture.clone().resized(super::pixels::side(width), super::pixels::side(height));
        let colors = small.tensor()?.f_reshape([3, -1])?.f_transpose(0, 1)?;
        let rows = rows(latents)?;
        let square = rows.f_transpose(0, 1)?.f_matmul(&rows)?;
        // Channels that hardly differ must not blow up.
        let ridge = Tensor::f_eye(square.size()[0], (Kind::Float, Device::Cpu))?.f_mul_scalar(1e-3)?;
        let wanted = rows.f_transpose(0, 1)?.f_matmul(&colors)?;
        let weights = Tensor::f_linalg_solve(&square.f_add(&ridge)?, &wanted, true)?;
        Ok(Self { weights })
    }

    /// What latents (1, C, h, w) show.
    pub fn picture(&self, latents: &Tensor) -> Result<Rgb, TorchError> {
        let (_, _, height, width) = latents.size4()?;
        let colors = rows(latents)?.f_matmul(&self.weights)?.f_transpose(0, 1)?;
        Rgb::from_tensor(&colors.f_reshape([1, 3, height, width])?)
    }
}

/// (pixels, C + 1) on the CPU, the last column of ones.
fn rows(latents: &Tensor) -> Result<Tensor, TorchError> {
    let latents = latents.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let (_, channels, _, _) = latents.size4()?;
    let rows = latents.f_reshape([channels, -1])?.f_transpose(0, 1)?;
    let ones = Tensor::f_ones([rows.size()[0], 1], (Kind::Float, Device::Cpu))?;
    Ok(Tensor::f_cat(&[rows, ones], 1)?)
}

/// Puts the preview into the job's folder, where a reader finds either the last one or this one.
pub fn write(folder: &Path, picture: &Rgb) -> Result<(), ImageError> {
    let longer = picture.width.max(picture.height);
    let scaled = |side: usize| (side * SIDE / longer).max(1);
    let (width, height) = (scaled(picture.width), scaled(picture.height));
    let samples = resize_u8(&picture.samples, picture.width, picture.height, 3, width, height, Filter::Bicubic);
    let spec = EncodeSpec {
        format: OutputFormat::Jpeg,
        quality: 80,
        width: u32::try_from(width).unwrap_or(1),
        height: u32::try_from(height).unwrap_or(1),
        color: Color::Rgb,
        alpha: false,
        metadata: &Metadata::default(),
    };
    let part = folder.join(format!("{FILE}.part"));
    encode(Samples::U8(&samples), &spec, &part)?;
    std::fs::rename(&part, folder.join(FILE))?;
    Ok(())
}

pub fn clear(folder: &Path) -> std::io::Result<()> {
    durable::remove(&folder.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fitted_weights_show_the_picture_that_they_were_fitted_to() {
        let samples: Vec<u8> = (0..8 * 8 * 3).map(|n| u8::try_from(n * 7 % 200).expect("small")).collect();
        let picture = Rgb { width: 8, height: 8, samples };
        // Latents that are an affine mixture of the colours, and one channel that says nothing.
        let colors = picture.tensor().expect("a tensor");
        let [r, g, b] = [0, 1, 2].map(|c| colors.narrow(1, c, 1));
        let latents = Tensor::cat(&[&r * 2.0 - &g, &g + &b * 0.5 + 1.0, &b * -3.0, r.zeros_like()], 1);
        let shown = Colors::fitted(&latents, &picture).expect("fits").picture(&latents).expect("a picture");
        let worst = shown.samples.iter().zip(&picture.samples).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(3), "{worst:?}");
    }

    #[test]
    fn published_vaes_are_told_by_their_scaling_factor() {
        assert!(Colors::known(4, 0.18215).is_some() && Colors::known(4, 0.13025).is_some());
        assert!(Colors::known(8, 0.18215).is_none() && Colors::known(4, 0.5).is_none());
        let grey =
            Colors::known(4, 0.18215).expect("known").picture(&Tensor::zeros([1, 4, 2, 3], (Kind::Float, Device::Cpu)));
        assert_eq!(grey.expect("a picture"), Rgb { width: 3, height: 2, samples: vec![128; 18] });
    }
}
