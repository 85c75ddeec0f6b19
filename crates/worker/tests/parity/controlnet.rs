//! ControlNets against diffusers: every recorded call.

use std::path::Path;

use atelier_worker::{
    controlnet::{ControlNet, ControlNetConfig, ControlNetUnion, UnionConfig, UnionHint},
    torch::InferenceMode,
    unet::{Conditions, ControlResiduals},
    weights::{LoadOptions, Weights},
};
use tch::Tensor;

use crate::{
    fixture::{Fixture, TOLERANCE},
    unet::{STEM, added, cases},
};

pub(crate) fn load(folder: &Path) -> ControlNet {
    let config = ControlNetConfig::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, STEM, &LoadOptions::cpu()).unwrap();
    let network = ControlNet::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    network
}

pub(crate) fn load_union(folder: &Path) -> ControlNetUnion {
    let config = UnionConfig::open(&folder.join("config.json")).unwrap();
    let weights = Weights::open_folder(folder, STEM, &LoadOptions::cpu()).unwrap();
    let network = ControlNetUnion::load(&weights, &config).unwrap();
    weights.finish().unwrap();
    network
}

/// All residuals of a call, times `scale`.
pub(crate) fn check(case: &Fixture, call: &str, residuals: &ControlResiduals, scale: f64) {
    let count = (0..1000).take_while(|i| case.has(&format!("{call}.out.0.{i}"))).count();
    assert_eq!(residuals.down.len(), count, "{}: residuals", case.name);
    for (i, residual) in residuals.down.iter().enumerate() {
        let name = format!("{call}.out.0.{i}");
        case.compare(&name, &(residual * scale), &case.tensor(&name), TOLERANCE);
    }
    let name = format!("{call}.out.1");
    case.compare(&name, &(&residuals.mid * scale), &case.tensor(&name), TOLERANCE);
}

/// The scale is a number, which the recording does not hold: it follows from one element, and all others must fit.
fn scale_of(case: &Fixture, call: &str, residuals: &ControlResiduals) -> f64 {
    let wanted = case.tensor(&format!("{call}.out.1")).reshape([-1]);
    let at = wanted.abs().argmax(0, false).int64_value(&[]);
    let scale = wanted.double_value(&[at]) / residuals.mid.reshape([-1]).double_value(&[at]);
    // Such a number has two digits.
    let round = (scale * 100.0).round() / 100.0;
    assert!((scale - round).abs() < 1e-4 && round > 0.0, "{} {call}: the scale {scale}", case.name);
    round
}

#[test]
fn each_call_of_a_controlnet_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    for case in cases("controlnet", "ControlNetModel") {
        let network = load(&case.component("controlnet"));
        for i in 0..case.calls("controlnet") {
            let call = format!("controlnet.{i}");
            let added = added(&case, &call);
            let text = case.tensor(&format!("{call}.in.encoder_hidden_states"));
            let conditions = Conditions { added: added.as_ref(), ..Conditions::text(&text) };
            let timestep = case.tensor(&format!("{call}.in.1")).double_value(&[]);
            let hint = case.tensor(&format!("{call}.in.controlnet_cond"));
            let sample = case.tensor(&format!("{call}.in.0"));
            let residuals = network.forward(&sample, timestep, &conditions, &hint, 1.0).unwrap();
            let scale = scale_of(&case, &call, &residuals);
            check(&case, &call, &residuals, scale);
            let scaled = network.forward(&sample, timestep, &conditions, &hint, scale).unwrap();
            check(&case, &call, &scaled, 1.0);
        }
    }
}

#[test]
fn each_call_of_a_controlnet_union_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    for case in cases("controlnet", "ControlNetUnionModel") {
        let network = load_union(&case.component("controlnet"));
        for i in 0..case.calls("controlnet") {
            let call = format!("controlnet.{i}");
            let added = added(&case, &call);
            let text = case.tensor(&format!("{call}.in.encoder_hidden_states"));
            let conditions = Conditions { added: added.as_ref(), ..Conditions::text(&text) };
            let timestep = case.tensor(&format!("{call}.in.1")).double_value(&[]);
            let types = case.tensor(&format!("{call}.in.control_type")).get(0);
            let kind = types.argmax(0, false).int64_value(&[]);
            let picture = case.tensor(&format!("{call}.in.controlnet_cond.0"));
            let hint = UnionHint { picture: &picture, kind, scale: 1.0 };
            let sample = case.tensor(&format!("{call}.in.0"));
            let residuals = network.forward(&sample, timestep, &conditions, &[hint]).unwrap();
            check(&case, &call, &residuals, scale_of(&case, &call, &residuals));
        }
    }
}

#[test]
fn control_pictures_that_do_not_fit_are_told() {
    let _guard = InferenceMode::enter();
    let case = cases("controlnet", "ControlNetModel").remove(0);
    let network = load(&case.component("controlnet"));
    let (added, text) = (added(&case, "controlnet.0"), case.tensor("controlnet.0.in.encoder_hidden_states"));
    let conditions = Conditions { added: added.as_ref(), ..Conditions::text(&text) };
    let hint = case.tensor("controlnet.0.in.controlnet_cond");
    let sample = case.tensor("controlnet.0.in.0");
    let gray = hint.narrow(1, 0, 1);
    let small = hint.narrow(2, 0, 8);
    for wrong in [&gray, &small] {
        let error = network.forward(&sample, 1.0, &conditions, wrong, 1.0).expect_err("it does not fit");
        assert!(error.to_string().contains("a control picture of"), "{error}");
    }
}

#[test]
fn a_union_refuses_hints_that_it_cannot_tell_apart() {
    let _guard = InferenceMode::enter();
    let case = cases("controlnet", "ControlNetUnionModel").remove(0);
    let network = load_union(&case.component("controlnet"));
    let (added, text) = (added(&case, "controlnet.0"), case.tensor("controlnet.0.in.encoder_hidden_states"));
    let conditions = Conditions { added: added.as_ref(), ..Conditions::text(&text) };
    let picture = case.tensor("controlnet.0.in.controlnet_cond.0");
    let sample = case.tensor("controlnet.0.in.0");
    let hint = |kind| UnionHint { picture: &picture, kind, scale: 1.0 };
    let message =
        |hints: &[UnionHint<'_>]| network.forward(&sample, 1.0, &conditions, hints).expect_err("refused").to_string();
    assert!(message(&[]).contains("needs a control picture"));
    assert!(message(&[hint(1), hint(1)]).contains("two control pictures of the kind 1"));
    assert!(message(&[hint(99)]).contains("the kind 99"));
    assert!(message(&[hint(-1)]).contains("the kind -1"));
}

#[test]
fn residuals_of_several_controlnets_add_up() {
    let ones = |scale: f64| Tensor::ones([1, 2, 3, 3], (tch::Kind::Float, tch::Device::Cpu)) * scale;
    let mut sum = ControlResiduals { down: vec![ones(1.0), ones(2.0)], mid: ones(3.0) };
    sum.add(&ControlResiduals { down: vec![ones(10.0), ones(20.0)], mid: ones(30.0) }).unwrap();
    let values: Vec<f64> = sum.down.iter().chain([&sum.mid]).map(|tensor| tensor.max().double_value(&[])).collect();
    assert_eq!(values, [11.0, 22.0, 33.0]);
    assert!(sum.add(&ControlResiduals { down: vec![ones(1.0)], mid: ones(1.0) }).is_err());
}
