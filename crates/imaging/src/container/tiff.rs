//! TIFF and BigTIFF: the walk through all directories, and whether what they point at lies within the file.
//!
//! A TIFF has no end marker. It is whole when every directory, value, strip and tile is there.

use std::{
    collections::BTreeSet,
    io::{Read, Seek},
};

use super::{Layout, MAX_METADATA, Source, unsupported};
use crate::ImageError;

const END: &str = "what its directory points at";
/// Entries of all directories and their strips together. 65,535 rows of one strip each need a tenth of it.
const MAX_VALUES: u64 = 1 << 20;

const NEW_SUBFILE_TYPE: u16 = 254;
const WIDTH: u16 = 256;
const HEIGHT: u16 = 257;
const PHOTOMETRIC: u16 = 262;
const STRIP_OFFSETS: u16 = 273;
const ORIENTATION: u16 = 274;
const STRIP_BYTE_COUNTS: u16 = 279;
const TILE_OFFSETS: u16 = 324;
const TILE_BYTE_COUNTS: u16 = 325;
const SUB_IFDS: u16 = 330;
const XMP: u16 = 700;
const ICC: u16 = 34675;
const DNG_VERSION: u16 = 50706;

/// The photometric interpretation of indices into a palette.
const PALETTE: u64 = 3;

struct Tiff<'a, R> {
    source: &'a mut Source<R>,
    little_endian: bool,
    big: bool,
    values_left: u64,
}

struct Entry {
    tag: u16,
    kind: u16,
    count: u64,
    /// Where the value lies: in the entry itself when it is short, elsewhere when not.
    at: u64,
}

pub(super) fn walk<R: Read + Seek>(source: &mut Source<R>) -> Result<Layout, ImageError> {
    let [order, _, v0, v1] = source.array(END)?;
    let little_endian = order == b'I';
    let mut tiff = Tiff { source, little_endian, big: v0.max(v1) == 43, values_left: MAX_VALUES };
    if tiff.big {
        tiff.source.skip(4, END)?;
    }
    let first = tiff.offset()?;
    let entries = tiff.directory(first)?;
    let mut layout = tiff.first_page(&entries)?;
    let mut next = tiff.pixels_are_there(&entries)?;
    let mut seen = BTreeSet::from([first]);
    while next != 0 {
        if !seen.insert(next) {
            return Err(tiff.source.corrupt("its directories form a loop"));
        }
        let entries = tiff.directory(next)?;
        next = tiff.pixels_are_there(&entries)?;
        layout.frames += 1;
    }
    Ok(layout)
}

impl<R: Read + Seek> Tiff<'_, R> {
    fn u16(&mut self) -> Result<u16, ImageError> {
        let bytes = self.source.array(END)?;
        Ok(if self.little_endian { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn u32(&mut self) -> Result<u32, ImageError> {
        let bytes = self.source.array(END)?;
        Ok(if self.little_endian { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn u64(&mut self) -> Result<u64, ImageError> {
        let bytes = self.source.array(END)?;
        Ok(if self.little_endian { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) })
    }

    fn offset(&mut self) -> Result<u64, ImageError> {
        if self.big { self.u64() } else { self.u32().map(u64::from) }
    }

    fn spend(&mut self, values: u64) -> Result<(), ImageError> {
        self.values_left = self
            .values_left
            .checked_sub(values)
            .ok_or_else(|| self.source.corrupt("its directories have more entries than any picture needs"))?;
        Ok(())
    }

    /// Reads the directory at `at` and leaves the source before the offset of the next one.
    fn directory(&mut self, at: u64) -> Result<Vec<Entry>, ImageError> {
        self.source.seek(at, END)?;
        let count = if self.big { self.u64()? } else { self.u16()?.into() };
        self.spend(count)?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let (tag, kind) = (self.u16()?, self.u16()?);
            let count = self.offset()?;
            let inline = if self.big { 8 } else { 4 };
            let here = self.source.position;
            let elsewhere = self.offset()?;
            let size = count.saturating_mul(size_of_kind(kind));
            let at = if size <= inline { here } else { elsewhere };
            if at.saturating_add(size) > self.source.length {
                return Err(self.source.truncated(END));
            }
            entries.push(Entry { tag, kind, count, at });
        }
        Ok(entries)
    }

    fn first_page(&mut self, entries: &[Entry]) -> Result<Layout, ImageError> {
        let next = self.source.position;
        let find = |tag| entries.iter().find(|entry| entry.tag == tag);
        if find(DNG_VERSION).is_some() {
            return Err(unsupported("a camera raw file (DNG)"));
        }
        if let (Some(kind), Some(_)) = (find(NEW_SUBFILE_TYPE), find(SUB_IFDS))
            && self.first_number(kind)? & 1 == 1
        {
            return Err(unsupported("a camera raw file"));
        }
        let mut layout = Layout { frames: 1, ..Layout::default() };
        for (tag, side) in [(WIDTH, &mut layout.width), (HEIGHT, &mut layout.height)] {
            let entry = find(tag).ok_or_else(|| self.source.corrupt("it does not say how large it is"))?;
            *side = u32::try_from(self.first_number(entry)?).unwrap_or(u32::MAX);
        }
        if find(STRIP_OFFSETS).or_else(|| find(TILE_OFFSETS)).is_none() {
            return Err(self.source.corrupt("its first directory has no picture"));
        }
        // The orientation is in the directory itself, so EXIF has no say in it.
        let orientation = find(ORIENTATION).map(|entry| self.first_number(entry)).transpose()?;
        layout.own_orientation = orientation.and_then(|value| u8::try_from(value).ok()).or(Some(1));
        if let Some(entry) = find(PHOTOMETRIC)
            && self.first_number(entry)? == PALETTE
        {
            layout.palette = true;
            // The decoder refuses palettes. Told that the indices are levels of grey, it hands them out.
            let gray = if self.little_endian { [1, 0] } else { [0, 1] };
            layout.patch = usize::try_from(entry.at).ok().map(|at| (at, gray.to_vec()));
        }
        layout.metadata.icc = find(ICC).map(|entry| self.bytes(entry)).transpose()?.flatten();
        layout.metadata.xmp = find(XMP).map(|entry| self.bytes(entry)).transpose()?.flatten();
        self.source.seek(next, END)?;
        Ok(layout)
    }

    /// Makes sure that all strips and tiles lie within the file; returns where the next directory is.
    fn pixels_are_there(&mut self, entries: &[Entry]) -> Result<u64, ImageError> {
        let next = self.offset()?;
        let find = |tag| entries.iter().find(|entry| entry.tag == tag);
        for (offsets, counts) in [(STRIP_OFFSETS, STRIP_BYTE_COUNTS), (TILE_OFFSETS, TILE_BYTE_COUNTS)] {
            let Some(offsets) = find(offsets) else { continue };
            let offsets = self.numbers(offsets)?;
            let counts = find(counts).map_or(Ok(Vec::new()), |entry| self.numbers(entry))?;
            for (index, offset) in offsets.into_iter().enumerate() {
                let end = offset.checked_add(counts.get(index).copied().unwrap_or(1));
                if end.is_none_or(|end| end > self.source.length) {
                    return Err(self.source.truncated(END));
                }
            }
        }
        Ok(next)
    }

    fn first_number(&mut self, entry: &Entry) -> Result<u64, ImageError> {
        let entry = Entry { count: entry.count.min(1), ..*entry };
        let numbers = self.numbers(&entry)?;
        numbers.first().copied().ok_or_else(|| self.source.corrupt("an entry of its directory is empty"))
    }

    fn numbers(&mut self, entry: &Entry) -> Result<Vec<u64>, ImageError> {
        self.spend(entry.count)?;
        self.source.seek(entry.at, END)?;
        (0..entry.count)
            .map(|_| match entry.kind {
                1 => Ok(u64::from(self.source.array::<1>(END)?[0])),
                3 => self.u16().map(u64::from),
                4 | 13 => self.u32().map(u64::from),
                16 | 18 => self.u64(),
                _ => Err(self.source.corrupt("an entry of its directory is no number")),
            })
            .collect()
    }

    fn bytes(&mut self, entry: &Entry) -> Result<Option<Vec<u8>>, ImageError> {
        if !matches!(entry.kind, 1 | 7) || entry.count > MAX_METADATA {
            return Ok(None);
        }
        self.source.seek(entry.at, END)?;
        self.source.bytes(entry.count, END).map(Some)
    }
}

fn size_of_kind(kind: u16) -> u64 {
    match kind {
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16..=18 => 8,
        _ => 1,
    }
}
