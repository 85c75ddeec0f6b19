//! WebP output: libwebp's lossy encoder, and the container around it that carries metadata.

use std::{borrow::Cow, io::Write};

use webp::{Encoder, PixelLayout, WebPConfig};

use super::{EncodeSpec, Rows, Samples};
use crate::{Color, ImageError, Metadata};

const ICC_FLAG: u8 = 0x20;
const ALPHA_FLAG: u8 = 0x10;
const EXIF_FLAG: u8 = 0x08;
const XMP_FLAG: u8 = 0x04;

pub(super) fn write(
    rows: &Rows<'_>,
    spec: &EncodeSpec<'_>,
    metadata: &Metadata,
    writer: &mut impl Write,
) -> Result<Vec<String>, ImageError> {
    let fail = |detail: String| ImageError::Encoder { detail };
    let mut config = WebPConfig::new().map_err(|()| fail("libwebp does not start".into()))?;
    config.quality = f32::from(spec.quality.clamp(1, 100));
    let pixels = pixels(rows, spec);
    let layout = if spec.alpha { PixelLayout::Rgba } else { PixelLayout::Rgb };
    let encoded = Encoder::new(&pixels, layout, spec.width, spec.height)
        .encode_advanced(&config)
        .map_err(|error| fail(format!("libwebp says {error:?}")))?;
    if *metadata == Metadata::default() {
        writer.write_all(&encoded)?;
    } else {
        write_container(&encoded, spec, metadata, writer)?;
    }
    Ok(Vec::new())
}

/// RGB or RGBA with 8 bits a sample, which is all that libwebp takes. Copied only where it is not that already.
fn pixels<'a>(rows: &Rows<'a>, spec: &EncodeSpec<'_>) -> Cow<'a, [u8]> {
    if let (Samples::U8(samples), Color::Rgb) = (rows.samples, spec.color) {
        return Cow::Borrowed(samples);
    }
    let mut pixels = Vec::with_capacity(spec.width as usize * rows.height * if spec.alpha { 4 } else { 3 });
    let mut converted = Vec::new();
    for y in 0..rows.height {
        let row = rows.row_u8(y, &mut converted);
        match (spec.color, spec.alpha) {
            (Color::Rgb, _) => pixels.extend_from_slice(row),
            (Color::Gray, false) => pixels.extend(row.iter().flat_map(|&gray| [gray; 3])),
            (Color::Gray, true) => {
                pixels.extend(row.as_chunks::<2>().0.iter().flat_map(|&[gray, alpha]| [gray, gray, gray, alpha]));
            }
        }
    }
    Cow::Owned(pixels)
}

/// The picture's own chunks between an extended header and the metadata.
fn write_container(
    encoded: &[u8],
    spec: &EncodeSpec<'_>,
    metadata: &Metadata,
    writer: &mut impl Write,
) -> Result<(), ImageError> {
    let picture: Vec<(&[u8], &[u8])> =
        chunks(encoded).filter(|(name, _)| matches!(*name, b"ALPH" | b"VP8 " | b"VP8L")).collect();
    let mut flags = 0;
    if picture
        .iter()
        .any(|(name, content)| *name == b"ALPH" || (*name == b"VP8L" && content.get(4).is_some_and(|b| b & 0x10 != 0)))
    {
        flags |= ALPHA_FLAG;
    }
    for (flag, block) in [(ICC_FLAG, &metadata.icc), (EXIF_FLAG, &metadata.exif), (XMP_FLAG, &metadata.xmp)] {
        if block.is_some() {
            flags |= flag;
        }
    }
    let mut header = vec![flags, 0, 0, 0];
    for side in [spec.width, spec.height] {
        header.extend_from_slice(&(side - 1).to_le_bytes()[..3]);
    }
    let mut chunks: Vec<(&[u8], &[u8])> = vec![(b"VP8X", &header)];
    chunks.extend(metadata.icc.as_deref().map(|block| (b"ICCP".as_slice(), block)));
    chunks.extend(picture);
    chunks.extend(metadata.exif.as_deref().map(|block| (b"EXIF".as_slice(), block)));
    chunks.extend(metadata.xmp.as_deref().map(|block| (b"XMP ".as_slice(), block)));
    let size: usize = 4 + chunks.iter().map(|(_, content)| 8 + content.len().next_multiple_of(2)).sum::<usize>();
    let length = |bytes: usize| {
        let too_large = || ImageError::Encoder { detail: "a WebP file ends at 4 GiB".into() };
        u32::try_from(bytes).map(u32::to_le_bytes).map_err(|_| too_large())
    };
    writer.write_all(b"RIFF")?;
    writer.write_all(&length(size)?)?;
    writer.write_all(b"WEBP")?;
    for (name, content) in chunks {
        writer.write_all(name)?;
        writer.write_all(&length(content.len())?)?;
        writer.write_all(content)?;
        if content.len() % 2 == 1 {
            writer.write_all(&[0])?;
        }
    }
    Ok(())
}

/// Name and content of each chunk of a file that libwebp has just made.
fn chunks(file: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = file.get(12..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (head, tail) = rest.split_at_checked(8)?;
        let length = u32::from_le_bytes(head[4..].try_into().ok()?) as usize;
        let content = tail.get(..length)?;
        rest = tail.get(length.next_multiple_of(2)..).unwrap_or_default();
        Some((&head[..4], content))
    })
}
