//! PNG: the walk from chunk to chunk, to IEND.

use std::io::{Read, Seek};

use flate2::{Crc, read::ZlibDecoder};

use super::{Layout, MAX_METADATA, Source, unsupported};
use crate::ImageError;

const END: &str = "the IEND chunk";

pub(super) fn walk<R: Read + Seek>(source: &mut Source<R>) -> Result<Layout, ImageError> {
    source.skip(8, END)?;
    let mut layout = header(source)?;
    let mut seen_pixels = false;
    loop {
        let (length, name) = chunk(source)?;
        match &name {
            b"IEND" => break,
            b"IDAT" => {
                seen_pixels = true;
                source.skip(length + 4, END)?;
            }
            b"acTL" if length == 8 && !seen_pixels => {
                layout.frames = u32::from_be_bytes(source.array(END)?).max(1);
                source.skip(8, END)?;
            }
            b"eXIf" | b"iCCP" | b"iTXt" | b"zTXt" | b"tEXt" => {
                if length > MAX_METADATA {
                    layout.notes.push(format!("A {} chunk of {length} bytes was left out.", name.escape_ascii()));
                    source.skip(length + 4, END)?;
                    continue;
                }
                let content = source.bytes(length, END)?;
                source.skip(4, END)?;
                metadata(&mut layout, name, &content);
            }
            _ => source.skip(length + 4, END)?,
        }
    }
    // IEND itself may have a wrong length; its checksum must be there all the same.
    source.skip(4, END)?;
    if !seen_pixels {
        return Err(source.corrupt("it ends without a picture"));
    }
    Ok(layout)
}

/// Length and name of the next chunk.
fn chunk<R: Read + Seek>(source: &mut Source<R>) -> Result<(u64, [u8; 4]), ImageError> {
    let length = u32::from_be_bytes(source.array(END)?);
    let name: [u8; 4] = source.array(END)?;
    if length > i32::MAX.unsigned_abs() || !name.iter().all(u8::is_ascii_alphabetic) {
        return Err(source.corrupt("what should be a chunk is none"));
    }
    Ok((length.into(), name))
}

fn header<R: Read + Seek>(source: &mut Source<R>) -> Result<Layout, ImageError> {
    let (length, name) = chunk(source)?;
    if &name == b"CgBI" {
        return Err(unsupported("a PNG in the private format of iOS programs"));
    }
    if &name != b"IHDR" || length != 13 {
        return Err(source.corrupt("it does not begin with an IHDR chunk"));
    }
    let header: [u8; 13] = source.array(END)?;
    let mut crc = Crc::new();
    crc.update(&name);
    crc.update(&header);
    if u32::from_be_bytes(source.array(END)?) != crc.sum() {
        return Err(source.corrupt("the checksum of the IHDR chunk is wrong"));
    }
    let [w3, w2, w1, w0, h3, h2, h1, h0, ..] = header;
    Ok(Layout::sized(u32::from_be_bytes([w3, w2, w1, w0]), u32::from_be_bytes([h3, h2, h1, h0])))
}

fn metadata(layout: &mut Layout, name: [u8; 4], content: &[u8]) {
    let metadata = &mut layout.metadata;
    match &name {
        // A prefix that belongs into JPEG files only is a common mistake of writers.
        b"eXIf" => metadata.exif = Some(content.strip_prefix(b"Exif\0\0").unwrap_or(content).to_vec()),
        b"iCCP" => match after_keyword(content).and_then(|(_, rest)| inflate(rest.strip_prefix(b"\0")?)) {
            Some(profile) => metadata.icc = Some(profile),
            None => layout.notes.push("The colour profile cannot be read and was left out.".into()),
        },
        b"iTXt" => match after_keyword(content) {
            Some((b"XML:com.adobe.xmp", rest)) => match international_text(rest) {
                Some(xmp) => metadata.xmp = Some(xmp),
                None => layout.notes.push("The XMP cannot be read and was left out.".into()),
            },
            Some((b"parameters", rest)) => {
                metadata.parameters = international_text(rest).and_then(|text| String::from_utf8(text).ok());
            }
            Some(_) | None => {}
        },
        // ImageMagick's way from before there was eXIf.
        b"zTXt" | b"tEXt" => {
            let text = after_keyword(content).and_then(|(keyword, rest)| {
                let text = if name[0] == b'z' { inflate(rest.strip_prefix(b"\0")?)? } else { rest.to_vec() };
                if keyword == b"parameters" {
                    // Latin-1: each byte is the character of that number.
                    metadata.parameters = Some(text.iter().copied().map(char::from).collect());
                }
                matches!(keyword, b"Raw profile type exif" | b"Raw profile type APP1").then_some(text)
            });
            if let Some(block) = text.as_deref().and_then(raw_profile)
                && let Some(exif) = block.strip_prefix(b"Exif\0\0")
            {
                metadata.exif.get_or_insert_with(|| exif.to_vec());
            }
        }
        _ => {}
    }
}

fn after_keyword(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = content.iter().take(80).position(|&byte| byte == 0)?;
    Some((&content[..end], &content[end + 1..]))
}

/// Compression flag and method, language, translated keyword, text.
fn international_text(content: &[u8]) -> Option<Vec<u8>> {
    let (&[compressed, method], rest) = content.split_at_checked(2)? else { return None };
    let language_end = rest.iter().position(|&byte| byte == 0)?;
    let rest = &rest[language_end + 1..];
    let keyword_end = rest.iter().position(|&byte| byte == 0)?;
    let text = &rest[keyword_end + 1..];
    match (compressed, method) {
        (0, _) => Some(text.to_vec()),
        (1, 0) => inflate(text),
        _ => None,
    }
}

/// A newline, the name, the number of bytes, then the bytes as hexadecimal digits in lines.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?.trim_start();
    let (_, rest) = text.split_once('\n')?;
    let (count, digits) = rest.trim_start().split_once('\n')?;
    let count: usize = count.trim().parse().ok()?;
    let mut nibbles = digits.chars().filter(|c| !c.is_ascii_whitespace()).map(|c| c.to_digit(16));
    let mut bytes = Vec::new();
    while let Some(high) = nibbles.next() {
        bytes.push(u8::try_from(high? << 4 | nibbles.next()??).ok()?);
    }
    (bytes.len() == count).then_some(bytes)
}

fn inflate(compressed: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    ZlibDecoder::new(compressed).take(MAX_METADATA + 1).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= MAX_METADATA).then_some(content)
}
