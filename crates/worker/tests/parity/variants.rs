//! Networks that no recorded pipeline has, made by `tools/fixtures/variants`: unusual settings, odd sizes, old names.

use std::path::{Path, PathBuf};

use atelier_worker::{controlnet::UnionHint, torch::InferenceMode, unet::Conditions, vae::Partition};

use crate::{controlnet, fixture::Fixture, unet, vae};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/variants").join(name)
}

fn case(name: &str) -> Fixture {
    Fixture::read(&folder(name))
}

#[test]
fn unets_of_unusual_settings_give_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    for name in ["unet_odd_sizes", "unet_without_middle"] {
        let case = case(name);
        let network = unet::load(&case.component("unet"));
        let text = case.tensor("unet.0.in.encoder_hidden_states");
        let cond = unet::recorded(&case, "unet.0.in.timestep_cond");
        let conditions = Conditions { timestep_cond: cond.as_ref(), ..Conditions::text(&text) };
        let timestep = case.tensor("unet.0.in.timestep").double_value(&[]);
        let output = network.forward(&case.tensor("unet.0.in.sample"), timestep, &conditions).unwrap();
        case.check("unet.0.out.0", &output);
    }
}

#[test]
fn vaes_of_old_names_and_other_settings_give_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    for name in ["vae_old_names", "vae_shifted"] {
        let case = case(name);
        let network = vae::load(&case.component("vae"));
        vae::check(&case, &network, Partition::Whole);
        vae::check(&case, &network, Partition::Slices);
        vae::check_bands(name, &network, [1, 91, 110], &[24, 40]);
    }
}

#[test]
fn a_controlnet_that_pools_and_reads_bgr_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    let case = case("controlnet_pooled");
    let network = controlnet::load(&case.component("controlnet"));
    let text = case.tensor("controlnet.0.in.encoder_hidden_states");
    let number = |name: &str| case.tensor(&format!("controlnet.0.in.{name}")).double_value(&[]);
    let residuals = network
        .forward(
            &case.tensor("controlnet.0.in.sample"),
            number("timestep"),
            &Conditions::text(&text),
            &case.tensor("controlnet.0.in.controlnet_cond"),
            number("scale"),
        )
        .unwrap();
    controlnet::check(&case, "controlnet.0", &residuals, 1.0);
}

#[test]
fn a_union_of_two_hints_gives_what_diffusers_gives() {
    let _guard = InferenceMode::enter();
    let case = case("controlnet_union_two");
    let network = controlnet::load_union(&case.component("controlnet"));
    let text = case.tensor("controlnet.0.in.encoder_hidden_states");
    let added = unet::added(&case, "controlnet.0");
    let conditions = Conditions { added: added.as_ref(), ..Conditions::text(&text) };
    let pictures: Vec<_> = (0..2).map(|i| case.tensor(&format!("controlnet.0.in.controlnet_cond.{i}"))).collect();
    let hints: Vec<_> = pictures
        .iter()
        .zip(0..)
        .map(|(picture, i)| UnionHint {
            picture,
            #[allow(clippy::cast_possible_truncation, reason = "a small whole number")]
            kind: case.tensor("controlnet.0.in.kinds").double_value(&[i]) as i64,
            scale: case.tensor("controlnet.0.in.scales").double_value(&[i]),
        })
        .collect();
    let timestep = case.tensor("controlnet.0.in.timestep").double_value(&[]);
    let residuals = network.forward(&case.tensor("controlnet.0.in.sample"), timestep, &conditions, &hints).unwrap();
    controlnet::check(&case, "controlnet.0", &residuals, 1.0);
}

#[test]
fn the_built_in_models_vae_is_the_same_in_bands() {
    let _guard = InferenceMode::enter();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-edit/vae");
    let vae = vae::load(&models);
    vae::check_bands("tiny-edit", &vae, [1, 170, 213], &[64]);
}
