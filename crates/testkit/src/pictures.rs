//! Small pictures for tests: the same bytes on every machine for the same arguments.
//!
//! Integer arithmetic only, so that no library's sine and no compiler's rounding can change them.

use atelier_domain::OutputFormat;
use image::{
    DynamicImage, ImageEncoder, ImageResult, Rgb, RgbImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder},
};

use crate::exif::Exif;

/// Something like a photo: broad shapes of colour, finer texture upon them, and a little noise.
pub fn photo_like(width: u32, height: u32, seed: u64) -> RgbImage {
    // Cell size in pixels and weight out of 256, coarse to fine.
    const OCTAVES: [(u32, u32); 4] = [(64, 120), (23, 76), (7, 44), (1, 16)];
    RgbImage::from_fn(width, height, |x, y| {
        let channel = |salt: u64| {
            let sum: u32 = OCTAVES.iter().map(|&(cell, weight)| weight * smooth(x, y, cell, seed ^ (salt << 40))).sum();
            u8::try_from(sum / 256).unwrap_or(u8::MAX)
        };
        // What the channels share makes it look like light on things and not like confetti.
        let light = u32::from(channel(9));
        let tinted = |salt| u8::try_from((u32::from(channel(salt)) + 2 * light) / 3).unwrap_or(u8::MAX);
        Rgb([tinted(1), tinted(2), tinted(3)])
    })
}

/// Value noise: random values on a grid of `cell` pixels, bilinear between. 0 to 255.
fn smooth(x: u32, y: u32, cell: u32, seed: u64) -> u32 {
    let (column, row, right, down) = (x / cell, y / cell, x % cell, y % cell);
    let corner = |dx, dy| random(column + dx, row + dy, seed ^ (u64::from(cell) << 56));
    let top = corner(0, 0) * (cell - right) + corner(1, 0) * right;
    let bottom = corner(0, 1) * (cell - right) + corner(1, 1) * right;
    (top * (cell - down) + bottom * down) / (cell * cell)
}

/// 0 to 255 from the finaliser of splitmix64.
fn random(column: u32, row: u32, seed: u64) -> u32 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_add(u64::from(column) << 32 | u64::from(row));
    for (shift, factor) in [(30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)] {
        z = (z ^ (z >> shift)).wrapping_mul(factor);
    }
    u32::from((z ^ (z >> 31)).to_le_bytes()[0])
}

/// A PNG file.
pub fn png(image: &RgbImage) -> Vec<u8> {
    file(image, OutputFormat::Png, 100, None)
}

/// A JPEG file.
pub fn jpeg(image: &RgbImage, quality: u8) -> Vec<u8> {
    file(image, OutputFormat::Jpeg, quality, None)
}

/// A file that carries `exif`; WebP is lossless and ignores `quality`.
pub fn with_exif(image: &RgbImage, format: OutputFormat, quality: u8, exif: &Exif) -> Vec<u8> {
    file(image, format, quality, Some(exif))
}

fn file(image: &RgbImage, format: OutputFormat, quality: u8, exif: Option<&Exif>) -> Vec<u8> {
    encode(&image.clone().into(), format, quality, exif).expect("an RGB picture within the format's size")
}

/// Encodes 8-bit RGB or RGBA; JPEG drops the alpha channel.
///
/// # Errors
/// A size that the format does not allow.
pub fn encode(image: &DynamicImage, format: OutputFormat, quality: u8, exif: Option<&Exif>) -> ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    match format {
        OutputFormat::Png => write(PngEncoder::new(&mut bytes), image, exif)?,
        OutputFormat::Jpeg => {
            write(JpegEncoder::new_with_quality(&mut bytes, quality), &image.to_rgb8().into(), exif)?;
        }
        OutputFormat::Webp => write(WebPEncoder::new_lossless(&mut bytes), image, exif)?,
    }
    Ok(bytes)
}

fn write(mut encoder: impl ImageEncoder, image: &DynamicImage, exif: Option<&Exif>) -> ImageResult<()> {
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif.to_tiff()).expect("all three formats carry EXIF");
    }
    encoder.write_image(image.as_bytes(), image.width(), image.height(), image.color().into())
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn a_picture_is_the_same_every_time_and_everywhere() {
        let digest = format!("{:x}", Sha256::digest(photo_like(70, 40, 7).as_raw()));
        assert_eq!(digest, "aac2aabad9a5644f2a7496c563560c2ad3d9f089b898a699f2afba3a22436b6f");
        assert_ne!(photo_like(70, 40, 7), photo_like(70, 40, 8));
    }

    #[test]
    fn a_picture_uses_the_whole_range_without_being_noise() {
        let image = photo_like(200, 150, 1);
        let luma: Vec<i32> = DynamicImage::from(image).to_luma8().as_raw().iter().map(|v| i32::from(*v)).collect();
        let (low, high) = (luma.iter().min().expect("pixels"), luma.iter().max().expect("pixels"));
        assert!(high - low > 100, "{low} to {high}");
        let steps: i32 = luma.windows(2).map(|pair| (pair[0] - pair[1]).abs()).sum();
        let mean = steps / i32::try_from(luma.len()).expect("small");
        assert!((1..20).contains(&mean), "neighbours differ by {mean} on average");
    }

    #[test]
    fn every_format_carries_exif_and_decodes_back() {
        let image = photo_like(33, 21, 2);
        let exif = Exif { orientation: Some(6), description: Some("a lake".into()), ..Exif::default() };
        for format in [OutputFormat::Png, OutputFormat::Jpeg, OutputFormat::Webp] {
            let bytes = with_exif(&image, format, 90, &exif);
            let decoded = image::load_from_memory(&bytes).expect("decodes").to_rgb8();
            assert_eq!(decoded.dimensions(), (33, 21));
            if format != OutputFormat::Jpeg {
                assert_eq!(decoded, image);
            }
            let read = ::exif::Reader::new().read_from_container(&mut std::io::Cursor::new(&bytes)).expect("EXIF");
            let field = read.get_field(::exif::Tag::Orientation, ::exif::In::PRIMARY).expect("the tag");
            assert_eq!(field.value.get_uint(0), Some(6), "{format:?}");
        }
    }
}
