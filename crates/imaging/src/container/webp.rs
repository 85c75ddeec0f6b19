//! WebP: the walk from chunk to chunk, to the end that the RIFF header announces.

use std::io::{Read, Seek};

use super::{Layout, MAX_METADATA, Source};
use crate::ImageError;

/// The flag in the extended header.
const ALPHA: u8 = 0x10;
const END: &str = "the end that its header announces";

pub(super) fn walk<R: Read + Seek>(source: &mut Source<R>) -> Result<Layout, ImageError> {
    source.skip(4, END)?;
    let end = u64::from(u32::from_le_bytes(source.array(END)?)) + 8;
    source.skip(4, END)?;
    if end > source.length {
        return Err(source.truncated(END));
    }
    let mut canvas = None;
    let mut picture = None;
    let mut layout = Layout { frames: 1, ..Layout::default() };
    let mut animation_frames = 0;
    let mut flags = None;
    while source.position + 8 <= end {
        let name: [u8; 4] = source.array(END)?;
        let length = u64::from(u32::from_le_bytes(source.array(END)?));
        if source.position + length > end {
            return Err(source.corrupt("a chunk reaches beyond the end of the picture"));
        }
        let next = source.position + length + length % 2;
        match &name {
            b"VP8X" if length >= 10 => {
                flags = Some((source.position, source.array::<1>(END)?[0]));
                let [_, _, _, w0, w1, w2, h0, h1, h2] = source.array(END)?;
                canvas = Some((u32::from_le_bytes([w0, w1, w2, 0]) + 1, u32::from_le_bytes([h0, h1, h2, 0]) + 1));
            }
            b"VP8 " if picture.is_none() => picture = Some(lossy_size(source, length)?),
            b"VP8L" if picture.is_none() => {
                let (width, height, has_alpha) = lossless_header(source, length)?;
                picture = Some((width, height));
                if let Some((at, flags)) = flags.filter(|(_, flags)| has_alpha && flags & ALPHA == 0) {
                    // Programs that add metadata forget the flag, and the decoder believes it.
                    layout.patch = usize::try_from(at).ok().map(|at| (at, vec![flags | ALPHA]));
                }
            }
            b"ANMF" => animation_frames += 1,
            b"EXIF" | b"ICCP" | b"XMP " if length > MAX_METADATA => {
                layout.notes.push(format!("An {} chunk of {length} bytes was left out.", name.escape_ascii()));
            }
            b"EXIF" => {
                let exif = source.bytes(length, END)?;
                // A prefix that belongs into JPEG files only is a common mistake of writers.
                layout.metadata.exif = Some(exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif).to_vec());
            }
            b"ICCP" => layout.metadata.icc = Some(source.bytes(length, END)?),
            b"XMP " => layout.metadata.xmp = Some(source.bytes(length, END)?),
            _ => {}
        }
        source.seek(next.min(end), END)?;
    }
    if picture.is_none() && animation_frames == 0 {
        return Err(source.corrupt("it ends without a picture"));
    }
    (layout.width, layout.height) =
        canvas.or(picture).ok_or_else(|| source.corrupt("it does not say how large it is"))?;
    layout.frames = animation_frames.max(1);
    Ok(layout)
}

fn lossy_size<R: Read + Seek>(source: &mut Source<R>, length: u64) -> Result<(u32, u32), ImageError> {
    if length < 10 {
        return Err(source.corrupt("the picture's header is too short"));
    }
    let [tag, _, _, 0x9D, 0x01, 0x2A, w0, w1, h0, h1] = source.array(END)? else {
        return Err(source.corrupt("the picture's header is wrong"));
    };
    if tag & 1 != 0 {
        return Err(source.corrupt("the picture does not begin with a key frame"));
    }
    Ok((u32::from(u16::from_le_bytes([w0, w1]) & 0x3FFF), u32::from(u16::from_le_bytes([h0, h1]) & 0x3FFF)))
}

/// Width, height and whether alpha is used.
fn lossless_header<R: Read + Seek>(source: &mut Source<R>, length: u64) -> Result<(u32, u32, bool), ImageError> {
    if length < 5 {
        return Err(source.corrupt("the picture's header is too short"));
    }
    let [0x2F, b0, b1, b2, b3] = source.array(END)? else {
        return Err(source.corrupt("the picture's header is wrong"));
    };
    let bits = u32::from_le_bytes([b0, b1, b2, b3]);
    Ok(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bits >> 28 & 1 == 1))
}
