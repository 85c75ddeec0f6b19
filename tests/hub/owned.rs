//! Whose models are whose: what verify compares, what rm removes, and what is only borrowed from a cache.

use std::{fs, os::unix::fs::symlink};

use atelier_testkit::daemon::PATIENCE;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    loopback::{COMMIT, Fault, hex},
    scene::{Scene, weights},
};

#[test]
fn verify_compares_with_what_was_pulled() {
    let scene = Scene::new();
    scene.pull(&[]).exits(0);
    let folder = scene.models().join("org/net");
    let good = scene.run(&["models", "verify", "org/net", "--json"]).exits(0).json();
    assert_eq!(good["models"][0]["compared_with"], "manifest");
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let said = scene.run(&["models", "verify", "org/net"]).exits(1);
    assert!(said.stdout.contains("model.safetensors: its sha256 is"), "{said:#?}");
    fs::write(folder.join("config.json"), r#"{"_class_name":"SPAN" }"#).unwrap();
    let said = scene.run(&["models", "verify", "org/net"]).exits(1);
    assert!(said.stdout.contains("config.json: 23 bytes, and 22 were pulled"), "{said:#?}");
}

#[test]
fn rm_asks_first_and_leaves_what_came_along() {
    let scene = Scene::with(|setup| setup.model("span-x2", "SPAN"));
    scene.pull(&[]).exits(0);
    scene.run(&["models", "rm", "org/net"]).exits(2).says("--yes");
    scene.run(&["models", "rm", "--yes", "span-x2"]).exits(1).says("came with Atelier");
    scene.run(&["models", "rm", "--yes", "org/net"]).exits(0);
    scene.is_absent();
    assert!(scene.listed("span-x2").is_some());
}

#[test]
fn rm_also_removes_what_a_pull_has_left() {
    let scene = Scene::new();
    scene.hub.fault("model.safetensors", Fault::Status(403, None), usize::MAX);
    scene.pull(&[]).exits(1);
    assert_eq!(scene.pull_state("org/net").as_deref(), Some("interrupted"));
    scene.run(&["models", "rm", "--yes", "org/net"]).exits(0);
    assert_eq!(scene.pull_state("org/net"), None);
    scene.run(&["models", "rm", "--yes", "org/net"]).exits(4);
}

#[test]
fn rm_leaves_what_the_daemon_has_loaded() {
    let mut scene = Scene::with(|setup| setup.model("org/fake", "AtelierFake"));
    scene.daemon.start();
    let job = json!({"kind": "generate", "model": "org/fake", "params": {"prompt": "a house", "steps": 2}});
    let id = scene.daemon.submit(&job);
    scene.daemon.wait_for_status(&id, "succeeded", PATIENCE);
    scene.run(&["models", "rm", "--yes", "org/fake"]).exits(1).says("models unload org/fake");
    scene.run(&["models", "unload", "org/fake"]).exits(0);
    scene.run(&["models", "rm", "--yes", "org/fake"]).exits(0);
    assert_eq!(scene.listed("org/fake"), None);
    let refused = scene.daemon.post("/api/v1/jobs", &job).expect(422).json();
    assert_eq!(refused["code"], "unknown_model", "the daemon was told");
}

/// Lays a model out as huggingface_hub does.
fn cache(scene: &Scene, class: &str) {
    let root = scene.daemon.root().join("cache/models--lab--cached");
    let snapshot = root.join("snapshots").join(COMMIT);
    for folder in [root.join("blobs"), root.join("refs"), snapshot.clone()] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(root.join("refs/main"), COMMIT).unwrap();
    let data = weights(2000);
    let blob = hex(&Sha256::digest(&data));
    fs::write(root.join("blobs").join(&blob), data).unwrap();
    fs::write(root.join("blobs/c0ffee"), json!({"_class_name": class}).to_string()).unwrap();
    symlink("../../blobs/c0ffee", snapshot.join("config.json")).unwrap();
    symlink(format!("../../blobs/{blob}"), snapshot.join("model.safetensors")).unwrap();
}

#[test]
fn a_cached_model_is_listed_verified_and_run_and_never_removed() {
    let mut scene = Scene::new();
    let dir = scene.daemon.root().join("cache").display().to_string();
    scene.daemon.set("models.hf_cache", dir);
    cache(&scene, "AtelierFake");
    let model = scene.listed("lab/cached").expect("listed");
    assert_eq!((&model["origin"], &model["complete"]), (&json!("hf_cache"), &json!(true)));
    let verified = scene.run(&["models", "verify", "lab/cached", "--json"]).exits(0).json();
    assert_eq!(verified["models"][0]["compared_with"], "cache");
    scene.run(&["models", "rm", "--yes", "lab/cached"]).exits(1).says("Hugging Face's cache");
    scene.daemon.start();
    let id = scene.daemon.submit(&json!({"kind": "generate", "model": "lab/cached", "params": {"prompt": "a house"}}));
    scene.daemon.wait_for_status(&id, "succeeded", PATIENCE);

    let blob = scene.daemon.root().join("cache/models--lab--cached/snapshots").join(COMMIT).join("model.safetensors");
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    scene.run(&["models", "verify", "lab/cached"]).exits(1);
    scene.daemon.set("models.hf_cache", "off");
    scene.daemon.restart();
    assert_eq!(scene.listed("lab/cached"), None);
}

#[test]
fn the_users_own_cache_is_found() {
    let mut scene = Scene::new();
    cache(&scene, "AtelierFake");
    scene.daemon.set("models.hf_cache", "auto");
    scene.daemon.set_env("HF_HUB_CACHE", &scene.daemon.root().join("cache").display().to_string());
    assert!(scene.listed("lab/cached").is_some());
}
