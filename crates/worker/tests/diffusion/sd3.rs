//! Stable Diffusion 3 and AuraFlow: stopped after any step and started again, and what is refused before loading.

use std::{fs, path::Path};

use atelier_domain::{
    JobKind,
    model::Family,
    protocol::{ModelRef, Run},
};
use serde_json::{Value, json};

use crate::{
    refusals::{edit_json, refuses},
    resume::survives_every_stop,
    support::{Bench, Ended, execute, finish, merge, outputs},
};

fn generate(bench: &Bench, model: &str, params: &Value) -> Run {
    let mut all = json!({ "prompt": "a lighthouse above the sea", "seed": 3, "width": 24, "height": 16, "steps": 3 });
    merge(&mut all, params);
    bench.job(JobKind::Generate, Bench::random(model), &all)
}

#[test]
fn stable_diffusion_3_goes_on_bit_for_bit() {
    let bench = Bench::new();
    survives_every_stop(&bench, &generate(&bench, "sd3", &json!({ "num_images": 2, "steps": 2 })), 4);
    let mut inpaint = generate(&bench, "sd3", &json!({ "strength": 0.9, "steps": 3 }));
    inpaint.kind = JobKind::Inpaint;
    inpaint.inputs = vec![bench.picture("photo.png", 24, 16).into()];
    inpaint.mask = Some(bench.picture("mask.png", 24, 16).into());
    survives_every_stop(&bench, &inpaint, 3);
}

#[test]
fn aura_flow_goes_on_bit_for_bit() {
    let bench = Bench::new();
    survives_every_stop(&bench, &generate(&bench, "aura_flow", &json!({ "negative_prompt": "blurry" })), 3);
}

#[test]
fn a_published_vae_is_previewed_from_a_text_alone() {
    let bench = Bench::new();
    // The tiny ones scale their latents as the published ones do, but the last.
    for (model, is_known) in [("sd3", true), ("aura_flow", true), ("qwenimage", false)] {
        let run = generate(&bench, model, &json!({ "preview_every": 2, "width": 48, "height": 32, "steps": 4 }));
        assert!(matches!(execute(&run, Some(2)).unwrap(), Ended::Stopped { step: 2 }));
        let path = run.work_dir.as_path().join("preview.jpg");
        assert_eq!(path.is_file(), is_known, "{model}");
        if is_known {
            let (width, height) = image::image_dimensions(&path).unwrap();
            assert_eq!((width, height), (256, 256 * 2 / 3), "{model}");
        }
        finish(&run);
        assert!(!path.exists(), "{model}: it is left behind");
    }
}

#[test]
fn a_step_cache_leaves_blocks_out_and_goes_on_bit_for_bit() {
    let bench = Bench::new();
    for model in ["sd3", "aura_flow"] {
        let with = |threshold: f64| {
            generate(&bench, model, &json!({ "negative_prompt": "blurry", "steps": 5, "step_cache": threshold }))
        };
        let made = |run: &Run| outputs(run, &finish(run));
        let never = made(&with(0.0));
        assert!(made(&with(1e-6)) == never, "{model}: a threshold that no step keeps within");
        let most = with(1.0);
        assert!(made(&most) != never, "{model}: no block was left out");
        survives_every_stop(&bench, &Run { work_dir: bench.folder("job").into(), ..most }, 5);
    }
}

#[test]
fn a_folder_without_t5_is_run_and_says_so() {
    let bench = Bench::new();
    let whole = generate(&bench, "sd3", &json!({}));
    let notes = |run: &Run| finish(run).manifest["notes"].to_string();
    assert!(!notes(&whole).contains("text_encoder_3"));
    // Its index still names the part, as where somebody has removed the folder.
    let model = bench.copy_of(&Bench::random("sd3"));
    for part in ["text_encoder_3", "tokenizer_3"] {
        fs::remove_dir_all(model.path.as_path().join(part)).unwrap();
    }
    let mut without = generate(&bench, "sd3", &json!({}));
    without.models = vec![model];
    assert!(notes(&without).contains("text_encoder_3"));
    assert!(notes(&generate(&bench, "sd3_without_t5", &json!({}))).contains("text_encoder_3"));
}

#[test]
fn what_a_lora_changes_of_an_encoder_that_is_not_there_is_told() {
    let bench = Bench::new();
    let lora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/loras/sd3_kohya");
    let path = lora.join("pytorch_lora_weights.safetensors");
    let mut run = generate(&bench, "sd3", &json!({ "steps": 1, "loras": "film" }));
    run.parts = vec![ModelRef { id: "film".into(), family: Family::Lora, path: path.into() }];
    let notes = |run: &Run| finish(run).manifest["notes"].to_string();
    assert!(!notes(&run).contains("changes text_encoder"));
    let model = bench.copy_of(&Bench::random("sd3"));
    for part in ["text_encoder_3", "tokenizer_3"] {
        fs::remove_dir_all(model.path.as_path().join(part)).unwrap();
    }
    run.models = vec![model];
    assert!(notes(&run).contains("changes text_encoder_3, which this model does not have"));
    // Its transformer has other blocks.
    run.models = vec![Bench::random("sd3_without_t5")];
    run.work_dir = bench.folder("refused").into();
    refuses(&run, "invalid_params", &["made for another model", "lora_unet_joint_blocks_0_x_block_attn2_proj"]);
}

#[test]
fn a_text_that_is_too_long_is_cut_and_that_is_told() {
    let bench = Bench::new();
    let long = "a red fox in the snow, ".repeat(40);
    let notes = |model: &str| {
        let run = generate(&bench, model, &json!({ "prompt": long, "steps": 1 }));
        finish(&run).manifest["notes"].to_string()
    };
    let both = notes("sd3");
    assert!(both.contains("the 256 tokens that T5 reads") && both.contains("T5 reads on"), "{both}");
    assert!(notes("sd3_without_t5").contains("the rest was left out"));
    assert!(notes("aura_flow").contains("the 256 tokens that T5 reads"));
}

#[test]
fn a_size_follows_the_photo_in_whole_patches() {
    let bench = Bench::new();
    let mut run = bench.job(JobKind::Generate, Bench::random("sd3"), &json!({ "prompt": "x", "steps": 2 }));
    run.inputs = vec![bench.picture("photo.png", 30, 23).into()];
    let pictures = outputs(&run, &finish(&run));
    let picture = image::load_from_memory(&pictures[0]).unwrap();
    assert_eq!((picture.width(), picture.height()), (28, 20));
}

#[test]
fn a_parameter_that_does_not_fit_is_named() {
    let bench = Bench::new();
    for (model, params, parts) in [
        ("sd3", json!({ "width": 30 }), ["width", "no multiple of 4"]),
        ("sd3", json!({ "width": 56 }), ["width", "52 pixels"]),
        ("sd3", json!({ "prompt_weighting": true }), ["prompt_weighting", "CLIP"]),
        ("sd3", json!({ "clip_skip": 2 }), ["clip_skip", "too few"]),
        ("sd3", json!({ "strength": 0.5 }), ["strength", "none came along"]),
        ("sd3", json!({ "skip_layer_guidance": 2.8 }), ["skip_layer_guidance", "this model has 3"]),
        (
            "sd3_without_t5",
            json!({ "skip_layer_guidance": 2.8, "guidance_scale": 1.0 }),
            ["skip_layer_guidance", "guidance_scale above 1"],
        ),
        ("aura_flow", json!({ "skip_layer_guidance": 2.8 }), ["skip_layer_guidance", "Stable Diffusion 3"]),
        ("sd3", json!({ "sampler": "euler_a" }), ["euler_a", "flow"]),
        ("aura_flow", json!({ "height": 64 }), ["height", "60 pixels"]),
        ("aura_flow", json!({ "prompt_weighting": true }), ["prompt_weighting", "CLIP"]),
        ("aura_flow", json!({ "clip_skip": 1 }), ["clip_skip", "CLIP"]),
    ] {
        refuses(&generate(&bench, model, &params), "invalid_params", &parts);
    }
    let mut from_picture = generate(&bench, "sd3_without_t5", &json!({ "skip_layer_guidance": 2.8 }));
    from_picture.inputs = vec![bench.picture("photo.png", 24, 16).into()];
    refuses(&from_picture, "invalid_params", &["skip_layer_guidance", "from a text alone"]);
    let mut from_picture = generate(&bench, "aura_flow", &json!({}));
    from_picture.inputs = vec![bench.picture("photo.png", 24, 16).into()];
    refuses(&from_picture, "kind_not_supported", &["from a text alone"]);
}

/// Something that is done to a model's folder.
type Change = Box<dyn Fn(&Path)>;

#[test]
fn parts_that_do_not_fit_each_other_are_named() {
    let set = |file: &'static str, key: &'static str, value: Value| {
        move |root: &Path| edit_json(&root.join(file), |config| config[key] = value.clone())
    };
    let transformer = "transformer/config.json";
    let cases: [(&str, Change, &[&str]); 7] = [
        ("sd3", Box::new(set(transformer, "in_channels", json!(33))), &["in_channels is 33", "16 channels"]),
        (
            "sd3",
            Box::new(set(transformer, "joint_attention_dim", json!(24))),
            &["joint_attention_dim", "text_encoder_3"],
        ),
        ("sd3", Box::new(set(transformer, "pooled_projection_dim", json!(9))), &["pooled_projection_dim is 9", "16"]),
        ("sd3", Box::new(set(transformer, "qk_norm", json!("l2"))), &[transformer, "qk_norm"]),
        ("sd3", Box::new(|root| fs::remove_dir_all(root.join("tokenizer_3")).unwrap()), &["tokenizer_3"]),
        (
            "aura_flow",
            Box::new(set(transformer, "joint_attention_dim", json!(24))),
            &["joint_attention_dim", "gives 20"],
        ),
        (
            "aura_flow",
            Box::new(set(transformer, "pos_embed_max_size", json!(200))),
            &[transformer, "pos_embed_max_size"],
        ),
    ];
    for (model, change, parts) in cases {
        let bench = Bench::new();
        let copy = bench.copy_of(&Bench::random(model));
        change(copy.path.as_path());
        let mut run = generate(&bench, model, &json!({}));
        run.models = vec![copy];
        refuses(&run, "model_incomplete", parts);
    }
}
