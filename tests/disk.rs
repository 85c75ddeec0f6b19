//! Disks that are full, broken or not to be written to: what waits, what fails, and that nothing is lost.
//!
//! Full disks are real ones: small file systems in memory, mounted where nobody else sees them. Broken ones are
//! failpoints, since no disk fails on demand.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use atelier_testkit::{
    daemon::{Answer, Daemon, PATIENCE, Part, Setup, files_below, http::multipart, wait_until},
    disk::{Disk, where_it_may_mount},
    pictures::{photo_like, png},
};
use serde_json::{Value, json};

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier")).set("queue.backoff", "50ms").set("log.format", "json")
}

fn generate(steps: u32, slow: u32) -> Value {
    json!({"kind": "generate", "params": {"prompt": format!("fake:slow={slow}|a house"), "seed": 3, "steps": steps}})
}

fn post_picture(daemon: &Daemon, key: &str) -> Answer {
    let picture = png(&photo_like(40, 30, 5));
    let parts = [Part::field("job", r#"{"kind":"upscale"}"#), Part::file("image", "photo.png", &picture)];
    let (content_type, body) = multipart(&parts);
    let headers = [("Content-Type", content_type.as_str()), ("Idempotency-Key", key)];
    daemon.http().send("POST", "/api/v1/jobs", &headers, &body)
}

fn id_of(answer: &Answer) -> String {
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// Waits until the daemon says that its queue stands still, and why.
fn wait_blocked(daemon: &Daemon) -> String {
    wait_until("the queue to stand still", PATIENCE, || {
        let answer = daemon.get("/readyz");
        (answer.status == 503).then(|| answer.json()["detail"].as_str().unwrap().to_owned())
    })
}

fn wait_open(daemon: &Daemon) {
    wait_until("the queue to go on", PATIENCE, || (daemon.get("/readyz").status == 200).then_some(()));
}

/// Every job has succeeded, and every file in the outbox is one of their whole outputs.
fn all_is_well(daemon: &Daemon) {
    let mut outputs = Vec::new();
    for job in daemon.jobs() {
        assert_eq!(job["status"], "succeeded", "{job:#}");
        for output in job["outputs"].as_array().unwrap() {
            daemon.get(output["url"].as_str().unwrap()).expect(200);
            outputs.push(output["name"].as_str().unwrap().to_owned());
        }
    }
    let mut files: Vec<String> =
        daemon.published().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    files.retain(|name| name != "ballast");
    files.sort();
    outputs.sort();
    assert_eq!(files, outputs);
}

fn spooled(daemon: &Daemon) -> Vec<PathBuf> {
    files_below(&daemon.data().join("spool"))
}

#[test]
fn a_full_data_disk_holds_everything_up_and_loses_nothing() {
    where_it_may_mount("a_full_data_disk_holds_everything_up_and_loses_nothing", || {
        let mut daemon = setup().prepare();
        let disk = Disk::mount(daemon.data(), "size=8m");
        daemon.start();
        let mut accepted = vec![daemon.submit(&generate(150, 20)), daemon.submit(&generate(3, 1))];
        wait_until("some steps", PATIENCE, || {
            daemon.job(&accepted[0])["progress"]["step"].as_u64().filter(|step| *step > 3)
        });

        disk.fill();
        for upload in [false, true] {
            let mut n = 0;
            let refused = wait_until("a request to be refused", PATIENCE, || {
                n += 1;
                let answer = if upload {
                    post_picture(&daemon, &format!("full-{n}"))
                } else {
                    daemon.post("/api/v1/jobs", &generate(3, 1))
                };
                match answer.status {
                    // What was allocated before may still be written to.
                    202 => accepted.push(id_of(&answer)),
                    507 => return Some(answer.json()),
                    other => panic!("{other}: {}", answer.text()),
                }
                None
            });
            assert_eq!(refused["code"], "disk_full", "{refused}");
        }
        let why = wait_blocked(&daemon);
        assert!(why.contains("stands still"), "{why}");
        daemon.get("/healthz").expect(200);
        daemon.drop_file("photo.png", &png(&photo_like(30, 30, 1)));

        disk.make_room();
        wait_open(&daemon);
        for id in &accepted {
            let job = daemon.wait_for_status(id, "succeeded", PATIENCE);
            assert_eq!(job["attempt"], 1, "waiting for room is no attempt: {job:#}");
        }
        let dropped = daemon.wait_for_source("photo.png", PATIENCE);
        daemon.wait_for_status(&dropped, "succeeded", PATIENCE);
        id_of(&post_picture(&daemon, "after").expect(202));
        wait_until("the last job", PATIENCE, || {
            daemon.jobs().iter().all(|job| job["status"] == "succeeded").then_some(())
        });
        assert_eq!(daemon.jobs().len(), accepted.len() + 2, "no job of a refused request");
        all_is_well(&daemon);
        assert!(daemon.sigterm().success());
    });
}

#[test]
fn a_full_outbox_holds_the_queue_up_and_shows_no_half_file() {
    where_it_may_mount("a_full_outbox_holds_the_queue_up_and_shows_no_half_file", || {
        let mut daemon = setup().prepare();
        let disk = Disk::mount(daemon.outbox(), "size=1m");
        daemon.start();
        disk.fill();
        let first = daemon.submit(&generate(2, 1));
        let why = wait_blocked(&daemon);
        assert!(why.contains("No space left") || why.contains("os error 28"), "{why}");
        let second = id_of(&post_picture(&daemon, "second").expect(202));
        daemon.drop_file("photo.png", &png(&photo_like(30, 30, 1)));
        let third = daemon.wait_for_source("photo.png", PATIENCE);
        for id in [&first, &second, &third] {
            assert_eq!(daemon.job(id)["status"], "queued");
        }
        assert_eq!(daemon.published(), [disk.ballast()], "nothing half-written");

        disk.make_room();
        for id in [&first, &second, &third] {
            let job = daemon.wait_for_status(id, "succeeded", PATIENCE);
            assert_eq!(job["attempt"], 1, "{job:#}");
        }
        wait_open(&daemon);
        all_is_well(&daemon);
    });
}

#[test]
fn a_disk_that_is_still_full_after_a_restart_is_waited_for_again() {
    where_it_may_mount("a_disk_that_is_still_full_after_a_restart_is_waited_for_again", || {
        let mut daemon = setup().prepare();
        let disk = Disk::mount(daemon.outbox(), "size=1m");
        daemon.start();
        disk.fill();
        let id = daemon.submit(&generate(2, 1));
        wait_blocked(&daemon);
        daemon.sigkill();
        daemon.start();
        wait_blocked(&daemon);
        assert!(daemon.sigterm().success(), "a full disk holds up no stop");
        daemon.start();
        wait_blocked(&daemon);
        disk.make_room();
        daemon.wait_for_status(&id, "succeeded", PATIENCE);
        all_is_well(&daemon);
    });
}

#[test]
fn a_data_folder_that_cannot_be_written_to_ends_the_start_and_is_named() {
    where_it_may_mount("a_data_folder_that_cannot_be_written_to_ends_the_start_and_is_named", || {
        let daemon = setup().prepare();
        let _disk = Disk::mount(daemon.data(), "size=1m,ro");
        let config = daemon.config_file();
        let start = daemon.command([Path::new("serve"), Path::new("--config"), &config]).output().unwrap();
        let error = String::from_utf8_lossy(&start.stderr);
        assert_eq!(start.status.code(), Some(1), "{error}");
        assert!(error.contains(&daemon.data().display().to_string()) && error.contains("Read-only"), "{error}");
    });
}

#[test]
fn a_refused_or_failing_publication_is_tried_again() {
    for error in ["eacces", "eio"] {
        let daemon = setup().env("ATELIER_FAILPOINTS", format!("publish.rename={error}@1")).start();
        daemon.drop_file("photo.png", &png(&photo_like(30, 30, 1)));
        let id = daemon.wait_for_source("photo.png", PATIENCE);
        let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
        assert_eq!((&job["attempt"], &job["error"]), (&json!(2), &Value::Null), "{job:#}");
        all_is_well(&daemon);
        wait_until("the source in done/", PATIENCE, || daemon.inbox().join("done/photo.png").exists().then_some(()));
    }
}

#[test]
fn an_outbox_that_stays_refused_fails_the_job_clearly_and_a_retry_needs_no_second_run() {
    for (error, code) in [("eacces", "permission_denied"), ("eio", "io_error")] {
        let mut daemon = setup().env("ATELIER_FAILPOINTS", format!("publish.rename={error}@1+")).start();
        let picture = png(&photo_like(30, 30, 1));
        daemon.drop_file("photo.png", &picture);
        let id = daemon.wait_for_source("photo.png", PATIENCE);
        let job = daemon.wait_for_status(&id, "failed", PATIENCE);
        assert_eq!((&job["error"]["code"], &job["attempt"]), (&json!(code), &json!(3)), "{job:#}");
        assert_ne!(job["error"]["hint"], "", "{job:#}");
        let report = daemon.inbox().join("failed/photo.png.error.json");
        let report = wait_until("the report", PATIENCE, || fs::read(&report).ok());
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!((&report["code"], &report["attempts"]), (&json!(code), &json!(3)), "{report}");
        assert_eq!(fs::read(daemon.inbox().join("failed/photo.png")).unwrap(), picture);
        assert!(daemon.published().is_empty());

        daemon.set_env("ATELIER_FAILPOINTS", "");
        daemon.restart();
        daemon.post(&format!("/api/v1/jobs/{id}/retry"), &json!({})).expect(202);
        daemon.wait_for_status(&id, "succeeded", PATIENCE);
        wait_until("the source in done/", PATIENCE, || daemon.inbox().join("done/photo.png").exists().then_some(()));
        assert!(files_below(&daemon.inbox().join("failed")).is_empty());
        all_is_well(&daemon);
    }
}

#[test]
fn a_commit_that_fails_once_loses_no_job_and_spends_no_attempt() {
    for (error, refused) in [("eio", 500), ("enospc", 507)] {
        // From the first commit after the start to those of the jobs' ends.
        for nth in [2, 3, 4, 5, 6, 7, 8, 10, 12, 14] {
            let mut daemon = setup().env("ATELIER_FAILPOINTS", format!("store.commit={error}@{nth}")).start();
            daemon.drop_file("photo.png", &png(&photo_like(30, 30, 1)));
            let mut ids = Vec::new();
            for key in ["one", "two"] {
                ids.push(wait_until("a request to be taken", PATIENCE, || {
                    let answer = post_picture(&daemon, key);
                    assert!([200, 202, refused].contains(&answer.status), "{}", answer.text());
                    ([200, 202].contains(&answer.status)).then(|| id_of(&answer))
                }));
            }
            ids.push(daemon.wait_for_source("photo.png", PATIENCE));
            for id in &ids {
                let job = daemon.wait_for_status(id, "succeeded", PATIENCE);
                assert_eq!(job["attempt"], 1, "{error}@{nth}: {job:#}");
            }
            assert_eq!(daemon.jobs().len(), 3, "{error}@{nth}");
            all_is_well(&daemon);
            wait_until("the source in done/", PATIENCE, || {
                daemon.inbox().join("done/photo.png").exists().then_some(())
            });
            wait_open(&daemon);
            assert!(daemon.sigterm().success(), "{error}@{nth}");
        }
    }
}

#[test]
fn a_database_that_cannot_be_written_at_the_start_ends_it_and_says_so() {
    let mut daemon = setup().start();
    let id = daemon.submit(&generate(1000, 20));
    wait_until("it runs", PATIENCE, || (daemon.job(&id)["status"] == "running").then_some(()));
    daemon.sigkill();
    daemon.set_env("ATELIER_FAILPOINTS", "store.commit=eio@1+");
    daemon.spawn();
    let status = daemon.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("database"), "{}", daemon.log());
    daemon.set_env("ATELIER_FAILPOINTS", "");
    daemon.start();
    wait_until("it runs again", PATIENCE, || (daemon.job(&id)["status"] == "running").then_some(()));
}

#[test]
fn an_upload_that_cannot_be_kept_is_refused_and_leaves_nothing() {
    for (place, error, status, code) in [
        ("http.upload.write", "enospc", 507, "disk_full"),
        ("http.upload.write", "eio", 500, "io_error"),
        ("http.spool.keep", "enospc", 507, "disk_full"),
        ("http.spool.keep", "eacces", 500, "permission_denied"),
    ] {
        let daemon = setup().env("ATELIER_FAILPOINTS", format!("{place}={error}@1")).start();
        let refused = post_picture(&daemon, "key").expect(status).json();
        assert_eq!(refused["code"], code, "{place}={error}");
        wait_until("the upload to go", Duration::from_secs(10), || spooled(&daemon).is_empty().then_some(()));
        assert_eq!(daemon.jobs().len(), 0, "{place}={error}");
        // The key has not been used up.
        let id = id_of(&post_picture(&daemon, "key").expect(202));
        daemon.wait_for_status(&id, "succeeded", PATIENCE);
        wait_until("the upload to go", Duration::from_secs(10), || spooled(&daemon).is_empty().then_some(()));
    }
}
