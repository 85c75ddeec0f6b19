//! JPEG pixels. CMYK is taken as ink and converted here, because decoders only guess at it.

use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::{JpegDecoder, errors::DecodeErrors};

use super::{Color, Decoded, Pixels, corrupt};
use crate::{ImageError, MediaType, color, container::Layout};

pub(super) fn decode(data: &[u8], layout: &mut Layout) -> Result<Decoded, ImageError> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(data), options);
    decoder.decode_headers().map_err(|error| fail(&error))?;
    let stored = decoder.input_colorspace().ok_or_else(|| corrupt(MediaType::Jpeg, &"it has no colour space"))?;
    let ink = [ColorSpace::CMYK, ColorSpace::YCCK].contains(&stored);
    let wanted = if ink || stored == ColorSpace::Luma { stored } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(wanted));
    let samples = decoder.decode().map_err(|error| fail(&error))?;
    let expected = layout.width as usize * layout.height as usize * wanted.num_components();
    if samples.len() != expected {
        return Err(corrupt(MediaType::Jpeg, &"its headers contradict each other"));
    }
    let (color, samples) = if wanted == ColorSpace::Luma {
        (Color::Gray, samples)
    } else if wanted == ColorSpace::CMYK {
        (Color::Rgb, from_ink(samples, layout))
    } else if wanted == ColorSpace::YCCK {
        (Color::Rgb, from_ink(ycck_to_cmyk(samples), layout))
    } else {
        (Color::Rgb, samples)
    };
    Ok(Decoded { width: layout.width, height: layout.height, color, alpha: false, pixels: Pixels::U8(samples) })
}

/// The first three components are the light that the inks leave, as YCbCr.
fn ycck_to_cmyk(mut samples: Vec<u8>) -> Vec<u8> {
    for pixel in samples.as_chunks_mut::<4>().0 {
        let [luma, blue, red, black] = *pixel;
        let [r, g, b] = color::ycbcr_to_rgb([luma, blue, red]);
        *pixel = [255 - r, 255 - g, 255 - b, black];
    }
    samples
}

fn from_ink(mut cmyk: Vec<u8>, layout: &mut Layout) -> Vec<u8> {
    // Adobe's programs store ink upside down, and so does everybody since; the segment tells.
    if layout.jpeg.as_ref().is_some_and(|jpeg| jpeg.adobe_transform.is_some()) {
        for ink in &mut cmyk {
            *ink = 255 - *ink;
        }
    }
    super::ink_to_rgb(&cmyk, layout)
}

fn fail(error: &DecodeErrors) -> ImageError {
    if let DecodeErrors::Unsupported(scheme) = error {
        return ImageError::Unsupported { found: format!("a JPEG of an unusual kind ({scheme:?})") };
    }
    corrupt(MediaType::Jpeg, &format!("{error:?}"))
}
