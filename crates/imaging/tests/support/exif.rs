//! A writer of EXIF blocks as cameras make them, in both byte orders, with a MakerNote full of absolute offsets.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Little,
    Big,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Ascii(&'static str),
    Short(u16),
    Long(u32),
    Rationals(Vec<(u32, u32)>),
    Bytes(Vec<u8>),
    Undefined(Vec<u8>),
    /// A directory of its own, pointed at by its offset.
    Directory(Vec<(u16, Value)>),
    /// A MakerNote in Canon's way: a directory whose offsets count from the beginning of the block.
    MakerNote(Vec<(u16, Value)>),
}

pub(crate) struct Writer {
    order: Order,
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(order: Order) -> Self {
        let bytes = match order {
            Order::Little => b"II\x2A\0\x08\0\0\0".to_vec(),
            Order::Big => b"MM\0\x2A\0\0\0\x08".to_vec(),
        };
        Self { order, bytes }
    }

    pub(crate) fn u16(&self, value: u16) -> [u8; 2] {
        if self.order == Order::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }

    pub(crate) fn u32(&self, value: u32) -> [u8; 4] {
        if self.order == Order::Little { value.to_le_bytes() } else { value.to_be_bytes() }
    }

    fn end(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a small block")
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Appends a directory with its values behind it; returns where it begins and where the offset of the next one is.
    pub(crate) fn directory(&mut self, entries: &[(u16, Value)]) -> (u32, usize) {
        if self.bytes.len() % 2 == 1 {
            self.bytes.push(0);
        }
        let start = self.bytes.len();
        let next_at = start + 2 + 12 * entries.len();
        self.bytes.resize(next_at + 4, 0);
        self.put(start, &self.u16(u16::try_from(entries.len()).expect("few entries")));
        for (index, (tag, value)) in entries.iter().enumerate() {
            self.entry(start + 2 + 12 * index, *tag, value);
        }
        (u32::try_from(start).expect("a small block"), next_at)
    }

    fn entry(&mut self, at: usize, tag: u16, value: &Value) {
        let (kind, count, content) = match value {
            Value::Ascii(text) => (2, text.len() + 1, [text.as_bytes(), b"\0"].concat()),
            Value::Short(number) => (3, 1, self.u16(*number).to_vec()),
            Value::Long(number) => (4, 1, self.u32(*number).to_vec()),
            Value::Rationals(pairs) => {
                let numbers = pairs.iter().flat_map(|(a, b)| [self.u32(*a), self.u32(*b)]);
                (5, pairs.len(), numbers.flatten().collect())
            }
            Value::Bytes(bytes) => (1, bytes.len(), bytes.clone()),
            Value::Undefined(bytes) => (7, bytes.len(), bytes.clone()),
            Value::Directory(entries) => {
                let (start, _) = self.directory(entries);
                (4, 1, self.u32(start).to_vec())
            }
            Value::MakerNote(entries) => {
                let (start, _) = self.directory(entries);
                let length = self.bytes.len() - start as usize;
                self.put(at + 8, &self.u32(start));
                self.head(at, tag, 7, length);
                return;
            }
        };
        self.head(at, tag, kind, count);
        if content.len() <= 4 {
            self.put(at + 8, &content);
        } else {
            self.put(at + 8, &self.u32(self.end()));
            self.bytes.extend_from_slice(&content);
        }
    }

    fn head(&mut self, at: usize, tag: u16, kind: u16, count: usize) {
        self.put(at, &self.u16(tag));
        self.put(at + 2, &self.u16(kind));
        self.put(at + 4, &self.u32(u32::try_from(count).expect("a small value")));
    }
}

/// Where the camera was: 48° 8' 24.25" N, 11° 34' 12.5" E.
pub(crate) const LATITUDE: [(u32, u32); 3] = [(48, 1), (8, 1), (2425, 100)];
pub(crate) const LONGITUDE: [(u32, u32); 3] = [(11, 1), (34, 1), (1250, 100)];

/// What a camera writes: orientation, sizes, a MakerNote, a position, an interoperability directory and a thumbnail.
pub(crate) fn camera(order: Order, orientation: u16) -> Vec<u8> {
    let mut writer = Writer::new(order);
    let gps = vec![
        (0, Value::Bytes(vec![2, 3, 0, 0])),
        (1, Value::Ascii("N")),
        (2, Value::Rationals(LATITUDE.to_vec())),
        (3, Value::Ascii("E")),
        (4, Value::Rationals(LONGITUDE.to_vec())),
        (0x1D, Value::Ascii("2026:03:09")),
    ];
    let maker_note = vec![
        (6, Value::Ascii("Canon EOS Atelier with a long name")),
        (7, Value::Ascii("Firmware Version 1.2.3")),
        (9, Value::Ascii("An owner's name that lies far away")),
    ];
    let exif = vec![
        (0x829A, Value::Rationals(vec![(1, 250)])),
        (0x8827, Value::Short(400)),
        (0x9000, Value::Undefined(b"0232".to_vec())),
        (0x9003, Value::Ascii("2026:01:02 03:04:05")),
        (0x9101, Value::Undefined(vec![1, 2, 3, 0])),
        (0x927C, Value::MakerNote(maker_note)),
        (0xA000, Value::Undefined(b"0100".to_vec())),
        (0xA001, Value::Short(1)),
        (0xA002, Value::Short(24)),
        (0xA003, Value::Short(16)),
        (0xA005, Value::Directory(vec![(1, Value::Ascii("R98")), (2, Value::Undefined(b"0100".to_vec()))])),
        (0xA434, Value::Ascii("A lens of 50 mm")),
    ];
    let (_, next_at) = writer.directory(&[
        (0x0100, Value::Short(24)),
        (0x0101, Value::Short(16)),
        (0x010F, Value::Ascii("Canon")),
        (0x0110, Value::Ascii("Canon EOS Atelier")),
        (0x0112, Value::Short(orientation)),
        (0x011A, Value::Rationals(vec![(300, 1)])),
        (0x011B, Value::Rationals(vec![(300, 1)])),
        (0x0128, Value::Short(2)),
        (0x0132, Value::Ascii("2026:01:02 03:04:05")),
        (0x0213, Value::Short(1)),
        (0x8769, Value::Directory(exif)),
        (0x8825, Value::Directory(gps)),
    ]);
    let thumbnail = std::fs::read(super::fixture("rgb.jpg")).expect("the fixture is there");
    let length = u32::try_from(thumbnail.len()).expect("a small thumbnail");
    let (start, _) = writer.directory(&[
        (0x0103, Value::Short(6)),
        (0x011A, Value::Rationals(vec![(72, 1)])),
        (0x011B, Value::Rationals(vec![(72, 1)])),
        (0x0128, Value::Short(2)),
        (0x0201, Value::Long(0)),
        (0x0202, Value::Long(length)),
    ]);
    let offset_at = start as usize + 2 + 12 * 4 + 8;
    let end = u32::try_from(writer.bytes.len()).expect("a small block");
    let offset = writer.u32(end);
    writer.bytes[offset_at..offset_at + 4].copy_from_slice(&offset);
    writer.bytes.extend_from_slice(&thumbnail);
    let start = writer.u32(start);
    writer.bytes[next_at..next_at + 4].copy_from_slice(&start);
    writer.bytes
}
