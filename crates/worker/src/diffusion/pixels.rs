//! Pictures as the pipelines take them: 8-bit RGB in the model's size, resized as Pillow does it.

use atelier_imaging::{
    Color, Picture, Pixels,
    resize::{Filter, resize_u8},
};
use tch::Tensor;

use crate::{
    pipeline::Size,
    torch::{self, TorchError},
};

/// 8-bit RGB: `(height, width, 3)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    pub width: usize,
    pub height: usize,
    pub samples: Vec<u8>,
}

impl Rgb {
    /// `picture` in this size. Alpha is left out, grey becomes three equal channels, 16 bits are rounded.
    pub fn of(picture: &Picture, size: Size) -> Self {
        Self::whole(picture).resized(side(size.width), side(size.height))
    }

    /// `picture` in its own size.
    pub fn whole(picture: &Picture) -> Self {
        let samples = match &picture.pixels {
            Pixels::U8(samples) => rgb(samples, picture, |sample| sample),
            Pixels::U16(samples) => rgb(samples, picture, to_u8),
        };
        Self { width: picture.width as usize, height: picture.height as usize, samples }
    }

    #[must_use]
    pub fn resized(self, width: usize, height: usize) -> Self {
        if (self.width, self.height) == (width, height) {
            return self;
        }
        let samples = resize_u8(&self.samples, self.width, self.height, 3, width, height, Filter::Lanczos);
        Self { width, height, samples }
    }

    /// (1, 3, H, W) from 0 to 1 in f32 on the CPU.
    pub fn tensor(&self) -> Result<Tensor, TorchError> {
        let sizes = [1, wide(self.height), wide(self.width), 3];
        Ok(torch::from_vec(self.unit(), &sizes)?.f_permute([0, 3, 1, 2])?.f_contiguous()?)
    }

    /// From 0 to 1, interleaved.
    pub fn unit(&self) -> Vec<f32> {
        self.samples.iter().map(|&sample| f32::from(sample) / 255.0).collect()
    }

    /// What a model gives, (1, 3, H, W) from 0 to 1, rounded half to even as NumPy does it.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self, TorchError> {
        let values = interleaved(tensor)?;
        let (_, _, height, width) = tensor.size4()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped; NaN becomes 0")]
        let samples = values.into_iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
        Ok(Self { width: side(width), height: side(height), samples })
    }
}

/// (1, C, H, W) as `(H, W, C)`.
pub fn interleaved(tensor: &Tensor) -> Result<Vec<f32>, TorchError> {
    let interleaved = tensor.f_permute([0, 2, 3, 1])?.f_contiguous()?;
    let mut values = vec![0.0_f32; interleaved.numel()];
    let count = values.len();
    interleaved.f_copy_data(&mut values, count)?;
    Ok(values)
}

/// A mask in this size, as brightness: white is painted anew.
pub fn mask(picture: &Picture, size: Size) -> Vec<u8> {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let (to_width, to_height) = (side(size.width), side(size.height));
    if picture.color == Color::Gray {
        let samples: Vec<u8> = match &picture.pixels {
            Pixels::U8(samples) => samples.iter().step_by(picture.channels()).copied().collect(),
            Pixels::U16(samples) => samples.iter().step_by(picture.channels()).map(|&sample| to_u8(sample)).collect(),
        };
        return resize_u8(&samples, width, height, 1, to_width, to_height, Filter::Lanczos);
    }
    let resized = Rgb::of(picture, size);
    // Pillow's weights of brightness in 16 bits.
    let brightness = |pixel: &[u8]| {
        let sum = 19_595 * u32::from(pixel[0]) + 38_470 * u32::from(pixel[1]) + 7_471 * u32::from(pixel[2]) + 0x8000;
        u8::try_from(sum >> 16).unwrap_or(u8::MAX)
    };
    resized.samples.chunks_exact(3).map(brightness).collect()
}

fn rgb<T: Copy>(samples: &[T], picture: &Picture, narrow: impl Fn(T) -> u8) -> Vec<u8> {
    let pixels = samples.chunks_exact(picture.channels());
    match picture.color {
        Color::Gray => pixels.flat_map(|pixel| [narrow(pixel[0]); 3]).collect(),
        Color::Rgb => pixels.flat_map(|pixel| [narrow(pixel[0]), narrow(pixel[1]), narrow(pixel[2])]).collect(),
    }
}

/// Rounds instead of cutting off: 65535 / 255 is 257.
fn to_u8(sample: u16) -> u8 {
    u8::try_from((u32::from(sample) + 128) / 257).unwrap_or(u8::MAX)
}

/// A side of a picture; never negative.
pub fn side(length: i64) -> usize {
    usize::try_from(length).unwrap_or(0)
}

fn wide(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}
