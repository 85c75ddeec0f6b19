//! Files that other programs wrote, decoded.

use atelier_imaging::{Color, ImageError, Limits, MediaType, Pixels, decode, probe};

mod support;
use support::{
    HEIGHT, WIDTH, alpha, bits, fixture, gray, gray16, index, indexed, mean_difference, pattern, rgb, rgb16, samples,
};

/// Decodes a fixture, compares it with what it should show and returns its notes.
fn check(name: &str, color: Color, has_alpha: bool, sixteen: bool, expected: &[u32], tolerance: f64) -> Vec<String> {
    let path = fixture(name);
    let picture = decode(&path, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!((picture.width, picture.height), (WIDTH, HEIGHT), "{name}");
    assert_eq!((picture.color, picture.alpha), (color, has_alpha), "{name}");
    assert_eq!(matches!(picture.pixels, Pixels::U16(_)), sixteen, "{name}");
    let difference = mean_difference(&samples(&picture.pixels), expected);
    assert!(difference <= tolerance, "{name}: {difference}");
    let probe = probe(&path, &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!((probe.width, probe.height, probe.media_type), (WIDTH, HEIGHT, picture.media_type), "{name}");
    assert_eq!(probe.bytes, std::fs::metadata(&path).expect("is there").len(), "{name}");
    assert_eq!(probe.animated, picture.notes.iter().any(|note| note.contains("the first one was used")), "{name}");
    picture.notes
}

fn with_alpha<const N: usize, const M: usize>(colors: impl Fn(u32, u32) -> [u32; N]) -> Vec<u32> {
    pattern(|x, y| {
        let colors = colors(x, y);
        std::array::from_fn::<_, M, _>(|index| colors.get(index).copied().unwrap_or_else(|| alpha(x, y)))
    })
}

#[test]
fn jpegs_of_every_kind_decode() {
    for (name, tolerance) in [("rgb.jpg", 1.5), ("rgb-420.jpg", 9.0), ("progressive.jpg", 2.5), ("restarts.jpg", 2.5)] {
        assert!(check(name, Color::Rgb, false, false, &pattern(rgb), tolerance).is_empty());
    }
    check("gray.jpg", Color::Gray, false, false, &pattern(|x, y| [gray(x, y)]), 1.0);
}

#[test]
fn the_quality_of_a_jpeg_is_read_from_its_tables() {
    for (name, quality) in [("rgb.jpg", 95), ("rgb-420.jpg", 75), ("progressive.jpg", 90), ("gray.jpg", 95)] {
        let picture = decode(&fixture(name), &Limits::default()).expect("decodes");
        assert_eq!(picture.jpeg_quality, Some(quality), "{name}");
    }
    let picture = decode(&fixture("rgb.png"), &Limits::default()).expect("decodes");
    assert_eq!(picture.jpeg_quality, None);
}

#[test]
fn pngs_of_every_kind_decode_exactly() {
    let exactly = |name, color, alpha, sixteen, expected: Vec<u32>| check(name, color, alpha, sixteen, &expected, 0.0);
    exactly("rgb.png", Color::Rgb, false, false, pattern(rgb));
    exactly("interlaced.png", Color::Rgb, false, false, pattern(rgb));
    exactly("rgba.png", Color::Rgb, true, false, with_alpha::<3, 4>(rgb));
    exactly("gray.png", Color::Gray, false, false, pattern(|x, y| [gray(x, y)]));
    exactly("gray-alpha.png", Color::Gray, true, false, with_alpha::<1, 2>(|x, y| [gray(x, y)]));
    exactly("palette.png", Color::Rgb, false, false, pattern(indexed));
    exactly("bits.png", Color::Gray, false, false, pattern(|x, y| [bits(x, y)]));
    exactly("gray16.png", Color::Gray, false, true, pattern(|x, y| [gray16(x, y)]));
    exactly("rgb16.png", Color::Rgb, false, true, pattern(rgb16));
    let notes = exactly("animated.png", Color::Rgb, false, false, pattern(rgb));
    assert_eq!(notes, ["The file has 3 frames; the first one was used."]);
    let transparent = |x, y| match index(x, y) {
        0 => 0,
        1 => 128,
        _ => 255,
    };
    let expected = pattern(|x, y| {
        let [r, g, b] = indexed(x, y);
        [r, g, b, transparent(x, y)]
    });
    exactly("palette-alpha.png", Color::Rgb, true, false, expected);
}

#[test]
fn webps_of_every_kind_decode() {
    check("lossy.webp", Color::Rgb, false, false, &pattern(rgb), 6.0);
    check("lossy-alpha.webp", Color::Rgb, true, false, &with_alpha::<3, 4>(rgb), 6.0);
    check("lossless-alpha.webp", Color::Rgb, true, false, &with_alpha::<3, 4>(rgb), 0.0);
    let notes = check("animated.webp", Color::Rgb, false, false, &pattern(rgb), 0.0);
    assert_eq!(notes, ["The file has 3 frames; the first one was used."]);
}

#[test]
fn gifs_decode_to_their_first_frame() {
    let transparent = pattern(|x, y| {
        let [r, g, b] = indexed(x, y);
        [r, g, b, if index(x, y) == 0 { 0 } else { 255 }]
    });
    check("palette.gif", Color::Rgb, false, false, &pattern(indexed), 0.0);
    check("transparent.gif", Color::Rgb, true, false, &transparent, 0.0);
    let notes = check("animated.gif", Color::Rgb, false, false, &pattern(rgb), 12.0);
    assert_eq!(notes, ["The file has 3 frames; the first one was used."]);
}

#[test]
fn bmps_of_every_kind_decode_exactly() {
    check("rgb.bmp", Color::Rgb, false, false, &pattern(rgb), 0.0);
    check("top-down.bmp", Color::Rgb, false, false, &pattern(rgb), 0.0);
    // Its header has no mask for alpha, so the fourth byte means nothing.
    check("alpha.bmp", Color::Rgb, false, false, &pattern(rgb), 0.0);
    check("palette.bmp", Color::Rgb, false, false, &pattern(indexed), 0.0);
    check("runs.bmp", Color::Rgb, false, false, &pattern(indexed), 0.0);
    check("runs-without-size.bmp", Color::Rgb, false, false, &pattern(indexed), 0.0);
    check("bits.bmp", Color::Rgb, false, false, &pattern(|x, y| [bits(x, y); 3]), 0.0);
}

#[test]
fn tiffs_of_every_kind_decode() {
    for name in ["lzw.tif", "planar.tif", "tiled.tif", "big.tif"] {
        check(name, Color::Rgb, false, false, &pattern(rgb), 0.0);
    }
    check("deflate-alpha.tif", Color::Rgb, true, false, &with_alpha::<3, 4>(rgb), 0.0);
    check("jpeg.tif", Color::Rgb, false, false, &pattern(rgb), 3.0);
    check("packbits.tif", Color::Gray, false, false, &pattern(|x, y| [gray(x, y)]), 0.0);
    check("white-is-zero.tif", Color::Gray, false, false, &pattern(|x, y| [gray(x, y)]), 0.0);
    check("gray-alpha.tif", Color::Gray, true, false, &with_alpha::<1, 2>(|x, y| [gray(x, y)]), 0.0);
    check("bits.tif", Color::Gray, false, false, &pattern(|x, y| [bits(x, y)]), 0.0);
    check("group4.tif", Color::Gray, false, false, &pattern(|x, y| [bits(x, y)]), 0.0);
    check("palette.tif", Color::Rgb, false, false, &pattern(indexed), 0.0);
    check("gray16-big-endian.tif", Color::Gray, false, true, &pattern(|x, y| [gray16(x, y)]), 0.0);
    check("rgb16.tif", Color::Rgb, false, true, &pattern(rgb16), 0.0);
    let notes = check("float.tif", Color::Rgb, false, true, &pattern(|x, y| rgb(x, y).map(|v| v * 257)), 0.0);
    assert_eq!(notes.len(), 1, "{notes:?}");
    let notes = check("pages.tif", Color::Rgb, false, false, &pattern(rgb), 0.0);
    assert_eq!(notes, ["The file has 3 pages; the first one was used."]);
}

/// Light that ink leaves, without a profile.
fn light(ink: [u32; 4]) -> [u32; 3] {
    [0, 1, 2].map(|index| ((255 - ink[index]) * (255 - ink[3]) + 127) / 255)
}

#[test]
fn cmyk_without_a_profile_becomes_what_everybody_shows() {
    let inks = |x, y| light([x * 11, y * 17, x * 3 + y * 9, x * 4 % 97]);
    let notes = check("cmyk.jpg", Color::Rgb, false, false, &pattern(inks), 1.5);
    assert!(notes[0].contains("without a colour profile"), "{notes:?}");
    let inks = |x, y| {
        let [r, g, b] = rgb(x, y);
        light([255 - r, 255 - g, 255 - b, gray(x, y) / 4])
    };
    check("cmyk.tif", Color::Rgb, false, false, &pattern(inks), 0.0);
}

#[test]
fn cmyk_goes_through_its_profile_as_littlecms_does_it() {
    let expected = decode(&fixture("cmyk-profile-expected.png"), &Limits::default()).expect("decodes");
    let notes = check("cmyk-profile.jpg", Color::Rgb, false, false, &samples(&expected.pixels), 1.2);
    assert_eq!(notes, ["The picture was converted from CMYK to sRGB through its colour profile."]);
    let picture = decode(&fixture("cmyk-profile.jpg"), &Limits::default()).expect("decodes");
    assert_eq!(picture.metadata.icc, None, "the profile of the ink does not describe the light");
}

#[test]
fn ycck_is_the_same_ink_in_another_coding() {
    let folder = support::folder();
    let inks: Vec<u8> = pattern(|x, y| [x * 10, y * 15, 128, x * 3])
        .into_iter()
        .map(|value| u8::try_from(value).expect("a byte"))
        .collect();
    let mut pictures = Vec::new();
    for kind in [jpeg_encoder::ColorType::Cmyk, jpeg_encoder::ColorType::CmykAsYcck] {
        let path = folder.path().join("ink.jpg");
        let encoder = jpeg_encoder::Encoder::new_file(&path, 100).expect("can be written");
        encoder.encode(&inks, 24, 16, kind).expect("encodes");
        let picture = decode(&path, &Limits::default()).expect("decodes");
        let expected = pattern(|x, y| light([x * 10, y * 15, 128, x * 3]));
        let difference = mean_difference(&samples(&picture.pixels), &expected);
        assert!(difference < 1.5, "{kind:?}: {difference}");
        pictures.push(picture);
    }
    assert!(mean_difference(&samples(&pictures[0].pixels), &samples(&pictures[1].pixels)) < 1.5);
}

#[test]
fn a_scan_for_each_component_gives_the_same_picture() {
    use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
    let folder = support::folder();
    let photo = decode(&fixture("photo-coffee.jpg"), &Limits::default()).expect("decodes");
    let Pixels::U8(photo) = &photo.pixels else { panic!("a JPEG has 8 bits") };
    for (kind, channels) in [(ColorType::Rgb, 3), (ColorType::CmykAsYcck, 4), (ColorType::Luma, 1)] {
        for (sampling, side) in [(SamplingFactor::F_2_2, 88), (SamplingFactor::F_2_1, 71), (SamplingFactor::F_1_1, 90)]
        {
            // Fitted tables make this encoder write a scan for each component, and nothing else changes.
            let [together, apart] = [false, true].map(|separate| {
                let path = folder.path().join("scans.jpg");
                let mut encoder = Encoder::new_file(&path, 90).expect("can be written");
                encoder.set_sampling_factor(sampling);
                encoder.set_optimized_huffman_tables(separate);
                let size = u16::try_from(side).expect("small");
                encoder.encode(&photo[..side * side * channels], size, size, kind).expect("encodes");
                decode(&path, &Limits::default()).expect("decodes")
            });
            assert_eq!((together.color, together.width), (apart.color, apart.width));
            let difference = mean_difference(&samples(&together.pixels), &samples(&apart.pixels));
            assert!(difference < 1.5, "{kind:?} {sampling:?}: {difference}");
        }
    }
}

#[test]
fn the_content_decides_and_not_the_name() {
    let folder = support::folder();
    let path = folder.path().join("holiday.png");
    std::fs::copy(fixture("rgb.jpg"), &path).expect("can be copied");
    assert_eq!(probe(&path, &Limits::default()).expect("is a picture").media_type, MediaType::Jpeg);
    assert_eq!(decode(&path, &Limits::default()).expect("is a picture").media_type, MediaType::Jpeg);
}

#[test]
fn disguised_files_are_refused_by_what_they_are() {
    let folder = support::folder();
    let path = folder.path().join("photo.jpg");
    let cases: [(&[u8], &str); 5] = [
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>", "an SVG drawing"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page"),
        (b"PK\x03\x04\x14\0\0\0\x08\0", "a ZIP archive"),
        (b"%PDF-1.7\n1 0 obj", "a PDF document"),
        (b"\0\0\0\x1CftypheicAAAA", "a HEIC picture"),
    ];
    for (content, what) in cases {
        std::fs::write(&path, content).expect("can be written");
        for error in [probe(&path, &Limits::default()).err(), decode(&path, &Limits::default()).err()] {
            let error = error.expect("is refused");
            assert!(matches!(&error, ImageError::Unsupported { found } if found.contains(what)), "{error:?}");
            let info = error.info("photo.jpg");
            assert_eq!(info.code.as_str(), "image_unsupported");
            assert!(info.message.starts_with("photo.jpg: this is "), "{}", info.message);
            assert!(info.hint.contains("JPEG"), "{}", info.hint);
        }
    }
}

#[test]
fn an_empty_file_is_called_empty() {
    let folder = support::folder();
    let path = folder.path().join("empty.jpg");
    std::fs::write(&path, b"").expect("can be written");
    let error = probe(&path, &Limits::default()).expect_err("is refused");
    assert_eq!(error.code().as_str(), "image_empty");
    assert!(error.is_truncated(), "its writer may not have begun yet");
    assert_eq!(decode(&path, &Limits::default()).expect_err("is refused").code().as_str(), "image_empty");
}

#[test]
fn a_missing_file_and_a_folder_are_no_pictures() {
    let folder = support::folder();
    let missing = probe(&folder.path().join("none.png"), &Limits::default()).expect_err("is refused");
    assert_eq!(missing.code().as_str(), "input_missing");
    assert_eq!(probe(folder.path(), &Limits::default()).expect_err("is refused").code().as_str(), "io_error");
}

#[test]
fn limits_hold_before_anything_is_decoded() {
    let path = fixture("rgb.png");
    let pixels = Limits { max_pixels: u64::from(WIDTH * HEIGHT) - 1, ..Limits::default() };
    let bytes = Limits { max_bytes: 50, ..Limits::default() };
    for (limits, code) in [(pixels, "image_too_large"), (bytes, "upload_too_large")] {
        assert_eq!(probe(&path, &limits).expect_err("is refused").code().as_str(), code);
        assert_eq!(decode(&path, &limits).expect_err("is refused").code().as_str(), code);
    }
    // A header of 65,500 x 65,500 pixels before a few bytes: refused by its header, whatever follows.
    let mut bomb = std::fs::read(fixture("rgb.bmp")).expect("can be read");
    bomb[18..22].copy_from_slice(&65_500_u32.to_le_bytes());
    bomb[22..26].copy_from_slice(&65_500_u32.to_le_bytes());
    let error = support::decode_bytes(&bomb).expect_err("is refused");
    assert!(matches!(error, ImageError::TooLarge { width: 65_500, height: 65_500, .. }), "{error:?}");
}
