//! `AuraFlowTransformer2DModel` against diffusers: every recorded call, in both layouts.

use std::path::Path;

use atelier_worker::{
    nn::config::ConfigReader,
    torch::InferenceMode,
    transformer::{AuraFlowConfig, AuraFlowTransformer},
    weights::{LoadOptions, Weights},
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{
    fixture::Fixture,
    unet::{STEM, cases},
};

fn load(folder: &Path) -> AuraFlowTransformer {
    let config = AuraFlowConfig::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, STEM, &LoadOptions::cpu()).unwrap();
    let transformer = AuraFlowTransformer::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    transformer
}

fn recorded() -> Vec<Fixture> {
    cases("transformer", "AuraFlowTransformer2DModel")
}

#[test]
fn each_call_of_an_aura_flow_transformer_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    for case in recorded() {
        let transformer = load(&case.component("transformer"));
        for i in 0..case.calls("transformer") {
            let call = format!("transformer.{i}");
            let input = |name: &str| case.tensor(&format!("{call}.in.{name}"));
            let (timestep, text) = (input("timestep").double_value(&[0]), input("encoder_hidden_states"));
            let output = transformer.forward(&input("0"), timestep, &text).unwrap();
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
    let side = config.pos_embed_side;
    for (batch, rows, columns, tokens) in [(2, side, side, 3), (1, 1, 1, 1), (3, 2, 5, 9)] {
        let latents = random(&[batch, config.in_channels, 2 * rows, 2 * columns]);
        let text = random(&[batch, tokens, config.joint_attention_dim]);
        let together = transformer.forward(&latents, 0.75, &text).unwrap();
        assert_eq!(together.size(), [batch, config.out_channels, 2 * rows, 2 * columns]);
        for i in 0..batch {
            let alone = transformer.forward(&latents.narrow(0, i, 1), 0.75, &text.narrow(0, i, 1)).unwrap();
            case.compare("alone", &alone, &together.narrow(0, i, 1), 1e-5);
        }
    }
}

#[test]
fn what_does_not_fit_an_aura_flow_transformer_is_told() {
    let _guard = InferenceMode::enter();
    let case = recorded().remove(0);
    let transformer = load(&case.component("transformer"));
    let (latents, text) = (case.tensor("transformer.0.in.0"), case.tensor("transformer.0.in.encoder_hidden_states"));
    let message = |latents: &Tensor, text: &Tensor| {
        transformer.forward(latents, 0.5, text).expect_err("it does not fit").to_string()
    };
    assert!(message(&latents.narrow(1, 0, 3), &text).contains("4 channels belong"));
    assert!(message(&latents.narrow(2, 0, 3), &text).contains("no whole patches"));
    assert!(message(&latents, &text.narrow(2, 0, 3)).contains("a text of"));
    assert!(message(&latents, &text.narrow(0, 0, 1)).contains("a text of"));
    assert!(message(&latents.repeat([1, 1, 1, 4]), &text).contains("the model has places for 15 x 15"));
}

#[test]
fn values_that_an_aura_flow_transformer_does_not_compute_are_refused_with_their_key() {
    let refused = [
        ("patch_size", json!(4)),
        ("caption_projection_dim", json!(1000)),
        ("pos_embed_max_size", json!(1000)),
        ("num_mmdit_layers", json!(-1)),
        ("num_single_dit_layers", json!("many")),
        ("something_new", json!(true)),
    ];
    for (key, value) in refused {
        let reader = ConfigReader::from_value(Path::new("config.json"), json!({ key: value.clone() })).unwrap();
        let error = AuraFlowConfig::read(reader).expect_err(key).to_string();
        assert!(error.starts_with(&format!("config.json: {key} is {value}, ")), "{error}");
    }
}
