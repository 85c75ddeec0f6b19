//! What the tests share: the fixtures, the pattern that most of them show, and files on the way.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::path::{Path, PathBuf};

use atelier_imaging::{Color, ImageError, Limits, Metadata, Picture, Pixels, decode};

pub(crate) mod exif;
pub(crate) mod exiftool;

pub(crate) const WIDTH: u32 = 24;
pub(crate) const HEIGHT: u32 = 16;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// All pictures among the fixtures, with their content.
pub(crate) fn fixtures() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(fixture(""))
        .expect("the fixtures are there")
        .map(|entry| entry.expect("can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension != "txt" && extension != "md"))
        .map(|path| {
            (
                path.file_name().expect("a file").to_string_lossy().into_owned(),
                std::fs::read(&path).expect("can be read"),
            )
        })
        .collect();
    all.sort();
    assert!(all.len() > 40, "fixtures are missing");
    all
}

/// A folder for files that a test makes.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

pub(crate) fn decode_bytes(bytes: &[u8]) -> Result<Picture, ImageError> {
    let folder = folder();
    let path = folder.path().join("picture");
    std::fs::write(&path, bytes).expect("can be written");
    decode(&path, &Limits::default())
}

/// Small limits, so that a file that lies about its size is cheap to refuse.
pub(crate) const SMALL: Limits = Limits { max_pixels: 1 << 20, max_bytes: 4 << 20 };

/// The pattern of the fixtures, each sample from 0 to 255.
pub(crate) fn rgb(x: u32, y: u32) -> [u32; 3] {
    [x * 10, y * 15, x * 5 + y * 7]
}

pub(crate) fn alpha(x: u32, y: u32) -> u32 {
    if x < 4 { 255 } else { 40 + x * 8 + y }
}

pub(crate) fn gray(x: u32, _y: u32) -> u32 {
    x * 10
}

pub(crate) fn gray16(x: u32, y: u32) -> u32 {
    x * 2800 + y * 7
}

pub(crate) fn rgb16(x: u32, y: u32) -> [u32; 3] {
    [x * 2800 + y, y * 4000 + x, x * 1000 + y * 2000]
}

pub(crate) fn bits(x: u32, y: u32) -> u32 {
    (x + y) % 2 * 255
}

pub(crate) fn indexed(x: u32, y: u32) -> [u32; 3] {
    let index = index(x, y);
    [index * 30, 255 - index * 20, index * 7]
}

pub(crate) fn index(x: u32, y: u32) -> u32 {
    (x / 3 + y) % 8
}

/// All samples of a pattern, pixel after pixel.
pub(crate) fn pattern<const N: usize>(pixel: impl Fn(u32, u32) -> [u32; N]) -> Vec<u32> {
    (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| (x, y))).flat_map(|(x, y)| pixel(x, y)).collect()
}

pub(crate) fn samples(pixels: &Pixels) -> Vec<u32> {
    match pixels {
        Pixels::U8(samples) => samples.iter().copied().map(u32::from).collect(),
        Pixels::U16(samples) => samples.iter().copied().map(u32::from).collect(),
    }
}

/// Mean of the absolute differences.
pub(crate) fn mean_difference(a: &[u32], b: &[u32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum: u32 = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).sum();
    f64::from(sum) / f64::from(u32::try_from(a.len()).expect("a small picture"))
}

/// A picture of 8 bits in memory, as if it had been decoded.
pub(crate) fn picture(width: u32, height: u32, color: Color, alpha: bool, pixels: Vec<u8>) -> Picture {
    Picture {
        width,
        height,
        color,
        alpha,
        pixels: Pixels::U8(pixels),
        metadata: Metadata::default(),
        media_type: atelier_imaging::MediaType::Png,
        jpeg_quality: None,
        notes: Vec::new(),
    }
}
