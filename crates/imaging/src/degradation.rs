//! How worn a picture is: noise, and the traces of JPEG compression. `denoise = "auto"` decides by it.

use crate::{Color, Picture, Pixels, encode::to_u8};

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Degradation {
    /// Standard deviation of the noise in steps of 8 bits: a robust estimate from the calmest blocks.
    pub noise_sigma: f32,
    /// How much larger steps across the borders of 8 x 8 blocks are than steps beside them: 1 for none.
    pub blockiness: f32,
    /// 1 to 100, estimated from the quantisation tables of a JPEG.
    pub jpeg_quality: Option<u8>,
}

/// What a picture needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    Clean,
    Compressed,
    Noisy,
}

// Measured on 18 pictures that scikit-image ships, plain and halved. Noise of 8 in each channel: 5.0 and more; plain
// ones: up to 2.8, but for close views of grass and gravel, which look like noise to every estimator. Block borders of
// JPEG 50: 1.27 and more in photos; plain ones: up to 1.15.

/// Noise from here on is worth removing.
const NOISY_SIGMA: f32 = 3.6;
/// JPEG quality up to here leaves traces worth removing.
const COMPRESSED_QUALITY: u8 = 80;
/// Block borders from here on are worth removing, in a file that has lost its tables.
const COMPRESSED_BLOCKINESS: f32 = 1.25;
/// And in a JPEG whose tables promise better: it was compressed before.
const COMPRESSED_BEFORE_BLOCKINESS: f32 = 1.5;

pub fn advise(degradation: &Degradation) -> Advice {
    let compressed = match degradation.jpeg_quality {
        Some(quality) => quality <= COMPRESSED_QUALITY || degradation.blockiness >= COMPRESSED_BEFORE_BLOCKINESS,
        None => degradation.blockiness >= COMPRESSED_BLOCKINESS,
    };
    if degradation.noise_sigma >= NOISY_SIGMA {
        Advice::Noisy
    } else if compressed {
        Advice::Compressed
    } else {
        Advice::Clean
    }
}

pub fn measure_degradation(picture: &Picture) -> Degradation {
    let luma = Luma::of(picture);
    Degradation { noise_sigma: noise_sigma(&luma), blockiness: blockiness(&luma), jpeg_quality: picture.jpeg_quality }
}

struct Luma {
    width: usize,
    height: usize,
    samples: Vec<u8>,
}

impl Luma {
    fn of(picture: &Picture) -> Self {
        let step = picture.channels();
        let luma = |pixel: [u8; 3]| {
            let [r, g, b] = pixel.map(u32::from);
            u8::try_from((r * 19_595 + g * 38_470 + b * 7_471 + (1 << 15)) >> 16).unwrap_or(u8::MAX)
        };
        let samples = match (&picture.pixels, picture.color) {
            (Pixels::U8(samples), Color::Gray) => samples.iter().step_by(step).copied().collect(),
            (Pixels::U16(samples), Color::Gray) => samples.iter().step_by(step).map(|&s| to_u8(s)).collect(),
            (Pixels::U8(samples), Color::Rgb) => {
                samples.chunks_exact(step).map(|pixel| luma([pixel[0], pixel[1], pixel[2]])).collect()
            }
            (Pixels::U16(samples), Color::Rgb) => samples
                .chunks_exact(step)
                .map(|pixel| luma([to_u8(pixel[0]), to_u8(pixel[1]), to_u8(pixel[2])]))
                .collect(),
        };
        Self { width: picture.width as usize, height: picture.height as usize, samples }
    }

    fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.width..(y + 1) * self.width]
    }
}

/// Side of the blocks whose noise is measured.
const BLOCK: usize = 16;
/// The lowest tenth of pure noise lies so far below the noise itself.
const LOWEST_TENTH: f32 = 0.92;

/// The second difference in both directions removes what is smooth and leaves noise (after Immerkaer), but also fine
/// texture. Noise is everywhere and texture is not: the lowest tenth of all blocks tells them apart.
fn noise_sigma(luma: &Luma) -> f32 {
    let mut sigmas = Vec::new();
    for top in (1..luma.height.saturating_sub(BLOCK)).step_by(BLOCK) {
        for left in (1..luma.width.saturating_sub(BLOCK)).step_by(BLOCK) {
            sigmas.extend(block_noise(luma, left, top));
        }
    }
    if sigmas.is_empty() {
        return 0.0;
    }
    let tenth = sigmas.len() / 10;
    *sigmas.select_nth_unstable_by(tenth, f32::total_cmp).1 / LOWEST_TENTH
}

/// The noise of one block; `None` where samples are clipped, which hides noise.
#[expect(clippy::cast_precision_loss, reason = "sums of a small block")]
fn block_noise(luma: &Luma, left: usize, top: usize) -> Option<f32> {
    let mut sum = 0;
    for y in top..top + BLOCK {
        let rows = [luma.row(y - 1), luma.row(y), luma.row(y + 1)];
        for x in left..left + BLOCK {
            if !(3..=252).contains(&rows[1][x]) {
                return None;
            }
            // (1, -2, 1) across of (1, -2, 1) down.
            let across = |row: &[u8]| i32::from(row[x - 1]) - 2 * i32::from(row[x]) + i32::from(row[x + 1]);
            sum += (across(rows[0]) - 2 * across(rows[1]) + across(rows[2])).abs();
        }
    }
    let mean = sum as f32 / (BLOCK * BLOCK) as f32;
    // The filter multiplies a deviation by 6; the mean of the absolute values of a Gaussian is sqrt(2 / pi) of it.
    Some(mean * std::f32::consts::FRAC_PI_2.sqrt() / 6.0)
}

/// A smooth picture has steps of nearly 0 everywhere: a part of a level more or less makes no border visible.
const INVISIBLE_STEP: f32 = 0.5;

/// The ratio of steps across a grid of 8 to all other steps, for the phase of the grid where it is largest: a turned
/// or cropped picture has its grid elsewhere.
#[expect(clippy::cast_precision_loss, reason = "sums over a picture")]
fn blockiness(luma: &Luma) -> f32 {
    let (mut across, mut down) = ([0_u64; 8], [0_u64; 8]);
    for y in 0..luma.height {
        let row = luma.row(y);
        for (x, pair) in row.windows(2).enumerate() {
            across[(x + 1) % 8] += u64::from(pair[0].abs_diff(pair[1]));
        }
        if y + 1 < luma.height {
            let steps: u64 = row.iter().zip(luma.row(y + 1)).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            down[(y + 1) % 8] += steps;
        }
    }
    let ratio = |steps: [u64; 8]| {
        let largest = steps.into_iter().max().unwrap_or(0) as f32;
        let rest = (steps.into_iter().sum::<u64>() as f32 - largest) / 7.0;
        let invisible = INVISIBLE_STEP * luma.samples.len() as f32 / 8.0;
        (largest + invisible) / (rest + invisible)
    };
    f32::midpoint(ratio(across), ratio(down))
}

/// The luminance table of the JPEG standard's annex K, in zigzag order, which quality 50 stands for.
const STANDARD: [u16; 64] = [
    16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61,
    60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77, 113,
    121, 112, 100, 120, 92, 101, 103, 99,
];

/// The quality, 1 to 100, whose table in the usual scale comes closest.
pub(crate) fn jpeg_quality(table: &[u16; 64]) -> u8 {
    let distance = |quality: u8| -> u32 {
        let scale = if quality < 50 { 5000 / u32::from(quality) } else { 200 - 2 * u32::from(quality) };
        let expected = |standard: u16| ((u32::from(standard) * scale + 50) / 100).clamp(1, 255);
        table.iter().zip(STANDARD).map(|(&value, standard)| u32::from(value).abs_diff(expected(standard))).sum()
    };
    // Of equally close ones the better: a table of ones is quality 100.
    (1..=100).rev().min_by_key(|&quality| distance(quality)).unwrap_or(100)
}
