//! TIFF pixels: grey of 1 to 16 bits, palettes, RGB, CMYK and YCbCr, in chunky or planar order.

use std::io::Cursor;

use tiff::{
    ColorType, TiffError,
    decoder::{BufferLayoutPreference, Decoder, DecodingResult},
    tags::Tag,
};

use super::{Color, Decoded, Pixels, corrupt};
use crate::{ImageError, Limits, MediaType, color, container::Layout};

pub(super) fn decode(data: &[u8], layout: &mut Layout, limits: &Limits) -> Result<Decoded, ImageError> {
    let mut decoder = Decoder::new(Cursor::new(data)).map_err(fail)?.with_limits(allocation_limits(limits));
    let (width, height) = decoder.dimensions().map_err(fail)?;
    limits.check_pixels(MediaType::Tiff, width, height)?;
    let color_type = decoder.colortype().map_err(fail)?;
    let mut result = DecodingResult::U8(Vec::new());
    let buffer = decoder.read_image_to_buffer(&mut result).map_err(fail)?;
    let samples = match result {
        DecodingResult::U8(samples) => Pixels::U8(samples),
        DecodingResult::U16(samples) => Pixels::U16(samples),
        DecodingResult::F32(samples) => {
            layout.notes.push("The floating-point samples were limited to 0 to 1 and stored with 16 bits.".into());
            Pixels::U16(samples.into_iter().map(from_float).collect())
        }
        DecodingResult::U32(_)
        | DecodingResult::U64(_)
        | DecodingResult::F16(_)
        | DecodingResult::F64(_)
        | DecodingResult::I8(_)
        | DecodingResult::I16(_)
        | DecodingResult::I32(_)
        | DecodingResult::I64(_) => return Err(unsupported(color_type)),
    };
    let samples = interleaved(samples, &buffer, width as usize * height as usize)?;
    let picture = Raw { width, height, color_type, samples };
    let palette = layout.palette.then(|| decoder.get_tag_u16_vec(Tag::ColorMap)).transpose().map_err(fail)?;
    let associated =
        decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).ok().flatten().is_some_and(|e| e.first() == Some(&1));
    let mut decoded = picture.into_decoded(palette.as_deref(), layout)?;
    if decoded.alpha && associated {
        decoded.divide_by_alpha();
    }
    Ok(decoded)
}

fn allocation_limits(limits: &Limits) -> tiff::decoder::Limits {
    let bytes = usize::try_from(limits.max_pixels.saturating_mul(16)).unwrap_or(usize::MAX);
    let mut allowed = tiff::decoder::Limits::default();
    allowed.decoding_buffer_size = bytes;
    allowed.intermediate_buffer_size = bytes;
    allowed
}

/// Samples plane by plane become samples pixel by pixel.
fn interleaved(samples: Pixels, buffer: &BufferLayoutPreference, pixels: usize) -> Result<Pixels, ImageError> {
    fn weave<T: Copy>(samples: &[T], planes: usize, pixels: usize) -> Option<Vec<T>> {
        let stride = samples.len() / planes;
        if stride < pixels || stride * planes != samples.len() {
            return None;
        }
        Some((0..pixels).flat_map(|pixel| (0..planes).map(move |plane| samples[plane * stride + pixel])).collect())
    }
    if buffer.planes <= 1 {
        return Ok(samples);
    }
    match samples {
        Pixels::U8(samples) => weave(&samples, buffer.planes, pixels).map(Pixels::U8),
        Pixels::U16(samples) => weave(&samples, buffer.planes, pixels).map(Pixels::U16),
    }
    .ok_or_else(|| corrupt(MediaType::Tiff, &"a plane is too short"))
}

struct Raw {
    width: u32,
    height: u32,
    color_type: ColorType,
    samples: Pixels,
}

impl Raw {
    fn into_decoded(self, palette: Option<&[u16]>, layout: &mut Layout) -> Result<Decoded, ImageError> {
        let (width, height, color_type) = (self.width, self.height, self.color_type);
        let (color, alpha, pixels) = match (color_type, self.samples) {
            (ColorType::Gray(bits @ (1 | 2 | 4 | 8)), Pixels::U8(packed)) => {
                let samples = unpacked(&packed, width, height, bits)?;
                if let Some(palette) = palette {
                    (Color::Rgb, false, Pixels::U8(looked_up(&samples, palette, bits)?))
                } else {
                    let scale = u8::MAX / (u8::MAX >> (8 - bits));
                    (Color::Gray, false, Pixels::U8(samples.into_iter().map(|value| value * scale).collect()))
                }
            }
            (ColorType::Gray(16 | 32), samples) if palette.is_none() => (Color::Gray, false, samples),
            (ColorType::GrayA(8 | 16) | ColorType::Multiband { bit_depth: 8 | 16, num_samples: 2 }, samples) => {
                (Color::Gray, true, samples)
            }
            (ColorType::RGB(8 | 16 | 32), samples) => (Color::Rgb, false, samples),
            (ColorType::RGBA(8 | 16 | 32), samples) => (Color::Rgb, true, samples),
            (ColorType::YCbCr(8), Pixels::U8(samples)) => {
                let rgb = samples.as_chunks::<3>().0.iter().flat_map(|pixel| color::ycbcr_to_rgb(*pixel)).collect();
                (Color::Rgb, false, Pixels::U8(rgb))
            }
            (ColorType::CMYK(8 | 16), samples) => {
                let ink = match samples {
                    Pixels::U8(ink) => ink,
                    Pixels::U16(ink) => ink.into_iter().map(crate::encode::to_u8).collect(),
                };
                (Color::Rgb, false, Pixels::U8(super::ink_to_rgb(&ink, layout)))
            }
            _ => return Err(unsupported(color_type)),
        };
        let expected = width as usize * height as usize * super::channels(color, alpha);
        let actual = match &pixels {
            Pixels::U8(samples) => samples.len(),
            Pixels::U16(samples) => samples.len(),
        };
        if actual != expected {
            return Err(corrupt(MediaType::Tiff, &"it has more or fewer samples than pixels"));
        }
        Ok(Decoded { width, height, color, alpha, pixels })
    }
}

/// One byte for each sample of 1, 2, 4 or 8 bits; rows begin at whole bytes.
fn unpacked(packed: &[u8], width: u32, height: u32, bits: u8) -> Result<Vec<u8>, ImageError> {
    let (width, bits) = (width as usize, usize::from(bits));
    let row = (width * bits).div_ceil(8);
    if packed.len() < row * height as usize {
        return Err(corrupt(MediaType::Tiff, &"it has fewer samples than pixels"));
    }
    let mask = u8::MAX >> (8 - bits);
    let per_byte = 8 / bits;
    let sample = |row: &[u8], x: usize| row[x / per_byte] >> (8 - bits - x % per_byte * bits) & mask;
    Ok(packed.chunks_exact(row).take(height as usize).flat_map(|row| (0..width).map(move |x| sample(row, x))).collect())
}

/// A TIFF's colour map: all reds, then all greens, then all blues, of 16 bits each.
fn looked_up(indices: &[u8], palette: &[u16], bits: u8) -> Result<Vec<u8>, ImageError> {
    let colors = 1 << bits;
    if palette.len() < 3 * colors {
        return Err(corrupt(MediaType::Tiff, &"its palette is too short"));
    }
    // Writers scale 8 bits by 256 or by 257: the upper byte is right for both. Some do not scale at all.
    let small = palette.iter().all(|&value| value < 256);
    let level = |value: u16| if small { value.to_be_bytes()[1] } else { value.to_be_bytes()[0] };
    Ok(indices
        .iter()
        .flat_map(|&index| [0, 1, 2].map(|plane| level(palette[plane * colors + usize::from(index)])))
        .collect())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "limited to 0 to 65535 before the cast")]
fn from_float(value: f32) -> u16 {
    (value.clamp(0.0, 1.0) * 65535.0).round() as u16
}

impl Decoded {
    /// Associated alpha: the colours were multiplied by it.
    fn divide_by_alpha(&mut self) {
        let channels = super::channels(self.color, true);
        match &mut self.pixels {
            Pixels::U8(samples) => divide(samples, channels, 255, |value| u8::try_from(value).unwrap_or(u8::MAX)),
            Pixels::U16(samples) => divide(samples, channels, 65535, |value| u16::try_from(value).unwrap_or(u16::MAX)),
        }
    }
}

fn divide<T: Copy + Into<u32>>(samples: &mut [T], channels: usize, full: u32, narrow: impl Fn(u32) -> T) {
    for pixel in samples.chunks_exact_mut(channels) {
        let (alpha, colors) = pixel.split_last_mut().expect("a pixel has samples");
        let alpha: u32 = (*alpha).into();
        if alpha > 0 && alpha < full {
            for color in colors {
                let value: u32 = (*color).into();
                *color = narrow(((value * full + alpha / 2) / alpha).min(full));
            }
        }
    }
}

fn unsupported(color_type: ColorType) -> ImageError {
    ImageError::Unsupported { found: format!("a TIFF with samples of the kind {color_type:?}") }
}

fn fail(error: TiffError) -> ImageError {
    if let TiffError::UnsupportedError(error) = error {
        return ImageError::Unsupported { found: format!("a TIFF of an unusual kind ({error})") };
    }
    corrupt(MediaType::Tiff, &error)
}
