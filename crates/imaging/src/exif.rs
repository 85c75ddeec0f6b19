//! EXIF blocks: reading the orientation, and changing what an output must not repeat.
//!
//! A block is edited in place. Nothing in it moves, because a MakerNote is full of offsets that only its maker knows;
//! entries go away by closing the gap in their table, and what they pointed at is overwritten with zeros. Blocks come
//! from strangers: every offset is checked, loops are cut, and a block that makes no sense is given up.

use std::{collections::BTreeSet, ops::Range};

/// Width and height once the EXIF orientation (1 to 8) has been applied.
pub(crate) fn oriented(width: u32, height: u32, orientation: u8) -> (u32, u32) {
    if (5..=8).contains(&orientation) { (height, width) } else { (width, height) }
}

/// The orientation, 1 to 8, that a block asks for.
pub(crate) fn orientation(block: &[u8]) -> Option<u8> {
    let value = parse(block)?.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?.value.get_uint(0)?;
    u8::try_from(value).ok().filter(|value| (1..=8).contains(value))
}

fn parse(block: &[u8]) -> Option<exif::Exif> {
    let mut reader = exif::Reader::new();
    reader.continue_on_error(true);
    reader.read_raw(block.to_vec()).or_else(|error| error.distill_partial_result(|_| ())).ok()
}

/// An EXIF block made of what a TIFF file says about its picture, without what describes the file's own structure.
pub(crate) fn from_tiff(file: Vec<u8>) -> Option<Vec<u8>> {
    // Tags of the first directory that are about the picture and not about how it is stored.
    const ABOUT: [u16; 17] = [
        0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x8298, 0x9C9B, 0x9C9C,
        0x9C9D, 0x9C9E, 0x9C9F,
    ];
    let mut reader = exif::Reader::new();
    reader.continue_on_error(true);
    let parsed = reader.read_raw(file).or_else(|error| error.distill_partial_result(|_| ())).ok()?;
    let mut seen = BTreeSet::new();
    let mut writer = exif::experimental::Writer::new();
    let mut count = 0;
    for field in parsed.fields() {
        let exif::Tag(context, number) = field.tag;
        let wanted = match context {
            exif::Context::Tiff => ABOUT.contains(&number),
            // A MakerNote does not survive a move.
            exif::Context::Exif => field.tag != exif::Tag::MakerNote,
            exif::Context::Gps | exif::Context::Interop => true,
            _ => false,
        };
        let known = !matches!(field.value, exif::Value::Unknown(..));
        if field.ifd_num == exif::In::PRIMARY && wanted && known && seen.insert((context as u8, number)) {
            writer.push_field(field);
            count += 1;
        }
    }
    let mut block = std::io::Cursor::new(Vec::new());
    (count > 0).then(|| writer.write(&mut block, parsed.little_endian()).ok())??;
    Some(block.into_inner())
}

/// What an output needs changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edit {
    /// Pixels.
    pub(crate) width: u32,
    /// Pixels.
    pub(crate) height: u32,
    pub(crate) strip_gps: bool,
}

const IMAGE_WIDTH: u16 = 0x0100;
const IMAGE_HEIGHT: u16 = 0x0101;
const ORIENTATION: u16 = 0x0112;
const JPEG_OFFSET: u16 = 0x0201;
const JPEG_LENGTH: u16 = 0x0202;
const RELATED_WIDTH: u16 = 0x1001;
const RELATED_HEIGHT: u16 = 0x1002;
const EXIF_IFD: u16 = 0x8769;
const GPS_IFD: u16 = 0x8825;
const PIXEL_X_DIMENSION: u16 = 0xA002;
const PIXEL_Y_DIMENSION: u16 = 0xA003;
const INTEROP_IFD: u16 = 0xA005;
const USER_COMMENT: u16 = 0x9286;

const SHORT: u16 = 3;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;
const ENTRY_SIZE: usize = 12;
/// Directories that are followed in one block; real ones have five.
const MAX_DIRECTORIES: usize = 64;

/// The block as an output may carry it, and what had to be left out of it.
///
/// `None` when the block is no TIFF structure, or its position data cannot be told from the rest.
pub(crate) fn edit(block: &[u8], edit: Edit) -> Option<(Vec<u8>, Vec<String>)> {
    let mut editor = Editor::new(block, edit)?;
    let first = editor.u32(4).and_then(|at| usize::try_from(at).ok())?;
    editor.keep(first, Directory::Primary)?;
    let (bytes, notes) = editor.finish()?;
    // A second reader's opinion, because a turned picture that asks to be turned again is turned twice.
    let read = parse(&bytes).is_some() && orientation(&bytes).is_none_or(|value| value == 1);
    read.then_some((bytes, notes))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Directory {
    Primary,
    Exif,
    Gps,
    Interop,
}

#[derive(Clone, Copy)]
struct Entry {
    at: usize,
    tag: u16,
    kind: u16,
    count: u32,
}

struct Table {
    entries: Vec<Entry>,
    /// Behind the offset of the next directory.
    end: usize,
    /// The offset of the next directory; 0 for none.
    next: usize,
}

struct Editor {
    bytes: Vec<u8>,
    little_endian: bool,
    edit: Edit,
    visited: BTreeSet<usize>,
    /// What remains in use.
    live: Vec<Range<usize>>,
    /// What nothing points at any more.
    dead: Vec<Range<usize>>,
    /// The part of `dead` that says where the picture was taken.
    position: Vec<Range<usize>>,
    unreadable: usize,
}

impl Editor {
    fn new(block: &[u8], edit: Edit) -> Option<Self> {
        let little_endian = match block.get(..4) {
            Some(b"II\x2A\0") => true,
            Some(b"MM\0\x2A") => false,
            _ => return None,
        };
        Some(Self {
            bytes: block.to_vec(),
            little_endian,
            edit,
            visited: BTreeSet::new(),
            live: std::iter::once(0..8).collect(),
            dead: Vec::new(),
            position: Vec::new(),
            unreadable: 0,
        })
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.little_endian { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.little_endian { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        let bytes = if self.little_endian { value.to_le_bytes() } else { value.to_be_bytes() };
        self.bytes[at..at + 2].copy_from_slice(&bytes);
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        let bytes = if self.little_endian { value.to_le_bytes() } else { value.to_be_bytes() };
        self.bytes[at..at + 4].copy_from_slice(&bytes);
    }

    fn table(&self, at: usize) -> Option<Table> {
        let count = usize::from(self.u16(at)?);
        let entries_end = at.checked_add(2 + count * ENTRY_SIZE)?;
        if at < 8 || entries_end > self.bytes.len() {
            return None;
        }
        // Some writers leave the offset of the next directory out at the very end.
        let (end, next) = match self.u32(entries_end) {
            Some(next) => (entries_end + 4, usize::try_from(next).ok()?),
            None => (entries_end, 0),
        };
        let entry = |index| {
            let at = at + 2 + index * ENTRY_SIZE;
            Some(Entry { at, tag: self.u16(at)?, kind: self.u16(at + 2)?, count: self.u32(at + 4)? })
        };
        Some(Table { entries: (0..count).map(entry).collect::<Option<_>>()?, end, next })
    }

    /// Where the value of an entry lies; `None` when that is outside of the block or of an unknown type.
    fn value(&self, entry: &Entry) -> Option<Range<usize>> {
        let size = usize::try_from(entry.count).ok()?.checked_mul(size_of_kind(entry.kind)?)?;
        let at = if size <= 4 { entry.at + 8 } else { usize::try_from(self.u32(entry.at + 8)?).ok()? };
        let end = at.checked_add(size)?;
        (end <= self.bytes.len()).then_some(at..end)
    }

    fn pointer(&self, entry: &Entry) -> Option<usize> {
        usize::try_from(self.u32(entry.at + 8)?).ok()
    }

    fn visit(&mut self, at: usize) -> Option<Table> {
        if self.visited.len() >= MAX_DIRECTORIES || !self.visited.insert(at) {
            return None;
        }
        self.table(at)
    }

    /// Keeps the directory at `at`, without the entries that must go.
    fn keep(&mut self, at: usize, directory: Directory) -> Option<()> {
        let Table { entries, end, next } = self.visit(at)?;
        self.live.push(at..end);
        let mut kept = Vec::with_capacity(entries.len());
        let mut thumbnail = (None, None);
        for entry in entries {
            match (directory, entry.tag) {
                // Wherever a reader may look for it.
                (_, GPS_IFD) if self.edit.strip_gps => {
                    if let Some(gps) = self.pointer(&entry) {
                        self.drop_directory(gps, true);
                    }
                }
                (Directory::Primary, EXIF_IFD) => self.keep_below(entry, Directory::Exif, &mut kept),
                (Directory::Primary, GPS_IFD) => self.keep_below(entry, Directory::Gps, &mut kept),
                (Directory::Exif, INTEROP_IFD) => self.keep_below(entry, Directory::Interop, &mut kept),
                (Directory::Primary, JPEG_OFFSET) => thumbnail.0 = self.pointer(&entry),
                (Directory::Primary, JPEG_LENGTH) => thumbnail.1 = self.pointer(&entry),
                _ => match self.new_number(directory, entry.tag) {
                    Some(number) => {
                        self.put_number(&entry, number);
                        kept.push(entry);
                    }
                    None => match self.value(&entry) {
                        Some(value) => {
                            self.live.push(value);
                            kept.push(entry);
                        }
                        None => self.unreadable += 1,
                    },
                },
            }
        }
        if let (Some(start), Some(length)) = thumbnail {
            self.drop_range(start, length, false);
        }
        if directory == Directory::Primary {
            self.drop_chain(next);
        }
        self.rewrite(at, end, &kept);
        Some(())
    }

    fn keep_below(&mut self, entry: Entry, directory: Directory, kept: &mut Vec<Entry>) {
        match self.pointer(&entry).and_then(|at| self.keep(at, directory)) {
            Some(()) => kept.push(entry),
            None => self.unreadable += 1,
        }
    }

    /// What an entry must say in the output, for those that say something about the size or orientation.
    fn new_number(&self, directory: Directory, tag: u16) -> Option<u32> {
        match (directory, tag) {
            (Directory::Primary, ORIENTATION) => Some(1),
            (Directory::Primary, IMAGE_WIDTH)
            | (Directory::Exif, PIXEL_X_DIMENSION)
            | (Directory::Interop, RELATED_WIDTH) => Some(self.edit.width),
            (Directory::Primary, IMAGE_HEIGHT)
            | (Directory::Exif, PIXEL_Y_DIMENSION)
            | (Directory::Interop, RELATED_HEIGHT) => Some(self.edit.height),
            _ => None,
        }
    }

    /// One number, in the entry itself: a long one takes no more room than a short one.
    fn put_number(&mut self, entry: &Entry, number: u32) {
        self.put_u32(entry.at + 4, 1);
        self.put_u32(entry.at + 8, 0);
        match u16::try_from(number) {
            Ok(short) if entry.kind == SHORT || entry.tag == ORIENTATION => {
                self.put_u16(entry.at + 2, SHORT);
                self.put_u16(entry.at + 8, short);
            }
            _ => {
                self.put_u16(entry.at + 2, LONG);
                self.put_u32(entry.at + 8, number);
            }
        }
    }

    /// Closes the gaps in a table. Nothing else moves; what is left over at its end becomes zeros.
    fn rewrite(&mut self, at: usize, end: usize, kept: &[Entry]) {
        let mut table = Vec::with_capacity(end - at);
        for entry in kept {
            table.extend_from_slice(&self.bytes[entry.at..entry.at + ENTRY_SIZE]);
        }
        // Also the offset of the next directory, which comes right behind the entries: there is none.
        table.resize(end - at - 2, 0);
        self.bytes[at + 2..end].copy_from_slice(&table);
        self.put_u16(at, u16::try_from(kept.len()).unwrap_or(u16::MAX));
    }

    /// The directories behind the first one: the thumbnail's.
    fn drop_chain(&mut self, mut at: usize) {
        while at != 0 {
            match self.drop_directory(at, false) {
                Some(next) => at = next,
                None => return,
            }
        }
    }

    /// Marks a directory, its values and what it points at as dead; returns the next one's offset.
    fn drop_directory(&mut self, at: usize, position: bool) -> Option<usize> {
        let Table { entries, end, next } = self.visit(at)?;
        self.drop_range(at, end - at, position);
        let mut thumbnail = (None, None);
        for entry in &entries {
            if let Some(value) = self.value(entry) {
                self.drop_range(value.start, value.len(), position);
            }
            match entry.tag {
                JPEG_OFFSET => thumbnail.0 = self.pointer(entry),
                JPEG_LENGTH => thumbnail.1 = self.pointer(entry),
                EXIF_IFD | GPS_IFD | INTEROP_IFD => {
                    if let Some(below) = self.pointer(entry) {
                        self.drop_directory(below, position || entry.tag == GPS_IFD);
                    }
                }
                _ => {}
            }
        }
        if let (Some(start), Some(length)) = thumbnail {
            self.drop_range(start, length, position);
        }
        Some(next)
    }

    fn drop_range(&mut self, start: usize, length: usize, position: bool) {
        let end = start.saturating_add(length).min(self.bytes.len());
        if start < end {
            self.dead.push(start..end);
            if position {
                self.position.push(start..end);
            }
        }
    }

    fn finish(mut self) -> Option<(Vec<u8>, Vec<String>)> {
        let overlaps = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
        if self.edit.strip_gps && self.position.iter().any(|gps| self.live.iter().any(|live| overlaps(gps, live))) {
            return None;
        }
        let live = merged(std::mem::take(&mut self.live));
        let dead = merged(std::mem::take(&mut self.dead));
        for range in &dead {
            let mut at = range.start;
            for live in live.iter().filter(|live| overlaps(live, range)) {
                self.bytes[at..live.start.max(at)].fill(0);
                at = live.end.max(at).min(range.end);
            }
            self.bytes[at..range.end].fill(0);
        }
        // A thumbnail usually lies at the end: what is dead there need not be carried along.
        if let Some(last) = dead.last().filter(|last| last.end == self.bytes.len()) {
            let live_end = live.last().map_or(0, |live| live.end);
            self.bytes.truncate(last.start.max(live_end.min(last.end)));
        }
        let mut notes = Vec::new();
        if self.unreadable > 0 {
            notes.push(format!("{} unreadable EXIF entries were left out.", self.unreadable));
        }
        Some((self.bytes, notes))
    }
}

/// The block with this as the user's comment, in the place of what was there. A block that cannot be added to is left
/// out; nothing in the others moves, so that a MakerNote stays readable: changed tables are written anew at the end.
pub(crate) fn with_user_comment(block: Option<&[u8]>, comment: &str) -> Vec<u8> {
    // Big-endian whatever the block's order is: that is what is written everywhere, and read.
    let comment: Vec<u8> =
        b"UNICODE\0".iter().copied().chain(comment.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let nothing_to_edit = Edit { width: 0, height: 0, strip_gps: false };
    block
        .and_then(|block| Editor::new(block, nothing_to_edit)?.comment(&comment))
        .filter(|block| parse(block).is_some())
        .unwrap_or_else(|| {
            let empty = b"MM\0\x2A\0\0\0\x08\0\0\0\0\0\0";
            Editor::new(empty, nothing_to_edit)
                .and_then(|editor| editor.comment(&comment))
                .expect("an empty block takes a comment")
        })
}

impl Editor {
    fn comment(mut self, comment: &[u8]) -> Option<Vec<u8>> {
        let first = usize::try_from(self.u32(4)?).ok()?;
        let Table { entries, next, .. } = self.table(first)?;
        let pointer = entries.iter().find(|entry| entry.tag == EXIF_IFD).copied();
        let below = match pointer {
            Some(entry) => self.table(self.pointer(&entry)?)?.entries,
            None => Vec::new(),
        };
        let value = self.append(comment);
        let mut rows = self.rows(below.iter().filter(|entry| entry.tag != USER_COMMENT));
        rows.push(self.row(USER_COMMENT, UNDEFINED, u32::try_from(comment.len()).ok()?, value));
        let below = self.append_table(rows, 0)?;
        if let Some(entry) = pointer {
            self.put_u32(entry.at + 8, below);
        } else {
            let mut rows = self.rows(entries.iter());
            rows.push(self.row(EXIF_IFD, LONG, 1, below));
            let first = self.append_table(rows, u32::try_from(next).ok()?)?;
            self.put_u32(4, first);
        }
        Some(self.bytes)
    }

    /// Puts bytes at the end, at an even offset, and returns it.
    fn append(&mut self, bytes: &[u8]) -> u32 {
        if self.bytes.len() % 2 == 1 {
            self.bytes.push(0);
        }
        let at = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(bytes);
        at
    }

    /// Entries as they stand, each with its tag.
    fn rows<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Vec<(u16, [u8; ENTRY_SIZE])> {
        entries
            .filter_map(|entry| Some((entry.tag, self.bytes.get(entry.at..entry.at + ENTRY_SIZE)?.try_into().ok()?)))
            .collect()
    }

    fn row(&self, tag: u16, kind: u16, count: u32, value: u32) -> (u16, [u8; ENTRY_SIZE]) {
        let mut row = Self { bytes: vec![0; ENTRY_SIZE], ..Self::like(self) };
        row.put_u16(0, tag);
        row.put_u16(2, kind);
        row.put_u32(4, count);
        row.put_u32(8, value);
        (tag, row.bytes.try_into().expect("an entry is as long as an entry"))
    }

    /// Another of the same byte order.
    fn like(other: &Self) -> Self {
        Self {
            bytes: Vec::new(),
            little_endian: other.little_endian,
            edit: other.edit,
            visited: BTreeSet::new(),
            live: Vec::new(),
            dead: Vec::new(),
            position: Vec::new(),
            unreadable: 0,
        }
    }

    /// Writes a table at the end, in the order of its tags, and returns its offset.
    fn append_table(&mut self, mut rows: Vec<(u16, [u8; ENTRY_SIZE])>, next: u32) -> Option<u32> {
        rows.sort_by_key(|(tag, _)| *tag);
        let count = u16::try_from(rows.len()).ok()?;
        let at = self.append(&[0; 2]);
        self.put_u16(usize::try_from(at).ok()?, count);
        for (_, row) in rows {
            self.bytes.extend_from_slice(&row);
        }
        let end = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.put_u32(end, next);
        Some(at)
    }
}

/// Sorted, with overlapping and touching ranges joined.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Bytes of one value; `None` for types that do not exist.
fn size_of_kind(kind: u16) -> Option<usize> {
    match kind {
        // 129 is UTF-8 text, since EXIF 3.0.
        1 | 2 | 6 | 7 | 129 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 => Some(8),
        _ => None,
    }
}
