//! Everything that can be wrong is said before anything is loaded, by name, with what to do.

use std::fs;

use atelier_domain::{ErrorInfo, JobKind, protocol::Run};
use serde_json::{Value, json};

use crate::support::{Bench, refused};

/// The refusal names what is wrong, and nothing was loaded or left behind.
#[track_caller]
pub(crate) fn refuses(run: &Run, code: &str, parts: &[&str]) -> ErrorInfo {
    let error = refused(run);
    assert_eq!(error.code.as_str(), code, "{error:?}");
    for part in parts {
        assert!(error.message.contains(part) || error.hint.contains(part), "{error:?} does not say {part:?}");
    }
    assert_eq!(fs::read_dir(run.work_dir.as_path()).unwrap().count(), 0, "files were left");
    error
}

#[test]
fn a_parameter_that_does_not_fit_is_named() {
    let bench = Bench::new();
    let with = |params: Value| bench.generate(&params);
    refuses(&with(json!({ "width": 30 })), "invalid_params", &["width", "30", "32"]);
    refuses(&with(json!({ "steps": 0 })), "invalid_params", &["steps is 0"]);
    refuses(&with(json!({ "sampler": "heun" })), "invalid_params", &["heun", "euler"]);
    refuses(&with(json!({ "strength": 0.5 })), "invalid_params", &["strength", "none came along"]);
    refuses(&with(json!({ "clip_skip": 12 })), "invalid_params", &["clip_skip"]);
    refuses(&with(json!({ "loras": "film" })), "unknown_model", &["film"]);
    refuses(&with(json!({ "prompt": "a cat <lora:film:0.8>" })), "unknown_model", &["film"]);
    refuses(&with(json!({ "prompt": "a cat <lora:film" })), "invalid_params", &["<lora:film", "does not end"]);
    refuses(&with(json!({ "control_mode": "canny" })), "invalid_params", &["control_mode"]);
    let mut from_picture = with(json!({ "strength": 0.1, "steps": 5 }));
    from_picture.inputs = vec![bench.picture("photo.png", 32, 32).into()];
    refuses(&from_picture, "invalid_params", &["strength", "no step"]);
}

#[test]
fn pictures_and_masks_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    let photo = bench.picture("photo.png", 40, 32);
    let mut run = bench.generate(&json!({}));
    run.inputs = vec![photo.clone().into(), photo.clone().into()];
    refuses(&run, "invalid_params", &["1 picture", "2 were given"]);

    let mut inpaint = bench.generate(&json!({}));
    inpaint.kind = JobKind::Inpaint;
    inpaint.inputs = vec![photo.clone().into()];
    refuses(&inpaint, "invalid_request", &["mask"]);
    inpaint.mask = Some(bench.picture("mask.png", 32, 40).into());
    refuses(&inpaint, "invalid_request", &["32 x 40", "40 x 32"]);

    let mut masked = bench.generate(&json!({}));
    masked.mask = Some(photo.into());
    refuses(&masked, "invalid_request", &["mask"]);

    let edit = bench.job(JobKind::Edit, Bench::random("ip2p"), &json!({ "prompt": "x" }));
    refuses(&edit, "invalid_request", &["needs a picture"]);
    let mut sliver = edit;
    sliver.inputs = vec![bench.picture("sliver.png", 2000, 1).into()];
    refuses(&sliver, "invalid_params", &["too small"]);
}

/// A copy of the Stable Diffusion folder with one thing changed.
fn damaged(bench: &Bench, change: impl Fn(&std::path::Path)) -> Run {
    let model = bench.copy_of(&Bench::random("sd15"));
    change(model.path.as_path());
    let mut run = bench.generate(&json!({ "steps": 1 }));
    run.models = vec![model];
    run
}

pub(crate) fn edit_json(path: &std::path::Path, change: impl Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn a_folder_that_is_damaged_names_the_file_and_the_key() {
    const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";
    type Change = Box<dyn Fn(&std::path::Path)>;
    let remove = |name: &'static str| -> Change { Box::new(move |root| fs::remove_file(root.join(name)).unwrap()) };
    let set = |name: &'static str, key: &'static str, value: Value| -> Change {
        Box::new(move |root| edit_json(&root.join(name), |config| config[key] = value.clone()))
    };
    let cases: [(Change, &[&str]); 8] = [
        (remove(WEIGHTS), &["unet", "diffusion_pytorch_model.safetensors"]),
        (remove("vae/config.json"), &["vae/config.json"]),
        (remove("scheduler/scheduler_config.json"), &["scheduler_config.json"]),
        (
            Box::new(|root| {
                let bytes = fs::read(root.join(WEIGHTS)).unwrap();
                fs::write(root.join(WEIGHTS), &bytes[..bytes.len() / 2]).unwrap();
            }),
            &[WEIGHTS],
        ),
        (set("scheduler/scheduler_config.json", "_class_name", json!("HeunScheduler")), &["HeunScheduler", "sampler"]),
        (set("unet/config.json", "in_channels", json!(5)), &["unet/config.json", "in_channels"]),
        (set("unet/config.json", "cross_attention_dim", json!(48)), &["unet/config.json", "cross_attention_dim"]),
        (set("unet/config.json", "block_out_channels", json!("wide")), &["unet/config.json", "block_out_channels"]),
    ];
    for (change, parts) in cases {
        let bench = Bench::new();
        refuses(&damaged(&bench, change), "model_incomplete", parts);
    }
}

#[test]
fn weights_of_another_shape_are_listed_by_name() {
    let bench = Bench::new();
    let run = damaged(&bench, |root| {
        edit_json(&root.join("unet/config.json"), |config| config["layers_per_block"] = json!(1));
    });
    let error = refused(&run);
    assert_eq!(error.code.as_str(), "model_incomplete");
    assert!(error.message.contains("unexpected") && error.message.contains("resnets.1"), "{error:?}");
}

#[test]
fn a_bare_controlnet_says_what_it_needs() {
    let bench = Bench::new();
    let params = json!({ "prompt": "x", "steps": 1 });
    let mut run = bench.job(JobKind::Control, Bench::random("controlnet_sdxl"), &params);
    run.inputs = vec![bench.picture("edges.png", 32, 32).into()];
    refuses(&run, "not_available", &["StableDiffusionXLPipeline"]);
    run.parts = vec![Bench::random("sdxl")];
    run.params.preprocessor = Some(atelier_domain::Preprocessor::Lineart);
    let finished = crate::support::finish(&run);
    let notes = finished.manifest["notes"].to_string();
    assert!(notes.contains("lineart") && notes.contains("Canny"), "{notes}");
    assert_eq!(finished.manifest["base_model"], "sdxl");
}
