//! Carries a small picture's change of colour to the full resolution: a colour guided filter.
//!
//! At the small size every pixel gets the affine map, three channels to three, that explains the change in its
//! neighbourhood best. The maps are smooth, so they can be enlarged without loss and applied to the original's own
//! pixels, whose detail stays. An edit that changes detail itself (blur, sketch) is not expressible so.
//!
//! *Source*: He, Sun and Tang, "Guided Image Filtering", with the source as the guide and the edit as the input.

use std::thread;

use crate::{Color, Picture, Pixels, bands};

/// How far a neighbourhood reaches, in pixels of the small picture.
const RADIUS: usize = 12;
/// Keeps flat places from being explained by noise.
const EPSILON: f64 = 1e-3;
/// Numbers of one map: for each channel of the result three factors and an offset.
const NUMBERS: usize = 12;

/// An affine map of colours for every pixel of a small picture.
#[derive(Clone, Debug)]
pub struct ColorMaps {
    width: usize,
    height: usize,
    /// `(height, width, 3, 4)`.
    numbers: Vec<f32>,
}

impl ColorMaps {
    /// Fits the maps from `source` to `edited`.
    ///
    /// *Shapes*: both `(height, width, 3)`, from 0 to 1.
    ///
    /// # Panics
    /// When either has another length than that.
    pub fn fit(source: &[f32], edited: &[f32], width: usize, height: usize) -> Self {
        let pixels = width * height;
        assert!(pixels > 0 && source.len() == pixels * 3 && edited.len() == pixels * 3, "two pictures of one size");
        let plane = |samples: &[f32], channel: usize| -> Vec<f64> {
            samples.iter().skip(channel).step_by(3).map(|&sample| f64::from(sample)).collect()
        };
        let mean = |plane: Vec<f64>| box_mean(plane, width, height);
        let guide: [Vec<f64>; 3] = std::array::from_fn(|c| plane(source, c));
        let target: [Vec<f64>; 3] = std::array::from_fn(|c| plane(edited, c));
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).collect();
        let guide_mean = guide.clone().map(mean);
        let target_mean = target.clone().map(mean);
        let guide_square: [Vec<f64>; 6] = PAIRS.map(|(i, j)| mean(product(&guide[i], &guide[j])));
        let cross: [Vec<f64>; 9] = std::array::from_fn(|n| mean(product(&guide[n / 3], &target[n % 3])));

        let mut maps: [Vec<f64>; NUMBERS] = std::array::from_fn(|_| vec![0.0; pixels]);
        for at in 0..pixels {
            let mean_of = |c: usize| guide_mean[c][at];
            let square: [f64; 6] = std::array::from_fn(|n| {
                let (i, j) = PAIRS[n];
                guide_square[n][at] - mean_of(i) * mean_of(j) + if i == j { EPSILON } else { 0.0 }
            });
            let inverse = inverse(square);
            for out in 0..3 {
                let covariance: [f64; 3] =
                    std::array::from_fn(|i| cross[i * 3 + out][at] - mean_of(i) * target_mean[out][at]);
                let mut offset = target_mean[out][at];
                for i in 0..3 {
                    let factor: f64 = (0..3).map(|j| inverse[i][j] * covariance[j]).sum();
                    maps[out * 4 + i][at] = factor;
                    offset -= factor * mean_of(i);
                }
                maps[out * 4 + 3][at] = offset;
            }
        }
        let maps = maps.map(mean);
        #[expect(clippy::cast_possible_truncation, reason = "colours need no more than f32")]
        let numbers = (0..pixels).flat_map(|at| maps.each_ref().map(|plane| plane[at] as f32)).collect();
        Self { width, height, numbers }
    }

    /// Applies the maps to all pixels of `picture`. Grey becomes RGB; depth and alpha stay.
    ///
    /// *Memory*: the result, and a few rows.
    pub fn apply(&self, picture: &Picture, threads: usize) -> Pixels {
        match &picture.pixels {
            Pixels::U8(samples) => Pixels::U8(self.apply_to(samples, picture, threads, 255.0, |value| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 to 255")]
                let sample = value as u8;
                sample
            })),
            Pixels::U16(samples) => Pixels::U16(self.apply_to(samples, picture, threads, 65535.0, |value| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 to 65535")]
                let sample = value as u16;
                sample
            })),
        }
    }

    fn apply_to<T: Copy + Default + Send + Sync + Into<f32>>(
        &self,
        samples: &[T],
        picture: &Picture,
        threads: usize,
        full: f32,
        narrow: impl Fn(f32) -> T + Sync,
    ) -> Vec<T> {
        let (width, height) = (picture.width as usize, picture.height as usize);
        let channels = picture.channels();
        let out_channels = 3 + usize::from(picture.alpha);
        let columns = taps(self.width, width);
        let lines = taps(self.height, height);
        let mut out = vec![T::default(); width * height * out_channels];
        let (columns, lines, narrow) = (&columns, &lines, &narrow);
        thread::scope(|scope| {
            for (from, band) in bands(&mut out, width * out_channels, height, threads) {
                scope.spawn(move || {
                    let mut numbers = vec![0.0; self.width * NUMBERS];
                    for (y, row) in band.chunks_exact_mut(width * out_channels).enumerate() {
                        self.blend_row(lines[from + y], &mut numbers);
                        let source = &samples[(from + y) * width * channels..][..width * channels];
                        let pixels = source.chunks_exact(channels).zip(row.chunks_exact_mut(out_channels));
                        for ((source, out), tap) in pixels.zip(columns) {
                            let rgb = match picture.color {
                                Color::Gray => [source[0].into(); 3],
                                Color::Rgb => [source[0].into(), source[1].into(), source[2].into()],
                            };
                            let map = tap.blend(&numbers);
                            for (c, out) in out.iter_mut().take(3).enumerate() {
                                let [r, g, b, offset] = [map[c * 4], map[c * 4 + 1], map[c * 4 + 2], map[c * 4 + 3]];
                                let value = r * rgb[0] + g * rgb[1] + b * rgb[2] + offset * full;
                                *out = narrow(value.clamp(0.0, full) + 0.5);
                            }
                            if picture.alpha {
                                out[3] = source[channels - 1];
                            }
                        }
                    }
                });
            }
        });
        out
    }

    /// The maps of one line between two of the small picture's.
    fn blend_row(&self, tap: Tap, numbers: &mut [f32]) {
        let row = self.width * NUMBERS;
        let (first, second) = (&self.numbers[tap.first * row..][..row], &self.numbers[tap.second * row..][..row]);
        for ((out, first), second) in numbers.iter_mut().zip(first).zip(second) {
            *out = first + (second - first) * tap.share;
        }
    }
}

/// The upper half of a symmetric matrix, row by row.
const PAIRS: [(usize, usize); 6] = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)];

/// Of a symmetric matrix, given as [`PAIRS`].
#[expect(clippy::many_single_char_names, reason = "the letters of a matrix")]
fn inverse([a, b, c, d, e, f]: [f64; 6]) -> [[f64; 3]; 3] {
    let (aa, bb, cc) = (d * f - e * e, c * e - b * f, b * e - c * d);
    let determinant = a * aa + b * bb + c * cc;
    let (dd, ee, ff) = (a * f - c * c, b * c - a * e, a * d - b * b);
    [[aa, bb, cc], [bb, dd, ee], [cc, ee, ff]].map(|row| row.map(|value| value / determinant))
}

/// The mean over each pixel's neighbourhood; beyond an edge lies the edge's pixel.
fn box_mean(mut plane: Vec<f64>, width: usize, height: usize) -> Vec<f64> {
    let mut line = Vec::new();
    for row in plane.chunks_exact_mut(width) {
        line.clear();
        line.extend_from_slice(row);
        slide(&line, |x, mean| row[x] = mean);
    }
    for x in 0..width {
        line.clear();
        line.extend(plane.iter().skip(x).step_by(width));
        slide(&line, |y, mean| plane[y * width + x] = mean);
    }
    debug_assert_eq!(plane.len(), width * height);
    plane
}

fn slide(line: &[f64], mut put: impl FnMut(usize, f64)) {
    let last = line.len() - 1;
    let at = |index: isize| line[usize::try_from(index).unwrap_or(0).min(last)];
    #[expect(clippy::cast_possible_wrap, reason = "sides of pictures")]
    let (reach, length) = (RADIUS as isize, line.len() as isize);
    let mut sum: f64 = (-reach..=reach).map(at).sum();
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let count = (2 * RADIUS + 1) as f64;
    for index in 0..length {
        put(usize::try_from(index).unwrap_or(0), sum / count);
        sum += at(index + reach + 1) - at(index - reach);
    }
}

/// The two small pixels between which a large one lies.
#[derive(Clone, Copy, Debug)]
struct Tap {
    first: usize,
    second: usize,
    /// Of the second.
    share: f32,
}

impl Tap {
    fn blend(self, numbers: &[f32]) -> [f32; NUMBERS] {
        let first = &numbers[self.first * NUMBERS..][..NUMBERS];
        let second = &numbers[self.second * NUMBERS..][..NUMBERS];
        std::array::from_fn(|n| first[n] + (second[n] - first[n]) * self.share)
    }
}

/// Bilinear, with pixels as areas.
fn taps(small: usize, large: usize) -> Vec<Tap> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sides of pictures"
    )]
    let tap = |index: usize| {
        let center = ((index as f64 + 0.5) * small as f64 / large as f64 - 0.5).max(0.0);
        let first = (center as usize).min(small - 1);
        Tap { first, second: (first + 1).min(small - 1), share: (center - first as f64) as f32 }
    };
    (0..large).map(tap).collect()
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

    /// Something with detail: `(height, width, 3)`.
    fn scene(width: usize, height: usize) -> Vec<f32> {
        let wave = |n: usize, step: usize| f32::from(u8::try_from(n * step % 97).expect("small")) / 97.0;
        (0..width * height).flat_map(|n| [wave(n, 7), wave(n, 13), wave(n / width, 29)]).collect()
    }

    #[test]
    fn a_change_of_colour_is_carried_to_every_pixel_of_the_original() {
        let (small, large) = ((20, 15), (80_usize, 60_usize));
        let source = scene(small.0, small.1);
        let sepia = |rgb: &[f32]| {
            let grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
            [grey * 0.9, grey * 0.7, grey * 0.5 + 0.1]
        };
        let edited: Vec<f32> = source.chunks_exact(3).flat_map(sepia).collect();
        let maps = ColorMaps::fit(&source, &edited, small.0, small.1);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 65535")]
        let samples: Vec<u16> = scene(large.0, large.1).iter().map(|v| (v * 65535.0).round() as u16).collect();
        let original = picture(Color::Rgb, false, Pixels::U16(samples.clone()), 80, 60);
        let Pixels::U16(out) = maps.apply(&original, 3) else { panic!("the depth stays") };
        for (pixel, source) in out.chunks_exact(3).zip(samples.chunks_exact(3)) {
            let wanted = sepia(&[0, 1, 2].map(|c| f32::from(source[c]) / 65535.0));
            for (got, wanted) in pixel.iter().zip(wanted) {
                assert!((f32::from(*got) / 65535.0 - wanted).abs() < 0.02, "{got} stands for {wanted}");
            }
        }
        assert_eq!(maps.apply(&original, 1), Pixels::U16(out), "the number of threads changes nothing");
    }

    #[test]
    fn grey_takes_on_colour_and_alpha_stays() {
        let source = vec![0.5; 12];
        let edited: Vec<f32> = [0.8, 0.4, 0.2].repeat(4);
        let maps = ColorMaps::fit(&source, &edited, 2, 2);
        let grey = picture(Color::Gray, true, Pixels::U8(vec![128, 7, 128, 200]), 2, 1);
        let Pixels::U8(out) = maps.apply(&grey, 2) else { panic!("the depth stays") };
        assert_eq!(out.len(), 8);
        assert_eq!((out[3], out[7]), (7, 200));
        assert!(out[0].abs_diff(204) < 2 && out[1].abs_diff(102) < 2 && out[2].abs_diff(51) < 2, "{out:?}");
    }

    #[test]
    fn nothing_changed_means_nothing_changes() {
        let source = scene(30, 30);
        let maps = ColorMaps::fit(&source, &source, 30, 30);
        let samples: Vec<u8> = (0..90 * 90 * 3).map(|n| u8::try_from(n % 251).expect("small")).collect();
        let original = picture(Color::Rgb, false, Pixels::U8(samples.clone()), 90, 90);
        let Pixels::U8(out) = maps.apply(&original, 2) else { panic!("the depth stays") };
        assert!(out.iter().zip(&samples).all(|(a, b)| a.abs_diff(*b) <= 4));
    }
}
