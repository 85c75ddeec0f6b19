//! BMP: the headers, and whether all rows are there.

use std::io::{Read, Seek};

use super::{Layout, MAX_METADATA, Source, unsupported};
use crate::{ImageError, Limits};

const END: &str = "the last row";
const HEADER: u64 = 14;

pub(super) fn walk<R: Read + Seek>(source: &mut Source<R>, limits: &Limits) -> Result<Layout, ImageError> {
    source.skip(10, END)?;
    let pixels_at = u64::from(u32::from_le_bytes(source.array(END)?));
    let header_size = u32::from_le_bytes(source.array(END)?);
    let (width, height, bits, compression, image_size);
    if header_size == 12 {
        let [w0, w1, h0, h1, _, _, b0, b1] = source.array(END)?;
        (width, height) = (u32::from(u16::from_le_bytes([w0, w1])), u32::from(u16::from_le_bytes([h0, h1])));
        (bits, compression, image_size) = (u16::from_le_bytes([b0, b1]), 0, 0);
    } else {
        let [w0, w1, w2, w3, h0, h1, h2, h3, _, _, b0, b1, c0, c1, c2, c3, s0, s1, s2, s3] = source.array(END)?;
        width =
            u32::try_from(i32::from_le_bytes([w0, w1, w2, w3])).map_err(|_| source.corrupt("its width is negative"))?;
        // A negative height stands for rows from top to bottom.
        height = i32::from_le_bytes([h0, h1, h2, h3]).unsigned_abs();
        bits = u16::from_le_bytes([b0, b1]);
        compression = u32::from_le_bytes([c0, c1, c2, c3]);
        image_size = u64::from(u32::from_le_bytes([s0, s1, s2, s3]));
    }
    let mut layout = Layout::sized(width, height);
    limits.check_pixels(source.media_type, width, height)?;
    match compression {
        0 | 3 | 6 => {
            let row = (u64::from(width) * u64::from(bits)).div_ceil(32) * 4;
            source.seek(pixels_at, END)?;
            source.skip(row.saturating_mul(height.into()), END)?;
        }
        1 | 2 => {
            source.seek(pixels_at, END)?;
            if image_size > source.remaining() {
                return Err(source.truncated(END));
            }
            if image_size == 0 {
                run_lengths(source, compression == 2)?;
            }
        }
        4 | 5 => return Err(unsupported("a BMP that wraps a JPEG or PNG")),
        other => return Err(unsupported(format!("a BMP with the compression {other}"))),
    }
    if header_size == 124 {
        layout.metadata.icc = profile(source)?;
    }
    Ok(layout)
}

/// Follows the runs to the end-of-bitmap code.
fn run_lengths<R: Read + Seek>(source: &mut Source<R>, four_bits: bool) -> Result<(), ImageError> {
    loop {
        match source.array(END)? {
            [0, 1] => return Ok(()),
            [0, 0] | [1..=255, _] => {}
            [0, 2] => source.skip(2, END)?,
            [0, count @ 3..=255] => {
                let bytes = if four_bits { u64::from(count).div_ceil(2) } else { count.into() };
                source.skip(bytes + bytes % 2, END)?;
            }
        }
    }
}

/// The profile that a header of version 5 embeds.
fn profile<R: Read + Seek>(source: &mut Source<R>) -> Result<Option<Vec<u8>>, ImageError> {
    source.seek(HEADER + 56, END)?;
    let kind: [u8; 4] = source.array(END)?;
    source.seek(HEADER + 112, END)?;
    let at = u64::from(u32::from_le_bytes(source.array(END)?));
    let size = u64::from(u32::from_le_bytes(source.array(END)?));
    if &kind != b"DEBM" || size == 0 || size > MAX_METADATA {
        return Ok(None);
    }
    source.seek(HEADER + at, END)?;
    source.bytes(size, END).map(Some)
}
