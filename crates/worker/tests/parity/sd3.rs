//! `SD3Transformer2DModel` against diffusers: every recorded call, in both layouts.

use std::path::Path;

use atelier_worker::{
    nn::config::ConfigReader,
    torch::InferenceMode,
    transformer::{Sd3Conditions, Sd3Config, Sd3Transformer},
    weights::{LoadOptions, Weights},
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::{
    fixture::Fixture,
    unet::{STEM, cases},
};

fn load(folder: &Path) -> Sd3Transformer {
    let config = Sd3Config::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, STEM, &LoadOptions::cpu()).unwrap();
    let transformer = Sd3Transformer::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    transformer
}

const fn conditions<'a>(text: &'a Tensor, pooled: &'a Tensor) -> Sd3Conditions<'a> {
    Sd3Conditions { encoder_hidden_states: text, pooled_projections: pooled, skip_layers: &[] }
}

fn recorded() -> Vec<Fixture> {
    cases("transformer", "SD3Transformer2DModel")
}

#[test]
fn each_call_of_an_sd3_transformer_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    for case in recorded() {
        let transformer = load(&case.component("transformer"));
        for i in 0..case.calls("transformer") {
            let call = format!("transformer.{i}");
            let input = |name: &str| case.tensor(&format!("{call}.in.{name}"));
            let (text, pooled) = (input("encoder_hidden_states"), input("pooled_projections"));
            let timestep = input("timestep").double_value(&[0]);
            let output = transformer.forward(&input("hidden_states"), timestep, &conditions(&text, &pooled)).unwrap();
            case.check(&format!("{call}.out.0"), &output);
        }
    }
}

#[test]
fn a_batch_gives_what_each_of_its_samples_gives_alone_at_any_size() {
    let _guard = InferenceMode::enter();
    let case = recorded().remove(0);
    let transformer = load(&case.component("transformer"));
    let config = transformer.config();
    let random = |sizes: &[i64]| Tensor::randn(sizes, (Kind::Float, Device::Cpu));
    // The whole table of places, a single patch, and an uneven rest on either side.
    let side = config.pos_embed_max_size;
    for (batch, rows, columns, tokens) in [(2, side, side, 3), (1, 1, 1, 1), (3, 2, 5, 9)] {
        let latents = random(&[batch, config.in_channels, 2 * rows, 2 * columns]);
        let text = random(&[batch, tokens, config.joint_attention_dim]);
        let pooled = random(&[batch, config.pooled_projection_dim]);
        let together = transformer.forward(&latents, 750.5, &conditions(&text, &pooled)).unwrap();
        assert_eq!(together.size(), [batch, config.out_channels, 2 * rows, 2 * columns]);
        for i in 0..batch {
            let (text, pooled) = (text.narrow(0, i, 1), pooled.narrow(0, i, 1));
            let alone = transformer.forward(&latents.narrow(0, i, 1), 750.5, &conditions(&text, &pooled)).unwrap();
            case.compare("alone", &alone, &together.narrow(0, i, 1), 1e-5);
        }
    }
}

#[test]
fn what_does_not_fit_an_sd3_transformer_is_told() {
    let _guard = InferenceMode::enter();
    let case = recorded().remove(0);
    let transformer = load(&case.component("transformer"));
    let input = |name: &str| case.tensor(&format!("transformer.0.in.{name}"));
    let (latents, text, pooled) = (input("hidden_states"), input("encoder_hidden_states"), input("pooled_projections"));
    let message = |latents: &Tensor, text: &Tensor, pooled: &Tensor| {
        transformer.forward(latents, 1.0, &conditions(text, pooled)).expect_err("it does not fit").to_string()
    };
    assert!(message(&Tensor::cat(&[&latents, &latents], 1), &text, &pooled).contains("channels"));
    assert!(message(&latents.narrow(2, 0, 3), &text, &pooled).contains("patches of 2"));
    assert!(message(&latents, &text.narrow(2, 0, 3), &pooled).contains("a text of"));
    assert!(message(&latents, &text, &pooled.narrow(0, 0, 1)).contains("a pooled text of"));
    let wide = latents.repeat([1, 1, 1, 4]);
    assert!(message(&wide, &text, &pooled).contains("the model has places for 13 x 13"));
}

#[test]
fn values_that_an_sd3_transformer_does_not_compute_are_refused_with_their_key() {
    let refused = [
        ("qk_norm", json!("layer_norm")),
        ("caption_projection_dim", json!(1000)),
        ("dual_attention_layers", json!([0, 18])),
        ("dual_attention_layers", json!([-1])),
        ("num_layers", json!("many")),
        ("pos_embed_max_size", json!(0)),
        ("something_new", json!(true)),
    ];
    for (key, value) in refused {
        let config = json!({ key: value.clone() });
        let reader = ConfigReader::from_value(Path::new("config.json"), config).unwrap();
        let error = Sd3Config::read(reader).expect_err(key).to_string();
        assert!(error.starts_with(&format!("config.json: {key} is {value}, ")), "{error}");
    }
    let defaults = Sd3Config::read(
        ConfigReader::from_value(Path::new("config.json"), Value::Object(serde_json::Map::new())).unwrap(),
    );
    assert_eq!(defaults.unwrap().width(), 1152);
}
