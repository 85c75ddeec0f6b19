//! The pictures of the stand-in: decoding an input, repeating its pixels, painting a pattern, encoding the result.
//!
//! Knows nothing of jobs and folders.

use std::{fs, io, path::Path};

use atelier_domain::{ErrorCode, ErrorInfo, protocol::OutputSpec};
use atelier_testkit::{exif::Exif, pictures};
use image::{DynamicImage, ImageDecoder as _, ImageError, ImageReader, Rgb, RgbImage, RgbaImage};
use sha2::{Digest as _, Sha256};

pub(crate) struct Input {
    pub(crate) sha256: String,
    pub(crate) picture: DynamicImage,
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The code for a file that cannot be read or written.
#[expect(clippy::wildcard_enum_match_arm, reason = "the standard library's list is open")]
pub(crate) fn io_code(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
        io::ErrorKind::PermissionDenied => ErrorCode::PermissionDenied,
        _ => ErrorCode::IoError,
    }
}

/// Reads and decodes a picture, turned upright, as 8-bit RGB or RGBA.
pub(crate) fn read(path: &Path, max_pixels: u64) -> Result<Input, ErrorInfo> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let bytes = fs::read(path).map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        let code = if missing { ErrorCode::InputMissing } else { io_code(&error) };
        ErrorInfo::new(code, format!("{name} cannot be read: {error}"))
    })?;
    if bytes.is_empty() {
        return Err(ErrorInfo::new(ErrorCode::ImageEmpty, format!("{name} is empty")));
    }
    let picture = decode(&bytes, max_pixels).map_err(|(code, why)| ErrorInfo::new(code, format!("{name}: {why}")))?;
    Ok(Input { sha256: sha256_hex(&bytes), picture })
}

fn decode(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage, (ErrorCode, String)> {
    let reader = ImageReader::new(io::Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| (ErrorCode::ImageUnsupported, error.to_string()))?;
    let mut decoder = reader.into_decoder().map_err(|error| explain(&error))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        let why = format!("{width} × {height} pixels, at most {max_pixels} are allowed");
        return Err((ErrorCode::ImageTooLarge, why));
    }
    let orientation = decoder.orientation().map_err(|error| explain(&error))?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|error| explain(&error))?;
    picture.apply_orientation(orientation);
    Ok(if picture.color().has_alpha() { picture.to_rgba8().into() } else { picture.to_rgb8().into() })
}

fn explain(error: &ImageError) -> (ErrorCode, String) {
    let code = match error {
        ImageError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => ErrorCode::ImageTruncated,
        ImageError::Unsupported(_) => ErrorCode::ImageUnsupported,
        ImageError::Limits(_) => ErrorCode::ImageTooLarge,
        ImageError::IoError(_) | ImageError::Decoding(_) | ImageError::Encoding(_) | ImageError::Parameter(_) => {
            ErrorCode::ImageCorrupt
        }
    };
    (code, error.to_string())
}

/// Every pixel becomes a square of `scale` by `scale`.
pub(crate) fn upscale(picture: &DynamicImage, scale: u32) -> DynamicImage {
    let (width, height) = (picture.width() * scale, picture.height() * scale);
    if let Some(source) = picture.as_rgba8() {
        return RgbaImage::from_fn(width, height, |x, y| *source.get_pixel(x / scale, y / scale)).into();
    }
    let source = picture.to_rgb8();
    RgbImage::from_fn(width, height, |x, y| *source.get_pixel(x / scale, y / scale)).into()
}

/// Sixty-four coloured squares that depend on the prompt and the seed alone.
pub(crate) fn pattern(width: u32, height: u32, prompt: &str, seed: u64) -> DynamicImage {
    let colours = Sha256::digest(format!("{seed} {prompt}"));
    RgbImage::from_fn(width, height, |x, y| {
        let (column, row) = (x * 8 / width, y * 8 / height);
        let value = |channel: u32| colours[((column * 5 + row * 11 + channel * 7) % 32) as usize];
        Rgb([value(0), value(1), value(2)])
    })
    .into()
}

/// Encodes `picture` with a trace of `state` in its EXIF description.
pub(crate) fn encode(picture: &DynamicImage, spec: OutputSpec, state: &[u8; 32]) -> Result<Vec<u8>, ErrorInfo> {
    let description = format!("atelier-fake-worker {}", sha256_hex(state));
    let exif = Exif { description: Some(description), ..Exif::default() };
    pictures::encode(picture, spec.format, spec.quality, Some(&exif))
        .map_err(|error| ErrorInfo::new(ErrorCode::Internal, format!("the output cannot be encoded: {error}")))
}
