//! LoRAs fused as the tensors are taken, against diffusers' `load_lora_weights` and `fuse_lora`
//! (`tools/fixtures/worker_loras.py`).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use atelier_worker::{
    lora::{Component, LoraError, LoraFile, LoraUse, resolve},
    text_encoder::clip,
    torch::InferenceMode,
    weights::{LoadOptions, Weights},
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, TOLERANCE};

#[derive(Deserialize)]
struct Case {
    model: String,
    loras: BTreeMap<String, f64>,
}

const PARTS: [(&str, Component); 3] = [
    ("unet", Component::Denoiser),
    ("text_encoder", Component::TextEncoder),
    ("text_encoder_2", Component::TextEncoder2),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/loras")
}

fn cases() -> BTreeMap<String, Case> {
    serde_json::from_slice(&fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

fn lora(name: &str) -> LoraFile {
    LoraFile::open(&folder().join(format!("loras/{name}.safetensors"))).unwrap()
}

fn used(file: LoraFile, weight: f64) -> LoraUse {
    LoraUse { file: Rc::new(file), denoiser_weight: weight, text_encoder_weight: weight }
}

fn weights(model: &str, part: &str) -> Weights {
    let (stem, aliases) = if part == "unet" { ("diffusion_pytorch_model", &[][..]) } else { ("model", clip::ALIASES) };
    let options = LoadOptions::cpu().with_aliases(aliases);
    Weights::open_folder(&folder().join(model).join(part), stem, &options).unwrap()
}

/// All tensors of a component.
fn all(weights: Weights) -> BTreeMap<String, Tensor> {
    let shapes = weights.shapes();
    let tensors = shapes.iter().map(|(name, shape)| (name.clone(), weights.take(name, shape).unwrap())).collect();
    weights.finish().unwrap();
    tensors
}

#[test]
fn fused_weights_are_those_of_diffusers_and_all_others_are_the_files() {
    let _guard = InferenceMode::enter();
    let cases = cases();
    assert_eq!(cases.len(), 5);
    for (name, case) in cases {
        let want: BTreeMap<String, Tensor> =
            Tensor::read_safetensors(folder().join(format!("{name}.safetensors"))).unwrap().into_iter().collect();
        // Only to compare and report as the other tests of parity do.
        let fixture = Fixture::of(&name, &folder());
        let loras: Vec<LoraUse> = case.loras.iter().map(|(name, &weight)| used(lora(name), weight)).collect();
        let mut compared = 0;
        for (part, component) in PARTS {
            if part == "text_encoder_2" && case.model == "sd" {
                continue;
            }
            let mut fused = weights(&case.model, part);
            let resolved = resolve(&loras, component, &fused).unwrap();
            assert_eq!(resolved.warnings, [""; 0], "{name} {part}");
            fused.set_deltas(resolved.deltas);
            let canonical = |name: &str| weights(&case.model, part).canonical(name);
            let want: BTreeMap<String, &Tensor> = want
                .iter()
                .filter_map(|(key, tensor)| Some((canonical(key.strip_prefix(&format!("{part}."))?), tensor)))
                .collect();
            assert_eq!(resolved.count, want.len(), "{name} {part}");
            let plain = all(weights(&case.model, part));
            for (key, got) in all(fused) {
                match want.get(&key) {
                    Some(want) => {
                        assert!(plain[&key] != got, "{name} {part}.{key}: unchanged");
                        fixture.compare(&format!("{part}.{key}"), &got, want, TOLERANCE);
                        compared += 1;
                    }
                    None => assert_eq!(plain[&key], got, "{name} {part}.{key}: changed"),
                }
            }
        }
        assert_eq!(compared, want.len(), "{name}");
    }
}

#[test]
fn the_models_files_are_as_before_and_loading_again_is_without_the_lora() {
    let _guard = InferenceMode::enter();
    let path = folder().join("sd/unet/diffusion_pytorch_model.safetensors");
    let before = fs::read(&path).unwrap();
    let plain = all(weights("sd", "unet"));
    let mut fused = weights("sd", "unet");
    fused.set_deltas(resolve(&[used(lora("sd-kohya"), 1.0)], Component::Denoiser, &fused).unwrap().deltas);
    assert_ne!(all(fused), plain);
    assert_eq!(all(weights("sd", "unet")), plain);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn each_part_has_its_own_weight() {
    let _guard = InferenceMode::enter();
    let mut lora = used(lora("sd-kohya"), 0.0);
    lora.text_encoder_weight = 1.0;
    let fuse = |part: &str, component| {
        let mut fused = weights("sd", part);
        fused.set_deltas(resolve(std::slice::from_ref(&lora), component, &fused).unwrap().deltas);
        all(fused)
    };
    assert_eq!(fuse("unet", Component::Denoiser), all(weights("sd", "unet")));
    assert_ne!(fuse("text_encoder", Component::TextEncoder), all(weights("sd", "text_encoder")));
}

#[test]
fn a_lora_for_another_model_is_refused_with_its_keys() {
    let lora = used(lora("sdxl-kohya"), 1.0);
    assert_eq!(lora.file.components().len(), 3);
    let error = |part: &str, component| {
        resolve(std::slice::from_ref(&lora), component, &weights("sd", part)).err().expect("another model").to_string()
    };
    let text = error("unet", Component::Denoiser);
    for part in ["sdxl-kohya.safetensors: made for another model", "lora_unet_", "more"] {
        assert!(text.contains(part), "{text}");
    }
}

/// A file of the tensors in `from` that are to be kept, and others.
fn changed(
    from: &str,
    keep: impl Fn(&str) -> bool,
    add: &[(&str, Tensor)],
) -> (tempfile::TempDir, Result<LoraFile, LoraError>) {
    let folder_of_file = tempfile::tempdir().unwrap();
    let path = folder_of_file.path().join("changed.safetensors");
    let tensors = Tensor::read_safetensors(folder().join(format!("loras/{from}.safetensors"))).unwrap();
    let mut tensors: Vec<(String, Tensor)> = tensors.into_iter().filter(|(name, _)| keep(name)).collect();
    tensors.extend(add.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())));
    Tensor::write_safetensors(&tensors, &path).unwrap();
    let file = LoraFile::open(&path);
    (folder_of_file, file)
}

fn ones(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn what_is_no_plain_lora_is_refused_and_named() {
    let check = |file: (tempfile::TempDir, Result<LoraFile, LoraError>), parts: &[&str]| {
        let error = file.1.err().expect("no LoRA").to_string();
        assert!(error.contains("changed.safetensors"), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    check(changed("sd-kohya", |_| true, &[("lora_unet_conv_in.dora_scale", ones(&[4]))]), &["dora_scale", "DoRA"]);
    check(changed("sd-kohya", |_| true, &[("lora_unet_conv_in.hada_w1_a", ones(&[4, 2]))]), &["hada_w1_a", "LoHa"]);
    check(changed("sd-kohya", |_| true, &[("conv_in.weight", ones(&[4]))]), &["unexpected: conv_in.weight"]);
    check(
        changed("sd-kohya", |name| name != "lora_unet_conv_in.lora_up.weight", &[]),
        &["lora_unet_conv_in.lora_down.weight", "up or lora_B, is missing"],
    );
    check(
        changed("sd-kohya", |name| name != "lora_unet_conv_in.lora_down.weight", &[]),
        &["lora_unet_conv_in", "down or lora_A, is missing"],
    );
    check(changed("sd-kohya", |_| false, &[("lora_unet_x.alpha", ones(&[]))]), &["an alpha without a layer"]);
    check(changed("sd-kohya", |_| false, &[]), &["no tensors"]);
    let halves = [("lora_unet_x.lora_down.weight", ones(&[2, 4])), ("lora_unet_x.lora_up.weight", ones(&[4, 3]))];
    check(changed("sd-kohya", |_| false, &halves), &["[2, 4] and [4, 3] do not make one change"]);
}

#[test]
fn a_layer_that_fits_nothing_is_an_error_in_the_denoiser_and_a_warning_in_a_text_encoder() {
    let halves = |module: &str| {
        [(format!("{module}.lora_down.weight"), ones(&[2, 8])), (format!("{module}.lora_up.weight"), ones(&[8, 2]))]
    };
    let with = |module: &str| {
        let halves = halves(module);
        let add: Vec<(&str, Tensor)> =
            halves.iter().map(|(name, half)| (name.as_str(), half.shallow_clone())).collect();
        changed("sd-kohya", |_| true, &add)
    };
    let (_folder, file) = with("lora_unet_nowhere");
    let file = used(file.unwrap(), 1.0);
    let error = resolve(&[file], Component::Denoiser, &weights("sd", "unet")).err().expect("nowhere").to_string();
    assert!(error.contains("denoiser has nothing for lora_unet_nowhere.lora_down.weight"), "{error}");

    let (_folder, file) = with("lora_te_text_model_encoder_layers_9_mlp_fc1");
    let file = used(file.unwrap(), 1.0);
    let resolved = resolve(&[file], Component::TextEncoder, &weights("sd", "text_encoder")).unwrap();
    assert_eq!(resolved.count, 12);
    assert!(resolved.warnings[0].contains("layers_9"), "{:?}", resolved.warnings);

    let (_folder, file) = changed(
        "sd-kohya",
        |name| name.starts_with("lora_unet_") && !name.contains("conv_in"),
        &[("lora_unet_conv_in.lora_down.weight", ones(&[2, 9])), ("lora_unet_conv_in.lora_up.weight", ones(&[4, 2]))],
    );
    let file = used(file.unwrap(), 1.0);
    let error = resolve(&[file], Component::Denoiser, &weights("sd", "unet")).err().expect("a shape").to_string();
    assert!(
        error.contains("lora_unet_conv_in.lora_down.weight changes [4, 9], but the model has [4, 4, 3, 3]"),
        "{error}"
    );
}
