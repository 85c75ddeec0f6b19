//! JPEG output: full chroma from quality 90 on, averaged 4:2:0 below, as most programs do.

use std::{cell::Cell, io::Write};

use jpeg_encoder::{ChromaSubsamplingMethod, Encoder, EncodingError, ImageBuffer, JpegColorType, rgb_to_ycbcr};

use super::{EncodeSpec, Rows};
use crate::{Color, ImageError, Metadata};

/// What one application segment can hold.
const SEGMENT: usize = 65_533;
const EXIF: &[u8] = b"Exif\0\0";
const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// What 255 segments of a colour profile can hold.
const MAX_PROFILE: usize = 255 * (SEGMENT - 14);

pub(super) fn write(
    rows: &Rows<'_>,
    spec: &EncodeSpec<'_>,
    metadata: &Metadata,
    writer: &mut impl Write,
) -> Result<Vec<String>, ImageError> {
    let mut notes = Vec::new();
    // Without fitted Huffman tables, which would save 4 %: for them the encoder keeps all coefficients in memory and
    // writes each component as a scan of its own, which widespread decoders get wrong.
    let mut encoder = Encoder::new(writer, spec.quality.clamp(1, 100));
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    for (prefix, block, name) in [(EXIF, &metadata.exif, "EXIF data"), (XMP, &metadata.xmp, "XMP")] {
        let Some(block) = block else { continue };
        if prefix.len() + block.len() > SEGMENT {
            notes.push(format!("The {name} is too large for a JPEG and was left out."));
            continue;
        }
        encoder.add_app_segment(1, [prefix, block].concat()).map_err(fail)?;
    }
    match &metadata.icc {
        Some(profile) if profile.len() > MAX_PROFILE => {
            notes.push("The colour profile is too large for a JPEG and was left out.".into());
        }
        Some(profile) => encoder.add_icc_profile(profile).map_err(fail)?,
        None => {}
    }
    let width = u16::try_from(spec.width).expect("the sides have been checked");
    let height = u16::try_from(spec.height).expect("the sides have been checked");
    let seen_alpha = Cell::new(false);
    let picture = Picture { rows, width, height, color: spec.color, alpha: spec.alpha, seen_alpha: &seen_alpha };
    encoder.encode_image(picture).map_err(fail)?;
    if seen_alpha.get() {
        notes.push("JPEG has no transparency: the picture was laid over white.".into());
    }
    Ok(notes)
}

struct Picture<'a> {
    rows: &'a Rows<'a>,
    width: u16,
    height: u16,
    color: Color,
    alpha: bool,
    /// Whether anything was not opaque.
    seen_alpha: &'a Cell<bool>,
}

impl Picture<'_> {
    /// The colours of a pixel, laid over white.
    fn over_white<const N: usize>(&self, pixel: &[u8]) -> [u8; N] {
        let alpha = pixel[N];
        if alpha < 255 {
            self.seen_alpha.set(true);
        }
        let alpha = u32::from(alpha);
        std::array::from_fn(|index| {
            let value = u32::from(pixel[index]) * alpha + 255 * (255 - alpha);
            u8::try_from((value + 127) / 255).unwrap_or(u8::MAX)
        })
    }
}

impl ImageBuffer for Picture<'_> {
    fn get_jpeg_color_type(&self) -> JpegColorType {
        match self.color {
            Color::Gray => JpegColorType::Luma,
            Color::Rgb => JpegColorType::Ycbcr,
        }
    }

    fn width(&self) -> u16 {
        self.width
    }

    fn height(&self) -> u16 {
        self.height
    }

    fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
        let mut converted = Vec::new();
        let row = self.rows.row_u8(y.into(), &mut converted);
        let mut push = |[r, g, b]: [u8; 3]| {
            let (luma, blue, red) = rgb_to_ycbcr(r, g, b);
            buffers[0].push(luma);
            buffers[1].push(blue);
            buffers[2].push(red);
        };
        match (self.color, self.alpha) {
            (Color::Gray, false) => buffers[0].extend_from_slice(row),
            (Color::Gray, true) => {
                buffers[0].extend(row.as_chunks::<2>().0.iter().map(|pixel| self.over_white::<1>(pixel)[0]));
            }
            (Color::Rgb, false) => row.as_chunks::<3>().0.iter().for_each(|pixel| push(*pixel)),
            (Color::Rgb, true) => row.as_chunks::<4>().0.iter().for_each(|pixel| push(self.over_white::<3>(pixel))),
        }
    }
}

fn fail(error: EncodingError) -> ImageError {
    if let EncodingError::IoError(error) = error {
        return error.into();
    }
    ImageError::Encoder { detail: error.to_string() }
}
