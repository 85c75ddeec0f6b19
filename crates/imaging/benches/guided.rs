//! What it takes to carry an edit of 512 x 384 pixels to a photo of 4000 x 3000: fitting the maps once, applying them
//! to every pixel; and, for comparison, what the photo's JPEG takes to be read and written.
//!
//! `cargo bench -p atelier-imaging --bench guided`

#![expect(clippy::print_stdout, reason = "what it measures is what it prints")]

use std::{path::Path, time::Instant};

use atelier_domain::OutputFormat;
use atelier_imaging::{
    Color, ColorMaps, EncodeSpec, Limits, MediaType, Metadata, Picture, Pixels, Samples, decode, encode,
};

const SMALL: (usize, usize) = (512, 384);
const LARGE: (u32, u32) = (4000, 3000);
const ROUNDS: usize = 5;

fn main() {
    let scratch = std::env::temp_dir().join(format!("atelier-bench-guided-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).expect("a folder for the JPEG");
    println!("| photo of {} x {}, median of {ROUNDS} | threads | ms |\n| --- | --- | --- |", LARGE.0, LARGE.1);
    let (source, edited) = (scene(SMALL.0, SMALL.1), tinted(&scene(SMALL.0, SMALL.1)));
    let fit = || ColorMaps::fit(&source, &edited, SMALL.0, SMALL.1);
    row("maps fitted", 1, || drop(fit()));
    let maps = fit();
    for (name, picture) in [("8 bits", photo(false)), ("16 bits", photo(true))] {
        for threads in [1, 2] {
            row(&format!("maps applied, {name}"), threads, || drop(maps.apply(&picture, threads)));
        }
    }
    let path = scratch.join("photo.jpg");
    let picture = photo(false);
    row("JPEG written", 1, || write(&picture, &path));
    row("JPEG read", 1, || drop(decode(&path, &Limits::default()).expect("a picture")));
    std::fs::remove_dir_all(&scratch).expect("the folder is there");
}

fn row(name: &str, threads: usize, mut work: impl FnMut()) {
    let mut times: Vec<f64> = (0..=ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed().as_secs_f64() * 1000.0
        })
        // The first meets cold pages.
        .skip(1)
        .collect();
    times.sort_by(f64::total_cmp);
    println!("| {name} | {threads} | {:.0} |", times[ROUNDS / 2]);
}

/// `(height, width, 3)`, from 0 to 1.
fn scene(width: usize, height: usize) -> Vec<f32> {
    let wave = |n: usize, step: usize| f32::from(u8::try_from(n * step % 97).expect("small")) / 97.0;
    (0..width * height).flat_map(|n| [wave(n, 7), wave(n, 13), wave(n / width, 29)]).collect()
}

fn tinted(samples: &[f32]) -> Vec<f32> {
    samples.chunks_exact(3).flat_map(|rgb| [rgb[0] * 0.8, rgb[1] * 0.7, rgb[2] * 0.5 + 0.2]).collect()
}

fn photo(deep: bool) -> Picture {
    let (width, height) = LARGE;
    let samples = scene(width as usize, height as usize);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the depth")]
    let pixels = if deep {
        Pixels::U16(samples.iter().map(|value| (value * 65535.0) as u16).collect())
    } else {
        Pixels::U8(samples.iter().map(|value| (value * 255.0) as u8).collect())
    };
    let (metadata, notes) = (Metadata::default(), Vec::new());
    let (color, media_type) = (Color::Rgb, MediaType::Jpeg);
    Picture { width, height, color, alpha: false, pixels, metadata, media_type, jpeg_quality: None, notes }
}

fn write(picture: &Picture, path: &Path) {
    let Pixels::U8(samples) = &picture.pixels else { unreachable!("a photo of 8 bits") };
    let spec = EncodeSpec {
        format: OutputFormat::Jpeg,
        quality: 92,
        width: picture.width,
        height: picture.height,
        color: Color::Rgb,
        alpha: false,
        metadata: &picture.metadata,
    };
    encode(Samples::U8(samples), &spec, path).expect("a JPEG");
}
