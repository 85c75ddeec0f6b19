//! What `denoise = "auto"` decides, on real photos that were clean before.

use atelier_domain::OutputFormat;
use atelier_imaging::{
    Advice, Color, EncodeSpec, Limits, Metadata, Picture, Pixels, Samples, advise, decode, encode, measure_degradation,
    resize::{Filter, resize_u8},
};

mod support;
use support::{fixture, picture};

const SIDE: usize = 256;

/// Photos of 256 x 256 pixels, and the same at half the size.
fn photos() -> Vec<(String, Picture)> {
    let mut photos = Vec::new();
    for name in ["astronaut", "chelsea", "coffee"] {
        let photo = decode(&fixture(&format!("photo-{name}.jpg")), &Limits::default()).expect("decodes");
        let Pixels::U8(pixels) = &photo.pixels else { panic!("a JPEG has 8 bits") };
        let half = resize_u8(pixels, SIDE, SIDE, 3, SIDE / 2, SIDE / 2, Filter::Lanczos);
        photos.push((format!("{name}, halved"), picture(128, 128, Color::Rgb, false, half)));
        photos.push((name.to_owned(), photo));
    }
    photos
}

fn pixels(picture: &Picture) -> &[u8] {
    match &picture.pixels {
        Pixels::U8(pixels) => pixels,
        Pixels::U16(_) => panic!("the photos have 8 bits"),
    }
}

/// Through a JPEG of this quality and back.
fn compressed(photo: &Picture, quality: u8) -> Picture {
    let folder = support::folder();
    let path = folder.path().join("photo.jpg");
    let spec = EncodeSpec {
        format: OutputFormat::Jpeg,
        quality,
        width: photo.width,
        height: photo.height,
        color: photo.color,
        alpha: photo.alpha,
        metadata: &Metadata::default(),
    };
    encode(Samples::U8(pixels(photo)), &spec, &path).expect("encodes");
    decode(&path, &Limits::default()).expect("decodes")
}

/// With Gaussian noise in every channel, from a small generator of its own.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "samples")]
fn noisy(photo: &Picture, sigma: f64) -> Picture {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 + 0.5) / f64::from(1_u32 << 31)
    };
    let pixels = pixels(photo).iter().map(|&sample| {
        let gauss = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        (f64::from(sample) + sigma * gauss).round().clamp(0.0, 255.0) as u8
    });
    picture(photo.width, photo.height, photo.color, photo.alpha, pixels.collect())
}

fn assert_advice(name: &str, photo: &Picture, expected: Advice) {
    let degradation = measure_degradation(photo);
    assert_eq!(advise(&degradation), expected, "{name}: {degradation:?}");
}

#[test]
fn clean_photos_are_clean_also_when_they_were_made_smaller() {
    for (name, photo) in photos() {
        assert_advice(&name, &photo, Advice::Clean);
        let without_tables = Picture { jpeg_quality: None, ..photo };
        assert_advice(&name, &without_tables, Advice::Clean);
    }
}

#[test]
fn jpegs_of_quality_75_and_less_are_compressed() {
    for (name, photo) in photos() {
        for quality in [20, 50, 75] {
            let compressed = compressed(&photo, quality);
            assert_eq!(compressed.jpeg_quality, Some(quality), "{name}");
            assert_advice(&format!("{name} at {quality}"), &compressed, Advice::Compressed);
        }
        assert_advice(&format!("{name} at 92"), &compressed(&photo, 92), Advice::Clean);
    }
}

#[test]
fn strong_compression_shows_when_the_tables_are_lost() {
    for (name, photo) in photos() {
        let picture = Picture { jpeg_quality: None, ..compressed(&photo, 30) };
        assert_advice(&name, &picture, Advice::Compressed);
        // Also where the grid does not begin at the edge.
        let width = photo.width as usize;
        let cropped = pixels(&picture).chunks(width * 3).skip(3).flat_map(|row| &row[5 * 3..]).copied().collect();
        let cropped = support::picture(photo.width - 5, photo.height - 3, Color::Rgb, false, cropped);
        assert_advice(&format!("{name}, cropped"), &cropped, Advice::Compressed);
    }
}

#[test]
fn noise_is_measured_and_called_noise() {
    for (name, photo) in photos() {
        assert_advice(&name, &noisy(&photo, 8.0), Advice::Noisy);
        assert_advice(&name, &noisy(&photo, 15.0), Advice::Noisy);
        assert_advice(&name, &noisy(&photo, 2.0), Advice::Clean);
    }
}

#[test]
fn the_estimate_of_noise_is_in_steps_of_8_bits_for_every_layout() {
    let gray = |sigma| noisy(&picture(128, 128, Color::Gray, false, vec![128; 128 * 128]), sigma);
    for sigma in [3.0, 6.0, 12.0] {
        let photo = gray(sigma);
        let measured = f64::from(measure_degradation(&photo).noise_sigma);
        assert!((measured / sigma - 1.0).abs() < 0.1, "{measured} for {sigma}");
        let wide = pixels(&photo).iter().flat_map(|&sample| [u16::from(sample) * 257, 65_535]).collect();
        let wide = Picture { pixels: Pixels::U16(wide), alpha: true, ..photo };
        assert!((f64::from(measure_degradation(&wide).noise_sigma) - measured).abs() < 1e-3);
    }
}

#[test]
fn tiny_and_plain_pictures_are_clean() {
    for (width, height) in [(1, 1), (8, 1), (1, 9), (17, 17), (40, 40)] {
        let plain = picture(width, height, Color::Gray, false, vec![77; (width * height) as usize]);
        assert_advice("a plain picture", &plain, Advice::Clean);
    }
}
