//! The embedded edit model: instructions, exact operations, full resolution, and what goes along.

use atelier_domain::JobKind;
use atelier_testkit::pictures;
use image::{DynamicImage, GenericImageView as _, ImageBuffer, Rgba};
use serde_json::json;

use crate::support::{Bench, finish, outputs, refused};

fn open(bytes: &[u8]) -> DynamicImage {
    image::load_from_memory(bytes).unwrap()
}

#[test]
fn a_photo_becomes_black_and_white_at_its_own_size_with_its_detail() {
    let bench = Bench::new();
    // Larger than what the model works at.
    let run = bench.edit("Turn this picture into greyscale, please!", 420, 300);
    let finished = finish(&run);
    let made = open(&outputs(&run, &finished)[0]).into_rgb8();
    assert_eq!(made.dimensions(), (420, 300));
    let photo = pictures::photo_like(420, 300, 1);
    let (mut colour, mut error) = (0.0_f64, 0.0_f64);
    for (got, source) in made.pixels().zip(photo.pixels()) {
        let [r, g, b] = got.0.map(f64::from);
        let [sr, sg, sb] = source.0.map(f64::from);
        colour += (r - g).abs().max((g - b).abs());
        error += (0.299 * sr + 0.587 * sg + 0.114 * sb - g).abs();
    }
    let pixels = f64::from(420 * 300);
    assert!(colour / pixels < 20.0, "it is still coloured: {}", colour / pixels);
    assert!(error / pixels < 25.0, "it is not the photo any more: {}", error / pixels);
    assert_eq!(finished.result, Some(json!({ "engine": "diffusion", "instruction": "black and white" })));
    assert_eq!(finished.manifest["instruction"]["used"], "make it black and white");
    assert_eq!(finished.manifest["guided"], true);
    let size = &finished.manifest["params"];
    assert!(size["width"].as_u64().unwrap() * size["height"].as_u64().unwrap() <= 256 * 256, "{size}");
}

#[test]
fn detail_and_fit_choose_the_size_and_where_the_pixels_come_from() {
    let bench = Bench::new();
    let with = |params: serde_json::Value| {
        let mut run = bench.edit("make it night", 420, 300);
        run.params = serde_json::from_value(params).unwrap();
        let finished = finish(&run);
        (open(&outputs(&run, &finished)[0]).dimensions(), finished.manifest["guided"].clone())
    };
    let base = json!({ "prompt": "make it night", "steps": 1, "seed": 0 });
    let but = |key: &str, value: &str| {
        let mut params = base.clone();
        params[key] = value.into();
        params
    };
    assert_eq!(with(base.clone()), ((420, 300), json!(true)));
    assert_eq!(with(but("detail", "none")), ((420, 300), json!(false)));
    let (small, guided) = with(but("fit", "model"));
    assert!(small.0 < 420 && guided == json!(false), "{small:?}");
}

#[test]
fn depth_and_alpha_of_the_source_are_kept() {
    let bench = Bench::new();
    let picture = ImageBuffer::<Rgba<u16>, _>::from_fn(64, 48, |x, y| {
        Rgba([
            u16::try_from(x * 1000).unwrap(),
            u16::try_from(y * 1200).unwrap(),
            30_000,
            u16::try_from(x * 1024).unwrap(),
        ])
    });
    let path = bench.root.path().join("deep.png");
    picture.save(&path).unwrap();
    let mut run = bench.edit("make it warmer", 8, 8);
    run.inputs = vec![path.into()];
    let DynamicImage::ImageRgba16(made) = open(&outputs(&run, &finish(&run))[0]) else { panic!("another type") };
    assert!(made.pixels().zip(picture.pixels()).all(|(a, b)| a.0[3] == b.0[3]), "alpha has changed");
    assert!(made.pixels().any(|pixel| pixel.0[0] % 257 != 0), "16 bits in name only");
}

#[test]
fn an_exact_operation_is_done_on_the_pixels_and_says_so() {
    let bench = Bench::new();
    let photo = pictures::photo_like(40, 30, 1);
    for (prompt, width, height) in
        [("rotate it to the right", 30, 40), ("crop to a square", 30, 30), ("resize to 20x15", 20, 15)]
    {
        let run = bench.edit(prompt, 40, 30);
        let finished = finish(&run);
        let made = open(&outputs(&run, &finished)[0]).into_rgb8();
        assert_eq!(made.dimensions(), (width, height), "{prompt}");
        assert_eq!(finished.manifest["engine"], "classic");
        assert_eq!(finished.result.as_ref().unwrap()["engine"], "classic");
        if width == 30 && height == 40 {
            assert_eq!(made.get_pixel(29, 0), photo.get_pixel(0, 0));
        }
    }
    let run = bench.edit("make it sharper", 40, 30);
    assert_ne!(open(&outputs(&run, &finish(&run))[0]).into_rgb8(), photo);
}

#[test]
fn what_the_model_does_not_know_fails_with_all_that_it_does() {
    let bench = Bench::new();
    for prompt in ["add sunglasses to the dog", "make it black and white and brighter"] {
        let error = refused(&bench.edit(prompt, 40, 30));
        assert_eq!(error.code.as_str(), "unknown_instruction");
        assert!(error.message.contains(prompt) && error.hint.contains("night"), "{error:?}");
    }
}

#[test]
fn a_model_without_a_card_takes_any_instruction() {
    let bench = Bench::new();
    let mut run = bench.job(JobKind::Edit, Bench::random("ip2p"), &json!({ "prompt": "add sunglasses", "steps": 1 }));
    run.inputs = vec![bench.picture("photo.png", 32, 32).into()];
    assert_eq!(finish(&run).manifest["params"]["prompt"], "add sunglasses");
}

#[test]
fn metadata_goes_along_with_an_edit() {
    let bench = Bench::new();
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/demo/chelsea.jpg");
    for prompt in ["make it sepia", "rotate right"] {
        let mut run = bench.edit(prompt, 8, 8);
        run.inputs = vec![demo.clone().into()];
        let made = outputs(&run, &finish(&run)).remove(0);
        let has = |text: &[u8]| made.windows(text.len()).any(|window| window == text);
        assert!(has(b"eXIf") && has(b"Demo Camera"), "{prompt}: the EXIF is lost");
    }
}
