//! From a file to pixels: under limits, turned upright, in grey or RGB.

use std::{
    io::{Cursor, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageReader, metadata::Orientation};

use crate::{
    ImageError, Limits, MediaType, Metadata,
    container::Layout,
    degradation, exif,
    probe::{inspect, open},
};

mod jpeg;
mod tiff;

/// What a picture's samples mean; alpha comes on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    Gray,
    Rgb,
}

/// Interleaved samples: Gray, GrayAlpha, Rgb or RgbAlpha, rows from top to bottom. Alpha is not premultiplied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pixels {
    U8(Vec<u8>),
    U16(Vec<u16>),
}

/// A decoded picture, upright.
#[derive(Clone, Debug)]
pub struct Picture {
    pub width: u32,
    pub height: u32,
    pub color: Color,
    pub alpha: bool,
    pub pixels: Pixels,
    /// As the source has it, but for a profile that does not fit the pixels. `Metadata::for_output` prepares it for
    /// an output.
    pub metadata: Metadata,
    pub media_type: MediaType,
    /// 1 to 100, estimated from the quantisation tables of a JPEG.
    pub jpeg_quality: Option<u8>,
    /// What was left out or changed, for the job's record.
    pub notes: Vec<String>,
}

impl Picture {
    /// Samples of one pixel.
    pub fn channels(&self) -> usize {
        channels(self.color, self.alpha)
    }

    /// All that is known of it, with no pixels yet.
    pub(crate) fn clone_without_pixels(&self) -> Self {
        Self {
            width: self.width,
            height: self.height,
            color: self.color,
            alpha: self.alpha,
            pixels: Pixels::U8(Vec::new()),
            metadata: self.metadata.clone(),
            media_type: self.media_type,
            jpeg_quality: self.jpeg_quality,
            notes: self.notes.clone(),
        }
    }
}

pub(crate) const fn channels(color: Color, alpha: bool) -> usize {
    let colors = match color {
        Color::Gray => 1,
        Color::Rgb => 3,
    };
    if alpha { colors + 1 } else { colors }
}

/// Pixels as a decoder gives them, not yet turned.
struct Decoded {
    width: u32,
    height: u32,
    color: Color,
    alpha: bool,
    pixels: Pixels,
}

/// Decodes the picture at `path`: the first frame, upright, CMYK converted to sRGB.
///
/// # Errors
/// What `probe` refuses, and damage inside the compressed pixels.
pub fn decode(path: &Path, limits: &Limits) -> Result<Picture, ImageError> {
    let (file, bytes) = open(path, limits)?;
    let mut data = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    // One byte more than was there: it may have grown since.
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut data)?;
    let bytes = data.len() as u64;
    if bytes > limits.max_bytes {
        return Err(ImageError::TooManyBytes { bytes, max_bytes: limits.max_bytes });
    }
    decode_bytes(data, limits)
}

fn decode_bytes(mut data: Vec<u8>, limits: &Limits) -> Result<Picture, ImageError> {
    let (media_type, mut layout) = inspect(Cursor::new(&data), data.len() as u64, limits)?;
    if let Some((at, bytes)) = layout.patch.take()
        && let Some(place) = data.get_mut(at..at + bytes.len())
    {
        place.copy_from_slice(&bytes);
    }
    // Decoders meet files made to break them. A panic in one is a damaged file, and not the end of the worker.
    let decoded = catch_unwind(AssertUnwindSafe(|| pixels(&data, media_type, &mut layout, limits)))
        .unwrap_or_else(|_| Err(ImageError::Corrupt { media_type, detail: "the decoder gave up on it".into() }))?;
    let orientation = layout.orientation();
    // Either way the file is not needed any more, and turning takes room for a second picture.
    if media_type == MediaType::Tiff {
        layout.metadata.exif = exif::from_tiff(data);
    } else {
        drop(data);
    }
    let decoded = decoded.turned(orientation);
    let Layout { mut metadata, mut notes, frames, jpeg, .. } = layout;
    if frames > 1 {
        let what = if media_type == MediaType::Tiff { "pages" } else { "frames" };
        notes.push(format!("The file has {frames} {what}; the first one was used."));
    }
    notes.extend(metadata.drop_foreign_profile(decoded.color));
    Ok(Picture {
        width: decoded.width,
        height: decoded.height,
        color: decoded.color,
        alpha: decoded.alpha,
        pixels: decoded.pixels,
        metadata,
        media_type,
        jpeg_quality: jpeg.and_then(|jpeg| jpeg.luma_table).map(|table| degradation::jpeg_quality(&table)),
        notes,
    })
}

fn pixels(data: &[u8], media_type: MediaType, layout: &mut Layout, limits: &Limits) -> Result<Decoded, ImageError> {
    let decoded = match media_type {
        MediaType::Jpeg => jpeg::decode(data, layout)?,
        MediaType::Tiff => tiff::decode(data, layout, limits)?,
        MediaType::Png => with_image(data, media_type, image::ImageFormat::Png, limits)?,
        MediaType::WebP => with_image(data, media_type, image::ImageFormat::WebP, limits)?,
        MediaType::Bmp => with_image(data, media_type, image::ImageFormat::Bmp, limits)?,
        // Of a GIF the decoder always makes RGBA.
        MediaType::Gif => with_image(data, media_type, image::ImageFormat::Gif, limits)?.without_opaque_alpha(),
    };
    Ok(decoded)
}

/// The four types that `image` decodes as they should be.
fn with_image(
    data: &[u8],
    media_type: MediaType,
    format: image::ImageFormat,
    limits: &Limits,
) -> Result<Decoded, ImageError> {
    let fail = |error| from_image_error(media_type, error);
    let mut reader = ImageReader::with_format(Cursor::new(data), format);
    reader.limits(allocation_limits(limits));
    let decoder = reader.into_decoder().map_err(fail)?;
    // A frame may be larger than the container said.
    let (width, height) = decoder.dimensions();
    limits.check_pixels(media_type, width, height)?;
    Decoded::from_image(DynamicImage::from_decoder(decoder).map_err(fail)?)
        .ok_or_else(|| ImageError::Unsupported { found: format!("a {} of an unusual colour type", media_type.name()) })
}

/// Eight bytes a pixel are the most a decoded picture takes; decoders need about as much again.
fn allocation_limits(limits: &Limits) -> image::Limits {
    let mut allowed = image::Limits::default();
    allowed.max_alloc = Some(limits.max_pixels.saturating_mul(16).saturating_add(limits.max_bytes));
    allowed
}

fn from_image_error(media_type: MediaType, error: image::ImageError) -> ImageError {
    if let image::ImageError::Unsupported(error) = error {
        return ImageError::Unsupported { found: format!("a {} of an unusual kind ({error})", media_type.name()) };
    }
    // Also when it is an end of file: the container is whole, so what ran out lies inside of it.
    corrupt(media_type, &error)
}

fn corrupt(media_type: MediaType, error: &dyn std::fmt::Display) -> ImageError {
    ImageError::Corrupt { media_type, detail: error.to_string() }
}

impl Decoded {
    #[expect(clippy::wildcard_enum_match_arm, reason = "what `image` may add later is refused")]
    fn from_image(picture: DynamicImage) -> Option<Self> {
        let (width, height) = (picture.width(), picture.height());
        let (color, alpha, pixels) = match picture {
            DynamicImage::ImageLuma8(buffer) => (Color::Gray, false, Pixels::U8(buffer.into_raw())),
            DynamicImage::ImageLumaA8(buffer) => (Color::Gray, true, Pixels::U8(buffer.into_raw())),
            DynamicImage::ImageRgb8(buffer) => (Color::Rgb, false, Pixels::U8(buffer.into_raw())),
            DynamicImage::ImageRgba8(buffer) => (Color::Rgb, true, Pixels::U8(buffer.into_raw())),
            DynamicImage::ImageLuma16(buffer) => (Color::Gray, false, Pixels::U16(buffer.into_raw())),
            DynamicImage::ImageLumaA16(buffer) => (Color::Gray, true, Pixels::U16(buffer.into_raw())),
            DynamicImage::ImageRgb16(buffer) => (Color::Rgb, false, Pixels::U16(buffer.into_raw())),
            DynamicImage::ImageRgba16(buffer) => (Color::Rgb, true, Pixels::U16(buffer.into_raw())),
            _ => return None,
        };
        Some(Self { width, height, color, alpha, pixels })
    }

    fn into_image(self) -> Option<DynamicImage> {
        let (width, height) = (self.width, self.height);
        match (self.pixels, self.color, self.alpha) {
            (Pixels::U8(raw), Color::Gray, false) => {
                ImageBuffer::from_raw(width, height, raw).map(DynamicImage::ImageLuma8)
            }
            (Pixels::U8(raw), Color::Gray, true) => {
                ImageBuffer::from_raw(width, height, raw).map(DynamicImage::ImageLumaA8)
            }
            (Pixels::U8(raw), Color::Rgb, false) => {
                ImageBuffer::from_raw(width, height, raw).map(DynamicImage::ImageRgb8)
            }
            (Pixels::U8(raw), Color::Rgb, true) => {
                ImageBuffer::from_raw(width, height, raw).map(DynamicImage::ImageRgba8)
            }
            (Pixels::U16(raw), Color::Gray, false) => {
                ImageBuffer::from_raw(width, height, raw).map(DynamicImage::ImageLuma16)
            }
            (Pixels::U16(raw), Color::Gray, true) => {
                ImageBuffer::from_raw(width, height, raw).map(DynamicImage::ImageLumaA16)
            }
            (Pixels::U16(raw), Color::Rgb, false) => {
                ImageBuffer::from_raw(width, height, raw).map(DynamicImage::ImageRgb16)
            }
            (Pixels::U16(raw), Color::Rgb, true) => {
                ImageBuffer::from_raw(width, height, raw).map(DynamicImage::ImageRgba16)
            }
        }
    }

    /// Alpha that is nowhere less than full says nothing.
    fn without_opaque_alpha(mut self) -> Self {
        if let (true, Color::Rgb, Pixels::U8(samples)) = (self.alpha, self.color, &mut self.pixels)
            && samples.as_chunks::<4>().0.iter().all(|pixel| pixel[3] == u8::MAX)
        {
            *samples = samples.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect();
            self.alpha = false;
        }
        self
    }

    /// Applies an EXIF orientation, 1 to 8.
    fn turned(self, orientation: u8) -> Self {
        match Orientation::from_exif(orientation) {
            None | Some(Orientation::NoTransforms) => self,
            Some(orientation) => {
                let mut picture = self.into_image().expect("a decoder's buffer has the size of its picture");
                picture.apply_orientation(orientation);
                Self::from_image(picture).expect("turning keeps the colour type")
            }
        }
    }
}

/// Ink (0 none, 255 full) to sRGB, through the profile that the file brings along where that is possible. The profile
/// has done its work then and does not describe the result.
fn ink_to_rgb(cmyk: &[u8], layout: &mut Layout) -> Vec<u8> {
    let converted = layout.metadata.icc.take().and_then(|profile| crate::color::cmyk_to_srgb(cmyk, &profile));
    let (note, rgb) = match converted {
        Some(rgb) => ("The picture was converted from CMYK to sRGB through its colour profile.", rgb),
        None => (
            "The picture was converted from CMYK without a colour profile; its colours are approximate.",
            crate::color::cmyk_to_rgb_naively(cmyk),
        ),
    };
    layout.notes.push(note.into());
    rgb
}
