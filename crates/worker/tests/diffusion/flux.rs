//! FLUX.1 and Kontext: stopped and resumed, what is refused and what is told, and the size of an edited photo.

use std::{fs, path::Path};

use atelier_domain::{
    JobKind,
    model::Family,
    protocol::{ModelRef, Offload, Run},
};
use serde_json::{Value, json};

use crate::{
    refusals::{edit_json, refuses},
    resume::survives_every_stop,
    support::{Bench, Ended, finish, merge, outputs, with_budget},
};

fn generate(bench: &Bench, model: &str, params: &Value) -> Run {
    let mut all = json!({ "prompt": "a lighthouse above the sea", "seed": 3, "width": 24, "height": 32, "steps": 3 });
    merge(&mut all, params);
    bench.job(JobKind::Generate, Bench::random(model), &all)
}

fn edit(bench: &Bench, width: u32, height: u32, params: &Value) -> Run {
    let mut all = json!({ "prompt": "make it night", "seed": 3, "steps": 3 });
    merge(&mut all, params);
    let mut run = bench.job(JobKind::Edit, Bench::random("flux_kontext"), &all);
    run.inputs = vec![bench.picture("photo.png", width, height).into()];
    run
}

#[test]
fn flux_goes_on_bit_for_bit() {
    let bench = Bench::new();
    survives_every_stop(&bench, &generate(&bench, "flux_schnell", &json!({})), 3);
    let guided = json!({ "negative_prompt": "blurry", "true_cfg_scale": 2.0, "num_images": 2, "steps": 2 });
    survives_every_stop(&bench, &generate(&bench, "flux", &guided), 4);
    let mut from_picture = generate(&bench, "flux", &json!({ "strength": 0.7, "steps": 4 }));
    from_picture.inputs = vec![bench.picture("photo.png", 40, 30).into()];
    survives_every_stop(&bench, &from_picture, 3);
    from_picture.kind = JobKind::Inpaint;
    from_picture.mask = Some(bench.picture("mask.png", 40, 30).into());
    survives_every_stop(&bench, &from_picture, 3);
    from_picture.models = vec![Bench::random("flux_fill")];
    survives_every_stop(&bench, &from_picture, 3);
}

#[test]
fn flux_goes_on_bit_for_bit_with_what_a_step_cache_remembers() {
    let bench = Bench::new();
    let cached = json!({ "negative_prompt": "blurry", "true_cfg_scale": 2.5, "steps": 6, "step_cache": 0.6 });
    let run = generate(&bench, "flux", &cached);
    survives_every_stop(&bench, &run, 6);
    let mut whole = run.clone();
    whole.params.step_cache = None;
    whole.work_dir = bench.folder("whole").into();
    let (cached, whole) = (outputs(&run, &finish(&run)), outputs(&whole, &finish(&whole)));
    assert_ne!(cached, whole, "no block was left out");
}

#[test]
fn a_flux_edit_goes_on_bit_for_bit() {
    let bench = Bench::new();
    survives_every_stop(&bench, &edit(&bench, 70, 50, &json!({ "preview_every": 1 })), 3);
}

#[test]
fn what_of_flux_is_kept_on_the_device_does_not_change_the_picture() {
    let bench = Bench::new();
    let lora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/loras/flux_kohya");
    let part = ModelRef {
        id: "film".into(),
        family: Family::Lora,
        path: lora.join("pytorch_lora_weights.safetensors").into(),
    };
    let mut run = generate(&bench, "flux", &json!({ "steps": 2, "loras": "film:0.8" }));
    run.parts = vec![part];
    let expected = outputs(&run, &finish(&run));
    for (budget, offload) in [
        (u64::MAX, Offload::None),
        (u64::MAX, Offload::Phase),
        (u64::MAX, Offload::Block),
        // In f32 the transformer has 153 000 bytes, of which its blocks have 110 000.
        (140_000, Offload::Auto),
    ] {
        let again = Run { work_dir: bench.folder("job").into(), ..run.clone() };
        match with_budget(&again, None, budget, offload) {
            Ok(Ended::Finished(finished)) => assert!(outputs(&again, &finished) == expected, "{offload:?} {budget}"),
            Ok(Ended::Stopped { .. }) => panic!("{offload:?} with {budget} bytes: stopped"),
            Err(error) => panic!("{offload:?} with {budget} bytes: {error:?}"),
        }
    }
}

#[test]
fn an_edited_photo_keeps_its_size_and_the_model_works_in_its_proportions() {
    let bench = Bench::new();
    for (width, height) in [(100, 60), (60, 100)] {
        let run = edit(&bench, width, height, &json!({ "steps": 1 }));
        let finished = finish(&run);
        let made = image::load_from_memory(&outputs(&run, &finished)[0]).unwrap().into_rgb8();
        assert_eq!(made.dimensions(), (width, height));
        let side = |name: &str| finished.manifest["params"][name].as_f64().unwrap();
        let (aspect, wanted) = (side("width") / side("height"), f64::from(width) / f64::from(height));
        assert!((aspect / wanted - 1.0).abs() < 0.15, "{aspect} stands for {wanted}");
        assert!((side("width") * side("height") / (48.0 * 48.0) - 1.0).abs() < 0.2);
    }
}

#[test]
fn what_flux_cannot_do_is_refused_by_name() {
    let bench = Bench::new();
    let with = |params: Value| generate(&bench, "flux", &params);
    refuses(&with(json!({ "width": 30 })), "invalid_params", &["width", "30", "multiple of 4", "32"]);
    refuses(&with(json!({ "prompt_weighting": true })), "invalid_params", &["prompt_weighting", "T5"]);
    refuses(&with(json!({ "clip_skip": 1 })), "invalid_params", &["clip_skip"]);
    refuses(&with(json!({ "true_cfg_scale": 2.0 })), "invalid_params", &["true_cfg_scale", "negative prompt"]);
    refuses(&with(json!({ "sampler": "ddim" })), "invalid_params", &["ddim", "flow"]);
    let plain = bench.generate(&json!({ "true_cfg_scale": 2.0 }));
    refuses(&plain, "invalid_params", &["true_cfg_scale", "guidance_scale"]);
    let mut control = with(json!({}));
    control.kind = JobKind::Control;
    control.inputs = vec![bench.picture("photo.png", 32, 32).into()];
    refuses(&control, "kind_not_supported", &["within a mask", "generate"]);
    refuses(&generate(&bench, "flux_fill", &json!({})), "kind_not_supported", &["within a mask", "inpaint"]);
    let mut text_alone = edit(&bench, 32, 32, &json!({}));
    text_alone.inputs.clear();
    refuses(&text_alone, "invalid_request", &["needs a picture"]);
    text_alone.kind = JobKind::Generate;
    refuses(&text_alone, "kind_not_supported", &["edits a picture by instruction"]);
    refuses(&edit(&bench, 4000, 1, &json!({})), "invalid_params", &["too small"]);
    let mut two = edit(&bench, 32, 32, &json!({}));
    two.inputs.push(bench.picture("other.png", 32, 32).into());
    refuses(&two, "invalid_params", &["1 picture", "2 were given"]);
}

#[test]
fn a_folder_of_flux_that_is_damaged_names_the_file_and_the_key() {
    type Change = Box<dyn Fn(&Path)>;
    let set = |name: &'static str, key: &'static str, value: Value| -> Change {
        Box::new(move |root| edit_json(&root.join(name), |config| config[key] = value.clone()))
    };
    let remove = |name: &'static str| -> Change { Box::new(move |root| fs::remove_file(root.join(name)).unwrap()) };
    let config = "transformer/config.json";
    let cases: [(Change, &[&str]); 7] = [
        (set(config, "in_channels", json!(20)), &[config, "in_channels is 20", "16"]),
        (set(config, "joint_attention_dim", json!(24)), &[config, "joint_attention_dim", "text_encoder_2 gives 20"]),
        (set(config, "pooled_projection_dim", json!(13)), &[config, "pooled_projection_dim", "text_encoder gives 12"]),
        (set(config, "new_trick", json!(true)), &[config, "new_trick"]),
        (set("text_encoder_2/config.json", "feed_forward_proj", json!("mish")), &["text_encoder_2", "mish"]),
        (remove("text_encoder_2/model.safetensors"), &["text_encoder_2", "model.safetensors"]),
        (remove("tokenizer_2/tokenizer.json"), &["tokenizer_2"]),
    ];
    for (change, parts) in cases {
        let bench = Bench::new();
        let model = bench.copy_of(&Bench::random("flux"));
        change(model.path.as_path());
        let mut run = generate(&bench, "flux", &json!({}));
        run.models = vec![model];
        refuses(&run, "model_incomplete", parts);
    }
}

#[test]
fn what_of_a_text_is_not_read_or_has_no_effect_is_told() {
    let bench = Bench::new();
    let notes = |model: &str, params: Value| {
        let mut all = json!({ "steps": 1 });
        all.as_object_mut().unwrap().extend(params.as_object().unwrap().clone());
        finish(&generate(&bench, model, &all)).manifest["notes"].to_string()
    };
    let words = |count: usize| vec!["a"; count].join(" ");
    assert_eq!(notes("flux", json!({})), "[]");
    let long = notes("flux", json!({ "prompt": words(300) }));
    assert!(long.contains("CLIP has seen the first 77") && !long.contains("left out"), "{long}");
    let cut = notes("flux_schnell", json!({ "prompt": words(300) }));
    assert!(cut.contains("256 tokens") && cut.contains("45 were left out"), "{cut}");
    let negative = notes("flux", json!({ "negative_prompt": "blurry" }));
    assert!(negative.contains("negative prompt has no effect") && negative.contains("true_cfg_scale"), "{negative}");
}
