//! What a hub refuses, what it gets wrong, and what we do not take.

use crate::{
    loopback::Fault,
    scene::{MIB, Scene, weights},
};

const WEIGHTS: &str = "model.safetensors";

#[test]
fn what_is_not_given_away_is_said_once_with_what_to_do() {
    for (status, extra, code, says) in [
        (403, Some(("x-error-code", "GatedRepo")), 1, "accept its terms"),
        (401, None, 1, "HF_TOKEN"),
        (401, Some(("x-error-code", "RepoNotFound")), 4, "org/net at main is not on the hub"),
        (404, None, 4, "org/net at main is not on the hub"),
    ] {
        let scene = Scene::new();
        scene.hub.fault("/api/", Fault::Status(status, extra), usize::MAX);
        scene.pull(&[]).exits(code).says(says);
        assert_eq!(scene.hub.seen("/api/").len(), 1, "{status}: no second try helps");
        scene.is_absent();
    }
    let scene = Scene::new();
    scene.hub.fault(WEIGHTS, Fault::Status(403, None), usize::MAX);
    scene.pull(&[]).exits(1).says("model.safetensors").says("(403)");
    scene.is_absent();
}

#[test]
fn a_hub_that_lies_about_sizes_is_found_out() {
    for by in [-1, 1, 1000] {
        let scene = Scene::new();
        scene.hub.lie("org/net", WEIGHTS, by);
        let listed = i64::try_from(4 * MIB + 77).unwrap() + by;
        scene.pull(&[]).exits(1).says(&format!("the hub lists {listed} bytes and sends {}", 4 * MIB + 77));
        scene.is_absent();
    }
    let scene = Scene::new();
    scene.hub.fault(WEIGHTS, Fault::OtherTotal, usize::MAX);
    scene.pull(&[]).exits(1).says("the hub lists");
    scene.is_absent();
}

#[test]
fn other_content_than_the_list_names_is_fetched_once_more_and_then_refused() {
    let scene = Scene::new();
    scene.hub.fault(WEIGHTS, Fault::Corrupt, 1);
    scene.hub.fault("config.json", Fault::Corrupt, 1);
    scene.pull(&[]).exits(0).says("fetching it once more");
    scene.is_whole();

    for file in [WEIGHTS, "config.json"] {
        let scene = Scene::new();
        scene.hub.fault(file, Fault::Corrupt, usize::MAX);
        scene.pull(&[]).exits(1).says(file).says("and the hub's list says");
        scene.is_absent();
        scene.hub.behave();
        scene.pull(&[]).exits(0);
        scene.is_whole();
    }
}

#[test]
fn no_request_leaves_where_that_is_forbidden() {
    let mut scene = Scene::new();
    scene.daemon.set_env("HF_HUB_OFFLINE", "1");
    scene.pull(&[]).exits(2).says("HF_HUB_OFFLINE");
    assert!(scene.hub.seen("").is_empty());
    scene.is_absent();
}

#[test]
fn names_that_are_none_never_reach_the_hub() {
    let scene = Scene::new();
    for id in ["net", "../net", "org/../net", "org/net/x", "loras/net"] {
        scene.run(&["models", "pull", id]).exits(2).says("is not ORG/NAME");
    }
    scene.pull(&["--revision", "../x"]).exits(2).says("is not a branch");
    assert!(scene.hub.seen("").is_empty());
}

#[test]
fn what_this_version_does_not_run_is_not_fetched() {
    let scene = Scene::new();
    scene.hub.put("org/other", "config.json", r#"{"_class_name":"Whatever"}"#);
    scene.hub.put("org/other", WEIGHTS, weights(MIB));
    scene.run(&["models", "pull", "org/other"]).exits(1).says("is a Whatever, which this version does not run");
    assert!(scene.hub.seen(WEIGHTS).is_empty());
    scene.hub.put("org/empty", "README.md", "nothing");
    scene.run(&["models", "pull", "org/empty"]).exits(1).says("neither a model_index.json nor a config.json");
}

#[test]
fn a_choice_by_pattern_must_still_be_a_whole_model() {
    let scene = Scene::new();
    scene.pull(&["--include", "*.safetensors"]).exits(0);
    scene.is_whole();
    let scene = Scene::new();
    scene.pull(&["--include", "*.onnx"]).exits(1).says("model.safetensors is missing");
    scene.is_absent();
    scene.pull(&["--include", "*.gguf"]).exits(4).says("a file like");
}

#[test]
fn a_folder_that_somebody_has_put_there_is_not_overwritten() {
    let scene = Scene::new();
    let own = scene.models().join("org/net/config.json");
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    std::fs::write(&own, "mine").unwrap();
    scene.pull(&[]).exits(1).says("was not pulled from a hub");
    assert_eq!(std::fs::read_to_string(own).unwrap(), "mine");
}

#[test]
fn half_precision_is_taken_where_it_is_asked_for() {
    let scene = Scene::new();
    for (path, text) in [
        (
            "model_index.json",
            r#"{"_class_name":"StableDiffusionPipeline","unet":["diffusers","UNet2DConditionModel"],
            "vae":["diffusers","AutoencoderKL"],"text_encoder":["transformers","CLIPTextModel"],
            "tokenizer":["transformers","CLIPTokenizer"],"scheduler":["diffusers","PNDMScheduler"]}"#,
        ),
        ("unet/config.json", "{}"),
        ("vae/config.json", "{}"),
        ("text_encoder/config.json", "{}"),
        ("tokenizer/vocab.json", "{}"),
        ("tokenizer/merges.txt", "x"),
        ("scheduler/scheduler_config.json", "{}"),
    ] {
        scene.hub.put("org/sd", path, text);
    }
    let index = r#"{"weight_map":{"a":"diffusion_pytorch_model-00001-of-00001.safetensors"}}"#;
    scene.hub.put("org/sd", "unet/diffusion_pytorch_model.safetensors.index.json", index);
    scene.hub.put("org/sd", "unet/diffusion_pytorch_model-00001-of-00001.safetensors", weights(2000));
    scene.hub.put("org/sd", "unet/diffusion_pytorch_model.fp16.safetensors", weights(1500));
    scene.hub.put("org/sd", "vae/diffusion_pytorch_model.safetensors", weights(2000));
    scene.hub.put("org/sd", "text_encoder/model.safetensors", weights(2000));
    scene.hub.put("org/sd", "text_encoder/model.fp16.safetensors", weights(1500));
    scene.run(&["models", "pull", "org/sd", "--variant", "fp16"]).exits(0);
    assert_eq!(scene.hub.seen("fp16").len(), 2);
    assert!(scene.hub.seen("00001").is_empty());
    assert_eq!(scene.listed("org/sd").unwrap()["complete"], true);
    // The same revision in full is another pull, in place of the first; what is the same does not come again.
    scene.hub.forget();
    scene.run(&["models", "pull", "org/sd"]).exits(0);
    assert_eq!(scene.hub.seen("00001").len(), 1);
    assert!(scene.hub.seen("vae/diffusion_pytorch_model").is_empty(), "it was there");
    assert!(!scene.models().join("org/sd/text_encoder/model.fp16.safetensors").exists());
    scene.run(&["models", "verify", "org/sd"]).exits(0);
}
