//! Files that are cut, damaged or made to break a reader: an error each time, never a panic, never half a picture.

use std::io::Write;

use atelier_domain::protocol::GpsPolicy;
use atelier_imaging::{Color, ImageError, Metadata, decode, probe};
use proptest::prelude::*;

mod support;
use support::{
    SMALL,
    exif::{Order, Value, Writer, camera},
    fixture, fixtures, folder,
};

/// Probes and decodes, and says what each made of it.
fn both(bytes: &[u8]) -> (Result<(), ImageError>, Result<(), ImageError>) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("can be written");
    (probe(file.path(), &SMALL).map(drop), decode(file.path(), &SMALL).map(drop))
}

#[test]
fn a_file_cut_anywhere_is_never_a_whole_picture() {
    for (name, bytes) in fixtures() {
        assert!(both(&bytes).0.is_ok(), "{name} itself is whole");
        // Every length of a small file; of a large one every length near its ends and a spread between.
        let step = bytes.len() / 400 + 1;
        for length in (0..bytes.len()).filter(|length| length % step == 0 || length + 70 > bytes.len() || *length < 70)
        {
            let (probed, decoded) = both(&bytes[..length]);
            for (what, result) in [("probe", probed), ("decode", decoded)] {
                let error = result.expect_err(&format!("{what}: {name} cut to {length} of {} bytes", bytes.len()));
                assert!(error.is_truncated(), "{what}: {name} cut to {length} of {} bytes: {error:?}", bytes.len());
            }
        }
    }
}

#[test]
fn what_follows_the_end_of_a_picture_does_no_harm() {
    for name in ["rgb.jpg", "progressive.jpg", "rgb.png", "lossy.webp", "palette.gif", "rgb.bmp", "lzw.tif"] {
        let mut bytes = std::fs::read(fixture(name)).expect("can be read");
        bytes.extend_from_slice(b"\xFF\xD8\xFF\xE1 a second picture, or a video \0\0\0");
        let (probed, decoded) = both(&bytes);
        assert!(probed.is_ok() && decoded.is_ok(), "{name}: {probed:?} {decoded:?}");
    }
}

#[test]
fn a_jpeg_whose_thumbnail_is_whole_is_still_cut() {
    // The end marker of the thumbnail inside EXIF must not pass for the picture's.
    let picture = std::fs::read(fixture("rgb.jpg")).expect("can be read");
    let exif = [b"Exif\0\0", camera(Order::Big, 1).as_slice()].concat();
    let length = u16::try_from(exif.len() + 2).expect("fits").to_be_bytes();
    let bytes = [&picture[..2], b"\xFF\xE1", &length, &exif, &picture[2..picture.len() - 2]].concat();
    let (probed, decoded) = both(&bytes);
    assert!(probed.expect_err("is cut").is_truncated());
    assert!(decoded.expect_err("is cut").is_truncated());
}

#[test]
fn a_wrong_checksum_in_the_header_of_a_png_is_damage() {
    let mut bytes = std::fs::read(fixture("rgb.png")).expect("can be read");
    bytes[29] ^= 1;
    let (probed, decoded) = both(&bytes);
    assert!(matches!(probed, Err(ImageError::Corrupt { .. })), "{probed:?}");
    assert!(matches!(decoded, Err(ImageError::Corrupt { .. })), "{decoded:?}");
}

#[test]
fn damaged_pixels_are_damage_and_not_a_cut() {
    let mut bytes = std::fs::read(fixture("rgb.png")).expect("can be read");
    let middle = bytes.len() - 25;
    bytes[middle] ^= 0x55;
    let (probed, decoded) = both(&bytes);
    assert!(probed.is_ok(), "{probed:?}");
    assert!(matches!(decoded, Err(ImageError::Corrupt { .. })), "{decoded:?}");
}

#[test]
fn camera_raw_files_are_not_taken_for_their_thumbnails() {
    for (tags, what) in [
        (vec![(0xC612, Value::Bytes(vec![1, 4, 0, 0]))], "a camera raw file (DNG)"),
        (vec![(0x00FE, Value::Long(1)), (0x014A, Value::Long(8))], "a camera raw file"),
    ] {
        let mut writer = Writer::new(Order::Little);
        let mut entries = vec![(0x0100, Value::Short(16)), (0x0101, Value::Short(16)), (0x0111, Value::Long(8))];
        entries.extend(tags);
        writer.directory(&entries);
        let error = both(&writer.bytes).0.expect_err("is refused");
        assert!(matches!(&error, ImageError::Unsupported { found } if found == what), "{error:?}");
    }
}

#[test]
fn a_tiff_whose_directories_form_a_loop_is_damaged() {
    let mut bytes = std::fs::read(fixture("pages.tif")).expect("can be read");
    // Little-endian: the first directory's offset is at 4; the next one's is behind its entries.
    let at = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes")) as usize;
    let count = usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let next = at + 2 + 12 * count;
    bytes[next..next + 4].copy_from_slice(&u32::try_from(at).expect("small").to_le_bytes());
    let (probed, decoded) = both(&bytes);
    assert!(matches!(probed, Err(ImageError::Corrupt { .. })), "{probed:?}");
    assert!(matches!(decoded, Err(ImageError::Corrupt { .. })), "{decoded:?}");
}

/// Blocks that no camera writes.
fn hostile_blocks() -> Vec<(&'static str, Vec<u8>)> {
    let mut blocks = Vec::new();
    let mut empty = |name, bytes: &[u8]| blocks.push((name, bytes.to_vec()));
    empty("nothing", b"");
    empty("half a header", b"II\x2A\0");
    empty("no directory", b"MM\0\x2A\0\0\0\x08");
    empty("a directory far away", b"II\x2A\0\xFF\xFF\xFF\xFF");
    empty("a directory in the header", b"II\x2A\0\0\0\0\0");
    empty("more entries than bytes", b"II\x2A\0\x08\0\0\0\xFF\xFF");
    for order in [Order::Little, Order::Big] {
        let mut writer = Writer::new(order);
        let (start, next) =
            writer.directory(&[(0x0112, Value::Short(6)), (0x8769, Value::Long(8)), (0x8825, Value::Long(8))]);
        let start = writer.u32(start);
        writer.bytes[next..next + 4].copy_from_slice(&start);
        blocks.push(("directories that point at themselves", writer.bytes.clone()));

        let mut writer = Writer::new(order);
        writer.directory(&[(0x010F, Value::Bytes(vec![7; 40])), (0x0112, Value::Short(6))]);
        let huge = writer.u32(u32::MAX);
        writer.bytes[14..18].copy_from_slice(&huge);
        blocks.push(("a huge count", writer.bytes.clone()));

        let mut writer = Writer::new(order);
        writer.directory(&[(0x010F, Value::Bytes(vec![7; 40])), (0x0112, Value::Short(6))]);
        writer.bytes[18..22].copy_from_slice(&huge);
        blocks.push(("an offset out of range", writer.bytes.clone()));
    }
    blocks
}

#[test]
fn hostile_exif_is_left_out_or_made_harmless() {
    for (name, block) in hostile_blocks() {
        for gps in [GpsPolicy::Keep, GpsPolicy::Strip] {
            let source = Metadata { exif: Some(block.clone()), ..Metadata::default() };
            let (output, notes) = source.for_output(100, 100, gps, Color::Rgb);
            assert!(!notes.is_empty(), "{name}: something was left out, and nobody is told");
            if let Some(block) = output.exif {
                assert!(block.len() > 8, "{name}");
                assert_eq!(
                    image::metadata::Orientation::from_exif_chunk(&block).map(image::metadata::Orientation::to_exif),
                    Some(1),
                    "{name}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_panic(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let all = fixtures();
        let (_, bytes) = pick.get(&all);
        let mut bytes = bytes.clone();
        for (at, value) in changes {
            // Most structure is near the beginning.
            let reach = if value % 2 == 0 { bytes.len().min(200) } else { bytes.len() };
            let at = at.index(reach);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = both(&bytes);
    }

    #[test]
    fn damaged_exif_never_panics_and_never_asks_for_another_turn(
        big in any::<bool>(),
        orientation in 1_u16..9,
        strip in any::<bool>(),
        changes in prop::collection::vec((0_usize..700, any::<u8>()), 0..16),
        length in 0_usize..3000,
    ) {
        let mut block = camera(if big { Order::Big } else { Order::Little }, orientation);
        for (at, value) in changes {
            block[at] = value;
        }
        block.truncate(length);
        let gps = if strip { GpsPolicy::Strip } else { GpsPolicy::Keep };
        let source = Metadata { exif: Some(block), ..Metadata::default() };
        let (output, _) = source.for_output(4000, 70_000, gps, Color::Rgb);
        if let Some(block) = output.exif {
            let orientation = image::metadata::Orientation::from_exif_chunk(&block);
            prop_assert!(orientation.is_none_or(|turn| turn.to_exif() == 1));
        }
    }

    #[test]
    fn damaged_xmp_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::char::range('\t', '\u{7F}')), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut text: Vec<char> = r#"<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="r">
            <rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="48,8.4N" exif:PixelXDimension="24">
            <exif:GPSLongitude>11,34E</exif:GPSLongitude></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"#
            .chars()
            .collect();
        for (at, value) in changes {
            let at = at.index(text.len());
            text[at] = value;
        }
        text.truncate(cut.index(text.len() + 1));
        let xmp = text.into_iter().collect::<String>().into_bytes();
        let source = Metadata { xmp: Some(xmp), ..Metadata::default() };
        let (output, _) = source.for_output(100, 100, GpsPolicy::Strip, Color::Rgb);
        if let Some(xmp) = output.xmp {
            let text = String::from_utf8(xmp).expect("XMP is text");
            prop_assert!(!text.contains("GPSLatitude") && !text.contains("GPSLongitude"));
        }
    }
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_writer() {
    let folder = folder();
    let path = folder.path().join("pipe.png");
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
    assert!(made.success());
    assert_eq!(probe(&path, &SMALL).expect_err("is refused").code().as_str(), "io_error");
}
