//! From samples to tensors and back: one tile at a time.

use atelier_imaging::{Color, Picture, Pixels};
use tch::Tensor;

use crate::{
    torch::{self, TorchError},
    upscale::tiles::Rect,
};

/// The pixels of `rect` as (1, 3, H, W) in f32 from 0 to 1, stored as (H, W, 3). Grey becomes three equal channels;
/// alpha is left out.
pub fn tensor(picture: &Picture, rect: Rect) -> Result<Tensor, TorchError> {
    let values = match &picture.pixels {
        Pixels::U8(samples) => rgb(samples, picture, rect, |sample| f32::from(sample) / 255.0),
        Pixels::U16(samples) => rgb(samples, picture, rect, |sample| f32::from(sample) / 65535.0),
    };
    let sizes = [1, i64::from(rect.height()), i64::from(rect.width()), 3];
    Ok(torch::from_vec(values, &sizes)?.f_permute([0, 3, 1, 2])?)
}

fn rgb<T: Copy>(samples: &[T], picture: &Picture, rect: Rect, unit: impl Fn(T) -> f32) -> Vec<f32> {
    let channels = picture.channels();
    let mut values = Vec::with_capacity(rect.width() as usize * rect.height() as usize * 3);
    for y in rect.y0..rect.y1 {
        let row = row(samples, picture, y);
        let pixels = row[rect.x0 as usize * channels..rect.x1 as usize * channels].chunks_exact(channels);
        match picture.color {
            Color::Gray => values.extend(pixels.flat_map(|pixel| [unit(pixel[0]); 3])),
            Color::Rgb => values.extend(pixels.flat_map(|pixel| [unit(pixel[0]), unit(pixel[1]), unit(pixel[2])])),
        }
    }
    values
}

fn row<'a, T>(samples: &'a [T], picture: &Picture, y: u32) -> &'a [T] {
    let length = picture.width as usize * picture.channels();
    &samples[y as usize * length..(y as usize + 1) * length]
}

/// How the rows of an output are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub color: Color,
    pub alpha: bool,
    pub sixteen_bit: bool,
}

impl Layout {
    pub const fn channels(self) -> usize {
        let colors = match self.color {
            Color::Gray => 1,
            Color::Rgb => 3,
        };
        colors + self.alpha as usize
    }

    pub const fn bytes_per_pixel(self) -> usize {
        self.channels() * if self.sixteen_bit { 2 } else { 1 }
    }
}

/// The samples of a tile, interleaved: from `rgb`, which is (1, 3, H, W), and `alpha`, H · W values. Grey is the mean of
/// the three channels. Values beyond 0 to 1 are cut off.
pub fn samples(rgb: &Tensor, alpha: Option<&[f32]>, layout: Layout) -> Result<Vec<u8>, TorchError> {
    let interleaved = rgb.f_permute([0, 2, 3, 1])?.f_contiguous()?;
    let mut values = vec![0.0_f32; interleaved.numel()];
    let count = values.len();
    interleaved.f_copy_data(&mut values, count)?;
    let pixels = count / 3;
    if layout.sixteen_bit {
        let mut out = Vec::with_capacity(pixels * layout.channels());
        gather(&values, alpha, layout, &mut out, to_u16);
        return Ok(bytemuck::cast_slice(&out).to_vec());
    }
    let mut out = Vec::with_capacity(pixels * layout.channels());
    gather(&values, alpha, layout, &mut out, to_u8);
    Ok(out)
}

fn gather<T>(rgb: &[f32], alpha: Option<&[f32]>, layout: Layout, out: &mut Vec<T>, quantise: impl Fn(f32) -> T) {
    for (at, pixel) in rgb.chunks_exact(3).enumerate() {
        match layout.color {
            Color::Gray => out.push(quantise((pixel[0] + pixel[1] + pixel[2]) / 3.0)),
            Color::Rgb => out.extend(pixel.iter().map(|&value| quantise(value))),
        }
        if layout.alpha {
            out.push(quantise(alpha.and_then(|alpha| alpha.get(at)).copied().unwrap_or(1.0)));
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped; NaN becomes 0")]
fn to_u8(value: f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped; NaN becomes 0")]
fn to_u16(value: f32) -> u16 {
    (value.clamp(0.0, 1.0) * 65535.0 + 0.5) as u16
}

/// Whether anything can be seen through.
pub fn has_transparency(picture: &Picture) -> bool {
    fn any<T: Copy + PartialEq>(samples: &[T], channels: usize, opaque: T) -> bool {
        samples.chunks_exact(channels).any(|pixel| pixel.last() != Some(&opaque))
    }
    picture.alpha
        && match &picture.pixels {
            Pixels::U8(samples) => any(samples, picture.channels(), u8::MAX),
            Pixels::U16(samples) => any(samples, picture.channels(), u16::MAX),
        }
}

/// Alpha of `rect` scaled up, bicubic, row by row. The networks are made for photographs and would leave specks in what
/// is wholly opaque or clear; bicubic keeps both.
pub fn alpha(picture: &Picture, rect: Rect, scale: u32) -> Vec<f32> {
    match &picture.pixels {
        Pixels::U8(samples) => bicubic(samples, picture, rect, scale, |sample| f32::from(sample) / 255.0),
        Pixels::U16(samples) => bicubic(samples, picture, rect, scale, |sample| f32::from(sample) / 65535.0),
    }
}

fn bicubic<T: Copy>(samples: &[T], picture: &Picture, rect: Rect, scale: u32, unit: impl Fn(T) -> f32) -> Vec<f32> {
    let channels = picture.channels();
    let phases: Vec<Taps> = (0..scale).map(|phase| Taps::new(phase, scale)).collect();
    let mut out = Vec::with_capacity((rect.width() * scale) as usize * (rect.height() * scale) as usize);
    for y in rect.y0 * scale..rect.y1 * scale {
        let vertical = phases[(y % scale) as usize].at(y / scale, picture.height);
        for x in rect.x0 * scale..rect.x1 * scale {
            let horizontal = phases[(x % scale) as usize].at(x / scale, picture.width);
            let mut value = 0.0;
            for (y, weight_y) in vertical {
                let row = row(samples, picture, y);
                for (x, weight_x) in horizontal {
                    value += weight_y * weight_x * unit(row[x as usize * channels + channels - 1]);
                }
            }
            out.push(value);
        }
    }
    out
}

/// The four source pixels of an output pixel, and their weights.
struct Taps {
    /// From the source pixel under the output pixel to the first of the four.
    first: i64,
    weights: [f32; 4],
}

impl Taps {
    fn new(phase: u32, scale: u32) -> Self {
        // The centre of the output pixel, in source pixels from the centre of the one under it.
        let offset = (f64::from(phase) + 0.5) / f64::from(scale) - 0.5;
        let first = if offset < 0.0 { -2 } else { -1 };
        #[expect(clippy::cast_possible_truncation, reason = "weights within -1 to 1")]
        let weights = [0.0, 1.0, 2.0, 3.0].map(|tap| keys(f64::from(first) + tap - offset) as f32);
        Self { first: i64::from(first), weights }
    }

    /// For the output pixel over source pixel `at` of `length`. Pixels beyond the edge are the edge's.
    fn at(&self, at: u32, length: u32) -> [(u32, f32); 4] {
        let mut index = i64::from(at) + self.first;
        self.weights.map(|weight| {
            let inside = index.clamp(0, i64::from(length) - 1);
            index += 1;
            (u32::try_from(inside).unwrap_or(0), weight)
        })
    }
}

/// The cubic convolution kernel with a = -0.5 (Keys 1981), as Pillow has it.
fn keys(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use atelier_imaging::{MediaType, Metadata};

    use super::*;

    fn picture(color: Color, alpha: bool, pixels: Pixels, width: u32, height: u32) -> Picture {
        Picture {
            width,
            height,
            color,
            alpha,
            pixels,
            metadata: Metadata::default(),
            media_type: MediaType::Png,
            jpeg_quality: None,
            notes: Vec::new(),
        }
    }

    const ALL: Rect = Rect { x0: 0, y0: 0, x1: 3, y1: 2 };

    #[test]
    fn samples_survive_the_way_into_a_tensor_and_back() {
        for (color, alpha, channels) in
            [(Color::Gray, false, 1), (Color::Gray, true, 2), (Color::Rgb, false, 3), (Color::Rgb, true, 4)]
        {
            for sixteen_bit in [false, true] {
                let count = 6 * channels;
                let (pixels, bytes) = if sixteen_bit {
                    let samples: Vec<u16> = (0..count).map(|n| 65_535 - 2_719 * n).collect();
                    (Pixels::U16(samples.clone()), bytemuck::cast_slice(&samples).to_vec())
                } else {
                    let samples: Vec<u8> = (0..count).map(|n| u8::try_from(255 - 10 * n).expect("small")).collect();
                    (Pixels::U8(samples.clone()), samples)
                };
                let picture = picture(color, alpha, pixels, 3, 2);
                let layout = Layout { color, alpha, sixteen_bit };
                let opacity = alpha.then(|| super::alpha(&picture, ALL, 1));
                let rgb = tensor(&picture, ALL).expect("a tensor");
                assert_eq!(samples(&rgb, opacity.as_deref(), layout).expect("samples"), bytes, "{layout:?}");
            }
        }
    }

    #[test]
    fn values_out_of_range_are_cut_off_and_not_wrapped() {
        let rgb = torch::from_vec(vec![-0.2, 1.3, f32::NAN], &[1, 1, 1, 3]).expect("a tensor").permute([0, 3, 1, 2]);
        let layout = Layout { color: Color::Rgb, alpha: false, sixteen_bit: false };
        assert_eq!(samples(&rgb, None, layout).expect("samples"), [0, 255, 0]);
    }

    #[test]
    fn opaque_and_clear_stay_so_and_tiles_of_alpha_fit_together() {
        let (width, height) = (9, 7);
        let samples: Vec<u8> = (0..width * height)
            .flat_map(|n| {
                [
                    0,
                    if n % width < 3 {
                        255
                    } else if n % width > 6 {
                        0
                    } else {
                        90
                    },
                ]
            })
            .collect();
        let picture = picture(Color::Gray, true, Pixels::U8(samples), width, height);
        assert!(has_transparency(&picture));
        for scale in [2, 4] {
            let all = alpha(&picture, Rect { x0: 0, y0: 0, x1: width, y1: height }, scale);
            let stride = (width * scale) as usize;
            assert!((all[0] - 1.0).abs() < 1e-6 && all[stride - 1].abs() < 1e-6);
            let part = alpha(&picture, Rect { x0: 4, y0: 2, x1: 9, y1: 5 }, scale);
            let s = scale as usize;
            for y in 0..3 * s {
                let expected = &all[(2 * s + y) * stride + 4 * s..(2 * s + y) * stride + 9 * s];
                assert_eq!(&part[y * 5 * s..(y + 1) * 5 * s], expected);
            }
        }
    }

    #[test]
    fn the_weights_of_every_phase_sum_to_one() {
        for scale in [1, 2, 4] {
            for phase in 0..scale {
                let sum: f32 = Taps::new(phase, scale).weights.iter().sum();
                assert!((sum - 1.0).abs() < 1e-6);
            }
        }
    }
}
