//! `QwenImageTransformer2DModel` and `AutoencoderKLQwenImage` against diffusers: every recorded call, the published
//! sizes' tensors, and what is refused.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use atelier_worker::{
    nn::config::ConfigReader,
    torch::InferenceMode,
    transformer::{QwenImageConfig, QwenImageTransformer},
    vae::{Architecture as _, AutoencoderKlQwenImage, Partition, QwenImageVaeConfig},
    weights::{LoadOptions, Weights},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tch::{Device, Kind, Tensor};

use crate::{
    fixture::Fixture,
    unet::{STEM, cases},
};

/// bfloat16 has eight bits, and two ways of summing differ in the last of them.
const COARSE: f64 = 0.03;

fn transformer(folder: &Path, kind: Kind) -> QwenImageTransformer {
    let config = QwenImageConfig::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, STEM, &LoadOptions::new(Device::Cpu, kind)).unwrap();
    let transformer = QwenImageTransformer::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    transformer
}

fn vae(folder: &Path, kind: Kind) -> AutoencoderKlQwenImage {
    let config = QwenImageVaeConfig::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, STEM, &LoadOptions::new(Device::Cpu, kind)).unwrap();
    let vae = AutoencoderKlQwenImage::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    vae
}

/// Rows and columns of each picture of a call.
fn pictures(case: &Fixture, call: &str) -> Vec<[i64; 2]> {
    let shapes = Vec::<i64>::try_from(case.tensor(&format!("{call}.in.img_shapes")).flatten(0, -1)).unwrap();
    shapes
        .chunks(3)
        .map(|shape| {
            assert_eq!(shape[0], 1, "{}: one frame", case.name);
            [shape[1], shape[2]]
        })
        .collect()
}

/// What the transformer makes of the inputs of a recorded call.
fn answer(case: &Fixture, transformer: &QwenImageTransformer, call: &str) -> Tensor {
    let input = |name: &str| case.tensor(&format!("{call}.in.{name}"));
    let text = input("encoder_hidden_states");
    let places = transformer.places(text.size()[1], &pictures(case, call)).unwrap();
    let timestep = input("timestep").double_value(&[0]);
    transformer.forward(&input("hidden_states"), &text, timestep, &places).unwrap()
}

#[test]
fn each_call_of_qwen_images_transformer_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    for case in cases("transformer", "QwenImageTransformer2DModel") {
        let transformer = transformer(&case.component("transformer"), Kind::Float);
        for i in 0..case.calls("transformer") {
            let call = format!("transformer.{i}");
            case.check(&format!("{call}.out.0"), &answer(&case, &transformer, &call));
        }
    }
}

/// As on a graphics card.
#[test]
fn qwen_images_parts_compute_in_bfloat16() {
    let _guard = InferenceMode::enter();
    let (mut transformers, mut vaes) = (0, 0);
    for case in cases("transformer", "QwenImageTransformer2DModel") {
        let transformer = transformer(&case.component("transformer"), Kind::BFloat16);
        let output = answer(&case, &transformer, "transformer.0");
        assert_eq!(output.kind(), Kind::BFloat16);
        case.compare("bfloat16.transformer", &output, &case.tensor("bfloat16.transformer"), COARSE);
        transformers += 1;
        if case.has("bfloat16.decode") {
            let vae = vae(&case.component("vae"), Kind::BFloat16);
            let pixels = vae.decode(&frame(&case, "vae.decode.0.in"), Partition::Whole).unwrap();
            assert_eq!(pixels.kind(), Kind::BFloat16);
            // So few channels lose much by rounding: as much as diffusers loses.
            let exact = frame(&case, "vae.decode.0.out");
            let error = |pixels: &Tensor| (pixels.to_kind(Kind::Float) - &exact).abs().mean(None).double_value(&[]);
            let (own, reference) = (error(&pixels), error(&frame(&case, "bfloat16.decode")));
            eprintln!("{}: in bfloat16 off by {own:.1e}, diffusers by {reference:.1e}", case.name);
            assert!(own < 1.2 * reference, "{}: off by {own:e}, diffusers by {reference:e}", case.name);
            vaes += 1;
        }
    }
    assert!(transformers > 0 && vaes > 0);
}

/// A recorded video of one frame.
fn frame(case: &Fixture, name: &str) -> Tensor {
    let video = case.tensor(name);
    assert_eq!(video.size()[2], 1, "{} {name}: one frame", case.name);
    video.squeeze_dim(2)
}

#[test]
fn each_call_of_qwen_images_vae_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    let mut encoded = 0;
    for case in cases("vae", "AutoencoderKLQwenImage") {
        let vae = vae(&case.component("vae"), Kind::Float);
        for partition in [Partition::Whole, Partition::Slices, Partition::Bands(16)] {
            let hold = |name: &str, got: &Tensor| case.check(name, &got.unsqueeze(2));
            for i in 0..case.calls("vae.encode") {
                let gaussian = vae.encode(&frame(&case, &format!("vae.encode.{i}.in")), partition).unwrap();
                hold(&format!("vae.encode.{i}.mean"), &gaussian.mean);
                hold(&format!("vae.encode.{i}.logvar"), &gaussian.logvar);
                encoded += 1;
            }
            for i in 0..case.calls("vae.decode") {
                let pixels = vae.decode(&frame(&case, &format!("vae.decode.{i}.in")), partition).unwrap();
                hold(&format!("vae.decode.{i}.out"), &pixels);
            }
        }
    }
    assert!(encoded > 0, "no case encodes a picture");
}

#[test]
fn bands_of_qwen_images_vae_give_what_the_whole_picture_gives() {
    let _guard = InferenceMode::enter();
    let case = cases("vae", "AutoencoderKLQwenImage").remove(0);
    let vae = vae(&case.component("vae"), Kind::Float);
    // Some pictures differ by a little more.
    tch::manual_seed(3);
    let pixels = Tensor::rand([2, 3, 83, 70], (Kind::Float, Device::Cpu)) * 2.0 - 1.0;
    let whole = vae.encode(&pixels, Partition::Whole).unwrap().mean;
    let decoded = vae.decode(&whole, Partition::Whole).unwrap();
    for side in [16, 25, 40] {
        let banded = vae.encode(&pixels, Partition::Bands(side)).unwrap().mean;
        case.compare(&format!("encoded in bands of {side}"), &banded, &whole, 1e-5);
        let banded = vae.decode(&whole, Partition::Bands(side)).unwrap();
        case.compare(&format!("decoded in bands of {side}"), &banded, &decoded, 1e-5);
    }
}

#[test]
fn qwen_images_latents_are_normalised_for_each_channel() {
    let _guard = InferenceMode::enter();
    let case = cases("vae", "AutoencoderKLQwenImage").remove(0);
    let vae = vae(&case.component("vae"), Kind::Float);
    let config = vae.config();
    let latents = Tensor::randn([2, config.z_dim, 3, 5], (Kind::Float, Device::Cpu));
    let normal = vae.config().scaling().scale(&latents).unwrap();
    for channel in 0..config.z_dim {
        let at = usize::try_from(channel).unwrap();
        let expected = (latents.select(1, channel) - config.latents_mean[at]) / config.latents_std[at];
        case.compare("normalised", &normal.select(1, channel), &expected, 1e-6);
    }
    case.compare("denormalised", &vae.config().scaling().unscale(&normal).unwrap(), &latents, 1e-6);
}

fn reader(value: Value) -> ConfigReader {
    ConfigReader::from_value(Path::new("config.json"), value).unwrap()
}

/// As the hub's folder of Qwen-Image has it.
fn published_transformer() -> Value {
    json!({
        "_class_name": "QwenImageTransformer2DModel",
        "_diffusers_version": "0.34.0.dev0",
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": false,
        "in_channels": 64,
        "joint_attention_dim": 3584,
        "num_attention_heads": 24,
        "num_layers": 60,
        "out_channels": 16,
        "patch_size": 2,
        "pooled_projection_dim": 768,
    })
}

fn published_vae() -> Value {
    json!({
        "_class_name": "AutoencoderKLQwenImage",
        "_diffusers_version": "0.34.0.dev0",
        "attn_scales": [],
        "base_dim": 96,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "latents_mean": [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
            -0.3632, -0.1922, -0.9497, 0.2503, -0.2921],
        "latents_std": [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
            1.6382, 1.1253, 2.8251, 1.916],
        "num_res_blocks": 2,
        "temperal_downsample": [false, true, true],
        "z_dim": 16,
    })
}

fn with(mut value: Value, key: &str, other: &Value) -> Value {
    value[key] = other.clone();
    value
}

/// Names and shapes that a network of this configuration asks for.
fn shapes(config: &QwenImageConfig) -> BTreeMap<String, Vec<i64>> {
    let weights = Weights::recording();
    QwenImageTransformer::load(&weights, config).unwrap();
    weights.recorded()
}

/// Counts and hashes come from diffusers 0.42.1, on the meta device: the `state_dict`, sorted by name, a line
/// `NAME [SHAPE]` for each tensor.
#[test]
fn the_published_qwen_image_has_the_tensors_that_diffusers_gives_it() {
    let weights = Weights::recording();
    AutoencoderKlQwenImage::load(&weights, &QwenImageVaeConfig::read(reader(published_vae())).unwrap()).unwrap();
    let plain = QwenImageConfig::read(reader(published_transformer())).unwrap();
    let zero = QwenImageConfig { zero_cond_t: true, ..plain.clone() };
    let transformer = "7410d505ce4566e9e9001fb74a0a386a5393b72ae5af79b7590fed5b9a0e6441";
    let expected = [
        ("transformer", shapes(&plain), 1933, 20_430_401_088, transformer),
        ("2511", shapes(&zero), 1933, 20_430_401_088, transformer),
        (
            "VAE",
            weights.recorded(),
            194,
            126_892_531,
            "62c1b3cf988ee8d83d50ee626e0e73d185faf6d22365d6789fddbb8504a1a254",
        ),
    ];
    for (name, shapes, tensors, parameters, hash) in expected {
        assert_eq!(shapes.len(), tensors, "{name}: tensors");
        assert_eq!(shapes.values().map(|shape| shape.iter().product::<i64>()).sum::<i64>(), parameters, "{name}");
        let mut lines = String::new();
        for (name, shape) in &shapes {
            writeln!(lines, "{name} {shape:?}").unwrap();
        }
        assert_eq!(format!("{:x}", Sha256::digest(lines)), hash, "{name}: names or shapes");
    }
}

#[test]
fn what_the_configurations_leave_out_is_what_was_published() {
    let empty = || reader(json!({}));
    assert_eq!(
        QwenImageConfig::read(empty()).unwrap(),
        QwenImageConfig::read(reader(published_transformer())).unwrap()
    );
    let vae = QwenImageVaeConfig::read(empty()).unwrap();
    assert_eq!(vae, QwenImageVaeConfig::read(reader(published_vae())).unwrap());
    assert_eq!(vae.downscale(), 8);
    let open = with(published_transformer(), "out_channels", &Value::Null);
    assert_eq!(QwenImageConfig::read(reader(open)).unwrap().out_channels, 64);
}

#[test]
fn what_qwen_image_does_not_compute_is_refused_with_its_key() {
    for (key, value) in [
        ("guidance_embeds", json!(true)),
        ("use_additional_t_cond", json!(true)),
        ("use_layer3d_rope", json!(true)),
        ("axes_dims_rope", json!([16, 56, 55])),
        ("axes_dims_rope", json!([64, 64])),
        ("attention_head_dim", json!(0)),
        ("zero_cond_t", json!("yes")),
    ] {
        let error = QwenImageConfig::read(reader(with(published_transformer(), key, &value))).expect_err(key);
        assert!(error.to_string().starts_with(&format!("config.json: {key} is {value}, ")), "{error}");
    }
    for (key, value) in [
        ("attn_scales", json!([0.5])),
        ("temperal_downsample", json!([true, true])),
        ("temperal_downsample", json!("all")),
        ("latents_mean", json!([0.5])),
        ("z_dim", json!(0)),
        ("base_dim", json!(-96)),
        ("is_residual", json!(true)),
    ] {
        let error = QwenImageVaeConfig::read(reader(with(published_vae(), key, &value))).expect_err(key);
        assert!(error.to_string().starts_with(&format!("config.json: {key} is {value}, ")), "{error}");
    }
    let mut std = published_vae();
    std["latents_std"][3] = json!(0.0);
    assert!(QwenImageVaeConfig::read(reader(std)).expect_err("a zero").to_string().contains("latents_std"));
}

#[test]
fn what_does_not_fit_qwen_images_parts_is_told() {
    let _guard = InferenceMode::enter();
    let case = cases("transformer", "QwenImageTransformer2DModel").remove(0);
    let transformer = transformer(&case.component("transformer"), Kind::Float);
    let text = case.tensor("transformer.0.in.encoder_hidden_states");
    let places = transformer.places(text.size()[1] + 1, &pictures(&case, "transformer.0")).unwrap();
    let patches = case.tensor("transformer.0.in.hidden_states");
    let error = transformer.forward(&patches, &text, 0.5, &places).expect_err("a token too few").to_string();
    assert!(error.contains("tokens of text"), "{error}");
    assert!(transformer.places(3, &[]).is_err());
    let vae = vae(&case.component("vae"), Kind::Float);
    let empty = |sizes: &[i64]| Tensor::zeros(sizes, (Kind::Float, Device::Cpu));
    assert!(vae.encode(&empty(&[1, 3, 2, 64]), Partition::Whole).is_err());
    assert!(vae.encode(&empty(&[1, 4, 64, 64]), Partition::Whole).is_err());
    assert!(vae.decode(&empty(&[1, 3, 8, 8]), Partition::Whole).is_err());
}
