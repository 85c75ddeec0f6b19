//! GIF: the walk from block to block, to the trailer.

use std::io::{Read, Seek};

use super::{Layout, MAX_METADATA, Source};
use crate::ImageError;

const END: &str = "the trailer";

pub(super) fn walk<R: Read + Seek>(source: &mut Source<R>) -> Result<Layout, ImageError> {
    source.skip(6, END)?;
    let [w0, w1, h0, h1, flags, _, _] = source.array(END)?;
    let mut layout = Layout::sized(u16::from_le_bytes([w0, w1]).into(), u16::from_le_bytes([h0, h1]).into());
    color_table(source, flags)?;
    let mut frames = 0;
    loop {
        match source.array(END)? {
            [0x3B] => break,
            [0x21] => extension(source, &mut layout)?,
            [0x2C] => {
                let [.., flags] = source.array::<9>(END)?;
                color_table(source, flags)?;
                source.skip(1, END)?; // the code size of LZW
                while let length @ 1.. = source.array::<1>(END)?[0] {
                    source.skip(length.into(), END)?;
                }
                frames += 1;
            }
            // Padding between blocks does occur.
            [0] => {}
            [_] => return Err(source.corrupt("what should be a block is none")),
        }
    }
    if frames == 0 {
        return Err(source.corrupt("it ends without a picture"));
    }
    layout.frames = frames;
    Ok(layout)
}

fn color_table<R: Read + Seek>(source: &mut Source<R>, flags: u8) -> Result<(), ImageError> {
    if flags & 0x80 != 0 {
        source.skip(3 << ((flags & 7) + 1), END)?;
    }
    Ok(())
}

fn extension<R: Read + Seek>(source: &mut Source<R>, layout: &mut Layout) -> Result<(), ImageError> {
    let [label] = source.array(END)?;
    let mut application = Vec::new();
    if label == 0xFF {
        let [length] = source.array(END)?;
        application = source.bytes(length.into(), END)?;
        if length == 0 {
            return Ok(());
        }
    }
    if application == b"XMP DataXMP" {
        layout.metadata.xmp = xmp(source)?;
        return Ok(());
    }
    let mut content = Vec::new();
    while let length @ 1.. = source.array::<1>(END)?[0] {
        if application == b"ICCRGBG1012" && (content.len() as u64) < MAX_METADATA {
            content.extend(source.bytes(length.into(), END)?);
        } else {
            source.skip(length.into(), END)?;
        }
    }
    if !content.is_empty() {
        layout.metadata.icc = Some(content);
    }
    Ok(())
}

/// XMP lies there as it is, without blocks: read as blocks, its bytes are lengths, and a ramp from 0xFF down to 0
/// behind it leads every reader to the same end. The packet is what comes before that ramp.
fn xmp<R: Read + Seek>(source: &mut Source<R>) -> Result<Option<Vec<u8>>, ImageError> {
    let mut content = Vec::new();
    loop {
        let [length] = source.array(END)?;
        if length == 0 {
            break;
        }
        content.push(length);
        content.extend(source.bytes(length.into(), END)?);
        if content.len() as u64 > MAX_METADATA {
            return Err(source.corrupt("its XMP has no end"));
        }
    }
    // The ramp: 1, 0xFF, 0xFE, …, 1, 0. The 0 behind it, which ends the blocks, has just been read.
    Ok(content.len().checked_sub(257).filter(|&end| content[end..].starts_with(&[1, 0xFF])).map(|end| {
        content.truncate(end);
        content
    }))
}
