//! Qwen-Image and its editors as jobs: going on after a stop, sizes, metadata, and what is refused.

use std::{fs, path::PathBuf};

use atelier_domain::{
    JobKind, OutputFormat,
    protocol::{Offload, Run},
};
use image::GenericImageView as _;
use serde_json::{Value, json};

use crate::{
    refusals::refuses,
    resume::survives_every_stop,
    support::{Bench, Ended, finish, merge, outputs, with_budget},
};

fn generate(bench: &Bench, params: &Value) -> Run {
    let mut all = json!({ "prompt": "a red fox in the snow", "seed": 3, "width": 32, "height": 48, "steps": 3 });
    merge(&mut all, params);
    bench.job(JobKind::Generate, Bench::random("qwenimage"), &all)
}

/// An edit of pictures of these sizes.
fn edit(bench: &Bench, model: &str, sizes: &[(u32, u32)], params: &Value) -> Run {
    let mut all = json!({ "prompt": "make it night", "seed": 3, "steps": 2 });
    merge(&mut all, params);
    let mut run = bench.job(JobKind::Edit, Bench::random(model), &all);
    let picture = |(n, &(width, height)): (usize, &(u32, u32))| bench.picture(&format!("{n}.png"), width, height);
    run.inputs = sizes.iter().enumerate().map(picture).map(Into::into).collect();
    run
}

#[test]
fn qwen_image_goes_on_bit_for_bit() {
    let bench = Bench::new();
    let guided = json!({ "negative_prompt": "blurry", "guidance_scale": 3.0, "steps": 4 });
    survives_every_stop(&bench, &generate(&bench, &guided), 4);
    survives_every_stop(&bench, &generate(&bench, &json!({ "num_images": 2, "steps": 2 })), 4);
    survives_every_stop(&bench, &generate(&bench, &json!({ "sampler": "lightning", "steps": 4 })), 4);
}

/// The same from a picture, or within a mask.
fn of_picture(bench: &Bench, mut run: Run, kind: JobKind) -> Run {
    run.kind = kind;
    run.inputs = vec![bench.picture("photo.png", 40, 30).into()];
    if kind == JobKind::Inpaint {
        run.mask = Some(bench.picture("mask.png", 40, 30).into());
    }
    run
}

#[test]
fn qwen_image_from_a_picture_goes_on_bit_for_bit() {
    let bench = Bench::new();
    let with = |params: Value, kind: JobKind| of_picture(&bench, generate(&bench, &params), kind);
    let guided = json!({ "negative_prompt": "blurry", "strength": 0.7, "steps": 4 });
    survives_every_stop(&bench, &with(guided.clone(), JobKind::Generate), 3);
    survives_every_stop(&bench, &with(guided, JobKind::Inpaint), 3);
    survives_every_stop(&bench, &with(json!({ "num_images": 2, "steps": 2 }), JobKind::Inpaint), 4);
    let edit = edit(&bench, "qwenimageedit", &[(40, 30)], &json!({ "strength": 0.7, "steps": 4, "step_cache": 1.0 }));
    survives_every_stop(&bench, &of_picture(&bench, edit, JobKind::Inpaint), 3);
}

#[test]
fn the_prompt_is_for_what_the_mask_shows() {
    let bench = Bench::new();
    for model in ["qwenimage", "qwenimageedit"] {
        let made = |mask: u8, prompt: &str| {
            let params = json!({ "prompt": prompt, "seed": 3, "steps": 3, "strength": 0.8 });
            let mut run = bench.job(JobKind::Inpaint, Bench::random(model), &params);
            run.inputs = vec![bench.picture("photo.png", 48, 48).into()];
            let path = bench.folder("mask").join("mask.png");
            image::GrayImage::from_pixel(48, 48, image::Luma([mask])).save(&path).unwrap();
            run.mask = Some(path.into());
            image::load_from_memory(&outputs(&run, &finish(&run))[0]).unwrap()
        };
        // 127 of 255 is below one half.
        assert!(made(127, "a fox") == made(127, "a lighthouse"), "{model}: all is kept");
        assert!(made(128, "a fox") != made(128, "a lighthouse"), "{model}: nothing is kept");
    }
}

#[test]
fn an_edit_with_qwen_image_goes_on_bit_for_bit() {
    let bench = Bench::new();
    let guided = json!({ "negative_prompt": " ", "steps": 4, "preview_every": 1 });
    survives_every_stop(&bench, &edit(&bench, "qwenimageedit", &[(70, 50)], &guided), 4);
    survives_every_stop(&bench, &edit(&bench, "qwenimageplus", &[(70, 50), (30, 40)], &guided), 4);
    survives_every_stop(&bench, &edit(&bench, "qwenimage2511", &[(40, 60)], &guided), 4);
}

#[test]
fn an_edited_photo_of_any_size_comes_back_in_its_own_size() {
    let bench = Bench::new();
    for sizes in [&[(333, 500)][..], &[(30, 20)], &[(200, 50), (61, 37)]] {
        for model in ["qwenimageedit", "qwenimageplus"] {
            if model == "qwenimageedit" && sizes.len() > 1 {
                continue;
            }
            let run = edit(&bench, model, sizes, &json!({ "steps": 1 }));
            let finished = finish(&run);
            let made = image::load_from_memory(&outputs(&run, &finished)[0]).unwrap();
            assert_eq!(Some(&made.dimensions()), sizes.last(), "{model}");
        }
    }
    // Worked at the area that the model was made for, with sides that are multiples of 32.
    let run = edit(&bench, "qwenimageplus", &[(333, 500)], &json!({ "steps": 1, "fit": "model" }));
    let made = image::load_from_memory(&outputs(&run, &finish(&run))[0]).unwrap();
    assert_eq!(made.dimensions(), (32, 64));
    // Asked for, in multiples of a patch; one side is enough.
    for (asked, wanted) in [
        (json!({ "width": 71, "height": 45 }), (64, 40)),
        (json!({ "width": 40 }), (40, 56)),
        (json!({ "height": 40 }), (24, 40)),
    ] {
        let mut params = json!({ "steps": 1, "fit": "model" });
        merge(&mut params, &asked);
        let run = edit(&bench, "qwenimageedit", &[(333, 500)], &params);
        let made = image::load_from_memory(&outputs(&run, &finish(&run))[0]).unwrap();
        assert_eq!(made.dimensions(), wanted, "{asked}");
    }
}

#[test]
fn the_metadata_of_the_last_picture_goes_along_with_an_edit() {
    let bench = Bench::new();
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tools/demo/chelsea.jpg");
    let size = image::image_dimensions(&demo).unwrap();
    let mut run = edit(&bench, "qwenimageplus", &[(40, 40)], &json!({ "steps": 1 }));
    run.inputs.push(demo.into());
    for format in [OutputFormat::Png, OutputFormat::Jpeg] {
        run.work_dir = bench.folder("job").into();
        run.output.format = format;
        let made = outputs(&run, &finish(&run)).remove(0);
        let has = |text: &[u8]| made.windows(text.len()).any(|window| window == text);
        assert!(has(b"Demo Camera"), "{format:?}: the EXIF is lost");
        assert_eq!(image::load_from_memory(&made).unwrap().dimensions(), size);
    }
}

#[test]
fn the_order_and_number_of_pictures_make_a_difference() {
    let bench = Bench::new();
    let params = json!({ "steps": 1, "width": 32, "height": 32, "fit": "model" });
    let run = edit(&bench, "qwenimageplus", &[(70, 50), (30, 40)], &params);
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for order in [&[0, 1][..], &[1, 0], &[0], &[0, 0, 1]] {
        let inputs = order.iter().map(|&n: &usize| run.inputs[n].clone()).collect();
        let again = Run { inputs, work_dir: bench.folder("job").into(), ..run.clone() };
        let made = outputs(&again, &finish(&again)).remove(0);
        assert!(!seen.contains(&made), "{order:?}");
        seen.push(made);
    }
}

#[test]
fn guidance_needs_something_that_is_unwanted_and_says_so() {
    let bench = Bench::new();
    let notes = |params: Value| {
        let run = generate(&bench, &params);
        finish(&run).manifest["notes"].to_string()
    };
    assert!(notes(json!({ "guidance_scale": 4.0 })).contains("negative prompt"));
    assert!(!notes(json!({ "guidance_scale": 1.0 })).contains("negative prompt"));
    assert!(!notes(json!({ "guidance_scale": 4.0, "negative_prompt": " " })).contains("negative prompt"));
}

#[test]
fn guidance_goes_by_either_of_its_names() {
    let bench = Bench::new();
    let with = |name: &str, scale: f64| {
        let mut params = json!({ "negative_prompt": "blurry", "steps": 1 });
        params[name] = scale.into();
        let run = generate(&bench, &params);
        let finished = finish(&run);
        let params = &finished.manifest["params"];
        assert_eq!((&params["guidance_scale"], &params["true_cfg_scale"]), (&json!(scale), &json!(scale)));
        outputs(&run, &finished)
    };
    let made = with("guidance_scale", 6.0);
    assert!(made == with("true_cfg_scale", 6.0));
    assert!(made != with("true_cfg_scale", 1.0));
}

#[test]
fn a_step_cache_leaves_blocks_out_and_goes_on_bit_for_bit() {
    let bench = Bench::new();
    let with = |threshold: f64| {
        let params = json!({ "negative_prompt": " ", "steps": 8, "step_cache": threshold });
        edit(&bench, "qwenimageplus", &[(70, 50)], &params)
    };
    let made = |run: &Run| outputs(run, &finish(run));
    let all = made(&with(0.0));
    assert!(made(&with(1e-9)) == all, "nothing is as small as that");
    assert!(made(&with(1.0)) != all, "nothing was left out");
    survives_every_stop(&bench, &with(1.0), 8);
}

#[test]
fn qwen_images_parts_may_come_and_go() {
    let bench = Bench::new();
    let run = edit(&bench, "qwenimageplus", &[(40, 30)], &json!({ "negative_prompt": " " }));
    let expected = outputs(&run, &finish(&run));
    for offload in [Offload::None, Offload::Phase, Offload::Block] {
        let again = Run { work_dir: bench.folder("job").into(), ..run.clone() };
        let Ok(Ended::Finished(finished)) = with_budget(&again, None, u64::MAX, offload) else { panic!("{offload:?}") };
        assert!(outputs(&again, &finished) == expected, "{offload:?}");
    }
}

#[test]
fn what_qwen_image_cannot_do_is_refused_before_anything_is_loaded() {
    let bench = Bench::new();
    let one = &[(40, 30)];
    let with = |params: Value| generate(&bench, &params);
    refuses(&with(json!({ "width": 36 })), "invalid_params", &["width", "32", "40"]);
    refuses(&with(json!({ "clip_skip": 1 })), "invalid_params", &["clip_skip"]);
    refuses(&with(json!({ "prompt_weighting": true })), "invalid_params", &["prompt_weighting"]);
    let both = json!({ "guidance_scale": 3.0, "true_cfg_scale": 4.0 });
    refuses(&with(both), "invalid_params", &["true_cfg_scale", "guidance_scale"]);
    refuses(&with(json!({ "sampler": "ddim" })), "invalid_params", &["ddim", "lightning"]);
    let from_picture = |params: Value, kind: JobKind| of_picture(&bench, with(params), kind);
    refuses(&from_picture(json!({ "strength": 0.0 }), JobKind::Generate), "invalid_params", &["strength is 0"]);
    refuses(&from_picture(json!({ "width": 7 }), JobKind::Generate), "invalid_params", &["too small"]);
    refuses(&from_picture(json!({}), JobKind::Control), "kind_not_supported", &["within a mask", "generate"]);
    let mut masked = from_picture(json!({}), JobKind::Inpaint);
    masked.mask = Some(bench.picture("other.png", 30, 40).into());
    refuses(&masked, "invalid_request", &["30 x 40", "40 x 30"]);
    masked.mask = None;
    refuses(&masked, "invalid_request", &["mask of the same size"]);
    refuses(&with(json!({ "strength": 0.5 })), "invalid_params", &["strength", "none came along"]);

    let with = |model: &str, sizes: &[(u32, u32)], params: Value| edit(&bench, model, sizes, &params);
    refuses(&with("qwenimageedit", &[(40, 30), (40, 30)], json!({})), "invalid_params", &["1 picture", "2 were given"]);
    refuses(&with("qwenimageplus", &[(40, 30); 4], json!({})), "invalid_params", &["3 picture", "4 were given"]);
    refuses(&with("qwenimageplus", &[], json!({})), "invalid_request", &["needs a picture"]);
    for sizes in [&[(420, 20)][..], &[(1, 30)], &[(1, 30), (30, 30)]] {
        refuses(&with("qwenimageplus", sizes, json!({})), "invalid_params", &["extreme", "20 times"]);
    }
    let edit = |model: &str, kind: JobKind| of_picture(&bench, with(model, one, json!({})), kind);
    refuses(&edit("qwenimageplus", JobKind::Inpaint), "kind_not_supported", &["by instruction", "Ask for edit,"]);
    refuses(&edit("qwenimageedit", JobKind::Generate), "kind_not_supported", &["within a mask", "edit or inpaint"]);
    let wide = json!({ "width": 40, "height": 48 });
    refuses(&with("qwenimageedit", &[(1, 30)], wide), "invalid_params", &["extreme"]);
    refuses(&with("qwenimageedit", one, json!({ "strength": 0.5 })), "invalid_params", &["strength"]);
    let guidance = json!({ "image_guidance_scale": 1.5 });
    refuses(&with("qwenimageedit", one, guidance), "invalid_params", &["image_guidance_scale"]);
}

#[test]
fn folders_of_qwen_image_that_do_not_fit_are_refused_by_file_and_key() {
    let bench = Bench::new();
    let model = bench.copy_of(&Bench::random("qwenimageedit"));
    let mut run = edit(&bench, "qwenimageedit", &[(40, 30)], &json!({}));
    run.models = vec![model.clone()];
    for (file, key, value, parts) in [
        ("transformer/config.json", "in_channels", json!(12), ["in_channels is 12", "latents of 4 channels"]),
        ("transformer/config.json", "patch_size", json!(1), ["patch_size is 1", "transformer/config.json"]),
        ("transformer/config.json", "joint_attention_dim", json!(24), ["joint_attention_dim is 24", "gives 16"]),
        ("transformer/config.json", "guidance_embeds", json!(true), ["guidance_embeds is true", "config.json"]),
        ("vae/config.json", "attn_scales", json!([1.0]), ["attn_scales", "vae/config.json"]),
        ("processor/processor_config.json", "image_processor", json!(null), ["image_processor", "processor"]),
    ] {
        let path = model.path.as_path().join(file);
        let whole = fs::read(&path).unwrap();
        let mut config: Value = serde_json::from_slice(&whole).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        refuses(&run, "model_incomplete", &parts);
        fs::write(&path, whole).unwrap();
    }
    fs::remove_file(model.path.as_path().join("tokenizer/tokenizer.json")).unwrap();
    refuses(&run, "model_incomplete", &["tokenizer"]);
}
