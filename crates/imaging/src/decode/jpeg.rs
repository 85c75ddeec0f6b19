//! JPEG pixels. CMYK is taken as ink and converted here, because decoders only guess at it.

use jpeg_decoder::PixelFormat;
use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::{JpegDecoder, errors::DecodeErrors};

use super::{Color, Decoded, Pixels, corrupt};
use crate::{ImageError, MediaType, color, container::Layout};

pub(super) fn decode(data: &[u8], layout: &mut Layout) -> Result<Decoded, ImageError> {
    let separate_scans = layout.jpeg.as_ref().is_some_and(|jpeg| jpeg.separate_scans);
    let (color, samples) = if separate_scans { separate(data, layout)? } else { usual(data, layout)? };
    let (width, height) = (layout.width, layout.height);
    if samples.len() != width as usize * height as usize * super::channels(color, false) {
        return Err(corrupt(MediaType::Jpeg, &"its headers contradict each other"));
    }
    Ok(Decoded { width, height, color, alpha: false, pixels: Pixels::U8(samples) })
}

fn usual(data: &[u8], layout: &mut Layout) -> Result<(Color, Vec<u8>), ImageError> {
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
    Ok(if wanted == ColorSpace::Luma {
        (Color::Gray, samples)
    } else if wanted == ColorSpace::CMYK {
        (Color::Rgb, from_ink(samples, layout))
    } else if wanted == ColorSpace::YCCK {
        (Color::Rgb, from_ink(ycck_to_cmyk(samples), layout))
    } else {
        (Color::Rgb, samples)
    })
}

/// For sequential files with a scan for each component: the usual, faster decoder makes rubbish of them where the
/// components are of different size (zune-image issues 422 and 448).
fn separate(data: &[u8], layout: &mut Layout) -> Result<(Color, Vec<u8>), ImageError> {
    let mut decoder = jpeg_decoder::Decoder::new(data);
    let mut samples = decoder.decode().map_err(|error| corrupt(MediaType::Jpeg, &error))?;
    let info = decoder.info().ok_or_else(|| corrupt(MediaType::Jpeg, &"it has no frame header"))?;
    match info.pixel_format {
        PixelFormat::L8 => Ok((Color::Gray, samples)),
        PixelFormat::RGB24 => Ok((Color::Rgb, samples)),
        PixelFormat::CMYK32 => {
            // This decoder turns ink upside down in any case; `from_ink` expects it as the file has it.
            for ink in &mut samples {
                *ink = 255 - *ink;
            }
            Ok((Color::Rgb, from_ink(samples, layout)))
        }
        PixelFormat::L16 => Err(ImageError::Unsupported { found: "a JPEG with 16 bits a sample".into() }),
    }
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
