//! `UNet2DConditionModel` against diffusers: every recorded call of every pipeline, in both layouts.

use std::path::Path;

use atelier_worker::{
    nn::Slicing,
    torch::InferenceMode,
    unet::{Added, Conditions, ControlResiduals, UNet2DCondition, UNetConfig},
    weights::{LoadOptions, Weights},
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::fixture::Fixture;

pub(crate) const STEM: &str = "diffusion_pytorch_model";

/// Those of the recorded cases whose component is of this class; never none.
pub(crate) fn cases(component: &str, class: &str) -> Vec<Fixture> {
    let call = if component == "vae" { "vae.decode" } else { component };
    let mut cases = Fixture::with(call);
    cases.retain(|case| class_of(&case.component(component)) == class);
    assert!(!cases.is_empty(), "no case has a {component} of the class {class}");
    cases
}

fn class_of(folder: &Path) -> String {
    let text = std::fs::read(folder.join("config.json")).unwrap();
    let value: Value = serde_json::from_slice(&text).unwrap();
    value["_class_name"].as_str().unwrap().to_owned()
}

pub(crate) fn load(folder: &Path) -> UNet2DCondition {
    let config = UNetConfig::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, STEM, &LoadOptions::cpu()).unwrap();
    let unet = UNet2DCondition::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    unet
}

/// The tensors of one call, each optional.
pub(crate) fn recorded(case: &Fixture, name: &str) -> Option<Tensor> {
    case.has(name).then(|| case.tensor(name))
}

pub(crate) fn added(case: &Fixture, call: &str) -> Option<Added> {
    let text_embeds = recorded(case, &format!("{call}.in.added_cond_kwargs.text_embeds"))?;
    let time_ids = case.tensor(&format!("{call}.in.added_cond_kwargs.time_ids"));
    Some(Added { text_embeds, time_ids })
}

fn residuals(case: &Fixture, call: &str) -> Option<ControlResiduals> {
    let mid = recorded(case, &format!("{call}.in.mid_block_additional_residual"))?;
    let name = |i: usize| format!("{call}.in.down_block_additional_residuals.{i}");
    let down = (0..).map_while(|i| recorded(case, &name(i))).collect();
    Some(ControlResiduals { down, mid })
}

#[test]
fn each_call_of_a_unet_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    for case in cases("unet", "UNet2DConditionModel") {
        let unet = load(&case.component("unet"));
        for i in 0..case.calls("unet") {
            let call = format!("unet.{i}");
            let (added, residuals) = (added(&case, &call), residuals(&case, &call));
            let text = case.tensor(&format!("{call}.in.encoder_hidden_states"));
            let timestep = case.tensor(&format!("{call}.in.1")).double_value(&[]);
            let conditions =
                Conditions { added: added.as_ref(), residuals: residuals.as_ref(), ..Conditions::text(&text) };
            let output = unet.forward(&case.tensor(&format!("{call}.in.0")), timestep, &conditions).unwrap();
            case.check(&format!("{call}.out.0"), &output);
        }
    }
}

#[test]
fn attention_in_slices_and_samples_one_by_one_give_the_same() {
    let _guard = InferenceMode::enter();
    let case = cases("unet", "UNet2DConditionModel").remove(0);
    let unet = load(&case.component("unet"));
    let channels = case.tensor("unet.0.in.0").size()[1];
    let features = case.tensor("unet.0.in.encoder_hidden_states").size()[2];
    let pooled = added(&case, "unet.0").map(|added| added.text_embeds.size()[1]);
    let random = |sizes: &[i64]| Tensor::randn(sizes, (Kind::Float, Device::Cpu));
    for (batch, height, width, tokens) in [(1, 2, 3, 1), (3, 7, 11, 4), (5, 16, 10, 9)] {
        let sample = random(&[batch, channels, height, width]);
        let text = random(&[batch, tokens, features]);
        let added = pooled.map(|size| Added { text_embeds: random(&[batch, size]), time_ids: random(&[batch, 6]) });
        let conditions = Conditions { added: added.as_ref(), ..Conditions::text(&text) };
        let together = unet.forward(&sample, 7.5, &conditions).unwrap();
        assert_eq!(together.size(), [batch, case.tensor("unet.0.out.0").size()[1], height, width]);
        let sliced = unet.forward(&sample, 7.5, &Conditions { slicing: Slicing::Queries(3), ..conditions }).unwrap();
        case.compare("in slices", &sliced, &together, 1e-5);
        for i in 0..batch {
            let added = added.as_ref().map(|added| Added {
                text_embeds: added.text_embeds.narrow(0, i, 1),
                time_ids: added.time_ids.narrow(0, i, 1),
            });
            let text = text.narrow(0, i, 1);
            let conditions = Conditions { added: added.as_ref(), ..Conditions::text(&text) };
            let alone = unet.forward(&sample.narrow(0, i, 1), 7.5, &conditions).unwrap();
            case.compare("alone", &alone, &together.narrow(0, i, 1), 1e-5);
        }
    }
}

#[test]
fn what_does_not_fit_a_unet_is_told() {
    let _guard = InferenceMode::enter();
    let case = cases("unet", "UNet2DConditionModel").remove(0);
    let unet = load(&case.component("unet"));
    let (sample, text) = (case.tensor("unet.0.in.0"), case.tensor("unet.0.in.encoder_hidden_states"));
    let added = added(&case, "unet.0");
    let fits = Conditions { added: added.as_ref(), ..Conditions::text(&text) };
    let message = |sample: &Tensor, conditions: &Conditions<'_>| {
        unet.forward(sample, 1.0, conditions).expect_err("it does not fit").to_string()
    };
    let wide = Tensor::cat(&[&sample, &sample], 1);
    assert!(message(&wide, &fits).contains("channels"));
    let narrow = text.narrow(2, 0, 3);
    assert!(message(&sample, &Conditions { encoder_hidden_states: &narrow, ..fits }).contains("a text of"));
    let other =
        Added { text_embeds: text.mean_dim([1_i64].as_slice(), false, None), time_ids: text.narrow(1, 0, 1).squeeze() };
    let wrong = Conditions { added: if added.is_some() { None } else { Some(&other) }, ..fits };
    assert!(message(&sample, &wrong).contains("text_embeds"));
    let residuals = ControlResiduals { down: vec![sample.shallow_clone()], mid: sample.shallow_clone() };
    assert!(message(&sample, &Conditions { residuals: Some(&residuals), ..fits }).contains("1 residuals"));
    let cond = text.narrow(1, 0, 1).squeeze();
    assert!(message(&sample, &Conditions { timestep_cond: Some(&cond), ..fits }).contains("time_cond_proj_dim"));
}
