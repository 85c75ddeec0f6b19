//! CLIP and T5 against transformers: the recorded calls of every pipeline, and small encoders in all layouts
//! (`tools/fixtures/worker_text_encoders.py`).

use std::path::Path;

use atelier_worker::{
    text_encoder::{ClipOutput, ClipText, ClipTextConfig, T5Config, T5Encoder, clip, t5},
    torch::InferenceMode,
    weights::{LoadOptions, Weights},
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, TOLERANCE};

/// `architectures` of a component's configuration.
fn architecture(folder: &Path) -> String {
    let path = folder.join("config.json");
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let config: Value = serde_json::from_slice(&text).unwrap();
    config["architectures"][0].as_str().expect("architectures").to_owned()
}

fn clip(folder: &Path) -> ClipText {
    let options = LoadOptions::cpu().with_aliases(clip::ALIASES);
    let weights = Weights::open_folder(folder, "model", &options).unwrap();
    let config = ClipTextConfig::read(folder).unwrap();
    let model = ClipText::load(&weights, &config, architecture(folder).ends_with("WithProjection")).unwrap();
    weights.finish().unwrap();
    model
}

fn t5(folder: &Path) -> T5Encoder {
    let options = LoadOptions::cpu().with_ignored(t5::IGNORED);
    let weights = Weights::open_folder(folder, "model", &options).unwrap();
    let model = T5Encoder::load(&weights, &T5Config::read(folder).unwrap()).unwrap();
    weights.finish().unwrap();
    model
}

fn own(name: &str) -> Fixture {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_encoders").join(name);
    Fixture::open(folder.to_str().unwrap())
}

/// The recorded ids of a call, and its mask, under the names that pipelines give them.
fn inputs(case: &Fixture, call: &str) -> (Tensor, Option<Tensor>) {
    let find = |names: [&str; 2]| {
        let name = names.map(|name| format!("{call}.in.{name}")).into_iter().find(|name| case.has(name));
        name.map(|name| case.tensor(&name))
    };
    (find(["0", "input_ids"]).expect("ids"), find(["1", "attention_mask"]))
}

fn check_pipeline(case: &Fixture, component: &str) -> bool {
    let folder = case.component(component);
    match architecture(&folder).as_str() {
        architecture @ ("CLIPTextModel" | "CLIPTextModelWithProjection") => {
            let model = clip(&folder);
            for call in 0..case.calls(component) {
                let call = format!("{component}.{call}");
                let ClipOutput { last_hidden, hidden, pooled, projected } =
                    model.forward(&inputs(case, &call).0).unwrap();
                // The outputs' order is that of transformers' classes.
                let (first, second) = match (architecture, projected) {
                    ("CLIPTextModel", None) => (last_hidden, pooled),
                    (_, Some(projected)) => (projected, last_hidden),
                    (_, None) => panic!("no projection"),
                };
                case.check(&format!("{call}.out.0"), &first);
                for (name, got) in [(format!("{call}.out.1"), second)] {
                    // A call without hidden states may have recorded no more than one output.
                    if case.has(&name) {
                        case.check(&name, &got);
                    }
                }
                for (i, hidden) in hidden.iter().enumerate() {
                    let name = format!("{call}.out.2.{i}");
                    if case.has(&name) {
                        case.check(&name, hidden);
                    }
                }
            }
        }
        "T5EncoderModel" | "UMT5EncoderModel" => {
            let model = t5(&folder);
            for call in 0..case.calls(component) {
                let call = format!("{component}.{call}");
                let (ids, mask) = inputs(case, &call);
                case.check(&format!("{call}.out.0"), &model.forward(&ids, mask.as_ref()).unwrap());
            }
        }
        other => {
            eprintln!("{} {component}: {other} is not this test's", case.name);
            return false;
        }
    }
    true
}

#[test]
fn the_text_encoders_of_every_pipeline_compute_what_transformers_computes() {
    let _guard = InferenceMode::enter();
    let mut checked = 0;
    for case in Fixture::with("text_encoder") {
        for component in ["text_encoder", "text_encoder_2", "text_encoder_3"] {
            checked += usize::from(case.calls(component) > 0 && check_pipeline(&case, component));
        }
    }
    assert!(checked > 0);
}

#[test]
fn clip_computes_what_transformers_computes_in_both_layouts() {
    let _guard = InferenceMode::enter();
    for name in ["clip", "clip-legacy", "clip-projection"] {
        let case = own(name);
        let model = clip(&case.component("text_encoder"));
        let output = model.forward(&case.tensor("text_encoder.0.in.0")).unwrap();
        case.check("text_encoder.0.last_hidden", &output.last_hidden);
        for (i, hidden) in output.hidden.iter().enumerate() {
            case.check(&format!("text_encoder.0.hidden.{i}"), hidden);
        }
        assert!(!case.has(&format!("text_encoder.0.hidden.{}", output.hidden.len())));
        match output.projected {
            Some(projected) => case.check("text_encoder.0.projected", &projected),
            None => case.check("text_encoder.0.pooled", &output.pooled),
        }
        let normed = model.final_norm(output.hidden.last().unwrap()).unwrap();
        case.compare("final norm", &normed, &output.last_hidden, TOLERANCE);
    }
}

#[test]
fn t5_computes_what_transformers_computes_with_and_without_a_mask() {
    let _guard = InferenceMode::enter();
    for name in ["t5", "t5-relu", "umt5"] {
        assert!(check_pipeline(&own(name), "text_encoder"), "{name}");
    }
}

#[test]
fn bfloat16_is_near_f32() {
    let _guard = InferenceMode::enter();
    // 8 bits of mantissa, through three layers.
    let near = 0.05;
    let case = own("clip-projection");
    let folder = case.component("text_encoder");
    let options = LoadOptions::new(Device::Cpu, Kind::BFloat16).with_aliases(clip::ALIASES);
    let weights = Weights::open_folder(&folder, "model", &options).unwrap();
    let model = ClipText::load(&weights, &ClipTextConfig::read(&folder).unwrap(), true).unwrap();
    weights.finish().unwrap();
    let output = model.forward(&case.tensor("text_encoder.0.in.0")).unwrap();
    assert_eq!(output.last_hidden.kind(), Kind::BFloat16);
    case.compare("last_hidden in bf16", &output.last_hidden, &case.tensor("text_encoder.0.last_hidden"), near);

    let case = own("umt5");
    let folder = case.component("text_encoder");
    let options = LoadOptions::new(Device::Cpu, Kind::BFloat16).with_ignored(t5::IGNORED);
    let weights = Weights::open_folder(&folder, "model", &options).unwrap();
    let model = T5Encoder::load(&weights, &T5Config::read(&folder).unwrap()).unwrap();
    weights.finish().unwrap();
    let (ids, mask) = inputs(&case, "text_encoder.1");
    let output = model.forward(&ids, mask.as_ref()).unwrap();
    assert_eq!(output.kind(), Kind::BFloat16);
    case.compare("out in bf16", &output, &case.tensor("text_encoder.1.out.0"), near);
}

#[test]
fn tokens_that_the_encoder_does_not_have_are_errors() {
    let _guard = InferenceMode::enter();
    let model = clip(&own("clip").component("text_encoder"));
    let error = model.forward(&Tensor::from_slice(&[1_i64, 90]).unsqueeze(0)).expect_err("90 tokens").to_string();
    assert!(error.contains("token 90"), "{error}");
    let error = model.forward(&Tensor::from_slice(&[1_i64; 21]).unsqueeze(0)).expect_err("20 places").to_string();
    assert!(error.contains("21 tokens are more than the model's 20"), "{error}");
    let model = t5(&own("t5").component("text_encoder"));
    let error = model.forward(&Tensor::from_slice(&[-1_i64]).unsqueeze(0), None).expect_err("below 0").to_string();
    assert!(error.contains("token -1"), "{error}");
}
