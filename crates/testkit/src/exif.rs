//! The smallest EXIF writer that tests need: a TIFF block of three directories, big-endian.
//!
//! Knows nothing of the picture file that the block goes into.

/// What the block says. Empty fields leave their tag out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exif {
    /// 1 to 8.
    pub orientation: Option<u16>,
    pub description: Option<String>,
    pub make: Option<String>,
    pub model: Option<String>,
    /// `2024:05:17 18:22:03`.
    pub date_time_original: Option<String>,
    /// Degrees of latitude and longitude; south and west are negative.
    pub gps: Option<(f64, f64)>,
    /// PixelXDimension and PixelYDimension.
    pub dimensions: Option<(u32, u32)>,
}

enum Value {
    Short(u16),
    Long(u32),
    Ascii(String),
    Rationals(Vec<(u32, u32)>),
    Bytes(Vec<u8>),
}

impl Value {
    fn type_code(&self) -> u16 {
        match self {
            Self::Bytes(_) => 1,
            Self::Ascii(_) => 2,
            Self::Short(_) => 3,
            Self::Long(_) => 4,
            Self::Rationals(_) => 5,
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Short(_) | Self::Long(_) => 1,
            Self::Ascii(text) => text.len() + 1,
            Self::Rationals(list) => list.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Short(value) => value.to_be_bytes().to_vec(),
            Self::Long(value) => value.to_be_bytes().to_vec(),
            Self::Ascii(text) => [text.as_bytes(), &[0]].concat(),
            Self::Rationals(list) => {
                list.iter().flat_map(|(above, below)| [above.to_be_bytes(), below.to_be_bytes()].concat()).collect()
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

impl Exif {
    /// The TIFF block, without the `Exif\0\0` that JPEG puts before it.
    pub fn to_tiff(&self) -> Vec<u8> {
        let mut exif = Vec::new();
        if let Some(date) = &self.date_time_original {
            exif.push((0x9003, Value::Ascii(date.clone())));
        }
        if let Some((width, height)) = self.dimensions {
            exif.extend([(0xA002, Value::Long(width)), (0xA003, Value::Long(height))]);
        }
        let gps = self.gps.map_or_else(Vec::new, gps_entries);

        // The pointers are as long as the real ones, so the first pass gives the length.
        let main_end = 8 + length(&directory(&self.main_entries(&exif, 0, &gps, 0), 8));
        let exif_block = directory(&exif, main_end);
        let gps_start = main_end + length(&exif_block);
        let mut block = b"MM\0\x2A\0\0\0\x08".to_vec();
        block.extend(directory(&self.main_entries(&exif, main_end, &gps, gps_start), 8));
        block.extend(exif_block);
        block.extend(directory(&gps, gps_start));
        block
    }

    fn main_entries(
        &self,
        exif: &[(u16, Value)],
        exif_start: u32,
        gps: &[(u16, Value)],
        gps_start: u32,
    ) -> Vec<(u16, Value)> {
        let text = |tag, value: &Option<String>| value.clone().map(|text| (tag, Value::Ascii(text)));
        [
            text(0x010E, &self.description),
            text(0x010F, &self.make),
            text(0x0110, &self.model),
            self.orientation.map(|value| (0x0112, Value::Short(value))),
            (!exif.is_empty()).then_some((0x8769, Value::Long(exif_start))),
            (!gps.is_empty()).then_some((0x8825, Value::Long(gps_start))),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn gps_entries((latitude, longitude): (f64, f64)) -> Vec<(u16, Value)> {
    let reference = |negative, [plus, minus]: [&str; 2]| Value::Ascii(if negative { minus } else { plus }.into());
    vec![
        (0, Value::Bytes(vec![2, 3, 0, 0])),
        (1, reference(latitude < 0.0, ["N", "S"])),
        (2, degrees(latitude)),
        (3, reference(longitude < 0.0, ["E", "W"])),
        (4, degrees(longitude)),
    ]
}

/// Whole degrees, whole minutes, and seconds in hundredths.
fn degrees(angle: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 180 degrees, made positive")]
    let hundredths = (angle.abs() * 360_000.0).round() as u32;
    let (degrees, rest) = (hundredths / 360_000, hundredths % 360_000);
    Value::Rationals(vec![(degrees, 1), (rest / 6_000, 1), (rest % 6_000, 100)])
}

fn length(block: &[u8]) -> u32 {
    u32::try_from(block.len()).expect("an EXIF block is far below 4 GiB")
}

/// One directory that begins at `start`, followed by the values that do not fit into their entries.
fn directory(entries: &[(u16, Value)], start: u32) -> Vec<u8> {
    if entries.is_empty() {
        return Vec::new();
    }
    let count = u16::try_from(entries.len()).expect("a handful of tags");
    let data_start = start + 2 + 12 * u32::from(count) + 4;
    let (mut block, mut data) = (count.to_be_bytes().to_vec(), Vec::new());
    for (tag, value) in entries {
        block.extend(tag.to_be_bytes());
        block.extend(value.type_code().to_be_bytes());
        block.extend(u32::try_from(value.count()).expect("short values").to_be_bytes());
        let mut bytes = value.bytes();
        if bytes.len() <= 4 {
            bytes.resize(4, 0);
            block.extend(bytes);
        } else {
            block.extend((data_start + length(&data)).to_be_bytes());
            bytes.resize(bytes.len().next_multiple_of(2), 0);
            data.extend(bytes);
        }
    }
    block.extend([0; 4]);
    block.extend(data);
    block
}

#[cfg(test)]
mod tests {
    use exif::{In, Tag};

    use super::*;

    #[test]
    fn another_reader_finds_every_tag() {
        let block = Exif {
            orientation: Some(6),
            description: Some("a lake".into()),
            make: Some("Acme".into()),
            model: Some("One".into()),
            date_time_original: Some("2024:05:17 18:22:03".into()),
            gps: Some((-33.8568, 151.2153)),
            dimensions: Some((640, 480)),
        }
        .to_tiff();
        let read = exif::Reader::new().read_raw(block).expect("a valid block");
        let text = |tag| read.get_field(tag, In::PRIMARY).expect("there").display_value().to_string();
        assert_eq!(text(Tag::ImageDescription), "\"a lake\"");
        assert_eq!(text(Tag::Make), "\"Acme\"");
        assert_eq!(text(Tag::Model), "\"One\"");
        assert_eq!(read.get_field(Tag::Orientation, In::PRIMARY).and_then(|f| f.value.get_uint(0)), Some(6));
        assert_eq!(text(Tag::DateTimeOriginal), "2024-05-17 18:22:03");
        assert_eq!(text(Tag::PixelXDimension), "640");
        assert_eq!(text(Tag::PixelYDimension), "480");
        assert_eq!(text(Tag::GPSLatitudeRef), "S");
        assert_eq!(text(Tag::GPSLatitude), "33 deg 51 min 24.48 sec");
        assert_eq!(text(Tag::GPSLongitude), "151 deg 12 min 55.08 sec");
    }

    #[test]
    fn values_begin_at_even_offsets_as_tiff_asks() {
        let block = Exif { description: Some("a lake".into()), ..Exif::default() }.to_tiff();
        assert_eq!(block.len(), 8 + 2 + 12 + 4 + 8, "seven bytes of text and one to fill up");
    }
}
