//! Jobs that name a model which is not installed: they wait, run when it is there, and fail when it cannot be had.

use atelier_testkit::daemon::{PATIENCE, wait_until};
use serde_json::{Value, json};

use crate::{
    loopback::Fault,
    scene::{MIB, Scene, weights},
};

const MODEL: &str = "lab/painter";

fn scene() -> Scene {
    let scene = Scene::with(|setup| setup.set("models.auto_pull", true));
    scene.hub.put(MODEL, "config.json", r#"{"_class_name":"AtelierFake"}"#);
    scene
}

fn job(model: &str) -> Value {
    json!({"kind": "generate", "model": model, "params": {"prompt": "a house", "steps": 2}})
}

#[test]
fn a_job_waits_for_its_model_and_holds_nobody_up() {
    let mut scene = scene();
    scene.hub.fault("config.json", Fault::Hold(5), 9);
    scene.daemon.start();
    let id = scene.daemon.submit(&job(MODEL));
    let note = wait_until("the job to say what it waits for", PATIENCE, || {
        let job = scene.daemon.job(&id);
        assert_eq!(job["status"], "queued", "{job:#}");
        let phase = job["progress"]["phase"].as_str().unwrap().to_owned();
        phase.contains("waiting").then_some(phase)
    });
    assert!(note.starts_with("waiting for the model lab/painter"), "{note}");
    let other = scene.daemon.submit(&job("fake"));
    scene.daemon.wait_for_status(&other, "succeeded", PATIENCE);
    let models = scene.daemon.get("/api/v1/models").expect(200).json();
    assert_eq!((&models["pulls"][0]["id"], &models["pulls"][0]["state"]), (&json!(MODEL), &json!("pulling")));
    assert!(models["models"].as_array().unwrap().iter().all(|model| model["id"] != MODEL), "{models:#}");

    scene.hub.let_go();
    let job = scene.daemon.wait_for_status(&id, "succeeded", PATIENCE);
    assert_eq!((&job["model"], &job["attempt"]), (&json!(MODEL), &json!(1)));
    let models = scene.daemon.get("/api/v1/models").expect(200).json();
    assert_eq!(models["pulls"], json!([]));
    assert_eq!(scene.hub.seen("config.json").len(), 1, "one pull for all that wait");
}

#[test]
fn a_pull_that_fails_fails_its_jobs_and_a_retry_pulls_again() {
    let mut scene = scene();
    scene.hub.fault("/api/", Fault::Status(403, Some(("x-error-code", "GatedRepo"))), usize::MAX);
    scene.daemon.start();
    let ids = [scene.daemon.submit(&job(MODEL)), scene.daemon.submit(&job(MODEL))];
    for id in &ids {
        let job = scene.daemon.wait_for_status(id, "failed", PATIENCE);
        assert_eq!(job["error"]["code"], "model_pull_failed", "{job:#}");
        assert!(job["error"]["message"].as_str().unwrap().contains("lab/painter could not be pulled"), "{job:#}");
        assert!(job["error"]["hint"].as_str().unwrap().contains("accept its terms"), "{job:#}");
    }
    scene.hub.behave();
    scene.daemon.post(&format!("/api/v1/jobs/{}/retry", ids[0]), &json!({})).expect(202);
    scene.daemon.wait_for_status(&ids[0], "succeeded", PATIENCE);
}

#[test]
fn a_model_that_does_something_else_is_said_when_it_is_known() {
    let mut scene = scene();
    scene.daemon.start();
    let id = scene.daemon.submit(&json!({"kind": "generate", "model": "org/net", "params": {"prompt": "a house"}}));
    let job = scene.daemon.wait_for_status(&id, "failed", PATIENCE);
    assert_eq!(job["error"]["code"], "kind_not_supported", "{job:#}");
    scene.is_whole();
}

#[test]
fn without_leave_nothing_is_pulled() {
    let mut scene = scene();
    scene.daemon.set("models.auto_pull", false);
    scene.daemon.start();
    let refused = scene.daemon.post("/api/v1/jobs", &job(MODEL)).expect(422).json();
    assert_eq!(refused["code"], "unknown_model");
    scene.daemon.set("models.auto_pull", true);
    scene.daemon.restart();
    let refused = scene.daemon.post("/api/v1/jobs", &job("painter")).expect(422).json();
    assert_eq!(refused["code"], "unknown_model", "no name on a hub");
    assert!(scene.hub.seen("").is_empty());
}

#[test]
fn a_daemon_that_dies_in_a_pull_goes_on_with_it() {
    for place in ["", "hub.before_publish", "hub.after_publish"] {
        let mut scene = scene();
        scene.hub.put(MODEL, "model.safetensors", weights(3 * MIB));
        if place.is_empty() {
            scene.hub.fault("config.json", Fault::Hold(5), 9);
        } else {
            scene.daemon.set_env("ATELIER_FAILPOINTS", &format!("{place}=kill"));
        }
        scene.daemon.start();
        let id = scene.daemon.submit(&job(MODEL));
        if place.is_empty() {
            scene.wait_for_requests("config.json", 1);
            scene.daemon.sigkill();
        } else {
            scene.daemon.wait_exit(PATIENCE);
        }
        assert_eq!(scene.listed(MODEL).is_some(), place == "hub.after_publish", "{place}");
        scene.hub.behave();
        scene.hub.let_go();
        scene.daemon.set_env("ATELIER_FAILPOINTS", "");
        scene.daemon.start();
        let job = scene.daemon.wait_for_status(&id, "succeeded", PATIENCE);
        assert_eq!(job["attempt"], 1, "{place}: {job:#}");
        assert_eq!(scene.listed(MODEL).unwrap()["complete"], true, "{place}");
    }
}
