//! The drop folder from outside: files in, outputs out, sources put away.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path};

use atelier_testkit::{
    daemon::{Daemon, PATIENCE, Setup, files_below, wait_until},
    pictures::{jpeg, photo_like, png},
};
use rustix::process::Signal;
use serde_json::{Value, json};

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier"))
        .set("presets.look.kind", "edit")
        .set("presets.look.params", toml::Table::from_iter([("prompt".to_owned(), "warm".into())]))
}

fn picture(seed: u64) -> Vec<u8> {
    png(&photo_like(24, 16, seed))
}

fn exists(path: &Path) {
    wait_until(&path.display().to_string(), PATIENCE, || path.exists().then_some(()));
}

/// Waits for the job of a dropped file to succeed.
fn done(daemon: &Daemon, source: &str) -> Value {
    let id = daemon.wait_for_source(source, PATIENCE);
    daemon.wait_for_status(&id, "succeeded", PATIENCE)
}

fn report(path: &Path) -> Value {
    exists(path);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_dropped_picture_comes_back_in_the_outbox_and_its_source_is_put_away() {
    let daemon = setup().start();
    daemon.drop_file("holiday/photo.png", &picture(1));
    let job = done(&daemon, "holiday/photo.png");
    let id = job["id"].as_str().unwrap();
    assert_eq!(job["source"], json!({"type": "inbox", "name": "holiday/photo.png"}));
    assert_eq!((&job["kind"], &job["inputs"][0]["width"]), (&json!("upscale"), &json!(24)));
    assert_eq!(daemon.published(), [daemon.outbox().join(format!("holiday/photo-{id}.png"))]);
    exists(&daemon.inbox().join("done/holiday/photo.png"));
    assert_eq!(fs::read(daemon.inbox().join("done/holiday/photo.png")).unwrap(), picture(1));
    assert!(files_below(&daemon.inbox().join(".processing")).is_empty());
}

#[test]
fn a_folder_named_like_a_preset_uses_it_and_is_no_folder_of_outputs() {
    let daemon = setup().start();
    daemon.drop_file("look/day/photo.png", &picture(1));
    let job = done(&daemon, "look/day/photo.png");
    assert_eq!((&job["kind"], &job["params"]["prompt"]), (&json!("edit"), &json!("warm")));
    let id = job["id"].as_str().unwrap();
    assert_eq!(daemon.published(), [daemon.outbox().join(format!("day/photo-{id}.png"))]);
    exists(&daemon.inbox().join("done/look/day/photo.png"));
}

#[test]
fn a_caption_comes_back_as_a_file_of_text() {
    let daemon = setup().set("presets.words.kind", "caption").start();
    daemon.drop_file("words/day/photo.png", &picture(1));
    let job = done(&daemon, "words/day/photo.png");
    let id = job["id"].as_str().unwrap();
    let text = "a picture of 24 by 16 pixels";
    assert_eq!(job["result"]["text"], text);
    let file = daemon.outbox().join(format!("day/photo-{id}.txt"));
    assert_eq!(daemon.published(), [file.as_path()]);
    assert_eq!(fs::read_to_string(file).unwrap(), format!("{text}\n"));
    let output = &job["outputs"][0];
    assert_eq!(
        (&output["media_type"], &output["bytes"]),
        (&json!("text/plain; charset=utf-8"), &json!(text.len() + 1))
    );
}

#[test]
fn sidecars_count_before_and_after_their_picture() {
    let daemon = setup().set("inbox.sidecar_wait", "1m").start();
    daemon.drop_file("a.png.json", br#"{"scale": 4}"#);
    daemon.drop_file("a.png", &picture(1));
    assert_eq!(done(&daemon, "a.png")["params"]["scale"], 4);
    exists(&daemon.inbox().join("done/a.png.json"));

    // Its job is done before the sidecar comes.
    daemon.drop_file("b.png", &picture(2));
    assert_eq!(done(&daemon, "b.png")["params"]["scale"], 2);
    daemon.drop_file("b.toml", b"scale = 4\n");
    let again = wait_until("the job with the sidecar", PATIENCE, || {
        daemon.jobs().into_iter().find(|job| job["source"]["name"] == "b.png" && job["params"]["scale"] == 4)
    });
    daemon.wait_for_status(again["id"].as_str().unwrap(), "succeeded", PATIENCE);
    exists(&daemon.inbox().join("done/b.toml"));
    assert!(daemon.inbox().join("done/b.png").exists());

    // Its job runs when the sidecar comes.
    daemon.drop_file("look/c.png", &picture(3));
    daemon.drop_file("look/c.png.toml", b"prompt = \"fake:slow=100|cold\"\nsteps = 1000\n");
    let slow = wait_until("the slow job", PATIENCE, || {
        daemon.jobs().into_iter().find(|job| job["source"]["name"] == "look/c.png" && job["params"]["steps"] == 1000)
    });
    let id = slow["id"].as_str().unwrap();
    daemon.wait_for_status(id, "running", PATIENCE);
    daemon.drop_file("look/c.txt", b"colder\n");
    // The stronger sidecar's prompt stays; that both are taken is what counts.
    wait_until("the job to be called off", PATIENCE, || (daemon.job(id)["status"] == "cancelled").then_some(()));
    let both = wait_until("the job with both", PATIENCE, || {
        let newest = daemon.jobs().into_iter().find(|job| job["source"]["name"] == "look/c.png")?;
        (newest["id"] != slow["id"]).then_some(newest)
    });
    assert_eq!(both["params"]["steps"], 1000);
    assert!(!daemon.inbox().join("failed/look/c.png").exists());
}

#[test]
fn a_sidecar_alone_is_a_job_by_itself() {
    let daemon = setup().start();
    daemon.drop_file("dreams/moon.toml", b"kind = \"generate\"\nprompt = \"the moon\"\nseed = 5\n");
    let job = done(&daemon, "dreams/moon.toml");
    assert_eq!((&job["kind"], &job["params"]["seed"]), (&json!("generate"), &json!(5)));
    assert_eq!(job["inputs"], json!([]));
    let id = job["id"].as_str().unwrap();
    assert_eq!(daemon.published(), [daemon.outbox().join(format!("dreams/moon-{id}.png"))]);
    exists(&daemon.inbox().join("done/dreams/moon.toml"));
}

#[test]
fn a_failed_source_is_reported_and_tried_again_by_moving_it_back_or_by_retrying_the_job() {
    let daemon = setup().start();
    let failing = b"prompt = \"fake:fail@1=device_error*3;fail@1=image_corrupt|x\"\n";
    daemon.drop_file("look/a.png.toml", failing);
    daemon.drop_file("look/a.png", &picture(1));
    let failed = daemon.inbox().join("failed/look");
    let first = report(&failed.join("a.png.error.json"));
    let id = first["job"].as_str().unwrap().to_owned();
    daemon.wait_for_status(&id, "failed", PATIENCE);
    assert_eq!(daemon.job(&id)["error"]["code"], first["code"]);
    exists(&failed.join("a.png"));
    assert!(failed.join("a.png.toml").exists());

    // Moved back with another sidecar: a new job, and the report goes when it succeeds.
    fs::remove_file(failed.join("a.png.toml")).unwrap();
    fs::rename(failed.join("a.png"), daemon.inbox().join("look/a.png")).unwrap();
    exists(&daemon.inbox().join("done/look/a.png"));
    assert!(!failed.join("a.png.error.json").exists());

    // Retried by its id: the same job, from where its source lies now.
    daemon.drop_file("b.json", br#"{"kind": "edit", "prompt": "fake:fail@1=image_corrupt*1|x"}"#);
    daemon.drop_file("b.png", &picture(2));
    let id = daemon.wait_for_source("b.png", PATIENCE);
    daemon.wait_for_status(&id, "failed", PATIENCE);
    exists(&daemon.inbox().join("failed/b.png"));
    daemon.post(&format!("/api/v1/jobs/{id}/retry"), &json!({})).expect(202);
    daemon.wait_for_status(&id, "failed", PATIENCE);
    wait_until("the second failure's report", PATIENCE, || {
        let report: Value =
            serde_json::from_slice(&fs::read(daemon.inbox().join("failed/b.png.error.json")).ok()?).ok()?;
        (report["job"] == id.as_str() && daemon.inbox().join("failed/b.png").exists()).then_some(())
    });
    assert!(!daemon.inbox().join("failed/b (2).png").exists(), "it stays where it was");
}

#[test]
fn files_that_can_be_no_jobs_go_to_failed_and_say_why() {
    let daemon = setup().set("inbox.give_up", "300ms").start();
    let whole = jpeg(&photo_like(64, 48, 1), 90);
    daemon.drop_file("letter.jpg", b"Dear Sir");
    daemon.drop_file("half.jpg", &whole[..whole.len() / 2]);
    daemon.drop_file("empty.jpg", b"");
    daemon.drop_file("x/a.png.toml", b"scale = 2\ncolour = 3\n");
    daemon.drop_file("x/a.png", &picture(1));
    for (name, code) in [
        ("letter.jpg", "image_unsupported"),
        ("half.jpg", "image_truncated"),
        ("empty.jpg", "image_empty"),
        ("x/a.png", "sidecar_invalid"),
    ] {
        let report = report(&daemon.inbox().join(format!("failed/{name}.error.json")));
        assert_eq!((&report["code"], &report["job"]), (&json!(code), &Value::Null), "{report}");
        exists(&daemon.inbox().join("failed").join(name));
        if code == "sidecar_invalid" {
            let message = report["message"].as_str().unwrap();
            assert!(message.contains("line 2") && message.contains("colour"), "{message}");
        }
    }
    assert_eq!(daemon.jobs(), [Value::Null; 0]);
}

#[test]
fn a_picture_that_grows_is_taken_when_it_is_whole() {
    let daemon = setup().start();
    let whole = jpeg(&photo_like(64, 48, 1), 90);
    let path = daemon.inbox().join("slow.jpg");
    for end in [0, 10, whole.len() / 2, whole.len() - 2] {
        fs::write(&path, &whole[..end]).unwrap();
        // Long enough for it to stand still; if it were taken, the next write would make a second file.
        let scans = scans(&daemon);
        wait_until("two looks", PATIENCE, || (self::scans(&daemon) > scans + 1).then_some(()));
        assert_eq!(daemon.jobs(), [Value::Null; 0], "taken at {end} bytes");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(done(&daemon, "slow.jpg")["inputs"][0]["bytes"], whole.len());
}

/// Looks at everything so far, from the metrics.
fn scans(daemon: &Daemon) -> u64 {
    let metrics = daemon.get("/metrics").expect(200).text();
    let line = metrics.lines().find(|line| line.starts_with("atelier_inbox_scans_total"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_duplicate_is_not_run_again_unless_the_configuration_says_so() {
    let mut daemon = setup().start();
    daemon.drop_file("a.png", &picture(1));
    let first = done(&daemon, "a.png");
    daemon.drop_file("copy.png", &picture(1));
    let link = report(&daemon.inbox().join("done/copy.png.duplicate.json"));
    assert_eq!(link["job"], first["id"]);
    exists(&daemon.inbox().join("done/copy.png"));
    assert_eq!(daemon.jobs().len(), 1);
    daemon.set("inbox.duplicates", "run");
    daemon.restart();
    daemon.drop_file("again.png", &picture(1));
    done(&daemon, "again.png");
}

#[test]
fn a_reload_changes_what_is_left_alone() {
    let mut daemon = setup().set("inbox.ignore", vec!["raw*"]).start();
    daemon.drop_file("raw1.png", &picture(1));
    daemon.drop_file("a.png", &picture(2));
    done(&daemon, "a.png");
    assert!(daemon.inbox().join("raw1.png").exists());
    daemon.set("inbox.ignore", toml::Value::Array(Vec::new()));
    daemon.signal(Signal::HUP);
    done(&daemon, "raw1.png");
}

#[test]
fn files_dropped_while_the_daemon_is_down_are_found_and_claims_survive_its_death() {
    let mut daemon = setup().start();
    daemon.post("/api/v1/queue/pause", &json!({})).expect(200);
    daemon.drop_file("a.png", &picture(1));
    let id = daemon.wait_for_source("a.png", PATIENCE);
    daemon.sigkill();
    daemon.drop_file("b.png", &picture(2));
    daemon.start();
    daemon.post("/api/v1/queue/resume", &json!({})).expect(200);
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
    done(&daemon, "b.png");
    assert_eq!(daemon.jobs().len(), 2);
    exists(&daemon.inbox().join("done/a.png"));
    exists(&daemon.inbox().join("done/b.png"));
}
