//! `FluxTransformer2DModel` against diffusers: every recorded call, in both layouts, and the real network's tensors.

use std::{fmt::Write as _, path::Path};

use atelier_worker::{
    nn::config::ConfigReader,
    torch::InferenceMode,
    transformer::{FluxConfig, FluxTransformer, flux::FluxConditions, patches},
    weights::{LoadOptions, Weights},
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::{
    fixture::Fixture,
    unet::{STEM, cases, recorded},
};

const CLASS: &str = "FluxTransformer2DModel";

fn load(folder: &Path) -> FluxTransformer {
    load_in(folder, Kind::Float)
}

fn load_in(folder: &Path, kind: Kind) -> FluxTransformer {
    let config = FluxConfig::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, STEM, &LoadOptions::new(Device::Cpu, kind)).unwrap();
    let network = FluxTransformer::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    network
}

/// What the network answers to a recorded call.
fn answer(case: &Fixture, network: &FluxTransformer, call: &str, kind: Kind) -> Tensor {
    let input = |name: &str| case.tensor(&format!("{call}.in.{name}")).to_kind(kind);
    let text = input("encoder_hidden_states");
    let rope = network.rope(text.size()[1], &case.tensor(&format!("{call}.in.img_ids"))).unwrap();
    let guidance = recorded(case, &format!("{call}.in.guidance")).map(|guidance| guidance.double_value(&[0]));
    let conditions = FluxConditions {
        encoder_hidden_states: &text,
        pooled_projections: &input("pooled_projections"),
        guidance,
        rope: &rope,
    };
    let timestep = 1000.0 * case.tensor(&format!("{call}.in.timestep")).double_value(&[0]);
    network.forward(&input("hidden_states"), timestep, &conditions).unwrap()
}

#[test]
fn each_call_of_a_flux_transformer_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    let cases = cases("transformer", CLASS);
    for case in &cases {
        let network = load(&case.component("transformer"));
        for i in 0..case.calls("transformer") {
            let call = format!("transformer.{i}");
            case.check(&format!("{call}.out.0"), &answer(case, &network, &call, Kind::Float));
        }
    }
    let has = |part: &str| cases.iter().any(|case| case.name.contains(part));
    assert!(has("schnell") && has("kontext") && has("hub"), "a layout or a kind of network is missing");
}

#[test]
fn bfloat16_is_near_f32() {
    let _guard = InferenceMode::enter();
    for case in cases("transformer", CLASS) {
        let network = load_in(&case.component("transformer"), Kind::BFloat16);
        let output = answer(&case, &network, "transformer.0", Kind::BFloat16);
        assert_eq!(output.kind(), Kind::BFloat16);
        // 8 bits of mantissa, through four blocks.
        case.compare("out in bf16", &output, &case.tensor("transformer.0.out.0"), 0.05);
    }
}

#[test]
fn several_pictures_at_once_give_the_same_and_what_does_not_fit_is_told() {
    let _guard = InferenceMode::enter();
    let case = Fixture::open("flux");
    let network = load(&case.component("transformer"));
    let config = network.config();
    let random = |sizes: &[i64]| Tensor::randn(sizes, (Kind::Float, Device::Cpu));
    let hidden = random(&[3, 10, config.in_channels]);
    let text = random(&[3, 7, config.joint_attention_dim]);
    let pooled = random(&[3, config.pooled_projection_dim]);
    let rope = network.rope(7, &patches::positions(4, 10, 0).unwrap()).unwrap();
    let of = |row: Option<i64>, guidance| {
        let part = |tensor: &Tensor| row.map_or_else(|| tensor.shallow_clone(), |row| tensor.narrow(0, row, 1));
        let conditions = FluxConditions {
            encoder_hidden_states: &part(&text),
            pooled_projections: &part(&pooled),
            guidance,
            rope: &rope,
        };
        network.forward(&part(&hidden), 700.0, &conditions)
    };
    let together = of(None, Some(3.0)).unwrap();
    assert_eq!(together.size(), [3, 10, config.out_channels]);
    for row in 0..3 {
        case.compare("alone", &of(Some(row), Some(3.0)).unwrap(), &together.narrow(0, row, 1), 1e-5);
    }
    assert!(of(None, None).expect_err("no guidance").to_string().contains("guidance_embeds"));
    let narrow = FluxConditions {
        encoder_hidden_states: &text.narrow(2, 0, 3),
        pooled_projections: &pooled,
        guidance: Some(1.0),
        rope: &rope,
    };
    let error = network.forward(&hidden, 1.0, &narrow).expect_err("3 features").to_string();
    assert!(error.contains("a text of 3 features"), "{error}");
}

fn reader(changes: &[(&str, Value)]) -> ConfigReader {
    // As the hub's folder of FLUX.1 dev has it.
    let mut value = json!({
        "_class_name": CLASS,
        "_diffusers_version": "0.30.0.dev0",
        "_name_or_path": "../checkpoints/flux-dev/transformer",
        "attention_head_dim": 128,
        "guidance_embeds": true,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    });
    for (key, change) in changes {
        value[*key] = change.clone();
    }
    ConfigReader::from_value(Path::new("config.json"), value).unwrap()
}

/// A line for each tensor, in the order of their names.
fn tensors(config: &FluxConfig) -> String {
    let weights = Weights::recording();
    FluxTransformer::load(&weights, config).unwrap();
    weights.recorded().iter().fold(String::new(), |mut lines, (name, shape)| {
        writeln!(lines, "{name} {shape:?}").unwrap();
        lines
    })
}

/// `tools/fixtures/flux_tensors.py` has built the network with diffusers, on the meta device.
#[test]
fn the_real_network_has_the_tensors_that_diffusers_gives_it() {
    let expected = include_str!("../fixtures/flux_tensors.txt");
    let got = tensors(&FluxConfig::read(reader(&[])).unwrap());
    assert_eq!(got.lines().count(), expected.lines().count());
    for (got, expected) in got.lines().zip(expected.lines()) {
        assert_eq!(got, expected);
    }
    let schnell = tensors(&FluxConfig::read(reader(&[("guidance_embeds", json!(false))])).unwrap());
    let without: Vec<&str> = expected.lines().filter(|line| !line.contains("guidance_embedder")).collect();
    assert_eq!(schnell.lines().collect::<Vec<_>>(), without);
    let fill = FluxConfig::read(reader(&[("in_channels", json!(384)), ("out_channels", json!(64))])).unwrap();
    assert!(tensors(&fill).contains("x_embedder.weight [3072, 384]"));
}

#[test]
fn values_that_are_not_computed_are_refused_with_their_key() {
    for (key, value) in [
        ("patch_size", json!(2)),
        ("axes_dims_rope", json!([16, 56])),
        ("axes_dims_rope", json!([15, 57, 56])),
        ("axes_dims_rope", json!([16, 56, 58])),
        ("num_attention_heads", json!(0)),
        ("guidance_embeds", json!("yes")),
        ("something_new", json!(true)),
    ] {
        let error = FluxConfig::read(reader(&[(key, value.clone())])).expect_err(key).to_string();
        assert!(error.starts_with(&format!("config.json: {key} is {value}, ")), "{error}");
    }
}
