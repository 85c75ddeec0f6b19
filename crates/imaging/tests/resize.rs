//! Resampling against what Pillow 13 recorded, bit for bit.

use atelier_imaging::{
    Limits, Pixels, decode,
    resize::{Filter, resize_u8},
};
use sha2::{Digest, Sha256};

mod support;

#[test]
fn resampling_equals_pillow_bit_for_bit() {
    let cases = std::fs::read_to_string(support::fixture("resize.txt")).expect("the fixture is there");
    let mut count = 0;
    for case in cases.lines() {
        let [source, filter, width, height, expected] = case.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not a case: {case}");
        };
        let path = support::fixture(&format!("resize-{source}.png"));
        let picture = decode(&path, &Limits::default()).expect("decodes");
        let Pixels::U8(pixels) = &picture.pixels else { panic!("{source} has 16 bits") };
        let filter = match filter {
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            "lanczos" => Filter::Lanczos,
            other => panic!("no such filter: {other}"),
        };
        let (width, height) = (width.parse().expect("a number"), height.parse().expect("a number"));
        let (from_width, from_height) = (picture.width as usize, picture.height as usize);
        let resized = resize_u8(pixels, from_width, from_height, picture.channels(), width, height, filter);
        let digits = format!("{:x}", Sha256::digest(&resized));
        assert_eq!(digits, expected, "{case}");
        count += 1;
    }
    assert_eq!(count, 165);
}

#[test]
fn resizing_to_the_same_size_changes_nothing() {
    let pixels: Vec<u8> = (0..=255).collect();
    assert_eq!(resize_u8(&pixels, 8, 8, 4, 8, 8, Filter::Lanczos), pixels);
}
