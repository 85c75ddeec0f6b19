//! What travels with a picture, with `exiftool` as the judge.

use std::path::{Path, PathBuf};

use atelier_domain::{OutputFormat, protocol::GpsPolicy};
use atelier_imaging::{Color, EncodeSpec, Limits, Metadata, Picture, Pixels, Samples, decode, encode, probe};
use moxcms::ColorProfile;

mod support;
use support::{
    exif::{Order, camera},
    exiftool::{exiftool, problems, tag, tags},
    fixture,
};

const FORMATS: [OutputFormat; 3] = [OutputFormat::Png, OutputFormat::Jpeg, OutputFormat::Webp];

/// A JPEG with this block as its EXIF data, and otherwise the picture of a fixture.
fn jpeg_with_exif(path: &Path, block: &[u8]) {
    let picture = std::fs::read(fixture("rgb.jpg")).expect("can be read");
    let exif = [b"Exif\0\0", block].concat();
    let length = u16::try_from(exif.len() + 2).expect("fits into a segment").to_be_bytes();
    let bytes = [&picture[..2], b"\xFF\xE1", &length, &exif, &picture[2..]].concat();
    std::fs::write(path, bytes).expect("can be written");
}

fn write_profile(folder: &Path, profile: &ColorProfile) -> PathBuf {
    let path = folder.join("profile.icc");
    std::fs::write(&path, profile.encode().expect("encodes")).expect("can be written");
    path
}

/// What comes from a camera and has been through a photo manager: EXIF with everything, Display P3 and XMP.
fn camera_jpeg(folder: &Path, order: Order, orientation: u16) -> PathBuf {
    let path = folder.join("camera.jpg");
    jpeg_with_exif(&path, &camera(order, orientation));
    let profile = write_profile(folder, &ColorProfile::new_display_p3());
    exiftool([
        "-overwrite_original".to_owned(),
        format!("-icc_profile<={}", profile.display()),
        "-XMP-dc:Title=A house on a hill".into(),
        format!("-XMP-tiff:Orientation#={orientation}"),
        "-XMP-exif:ExifImageWidth=24".into(),
        "-XMP-exif:ExifImageHeight=16".into(),
        "-XMP-exif:GPSLatitude=48.140069".into(),
        "-XMP-exif:GPSLongitude=11.570139".into(),
        "-XMP-iptcExt:LocationShownGPSLatitude=48.140069".into(),
        path.display().to_string(),
    ]);
    path
}

/// Writes a picture as it is, only with other metadata.
fn write(picture: &Picture, metadata: &Metadata, format: OutputFormat, path: &Path) -> Vec<String> {
    let spec = EncodeSpec {
        format,
        quality: 90,
        width: picture.width,
        height: picture.height,
        color: picture.color,
        alpha: picture.alpha,
        metadata,
    };
    let samples = match &picture.pixels {
        Pixels::U8(samples) => Samples::U8(samples),
        Pixels::U16(samples) => Samples::U16(samples),
    };
    encode(samples, &spec, path).expect("encodes").notes
}

/// Decodes, prepares the metadata and writes; returns where, and all notes.
fn carry(source: &Path, format: OutputFormat, gps: GpsPolicy) -> (PathBuf, Vec<String>) {
    let picture = decode(source, &Limits::default()).expect("decodes");
    let (metadata, mut notes) = picture.metadata.for_output(picture.width, picture.height, gps, picture.color);
    let path = source.with_file_name(format!("output.{}", format.extension()));
    notes.extend(write(&picture, &metadata, format, &path));
    (path, [picture.notes, notes].concat())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Tags that an output must not repeat as they are.
fn without_changed(lines: Vec<String>) -> Vec<String> {
    let changed = [
        "Orientation",
        "ImageWidth",
        "ImageHeight",
        "ExifImageWidth",
        "ExifImageHeight",
        "InteropIndex",
        "Thumbnail",
        "ExifByteOrder",
        "Compression",
    ];
    lines.into_iter().filter(|line| !changed.iter().any(|name| line.contains(name))).collect()
}

#[test]
fn a_cameras_metadata_reaches_every_format() {
    for order in [Order::Little, Order::Big] {
        let folder = support::folder();
        let source = camera_jpeg(folder.path(), order, 6);
        assert_eq!(tag(&source, "Canon:CanonImageType"), "Canon EOS Atelier with a long name", "the fixture itself");
        assert!(!tag(&source, "IFD1:ThumbnailLength").is_empty(), "the fixture itself");
        let groups = ["IFD0", "ExifIFD", "Canon", "GPS", "XMP-dc", "XMP-exif"];
        let expected = without_changed(tags(&source, &groups));
        assert!(expected.len() > 25, "{expected:#?}");
        for format in FORMATS {
            let (output, notes) = carry(&source, format, GpsPolicy::Keep);
            assert_eq!(notes, Vec::<String>::new(), "{format:?}");
            assert_eq!(without_changed(tags(&output, &groups)), expected, "{format:?}");
            for (name, value) in [
                ("IFD0:Orientation", "1"),
                ("IFD0:ImageWidth", "16"),
                ("IFD0:ImageHeight", "24"),
                ("ExifIFD:ExifImageWidth", "16"),
                ("ExifIFD:ExifImageHeight", "24"),
                ("XMP-tiff:Orientation", "1"),
                ("XMP-exif:ExifImageWidth", "16"),
                ("XMP-exif:ExifImageHeight", "24"),
                ("InteropIFD:InteropIndex", "R98"),
                ("IFD1:all", ""),
                ("ThumbnailImage", ""),
                ("ICC_Profile:ProfileDescription", "Display P3"),
            ] {
                assert_eq!(tag(&output, name), value, "{name} in {format:?}");
            }
            assert_eq!(problems(&output), Vec::<String>::new(), "{format:?}");
        }
    }
}

#[test]
fn a_stripped_position_leaves_no_byte_behind() {
    for order in [Order::Little, Order::Big] {
        let folder = support::folder();
        let source = camera_jpeg(folder.path(), order, 1);
        let arcseconds = if order == Order::Big { 2425_u32.to_be_bytes() } else { 2425_u32.to_le_bytes() };
        let traces: [&[u8]; 5] = [&arcseconds, b"2026:03:09", b"48,8.4", b"GPS", b"11,34"];
        let bytes = std::fs::read(&source).expect("can be read");
        assert!(traces.iter().all(|trace| contains(&bytes, trace)), "the fixture itself");
        for format in FORMATS {
            let (output, _) = carry(&source, format, GpsPolicy::Strip);
            // Decoded again, because PNG may compress what it holds.
            let metadata = decode(&output, &Limits::default()).expect("decodes").metadata;
            let (exif, xmp) = (metadata.exif.expect("is kept"), metadata.xmp.expect("is kept"));
            let bytes = [std::fs::read(&output).expect("can be read"), exif, xmp].concat();
            for trace in traces {
                assert!(!contains(&bytes, trace), "{} in {format:?}", trace.escape_ascii());
            }
            assert_eq!(tags(&output, &["GPS"]), Vec::<String>::new());
            assert_eq!(exiftool(["-s3", "-n", "-a", "-*GPS*", &output.to_string_lossy()]), "");
            assert_eq!(tag(&output, "Canon:CanonFirmwareVersion"), "Firmware Version 1.2.3");
            assert_eq!(tag(&output, "ExifIFD:LensModel"), "A lens of 50 mm");
            assert_eq!(tag(&output, "XMP-dc:Title"), "A house on a hill");
            assert_eq!(problems(&output), Vec::<String>::new(), "{format:?}");
        }
    }
}

#[test]
fn the_maker_note_stays_where_it_was_byte_for_byte() {
    for order in [Order::Little, Order::Big] {
        let block = camera(order, 8);
        let source = Metadata { exif: Some(block.clone()), ..Metadata::default() };
        let (output, _) = source.for_output(80_000, 3, GpsPolicy::Strip, Color::Rgb);
        let edited = output.exif.expect("is kept");
        let name = b"An owner's name that lies far away";
        let at = block.windows(name.len()).position(|window| window == name).expect("is there");
        assert_eq!(&edited[at..at + name.len()], name);
        assert!(edited.len() < block.len(), "the thumbnail at the end goes");
    }
}

#[test]
fn sizes_beyond_16_bits_are_written_as_long_numbers() {
    let folder = support::folder();
    let source = camera_jpeg(folder.path(), Order::Big, 1);
    let picture = decode(&source, &Limits::default()).expect("decodes");
    let (metadata, _) = picture.metadata.for_output(70_000, 65_535, GpsPolicy::Keep, Color::Rgb);
    let output = folder.path().join("output.png");
    write(&picture, &metadata, OutputFormat::Png, &output);
    assert_eq!(tag(&output, "ExifIFD:ExifImageWidth"), "70000");
    assert_eq!(tag(&output, "ExifIFD:ExifImageHeight"), "65535");
    assert_eq!(problems(&output), Vec::<String>::new());
}

/// The pixel of the upright picture that is stored at (x, y), for each orientation.
fn upright(orientation: u16, x: u32, y: u32, width: u32, height: u32) -> (u32, u32) {
    match orientation {
        1 => (x, y),
        2 => (width - 1 - x, y),
        3 => (width - 1 - x, height - 1 - y),
        4 => (x, height - 1 - y),
        5 => (y, x),
        6 => (height - 1 - y, x),
        7 => (height - 1 - y, width - 1 - x),
        8 => (y, width - 1 - x),
        other => panic!("no such orientation: {other}"),
    }
}

#[test]
fn all_eight_orientations_are_applied_and_reset() {
    let folder = support::folder();
    for source in ["rgb.jpg", "rgb.png", "rgb16.png", "gray-alpha.png", "lossless-alpha.webp", "lzw.tif"] {
        let plain = decode(&fixture(source), &Limits::default()).expect("decodes");
        let stored = support::samples(&plain.pixels);
        let (width, height, channels) = (plain.width, plain.height, plain.channels());
        for orientation in 1..=8 {
            let path = folder.path().join(format!("{orientation}-{source}"));
            std::fs::copy(fixture(source), &path).expect("can be copied");
            exiftool(["-overwrite_original", &format!("-IFD0:Orientation#={orientation}"), &path.to_string_lossy()]);
            let picture = decode(&path, &Limits::default()).expect("decodes");
            let probed = probe(&path, &Limits::default()).expect("probes");
            let turned = if orientation > 4 { (height, width) } else { (width, height) };
            assert_eq!((picture.width, picture.height), turned, "{source} {orientation}");
            assert_eq!((probed.width, probed.height), turned, "{source} {orientation}");
            let samples = support::samples(&picture.pixels);
            for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
                let (to_x, to_y) = upright(orientation, x, y, width, height);
                let from = (y * width + x) as usize * channels;
                let to = (to_y * picture.width + to_x) as usize * channels;
                assert_eq!(
                    samples[to..to + channels],
                    stored[from..from + channels],
                    "{source} {orientation}: ({x}, {y}) belongs to ({to_x}, {to_y})"
                );
            }
            let output = folder.path().join(format!("output-{orientation}-{source}.png"));
            let (metadata, _) = picture.metadata.for_output(turned.0, turned.1, GpsPolicy::Keep, picture.color);
            write(&picture, &metadata, OutputFormat::Png, &output);
            let again = decode(&output, &Limits::default()).expect("decodes");
            assert_eq!((again.width, again.height), turned, "turned twice");
            assert!(["", "1"].contains(&tag(&output, "Orientation").as_str()), "{source} {orientation}");
        }
    }
}

#[test]
fn every_type_gives_what_it_carries() {
    let folder = support::folder();
    let profile = write_profile(folder.path(), &ColorProfile::new_adobe_rgb());
    let profile_bytes = std::fs::read(&profile).expect("can be read");
    for (source, has_exif) in [
        ("rgb.jpg", true),
        ("rgb.png", true),
        ("lossy.webp", true),
        ("lossless-alpha.webp", true),
        ("lzw.tif", true),
        ("palette.gif", false),
    ] {
        let path = folder.path().join(source);
        std::fs::copy(fixture(source), &path).expect("can be copied");
        let mut arguments = vec!["-overwrite_original".to_owned(), "-XMP-dc:Title=A house on a hill".into()];
        arguments.push(format!("-icc_profile<={}", profile.display()));
        if has_exif {
            arguments.extend([
                "-IFD0:Make=Atelier".into(),
                "-ExifIFD:ISO=400".into(),
                "-GPS:GPSLatitudeRef=N".into(),
                "-GPS:GPSLatitude=48.14".into(),
            ]);
        }
        arguments.push(path.display().to_string());
        exiftool(arguments);
        assert_eq!(tag(&path, "XMP-dc:Title"), "A house on a hill", "{source}: the fixture itself");
        let metadata = decode(&path, &Limits::default()).unwrap_or_else(|error| panic!("{source}: {error}")).metadata;
        assert_eq!(metadata.icc.as_deref(), Some(profile_bytes.as_slice()), "{source}");
        assert!(contains(&metadata.xmp.expect("is there"), b"A house on a hill"), "{source}");
        assert_eq!(metadata.exif.is_some(), has_exif, "{source}");
        for format in FORMATS {
            let (output, notes) = carry(&path, format, GpsPolicy::Keep);
            assert!(notes.iter().all(|note| note.contains("transparency")), "{source}: {notes:?}");
            assert_eq!(tag(&output, "XMP-dc:Title"), "A house on a hill", "{source} as {format:?}");
            assert_eq!(tag(&output, "ICC_Profile:ProfileDescription"), tag(&path, "ICC_Profile:ProfileDescription"));
            if has_exif {
                assert_eq!(tag(&output, "IFD0:Make"), "Atelier", "{source} as {format:?}");
                assert_eq!(tag(&output, "ExifIFD:ISO"), "400", "{source} as {format:?}");
                assert_eq!(tag(&output, "GPS:GPSLatitude"), "48.14", "{source} as {format:?}");
            }
            let real = problems(&output).into_iter().filter(|problem| !problem.starts_with("Missing required"));
            assert!(
                real.clone().all(|problem| problem.ends_with("Warnings")),
                "{source}: {:?}",
                real.collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn a_bmp_of_version_5_gives_its_profile() {
    let profile = ColorProfile::new_adobe_rgb().encode().expect("encodes");
    let old = std::fs::read(fixture("rgb.bmp")).expect("can be read");
    let rows = &old[54..];
    let mut header = old[14..54].to_vec();
    header[0] = 124;
    header.resize(124, 0);
    header[56..60].copy_from_slice(b"DEBM");
    header[112..116].copy_from_slice(&u32::try_from(124 + rows.len()).expect("small").to_le_bytes());
    header[116..120].copy_from_slice(&u32::try_from(profile.len()).expect("small").to_le_bytes());
    let mut file = b"BM\0\0\0\0\0\0\0\0\x8A\0\0\0".to_vec();
    for part in [&header, rows, &profile] {
        file.extend_from_slice(part);
    }
    let picture = support::decode_bytes(&file).expect("decodes");
    assert_eq!(support::samples(&picture.pixels), support::pattern(support::rgb));
    assert_eq!(picture.metadata.icc, Some(profile));
}

#[test]
fn exif_in_the_old_way_of_imagemagick_is_read() {
    use std::fmt::Write;
    let block = [b"Exif\0\0", camera(Order::Big, 6).as_slice()].concat();
    let mut text = format!("Raw profile type exif\0\nexif\n{:8}\n", block.len());
    for (index, byte) in block.iter().enumerate() {
        let _ = write!(text, "{byte:02x}{}", if index % 36 == 35 { "\n" } else { "" });
    }
    let mut crc = flate2::Crc::new();
    crc.update(b"tEXt");
    crc.update(text.as_bytes());
    let length = u32::try_from(text.len()).expect("small").to_be_bytes();
    let png = std::fs::read(fixture("rgb.png")).expect("can be read");
    let file = [&png[..33], &length, b"tEXt", text.as_bytes(), &crc.sum().to_be_bytes(), &png[33..]].concat();
    let picture = support::decode_bytes(&file).expect("decodes");
    assert_eq!((picture.width, picture.height), (support::HEIGHT, support::WIDTH), "the orientation counts too");
    assert_eq!(picture.metadata.exif.as_deref(), Some(&block[6..]));
}

#[test]
fn a_profile_in_many_segments_is_carried_whole() {
    let folder = support::folder();
    let mut profile = ColorProfile::new_display_p3().encode().expect("encodes");
    profile.extend((0..200_000_u32).map(|index| u8::try_from(index * 7 % 251).expect("a byte")));
    let metadata = Metadata { icc: Some(profile.clone()), ..Metadata::default() };
    let picture = decode(&fixture("rgb.png"), &Limits::default()).expect("decodes");
    for format in FORMATS {
        let path = folder.path().join(format.extension());
        assert_eq!(write(&picture, &metadata, format, &path), Vec::<String>::new());
        let read = decode(&path, &Limits::default()).expect("decodes").metadata;
        assert!(read.icc.as_deref() == Some(&profile), "{format:?}");
    }
}

#[test]
fn metadata_too_large_for_a_jpeg_is_left_out_and_noted() {
    let folder = support::folder();
    let picture = decode(&fixture("rgb.png"), &Limits::default()).expect("decodes");
    let metadata =
        Metadata { exif: Some(vec![b'I'; 66_000]), icc: None, xmp: Some(vec![b' '; 66_000]), parameters: None };
    let path = folder.path().join("output.jpg");
    let notes = write(&picture, &metadata, OutputFormat::Jpeg, &path);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert_eq!(decode(&path, &Limits::default()).expect("decodes").metadata, Metadata::default());
}

#[test]
fn a_profile_is_never_attached_to_pixels_it_does_not_describe() {
    let folder = support::folder();
    let rgb = ColorProfile::new_display_p3().encode().expect("encodes");
    let gray = ColorProfile::new_gray_with_gamma(2.2).encode().expect("encodes");
    let ink = {
        let mut profile = rgb.clone();
        profile[16..20].copy_from_slice(b"CMYK");
        profile
    };
    let cases = [
        ("gray.png", &gray, Color::Gray, true),
        ("gray.png", &rgb, Color::Gray, false),
        ("gray.png", &ink, Color::Gray, false),
        ("rgb.png", &rgb, Color::Rgb, true),
        ("rgb.png", &gray, Color::Rgb, false),
        ("rgb.png", &ink, Color::Rgb, false),
    ];
    for (source, profile, color, fits) in cases {
        let metadata = Metadata { icc: Some(profile.clone()), ..Metadata::default() };
        let (output, notes) = metadata.for_output(24, 16, GpsPolicy::Keep, color);
        assert_eq!((output.icc.is_some(), notes.is_empty()), (fits, fits), "{source} {notes:?}");
        // Also without `for_output`, and in a source that somebody else has made.
        let picture = decode(&fixture(source), &Limits::default()).expect("decodes");
        let path = folder.path().join("output.png");
        assert_eq!(write(&picture, &metadata, OutputFormat::Png, &path).is_empty(), fits, "{source}");
        let old = std::fs::read(fixture("gray.jpg")).expect("can be read");
        let parts = [b"ICC_PROFILE\0\x01\x01", profile.as_slice()].concat();
        let length = u16::try_from(parts.len() + 2).expect("fits").to_be_bytes();
        let file = [&old[..2], b"\xFF\xE2", &length, &parts, &old[2..]].concat();
        let decoded = support::decode_bytes(&file).expect("decodes");
        assert_eq!(decoded.metadata.icc.is_some(), profile == &gray);
        assert_eq!(decoded.notes.is_empty(), profile == &gray, "{:?}", decoded.notes);
    }
}

#[test]
fn tiff_metadata_becomes_an_exif_block_of_its_own() {
    let folder = support::folder();
    let path = folder.path().join("source.tif");
    std::fs::copy(fixture("lzw.tif"), &path).expect("can be copied");
    let tags = ["-IFD0:Make=Atelier", "-ExifIFD:ISO=400", "-GPS:GPSLatitude=48.14", "-GPS:GPSLatitudeRef=N"];
    exiftool(["-overwrite_original"].into_iter().chain(tags).chain([path.to_str().expect("is text")]));
    for (gps, latitude) in [(GpsPolicy::Keep, "48.14"), (GpsPolicy::Strip, "")] {
        let (output, notes) = carry(&path, OutputFormat::Jpeg, gps);
        assert_eq!(notes, Vec::<String>::new());
        assert_eq!(tag(&output, "IFD0:Make"), "Atelier");
        assert_eq!(tag(&output, "ExifIFD:ISO"), "400");
        assert_eq!(tag(&output, "GPS:GPSLatitude"), latitude);
        assert_eq!(tag(&output, "IFD0:StripOffsets"), "");
        assert_eq!(tag(&output, "IFD0:BitsPerSample"), "");
    }
}

fn edited_xmp(text: &str, gps: GpsPolicy) -> Option<String> {
    let source = Metadata { xmp: Some(text.as_bytes().to_vec()), ..Metadata::default() };
    let (output, notes) = source.for_output(800, 600, gps, Color::Rgb);
    assert_eq!(output.xmp.is_none(), !notes.is_empty(), "what is left out is noted");
    output.xmp.map(|xmp| String::from_utf8(xmp).expect("is text"))
}

#[test]
fn xmp_is_corrected_as_attribute_and_as_element_and_otherwise_untouched() {
    let packet = |orientation: &str, width: &str, rest: &str| {
        format!(
            r#"<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <rdf:Description rdf:about='' xmlns:tiff='http://ns.adobe.com/tiff/1.0/' xmlns:e="http://ns.adobe.com/exif/1.0/"
   tiff:Orientation = '{orientation}' my:Orientation="6" xmlns:my="urn:x">
  <e:PixelXDimension>{width}</e:PixelXDimension>{rest}
  <!-- a <comment> that is left alone -->
 </rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end='w'?>"#
        )
    };
    let thumbnail = "<xmp:Thumbnails xmlns:xmp='http://ns.adobe.com/xap/1.0/'><rdf:Alt><rdf:li>AAAA</rdf:li></rdf:Alt></xmp:Thumbnails>";
    let position = "<e:GPSLatitude>48,8.4N</e:GPSLatitude><d:GpsLongitude xmlns:d='urn:drone'/>";
    let source = packet("6", "24", &format!("{thumbnail}{position}"));
    assert_eq!(edited_xmp(&source, GpsPolicy::Keep), Some(packet("1", "800", position)));
    assert_eq!(edited_xmp(&source, GpsPolicy::Strip), Some(packet("1", "800", "")));
}

#[test]
fn xmp_that_hides_a_position_or_is_no_xml_is_left_out() {
    let hidden = "<a><!-- GPSLatitude 48,8.4N --></a>";
    assert_eq!(edited_xmp(hidden, GpsPolicy::Keep).as_deref(), Some(hidden));
    assert_eq!(edited_xmp(hidden, GpsPolicy::Strip), None);
    for broken in ["<a><b></a>", "<a", "<a b=c/>", "<!DOCTYPE a [<!ENTITY e 'x'>]><a/>", "<a></a></a>"] {
        assert_eq!(edited_xmp(broken, GpsPolicy::Keep), None, "{broken}");
    }
    let source = Metadata { xmp: Some(vec![0xFE, 0xFF, 0, b'<']), ..Metadata::default() };
    assert_eq!(source.for_output(1, 1, GpsPolicy::Keep, Color::Rgb).0.xmp, None);
}
