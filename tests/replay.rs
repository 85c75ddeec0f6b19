//! `atelier replay`: the real command line against a real daemon.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path, process::Output};

use atelier_testkit::{
    daemon::{Daemon, PATIENCE, Setup},
    pictures::{photo_like, png},
};
use serde_json::{Value, json};

fn replay(daemon: &Daemon, args: &[&str]) -> Output {
    let config = daemon.config_file();
    let all = ["replay", "--config", config.to_str().unwrap()].into_iter().chain(args.iter().copied());
    daemon.command(all).output().unwrap()
}

#[track_caller]
fn said(output: &Output, exit: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(exit), "{out}{error}");
    (out, error)
}

fn manifest(daemon: &Daemon, id: &str, to: &Path) -> Value {
    daemon.wait_for_status(id, "succeeded", PATIENCE);
    let manifest = daemon.get(&format!("/api/v1/jobs/{id}/manifest")).expect(200).json();
    fs::write(to, manifest.to_string()).unwrap();
    manifest
}

#[test]
fn a_job_is_made_again_and_found_to_be_the_same_or_not() {
    let daemon = Setup::new(env!("CARGO_BIN_EXE_atelier")).start();
    let photo = png(&photo_like(24, 16, 1));
    let picture = daemon.root().join("photo.png");
    fs::write(&picture, &photo).unwrap();
    let job = json!({"kind": "edit", "params": {"prompt": "sunset", "seed": 5, "steps": 3}});
    let id = daemon.submit_with_images(&job, &[("photo.png", &photo)]);
    let file = daemon.root().join("manifest.json");
    let mut about = manifest(&daemon, &id, &file);
    let expected = daemon.job(&id)["outputs"][0]["sha256"].clone();
    assert_eq!(about["outputs"][0]["sha256"], expected);
    let (file, picture) = (file.to_str().unwrap(), picture.to_str().unwrap());

    let (out, _) = said(&replay(&daemon, &[file, "--image", picture, "--verify"]), 0);
    assert_eq!(out, format!("the same: {}\n", expected.as_str().unwrap()));
    let (out, _) = said(&replay(&daemon, &[&id, "--image", picture, "--verify", "--json"]), 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["same"], true);

    about["params"]["seed"] = json!(6);
    fs::write(file, about.to_string()).unwrap();
    let (_, error) = said(&replay(&daemon, &[file, "--image", picture, "--verify"]), 1);
    assert!(error.contains("made something else"), "{error}");

    let (_, error) = said(&replay(&daemon, &[file, "--verify"]), 2);
    assert!(error.contains("had 1 pictures"), "{error}");
    fs::write(picture, png(&photo_like(24, 16, 2))).unwrap();
    let (_, error) = said(&replay(&daemon, &[file, "--image", picture]), 2);
    assert!(error.contains("is not the picture"), "{error}");
    said(&replay(&daemon, &["no-such-file", "--verify"]), 2);
}
