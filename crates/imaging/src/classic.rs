//! Exact operations on pixels, for what needs no network: turning, cutting, resizing, and a few classical looks.
//!
//! Depth, alpha and metadata stay; colours are computed in f32. Looks whose size matters grow with the picture, so
//! that they look the same on a large one.

use std::{f32::consts::TAU, thread};

use image::{
    ImageBuffer, Luma, LumaA, Rgb, Rgba,
    imageops::{self, FilterType},
};

use crate::{
    Color, Picture, Pixels, bands,
    resize::{Filter, resize_u8},
};

/// What is done to a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// Clockwise, by this many quarters of a turn.
    Rotate {
        quarters: u8,
    },
    FlipHorizontal,
    FlipVertical,
    /// The largest part around the centre with these proportions.
    CropTo {
        width: u32,
        height: u32,
    },
    /// To this size; a side of 0 follows from the other.
    ResizeTo {
        width: u32,
        height: u32,
    },
    /// To this share of both sides, in percent.
    Scale {
        percent: u32,
    },
    Blur,
    Sharpen,
    /// To this many steps of each channel.
    Posterize {
        levels: u32,
    },
    Sketch,
}

/// An operation that makes no picture, with what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OperationError(pub String);

impl Operation {
    /// The size of the result for a picture of this size.
    ///
    /// # Errors
    /// A size of nothing, or of more than `max_pixels`.
    pub fn size(self, width: u32, height: u32, max_pixels: u64) -> Result<(u32, u32), OperationError> {
        let follow = |side: u32, of: u32, other: u32| {
            let side = (u64::from(side) * u64::from(other) + u64::from(of) / 2) / u64::from(of);
            u32::try_from(side.max(1)).unwrap_or(u32::MAX)
        };
        let size = match self {
            Self::Rotate { quarters } if quarters % 2 == 1 => (height, width),
            Self::CropTo { width: 0, .. } | Self::CropTo { height: 0, .. } => (0, 0),
            Self::CropTo { width: w, height: h } => {
                let by_width = follow(width, w, h);
                if by_width <= height { (width, by_width) } else { (follow(height, h, w).min(width), height) }
            }
            Self::ResizeTo { width: w, height: 0 } => (w, follow(w, width, height)),
            Self::ResizeTo { width: 0, height: h } => (follow(h, height, width), h),
            Self::ResizeTo { width: w, height: h } => (w, h),
            Self::Scale { percent } => (follow(percent, 100, width), follow(percent, 100, height)),
            Self::Rotate { .. }
            | Self::FlipHorizontal
            | Self::FlipVertical
            | Self::Blur
            | Self::Sharpen
            | Self::Posterize { .. }
            | Self::Sketch => (width, height),
        };
        let levels_are_wrong = matches!(self, Self::Posterize { levels } if !(2..=64).contains(&levels));
        if size.0 == 0 || size.1 == 0 || self == (Self::Scale { percent: 0 }) || levels_are_wrong {
            return Err(OperationError(format!("{self:?} makes no picture")));
        }
        let pixels = u64::from(size.0) * u64::from(size.1);
        if pixels > max_pixels {
            return Err(OperationError(format!(
                "the result would have {} x {} pixels, and at most {max_pixels} are allowed",
                size.0, size.1
            )));
        }
        Ok(size)
    }

    /// Does it.
    ///
    /// # Errors
    /// As [`Self::size`].
    pub fn apply(self, picture: &Picture, max_pixels: u64, threads: usize) -> Result<Picture, OperationError> {
        let (width, height) = self.size(picture.width, picture.height, max_pixels)?;
        let pixels = match &picture.pixels {
            Pixels::U8(samples) => Pixels::U8(self.moved(samples, picture, width, height).unwrap_or_else(|| {
                if self.resizes() {
                    let [from_w, from_h, to_w, to_h] =
                        [picture.width, picture.height, width, height].map(|n| n as usize);
                    return resize_u8(samples, from_w, from_h, picture.channels(), to_w, to_h, Filter::Lanczos);
                }
                self.look(samples, picture, threads, 255.0, |value| {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 255")]
                    let sample = value as u8;
                    sample
                })
            })),
            Pixels::U16(samples) => Pixels::U16(self.moved(samples, picture, width, height).unwrap_or_else(|| {
                if self.resizes() {
                    return resize_u16(samples, picture, width, height);
                }
                self.look(samples, picture, threads, 65535.0, |value| {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 65535")]
                    let sample = value as u16;
                    sample
                })
            })),
        };
        Ok(Picture { width, height, pixels, ..picture.clone_without_pixels() })
    }

    const fn resizes(self) -> bool {
        matches!(self, Self::ResizeTo { .. } | Self::Scale { .. })
    }

    /// The result of an operation that only moves pixels.
    fn moved<T: Copy>(self, samples: &[T], picture: &Picture, width: u32, height: u32) -> Option<Vec<T>> {
        let [from_w, from_h, to_w, to_h] = [picture.width, picture.height, width, height].map(|side| side as usize);
        let (left, top) = ((from_w.saturating_sub(to_w)) / 2, (from_h.saturating_sub(to_h)) / 2);
        let source = move |x: usize, y: usize| match self {
            Self::Rotate { quarters } => Some(match quarters % 4 {
                0 => (x, y),
                1 => (y, from_h - 1 - x),
                2 => (from_w - 1 - x, from_h - 1 - y),
                _ => (from_w - 1 - y, x),
            }),
            Self::FlipHorizontal => Some((from_w - 1 - x, y)),
            Self::FlipVertical => Some((x, from_h - 1 - y)),
            Self::CropTo { .. } => Some((left + x, top + y)),
            Self::ResizeTo { .. }
            | Self::Scale { .. }
            | Self::Blur
            | Self::Sharpen
            | Self::Posterize { .. }
            | Self::Sketch => None,
        };
        source(0, 0)?;
        let channels = picture.channels();
        let mut out = Vec::with_capacity(to_w * to_h * channels);
        for y in 0..to_h {
            for (x, y) in (0..to_w).filter_map(|x| source(x, y)) {
                out.extend_from_slice(&samples[(y * from_w + x) * channels..][..channels]);
            }
        }
        Some(out)
    }

    /// The result of a look, band by band.
    fn look<T: Copy + Default + Send + Sync + Into<f32>>(
        self,
        samples: &[T],
        picture: &Picture,
        threads: usize,
        full: f32,
        narrow: impl Fn(f32) -> T + Sync,
    ) -> Vec<T> {
        let (width, height, channels) = (picture.width as usize, picture.height as usize, picture.channels());
        let mut out = vec![T::default(); samples.len()];
        let source = Source { samples, width, height, channels, colors: color_channels(picture.color), full };
        // The original looks are made for pictures of 256 pixels.
        #[expect(clippy::cast_precision_loss, reason = "sides of pictures")]
        let size = width.min(height) as f32;
        let (source, narrow) = (&source, &narrow);
        thread::scope(|scope| {
            for (from, band) in bands(&mut out, width * channels, height, threads) {
                scope.spawn(move || {
                    let rows = band.len() / (width * channels);
                    let put = |y: usize, row: &mut [T], value: &mut dyn FnMut(usize, usize) -> f32| {
                        for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
                            for (c, sample) in pixel.iter_mut().enumerate() {
                                *sample = if c < source.colors {
                                    narrow(value(x, c).clamp(0.0, 1.0) * full + 0.5)
                                } else {
                                    samples[((from + y) * width + x) * channels + c]
                                };
                            }
                        }
                    };
                    let blurred = |sigma: f32, map: fn(f32) -> f32| source.blur(from, rows, sigma, map);
                    match self {
                        Self::Blur => {
                            let soft = blurred(2.0 * (size / 256.0).max(1.0), |value| value);
                            for (y, row) in band.chunks_exact_mut(width * channels).enumerate() {
                                put(y, row, &mut |x, c| soft[(y * width + x) * source.colors + c]);
                            }
                        }
                        Self::Sharpen => {
                            let soft = blurred(1.2 * (size / 1024.0).max(1.0), |value| value);
                            for (y, row) in band.chunks_exact_mut(width * channels).enumerate() {
                                put(y, row, &mut |x, c| {
                                    let sharp = source.at(x, from + y, c);
                                    sharp + 1.2 * (sharp - soft[(y * width + x) * source.colors + c])
                                });
                            }
                        }
                        Self::Sketch => {
                            let grey = Source { colors: 1, ..*source };
                            let soft = grey.blur(from, rows, 2.0 * (size / 256.0).max(1.0), |value| 1.0 - value);
                            for (y, row) in band.chunks_exact_mut(width * channels).enumerate() {
                                put(y, row, &mut |x, _| {
                                    source.luminance(x, from + y) / (1.0 - soft[y * width + x] + 1e-3)
                                });
                            }
                        }
                        Self::Posterize { levels } => {
                            #[expect(clippy::cast_precision_loss, reason = "at most 64")]
                            let steps = (levels - 1) as f32;
                            for (y, row) in band.chunks_exact_mut(width * channels).enumerate() {
                                put(y, row, &mut |x, c| (source.at(x, from + y, c) * steps).round_ties_even() / steps);
                            }
                        }
                        Self::Rotate { .. }
                        | Self::FlipHorizontal
                        | Self::FlipVertical
                        | Self::CropTo { .. }
                        | Self::ResizeTo { .. }
                        | Self::Scale { .. } => {}
                    }
                });
            }
        });
        out
    }
}

const fn color_channels(color: Color) -> usize {
    match color {
        Color::Gray => 1,
        Color::Rgb => 3,
    }
}

/// Samples as numbers from 0 to 1.
#[derive(Clone, Copy)]
struct Source<'a, T> {
    samples: &'a [T],
    width: usize,
    height: usize,
    channels: usize,
    /// Channels that are computed: 1 on a coloured picture means its luminance.
    colors: usize,
    full: f32,
}

impl<T: Copy + Into<f32>> Source<'_, T> {
    fn at(&self, x: usize, y: usize, c: usize) -> f32 {
        self.samples[(y * self.width + x) * self.channels + c].into() / self.full
    }

    fn luminance(&self, x: usize, y: usize) -> f32 {
        if self.channels < 3 {
            return self.at(x, y, 0);
        }
        0.299 * self.at(x, y, 0) + 0.587 * self.at(x, y, 1) + 0.114 * self.at(x, y, 2)
    }

    /// Rows `from` to `from + rows`, each value mapped first, then blurred: `(rows, width, colors)`. What lies beyond
    /// an edge is mirrored.
    fn blur(&self, from: usize, rows: usize, sigma: f32, map: fn(f32) -> f32) -> Vec<f32> {
        let kernel = gaussian(sigma);
        let reach = kernel.len() / 2;
        let row_length = self.width * self.colors;
        let mut out = vec![0.0; rows * row_length];
        // Each source row is blurred along itself once, and added to all rows that it reaches.
        let mut line = vec![0.0; row_length];
        let mut soft = vec![0.0; row_length];
        let first = isize::try_from(from).unwrap_or(0) - isize::try_from(reach).unwrap_or(0);
        for step in 0..rows + 2 * reach {
            let y = mirror(first + isize::try_from(step).unwrap_or(0), self.height);
            for x in 0..self.width {
                for c in 0..self.colors {
                    let value = if self.colors == 1 { self.luminance(x, y) } else { self.at(x, y, c) };
                    line[x * self.colors + c] = map(value);
                }
            }
            self.blur_line(&line, &kernel, &mut soft);
            // Row r of the result takes this one with the weight kernel[step - r].
            for r in step.saturating_sub(2 * reach)..=step.min(rows - 1) {
                let weight = kernel[step - r];
                for (out, soft) in out[r * row_length..][..row_length].iter_mut().zip(&soft) {
                    *out += weight * soft;
                }
            }
        }
        out
    }

    fn blur_line(&self, line: &[f32], kernel: &[f32], out: &mut [f32]) {
        let reach = kernel.len() / 2;
        let (width, colors) = (self.width, self.colors);
        out.fill(0.0);
        for (k, weight) in kernel.iter().enumerate() {
            // out[x] += weight · line[x + k - reach], straight where that lies inside.
            let inside = reach.saturating_sub(k)..(width + reach - k).min(width);
            if inside.start < inside.end {
                let shift = (inside.start + k - reach) * colors;
                let from = &line[shift..][..(inside.end - inside.start) * colors];
                for (out, value) in out[inside.start * colors..inside.end * colors].iter_mut().zip(from) {
                    *out += weight * value;
                }
            }
            for x in (0..inside.start.min(width)).chain(inside.end.max(inside.start).min(width)..width) {
                let signed = isize::try_from(x + k).unwrap_or(0) - isize::try_from(reach).unwrap_or(0);
                let from = mirror(signed, width);
                for c in 0..colors {
                    out[x * colors + c] += weight * line[from * colors + c];
                }
            }
        }
    }
}

/// The place that lies at `index` when a line of `length` is mirrored at its first and last place.
fn mirror(index: isize, length: usize) -> usize {
    let Ok(last) = isize::try_from(length - 1) else { return 0 };
    if last == 0 {
        return 0;
    }
    let index = index.rem_euclid(2 * last);
    usize::try_from(if index > last { 2 * last - index } else { index }).unwrap_or(0)
}

/// A Gaussian kernel that reaches three sigmas, and sums to 1.
fn gaussian(sigma: f32) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "at most a few thousand")]
    let reach = (3.0 * sigma) as i16;
    let weight = |at: i16| (-f32::from(at).powi(2) / (2.0 * sigma * sigma)).exp() / (TAU.sqrt() * sigma);
    let weights: Vec<f32> = (-reach..=reach).map(weight).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

fn resize_u16(samples: &[u16], picture: &Picture, width: u32, height: u32) -> Vec<u16> {
    macro_rules! resize {
        ($pixel:ident) => {
            ImageBuffer::<$pixel<u16>, _>::from_raw(picture.width, picture.height, samples)
                .map(|buffer| imageops::resize(&buffer, width, height, FilterType::Lanczos3).into_raw())
        };
    }
    let resized = match (picture.color, picture.alpha) {
        (Color::Gray, false) => resize!(Luma),
        (Color::Gray, true) => resize!(LumaA),
        (Color::Rgb, false) => resize!(Rgb),
        (Color::Rgb, true) => resize!(Rgba),
    };
    resized.expect("a picture has as many samples as its size says")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MediaType, Metadata};

    fn picture(color: Color, alpha: bool, pixels: Pixels, width: u32, height: u32) -> Picture {
        let metadata = Metadata::default();
        let (media_type, jpeg_quality, notes) = (MediaType::Png, None, Vec::new());
        Picture { width, height, color, alpha, pixels, metadata, media_type, jpeg_quality, notes }
    }

    fn grey(samples: &[u8], width: u32) -> Picture {
        let height = u32::try_from(samples.len()).expect("small") / width;
        picture(Color::Gray, false, Pixels::U8(samples.to_vec()), width, height)
    }

    fn apply(operation: Operation, picture: &Picture) -> Picture {
        operation.apply(picture, 1 << 20, 2).expect("a picture")
    }

    fn samples(picture: &Picture) -> Vec<u8> {
        match &picture.pixels {
            Pixels::U8(samples) => samples.clone(),
            Pixels::U16(_) => panic!("8 bits stay 8 bits"),
        }
    }

    #[test]
    fn turning_and_mirroring_move_every_pixel() {
        // 1 2 3
        // 4 5 6
        let six = grey(&[1, 2, 3, 4, 5, 6], 3);
        let cases: [(Operation, (u32, u32), [u8; 6]); 5] = [
            (Operation::Rotate { quarters: 1 }, (2, 3), [4, 1, 5, 2, 6, 3]),
            (Operation::Rotate { quarters: 2 }, (3, 2), [6, 5, 4, 3, 2, 1]),
            (Operation::Rotate { quarters: 3 }, (2, 3), [3, 6, 2, 5, 1, 4]),
            (Operation::FlipHorizontal, (3, 2), [3, 2, 1, 6, 5, 4]),
            (Operation::FlipVertical, (3, 2), [4, 5, 6, 1, 2, 3]),
        ];
        for (operation, size, expected) in cases {
            let out = apply(operation, &six);
            assert_eq!(((out.width, out.height), samples(&out)), (size, expected.to_vec()), "{operation:?}");
        }
    }

    #[test]
    fn cutting_keeps_the_centre_and_resizing_the_proportions() {
        let wide = grey(&(0..100 * 40).map(|n| u8::try_from(n % 100).expect("small")).collect::<Vec<_>>(), 100);
        let square = apply(Operation::CropTo { width: 1, height: 1 }, &wide);
        assert_eq!((square.width, square.height, samples(&square)[0]), (40, 40, 30));
        let size = |operation: Operation| operation.size(100, 40, 1 << 20);
        assert_eq!(size(Operation::CropTo { width: 16, height: 9 }), Ok((71, 40)));
        assert_eq!(size(Operation::ResizeTo { width: 50, height: 0 }), Ok((50, 20)));
        assert_eq!(size(Operation::ResizeTo { width: 0, height: 80 }), Ok((200, 80)));
        assert_eq!(size(Operation::Scale { percent: 25 }), Ok((25, 10)));
        assert_eq!(apply(Operation::Scale { percent: 200 }, &wide).width, 200);
        for nothing in [
            Operation::CropTo { width: 0, height: 3 },
            Operation::ResizeTo { width: 0, height: 0 },
            Operation::Scale { percent: 0 },
            Operation::Scale { percent: 100_000 },
            Operation::Posterize { levels: 1 },
        ] {
            assert!(size(nothing).is_err(), "{nothing:?}");
        }
    }

    #[test]
    fn a_blur_spreads_a_point_evenly_and_keeps_its_sum() {
        let mut point = vec![0; 31 * 31];
        point[15 * 31 + 15] = 255;
        let Pixels::U16(out) = apply(
            Operation::Blur,
            &picture(Color::Gray, false, Pixels::U16(point.iter().map(|&v| v * 257).collect()), 31, 31),
        )
        .pixels
        else {
            panic!("16 bits stay 16 bits")
        };
        let at = |x: usize, y: usize| out[y * 31 + x];
        assert!(at(15, 15) > at(16, 15) && at(16, 15) > at(18, 15) && at(18, 15) > 0);
        assert_eq!((at(12, 15), at(15, 12)), (at(18, 15), at(15, 18)));
        let sum: u32 = out.iter().map(|&v| u32::from(v)).sum();
        assert!(sum.abs_diff(65535) < 700, "{sum}");
    }

    #[test]
    fn flat_places_stay_flat_under_every_look_and_alpha_is_left_alone() {
        let flat: Vec<u8> = [85, 170, 0, 77].repeat(20 * 12);
        let flat = picture(Color::Rgb, true, Pixels::U8(flat), 20, 12);
        for operation in [Operation::Blur, Operation::Sharpen, Operation::Posterize { levels: 4 }] {
            assert_eq!(samples(&apply(operation, &flat)), samples(&flat), "{operation:?}");
        }
        let paper = samples(&apply(Operation::Sketch, &flat));
        assert!(paper.chunks_exact(4).all(|pixel| pixel[0] > 250 && pixel[3] == 77), "{:?}", &paper[..4]);
    }

    #[test]
    fn posterizing_leaves_so_many_levels_and_sharpening_steepens_an_edge() {
        let ramp = grey(&(0..=255).collect::<Vec<_>>(), 256);
        let levels: std::collections::BTreeSet<u8> =
            samples(&apply(Operation::Posterize { levels: 4 }, &ramp)).into_iter().collect();
        assert_eq!(levels.into_iter().collect::<Vec<_>>(), [0, 85, 170, 255]);
        let step: Vec<u8> = [60, 60, 60, 60, 60, 190, 190, 190, 190, 190].repeat(10);
        let sharp = samples(&apply(Operation::Sharpen, &grey(&step, 10)));
        assert!(sharp[44] < 60 && sharp[45] > 190, "{:?}", &sharp[40..50]);
    }
}
