//! `AutoencoderKL` against diffusers, and bands against the whole.

use std::{cell::Cell, ops::ControlFlow, path::Path};

use atelier_worker::{
    torch::InferenceMode,
    vae::{Architecture as _, AutoencoderKl, Partition, VaeConfig},
    weights::{LoadOptions, Weights},
};
use tch::{Device, Kind, Tensor};

use crate::{
    fixture::Fixture,
    unet::{STEM, cases},
};

pub(crate) fn load(folder: &Path) -> AutoencoderKl {
    let config = VaeConfig::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, STEM, &LoadOptions::cpu()).unwrap();
    let vae = AutoencoderKl::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    vae
}

/// All recorded calls, in this partition.
pub(crate) fn check(case: &Fixture, vae: &AutoencoderKl, partition: Partition) {
    for i in 0..case.calls("vae.encode") {
        let gaussian = vae.encode(&case.tensor(&format!("vae.encode.{i}.in")), partition).unwrap();
        case.check(&format!("vae.encode.{i}.mean"), &gaussian.mean);
        case.check(&format!("vae.encode.{i}.logvar"), &gaussian.logvar);
    }
    for i in 0..case.calls("vae.decode") {
        let pixels = vae.decode(&case.tensor(&format!("vae.decode.{i}.in")), partition).unwrap();
        case.check(&format!("vae.decode.{i}.out"), &pixels);
    }
}

#[test]
fn each_call_of_a_vae_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    for case in cases("vae", "AutoencoderKL") {
        let vae = load(&case.component("vae"));
        check(&case, &vae, Partition::Whole);
        check(&case, &vae, Partition::Slices);
    }
}

/// Soft shapes with edges, as pictures have.
fn picture(batch: i64, height: i64, width: i64) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let y = Tensor::linspace(0, 7, height, options).reshape([height, 1]);
    let x = Tensor::linspace(0, 9, width, options).reshape([1, width]);
    let planes: Vec<Tensor> = (0..batch * 3)
        .map(|i| {
            let i = f64::from(u32::try_from(i).unwrap());
            (&x * (1.0 + i / 3.0) + &y).sin() * 0.5 + (&y * (2.0 + i) - &x * 1.5).cos().sign() * 0.4
        })
        .collect();
    Tensor::stack(&planes, 0).reshape([batch, 3, height, width])
        + Tensor::randn([batch, 3, height, width], options) * 0.05
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// What the order of sums may change, in the largest value.
const BANDED_DIFFERENCE: f64 = 1e-5;

/// Bands of several sizes, of pictures whose sides nothing divides, against the whole.
pub(crate) fn check_bands(name: &str, vae: &AutoencoderKl, [batch, height, width]: [i64; 3], sides: &[i64]) {
    let pixels = picture(batch, height, width);
    let gaussian = vae.encode(&pixels, Partition::Whole).unwrap();
    let decoded = vae.decode(gaussian.mode(), Partition::Whole).unwrap();
    for &side in sides {
        let banded = vae.encode(&pixels, Partition::Bands(side)).unwrap();
        let scale = gaussian.mean.abs().max().double_value(&[]);
        let encoding = largest_difference(&banded.mean, &gaussian.mean) / scale;
        // From -1 to 1 is twice as far as from 0 to 1.
        let banded = vae.decode(gaussian.mode(), Partition::Bands(side)).unwrap();
        let decoding = largest_difference(&banded, &decoded) / 2.0;
        eprintln!("{name}: bands of {side} differ by {encoding:.1e} in latents and {decoding:.1e} in pixels");
        assert!(encoding <= BANDED_DIFFERENCE, "{name}: bands of {side} change latents by {encoding:e}");
        assert!(decoding <= BANDED_DIFFERENCE, "{name}: bands of {side} change pixels by {decoding:e}");
    }
}

#[test]
fn bands_give_what_the_whole_picture_gives() {
    let _guard = InferenceMode::enter();
    // The cases' VAEs differ in what they hold alone; others are among the variants.
    let case = cases("vae", "AutoencoderKL").remove(0);
    check_bands(&case.name, &load(&case.component("vae")), [2, 83, 70], &[16, 25]);
}

#[test]
fn a_vae_in_bands_can_be_stopped() {
    let _guard = InferenceMode::enter();
    let case = cases("vae", "AutoencoderKL").remove(0);
    let vae = load(&case.component("vae"));
    let latents = vae.encode(&picture(1, 64, 64), Partition::Whole).unwrap().mean;
    let asked = Cell::new(0);
    let stop_at = |count: u32| {
        asked.set(0);
        let stop = || {
            asked.set(asked.get() + 1);
            if asked.get() == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        vae.decode_unless(&latents, Partition::Bands(16), &stop).unwrap()
    };
    assert!(stop_at(u32::MAX).is_some());
    let all = asked.get();
    // Once for the picture, and for each of several layers at least sixteen bands.
    assert!(all > 32, "{all}");
    for count in 1..=all {
        assert!(stop_at(count).is_none(), "at {count} of {all}");
    }
}

#[test]
fn samples_and_scales_are_the_references() {
    let _guard = InferenceMode::enter();
    let case = cases("vae", "AutoencoderKL").remove(0);
    let vae = load(&case.component("vae"));
    let gaussian = vae.encode(&picture(1, 32, 48), Partition::Whole).unwrap();
    let noise = Tensor::randn(gaussian.mean.size(), (Kind::Float, Device::Cpu));
    let expected = &gaussian.mean + (&gaussian.logvar * 0.5).exp() * &noise;
    case.compare("sample", &gaussian.sample(&noise).unwrap(), &expected, 1e-6);
    let (scale, shift) = (vae.config().scaling_factor, vae.config().shift_factor.unwrap_or(0.0));
    let scaled = vae.config().scaling().scale(&gaussian.mean).unwrap();
    case.compare("scaled", &scaled, &((&gaussian.mean - shift) * scale), 1e-6);
    case.compare("unscaled", &vae.config().scaling().unscale(&scaled).unwrap(), &gaussian.mean, 1e-6);
}
