//! Files that we write, read back by us and, where it matters, by others.

use std::path::Path;

use atelier_domain::OutputFormat;
use atelier_imaging::{
    Color, EncodeSpec, Encoded, ImageError, Limits, Metadata, Picture, Pixels, Samples, decode, encode,
};
use sha2::{Digest, Sha256};

mod support;
use support::{alpha, exiftool::exiftool, fixture, gray, gray16, mean_difference, pattern, rgb, rgb16, samples};

const FORMATS: [OutputFormat; 3] = [OutputFormat::Png, OutputFormat::Jpeg, OutputFormat::Webp];
const NONE: Metadata = Metadata { exif: None, icc: None, xmp: None, parameters: None };

fn spec(format: OutputFormat, color: Color, alpha: bool) -> EncodeSpec<'static> {
    EncodeSpec { format, quality: 95, width: 24, height: 16, color, alpha, metadata: &NONE }
}

fn bytes(samples: &[u32]) -> Vec<u8> {
    samples.iter().map(|&sample| u8::try_from(sample).expect("a byte")).collect()
}

fn words(samples: &[u32]) -> Vec<u16> {
    samples.iter().map(|&sample| u16::try_from(sample).expect("a word")).collect()
}

fn round_trip(given: Samples<'_>, spec: &EncodeSpec<'_>) -> (Picture, Encoded) {
    let folder = support::folder();
    let path = folder.path().join("output");
    let encoded = encode(given, spec, &path).expect("encodes");
    let file = std::fs::read(&path).expect("is there");
    assert_eq!(encoded.bytes, file.len() as u64);
    assert_eq!(encoded.sha256, format!("{:x}", Sha256::digest(&file)));
    (decode(&path, &Limits::default()).expect("decodes"), encoded)
}

/// Each layout of the pattern: colour, alpha, samples of 8 bits.
fn layouts() -> [(Color, bool, Vec<u32>); 4] {
    [
        (Color::Gray, false, pattern(|x, y| [gray(x, y)])),
        (Color::Gray, true, pattern(|x, y| [gray(x, y), alpha(x, y)])),
        (Color::Rgb, false, pattern(rgb)),
        (
            Color::Rgb,
            true,
            pattern(|x, y| {
                let [r, g, b] = rgb(x, y);
                [r, g, b, alpha(x, y)]
            }),
        ),
    ]
}

#[test]
fn png_gives_back_every_sample_of_every_layout() {
    for (color, alpha, expected) in layouts() {
        let spec = spec(OutputFormat::Png, color, alpha);
        let (picture, encoded) = round_trip(Samples::U8(&bytes(&expected)), &spec);
        assert_eq!((picture.color, picture.alpha), (color, alpha));
        assert!(matches!(picture.pixels, Pixels::U8(_)));
        assert_eq!(samples(&picture.pixels), expected);
        assert!(encoded.notes.is_empty());
        let wide: Vec<u32> = expected.iter().map(|sample| sample * 256 + 77).collect();
        let (picture, _) = round_trip(Samples::U16(&words(&wide)), &spec);
        assert!(matches!(picture.pixels, Pixels::U16(_)));
        assert_eq!(samples(&picture.pixels), wide);
    }
}

#[test]
fn jpeg_and_webp_come_close_in_every_layout() {
    for (color, alpha, expected) in layouts() {
        for format in [OutputFormat::Jpeg, OutputFormat::Webp] {
            let (picture, encoded) = round_trip(Samples::U8(&bytes(&expected)), &spec(format, color, alpha));
            let kept = alpha && format == OutputFormat::Webp;
            let noted: &[&str] =
                if alpha && !kept { &["JPEG has no transparency: the picture was laid over white."] } else { &[] };
            assert_eq!(encoded.notes, noted);
            assert_eq!(picture.alpha, kept);
            let step = if color == Color::Gray { 1 } else { 3 };
            let step = if alpha { step + 1 } else { step };
            let over_white = |pixel: &[u32]| -> Vec<u32> {
                let (colors, alpha) = if alpha { (&pixel[..step - 1], pixel[step - 1]) } else { (pixel, 255) };
                colors.iter().map(|value| (value * alpha + 255 * (255 - alpha)) / 255).collect()
            };
            let expected: Vec<u32> = expected.chunks(step).flat_map(over_white).collect();
            // WebP makes RGB of grey.
            let actual_step = picture.channels();
            let actual: Vec<u32> = samples(&picture.pixels)
                .chunks(actual_step)
                .flat_map(|pixel| {
                    let alpha = if kept { pixel[actual_step - 1] } else { 255 };
                    let colors = &pixel[..if color == Color::Gray { 1 } else { 3 }];
                    colors.iter().map(move |value| (value * alpha + 255 * (255 - alpha)) / 255).collect::<Vec<_>>()
                })
                .collect();
            let difference = mean_difference(&actual, &expected);
            assert!(difference < 4.0, "{format:?} {color:?} {alpha}: {difference}");
        }
    }
}

#[test]
fn sixteen_bits_are_rounded_to_eight_and_not_cut_off() {
    // 257 is a step of 8 bits: 128 stands for half a step less than one.
    let levels: Vec<u16> =
        (0..24 * 16).map(|index| [0, 128, 129, 385, 386, 65_406, 65_407, 65_535][index % 8]).collect();
    let rounded: Vec<u32> = (0..24 * 16).map(|index| [0, 0, 1, 1, 2, 254, 255, 255][index % 8]).collect();
    let exact = bytes(&rounded);
    let folder = support::folder();
    for format in [OutputFormat::Jpeg, OutputFormat::Webp] {
        let spec = spec(format, Color::Gray, false);
        let wide = encode(Samples::U16(&levels), &spec, &folder.path().join("wide")).expect("encodes");
        let narrow = encode(Samples::U8(&exact), &spec, &folder.path().join("narrow")).expect("encodes");
        assert_eq!(wide, narrow, "{format:?}");
    }
}

#[test]
fn sixteen_bits_reach_a_png_from_every_source() {
    for (source, expected) in
        [("rgb16.png", pattern(rgb16)), ("rgb16.tif", pattern(rgb16)), ("gray16.png", pattern(|x, y| [gray16(x, y)]))]
    {
        let picture = decode(&fixture(source), &Limits::default()).expect("decodes");
        let Pixels::U16(pixels) = &picture.pixels else { panic!("{source} has 16 bits") };
        let (again, _) = round_trip(Samples::U16(pixels), &spec(OutputFormat::Png, picture.color, false));
        assert_eq!(samples(&again.pixels), expected, "{source}");
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let folder = support::folder();
    let metadata = Metadata {
        exif: Some(support::exif::camera(support::exif::Order::Big, 1)),
        icc: moxcms::ColorProfile::new_display_p3().encode().ok(),
        xmp: Some(b"<a/>".to_vec()),
        parameters: None,
    };
    let picture = decode(&fixture("photo-chelsea.jpg"), &Limits::default()).expect("decodes");
    let Pixels::U8(pixels) = &picture.pixels else { panic!("a JPEG has 8 bits") };
    for format in FORMATS {
        let spec = EncodeSpec { width: 256, height: 256, metadata: &metadata, ..spec(format, Color::Rgb, false) };
        let first = encode(Samples::U8(pixels), &spec, &folder.path().join("first")).expect("encodes");
        // Over a longer file, which must not shine through at the end.
        let second_path = folder.path().join("second");
        std::fs::write(&second_path, vec![7; 1 << 20]).expect("can be written");
        let second = encode(Samples::U8(pixels), &spec, &second_path).expect("encodes");
        assert_eq!(first, second, "{format:?}");
        assert_eq!(second_path.metadata().expect("is there").len(), second.bytes);
    }
}

/// dB between a photo and what a format makes of it.
fn psnr(format: OutputFormat, quality: u8) -> (f64, u64) {
    let picture = decode(&fixture("photo-coffee.jpg"), &Limits::default()).expect("decodes");
    let Pixels::U8(pixels) = &picture.pixels else { panic!("a JPEG has 8 bits") };
    let spec = EncodeSpec { width: 256, height: 256, quality, ..spec(format, Color::Rgb, false) };
    let (again, encoded) = round_trip(Samples::U8(pixels), &spec);
    let (a, b) = (samples(&picture.pixels), samples(&again.pixels));
    let squares: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    #[expect(clippy::cast_precision_loss, reason = "a small picture")]
    let mean = squares / a.len() as f64;
    (10.0 * (255.0 * 255.0 / mean).log10(), encoded.bytes)
}

#[test]
fn quality_buys_fidelity_with_bytes() {
    for format in [OutputFormat::Jpeg, OutputFormat::Webp] {
        let (poor, small) = psnr(format, 40);
        let (good, large) = psnr(format, 95);
        assert!(poor > 27.0 && good > poor + 5.0, "{format:?}: {poor} and {good} dB");
        assert!(large > 2 * small, "{format:?}: {small} and {large} bytes");
    }
}

fn side_too_long(format: OutputFormat, width: u32, height: u32, instead: &str) {
    let folder = support::folder();
    let path = folder.path().join("output");
    let samples = vec![0; width as usize * height as usize];
    let spec = EncodeSpec { width, height, ..spec(format, Color::Gray, false) };
    let error = encode(Samples::U8(&samples), &spec, &path).expect_err("is refused");
    assert!(matches!(error, ImageError::SideTooLong { .. }), "{error:?}");
    let info = error.info("photo.jpg");
    assert_eq!(info.code.as_str(), "invalid_params");
    assert!(info.hint.contains(instead), "{}", info.hint);
    assert!(!path.exists(), "nothing is written");
}

#[test]
fn a_side_that_a_format_cannot_express_is_an_error_that_names_another() {
    side_too_long(OutputFormat::Jpeg, 65_536, 1, "format = \"png\"");
    side_too_long(OutputFormat::Webp, 1, 16_384, "format = \"jpeg\" or \"png\"");
    side_too_long(OutputFormat::Webp, 65_536, 1, "format = \"png\"");
    let samples = vec![9; 70_000];
    let spec = EncodeSpec { width: 70_000, height: 1, ..spec(OutputFormat::Png, Color::Gray, false) };
    assert_eq!(round_trip(Samples::U8(&samples), &spec).0.width, 70_000);
    let spec = EncodeSpec { width: 16_383, ..EncodeSpec { format: OutputFormat::Webp, ..spec } };
    assert_eq!(round_trip(Samples::U8(&samples[..16_383]), &spec).0.width, 16_383);
}

#[test]
fn samples_that_do_not_make_the_picture_are_refused() {
    let folder = support::folder();
    for count in [0, 24 * 16 * 3 - 1, 24 * 16 * 3 + 1] {
        let error =
            encode(Samples::U8(&vec![0; count]), &spec(OutputFormat::Png, Color::Rgb, false), &folder.path().join("x"));
        assert_eq!(error.expect_err("is refused").code().as_str(), "internal");
    }
}

#[test]
fn a_folder_that_is_not_there_is_the_file_systems_error() {
    let error = encode(
        Samples::U8(&[0; 24 * 16]),
        &spec(OutputFormat::Png, Color::Gray, false),
        Path::new("/nonexistent/output.png"),
    );
    assert_eq!(error.expect_err("cannot be written").code().as_str(), "input_missing");
}

#[test]
fn a_full_disk_is_told_apart_from_everything_else() {
    for format in FORMATS {
        let samples = vec![0; 1000 * 1000];
        let spec = EncodeSpec { width: 1000, height: 1000, ..spec(format, Color::Gray, false) };
        let error = encode(Samples::U8(&samples), &spec, Path::new("/dev/full")).expect_err("there is no room");
        assert_eq!(error.code().as_str(), "disk_full", "{format:?}: {error}");
    }
}

#[test]
fn webp_metadata_comes_in_the_order_that_the_format_asks_for() {
    let folder = support::folder();
    let path = folder.path().join("output.webp");
    let metadata = Metadata {
        exif: Some(support::exif::camera(support::exif::Order::Big, 1)),
        icc: moxcms::ColorProfile::new_display_p3().encode().ok(),
        // An odd number of bytes, which asks for padding.
        xmp: Some(b"<ab/>".to_vec()),
        parameters: None,
    };
    for (alpha, expected) in [(false, "VP8X ICCP VP8  EXIF XMP  "), (true, "VP8X ICCP ALPH VP8  EXIF XMP  ")] {
        let spec = EncodeSpec { metadata: &metadata, ..spec(OutputFormat::Webp, Color::Rgb, alpha) };
        let given = vec![100; 24 * 16 * if alpha { 4 } else { 3 }];
        encode(Samples::U8(&given), &spec, &path).expect("encodes");
        let file = std::fs::read(&path).expect("is there");
        let mut names = String::new();
        let mut at = 12;
        while at < file.len() {
            names.push_str(std::str::from_utf8(&file[at..at + 4]).expect("a name"));
            names.push(' ');
            let length = u32::from_le_bytes(file[at + 4..at + 8].try_into().expect("four bytes")) as usize;
            at += 8 + length.next_multiple_of(2);
        }
        assert_eq!(names, expected);
        let read = decode(&path, &Limits::default()).expect("the padding is there").metadata;
        assert!(read == metadata, "{alpha}");
        assert_eq!(exiftool(["-s3", "-ImageSize", &path.to_string_lossy()]).trim(), "24x16");
    }
}
