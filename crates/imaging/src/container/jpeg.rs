//! JPEG: the walk from marker to marker, through every scan, to the end-of-image marker.
//!
//! Decoders fill a missing half with grey and say nothing, so this walk is what tells a whole file from a cut one.
//! What follows the end marker (a second picture, a video, padding) is none of its business.

use std::io::{Read, Seek};

use super::{Layout, Source, unsupported};
use crate::ImageError;

/// What only a JPEG has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jpeg {
    pub(crate) components: u8,
    /// The transform of an Adobe segment: 0 as is, 1 YCbCr, 2 YCCK. Such a file stores CMYK inverted.
    pub(crate) adobe_transform: Option<u8>,
    /// Not progressive, and yet the components come in scans of their own.
    pub(crate) separate_scans: bool,
    /// The quantisation table of the first component, in the order of the file (zigzag).
    pub(crate) luma_table: Option<[u16; 64]>,
}

const EXIF: &[u8] = b"Exif\0\0";
const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
const XMP_EXTENSION: &[u8] = b"http://ns.adobe.com/xmp/extension/\0";
const ICC: &[u8] = b"ICC_PROFILE\0";
const END: &str = "the end-of-image marker";

#[derive(Default)]
struct State {
    layout: Layout,
    jpeg: Jpeg,
    tables: [Option<[u16; 64]>; 4],
    luma_table_index: usize,
    /// Number, count and content of each part.
    icc_parts: Vec<(u8, u8, Vec<u8>)>,
    seen_frame: bool,
    progressive: bool,
    seen_scan: bool,
}

pub(super) fn walk<R: Read + Seek>(source: &mut Source<R>) -> Result<Layout, ImageError> {
    let mut state = State::default();
    source.skip(2, END)?;
    loop {
        match next_marker(source)? {
            0xD9 => break,
            // Restart markers and TEM stand alone; 0 is a stuffed byte in garbage between segments.
            0x00 | 0x01 | 0xD0..=0xD8 => {}
            0xDA => {
                if !state.seen_frame {
                    return Err(source.corrupt("a scan comes before the frame header"));
                }
                let length = segment_length(source)?;
                let header = source.bytes(length, END)?;
                if !state.seen_scan && !state.progressive {
                    state.jpeg.separate_scans = header.first().is_some_and(|&count| count < state.jpeg.components);
                }
                state.seen_scan = true;
                // The entropy-coded data lasts until the next marker that is neither a restart nor a stuffed byte,
                // which is exactly what `next_marker` and the standalone arm above skip.
            }
            marker => segment(source, &mut state, marker)?,
        }
    }
    if !state.seen_scan {
        return Err(source.corrupt("it ends without a picture"));
    }
    Ok(state.finish())
}

/// Skips to the next 0xFF and over fill bytes, and returns the marker's code.
fn next_marker<R: Read + Seek>(source: &mut Source<R>) -> Result<u8, ImageError> {
    if !source.skip_past(0xFF)? {
        return Err(source.truncated(END));
    }
    loop {
        let [code] = source.array(END)?;
        if code != 0xFF {
            return Ok(code);
        }
    }
}

fn segment_length<R: Read + Seek>(source: &mut Source<R>) -> Result<u64, ImageError> {
    match u16::from_be_bytes(source.array(END)?) {
        length @ 2.. => Ok(u64::from(length) - 2),
        _ => Err(source.corrupt("a segment is shorter than its own header")),
    }
}

fn segment<R: Read + Seek>(source: &mut Source<R>, state: &mut State, marker: u8) -> Result<(), ImageError> {
    let length = segment_length(source)?;
    match marker {
        0xC0..=0xC2 => {
            let frame = source.bytes(length, END)?;
            state.progressive = marker == 0xC2;
            state.frame(source, &frame)
        }
        0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => Err(unsupported(match marker {
            0xC3 | 0xC7 | 0xCB | 0xCF => "a lossless JPEG",
            0xC9..=0xCB | 0xCD..=0xCF => "a JPEG with arithmetic coding",
            _ => "a hierarchical JPEG",
        })),
        0xDB => {
            let tables = source.bytes(length, END)?;
            state.quantisation_tables(&tables);
            Ok(())
        }
        0xE1 | 0xE2 | 0xEE if !state.seen_scan => {
            let content = source.bytes(length, END)?;
            state.application(marker, &content);
            Ok(())
        }
        _ => source.skip(length, END),
    }
}

impl State {
    fn frame<R: Read + Seek>(&mut self, source: &Source<R>, frame: &[u8]) -> Result<(), ImageError> {
        let &[precision, h1, h0, w1, w0, components, ref table @ ..] = frame else {
            return Err(source.corrupt("the frame header is too short"));
        };
        if self.seen_frame {
            return Err(source.corrupt("it has two frame headers"));
        }
        if precision != 8 {
            return Err(unsupported(format!("a JPEG with {precision} bits a sample")));
        }
        if !matches!(components, 1 | 3 | 4) {
            return Err(unsupported(format!("a JPEG with {components} components")));
        }
        if table.len() < 3 * usize::from(components) {
            return Err(source.corrupt("the frame header is too short"));
        }
        self.seen_frame = true;
        self.jpeg.components = components;
        self.luma_table_index = usize::from(table[2] & 3);
        let sized = Layout::sized(u16::from_be_bytes([w1, w0]).into(), u16::from_be_bytes([h1, h0]).into());
        if sized.height == 0 {
            return Err(unsupported("a JPEG that tells its height only after the picture"));
        }
        (self.layout.width, self.layout.height, self.layout.frames) = (sized.width, sized.height, 1);
        Ok(())
    }

    fn quantisation_tables(&mut self, mut content: &[u8]) {
        while let Some((&head, rest)) = content.split_first() {
            let size = if head >> 4 == 0 { 64 } else { 128 };
            let Some((values, rest)) = rest.split_at_checked(size) else { return };
            let mut table = [0; 64];
            for (index, entry) in table.iter_mut().enumerate() {
                *entry = if size == 64 {
                    u16::from(values[index])
                } else {
                    u16::from_be_bytes([values[2 * index], values[2 * index + 1]])
                };
            }
            self.tables[usize::from(head & 3)] = Some(table);
            content = rest;
        }
    }

    fn application(&mut self, marker: u8, content: &[u8]) {
        let metadata = &mut self.layout.metadata;
        if let (0xE1, Some(exif)) = (marker, content.strip_prefix(EXIF)) {
            metadata.exif.get_or_insert_with(|| exif.to_vec());
        } else if let (0xE1, Some(xmp)) = (marker, content.strip_prefix(XMP)) {
            metadata.xmp.get_or_insert_with(|| xmp.to_vec());
        } else if marker == 0xE1 && content.starts_with(XMP_EXTENSION) {
            let note = "The extended part of the XMP was not carried over.";
            if self.layout.notes.iter().all(|known| known != note) {
                self.layout.notes.push(note.into());
            }
        } else if let (0xE2, Some(&[number, count, ref part @ ..])) = (marker, content.strip_prefix(ICC)) {
            self.icc_parts.push((number, count, part.to_vec()));
        } else if let (0xEE, Some(&[b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..])) =
            (marker, Some(content))
        {
            self.jpeg.adobe_transform = Some(transform);
        }
    }

    fn finish(mut self) -> Layout {
        self.layout.metadata.icc = self.profile();
        if self.layout.metadata.icc.is_none() && !self.icc_parts.is_empty() {
            self.layout.notes.push("The colour profile is incomplete and was left out.".into());
        }
        self.jpeg.luma_table = self.tables[self.luma_table_index];
        self.layout.jpeg = Some(self.jpeg);
        self.layout
    }

    /// The parts put together, if every one of them is there once.
    fn profile(&mut self) -> Option<Vec<u8>> {
        self.icc_parts.sort_by_key(|(number, ..)| *number);
        let count = usize::from(self.icc_parts.first()?.1);
        let complete = self.icc_parts.len() == count
            && self.icc_parts.iter().zip(1..).all(|((number, ..), expected)| u32::from(*number) == expected);
        complete.then(|| self.icc_parts.iter().flat_map(|(.., part)| part).copied().collect())
    }
}
