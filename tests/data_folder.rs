//! A data folder over time: written by an older version, by a newer one, copied and restored, and moved.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use atelier_testkit::{
    daemon::{Daemon, PATIENCE, Setup, files_below, wait_until},
    pictures::{photo_like, png},
};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier")).set("log.format", "json")
}

fn on_the_database<T>(path: &Path, sql: &'static str, read: impl Fn(&sqlx::sqlite::SqliteRow) -> T) -> Vec<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
        let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        rows.iter().map(read).collect()
    })
}

fn copy_all(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, target).unwrap();
    }
}

fn cli(daemon: &Daemon, args: &[&str]) -> Output {
    let config = daemon.config_file();
    let config = config.to_str().unwrap();
    daemon.command(args.iter().copied().chain(["--config", config])).output().unwrap()
}

#[track_caller]
fn says(output: &Output, code: i32, text: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(text), "{stderr}");
}

fn named(daemon: &Daemon, name: &str) -> Value {
    let jobs = daemon.jobs();
    jobs.iter().find(|job| job["source"]["name"] == name).unwrap_or_else(|| panic!("no job {name}: {jobs:#?}")).clone()
}

/// As `tools/fixtures/data-folder.sh` has it made by an earlier version.
#[test]
fn jobs_in_every_state_go_on_under_the_newest_version() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data-folder");
    let setup = setup();
    let root = setup.root().to_owned();
    copy_all(&fixture, &root);
    let database = root.join("data/atelier.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let moves = [(PathBuf::from("/atelier-fixture"), root)];
    runtime.block_on(atelier::store::relocate(&database, &moves)).unwrap();

    let daemon = setup.start();
    for name in ["running", "queued", "dropped.png"] {
        let id = named(&daemon, name)["id"].as_str().unwrap().to_owned();
        let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
        assert_eq!(job["crashes"], 0, "{job:#}");
        daemon.get(&format!("/api/v1/jobs/{id}/outputs/0")).expect(200);
    }
    let done = daemon.inbox().join("done/dropped.png");
    wait_until("the dropped file to be put away", PATIENCE, || done.exists().then_some(()));
    let succeeded = named(&daemon, "succeeded");
    let bytes = daemon.get(&format!("/api/v1/jobs/{}/outputs/0", succeeded["id"].as_str().unwrap())).expect(200).body;
    assert_eq!(succeeded["outputs"][0]["bytes"], bytes.len(), "{succeeded:#}");
    assert_eq!(named(&daemon, "failed")["error"]["code"], "image_corrupt");
    assert_eq!(named(&daemon, "cancelled")["status"], "cancelled");
    let retrying = named(&daemon, "retrying");
    assert_eq!((&retrying["status"], &retrying["attempt"]), (&json!("retrying"), &json!(1)), "{retrying:#}");
    daemon.post(&format!("/api/v1/jobs/{}/cancel", retrying["id"].as_str().unwrap()), &json!({})).expect(202);
    let counts = daemon.get("/api/v1/queue").expect(200).json()["counts"].clone();
    assert_eq!((&counts["succeeded"], &counts["failed"], &counts["cancelled"]), (&json!(4), &json!(1), &json!(2)));
}

#[test]
fn a_database_of_a_newer_version_is_refused_by_name_and_left_alone() {
    for sql in [
        "PRAGMA user_version = 99",
        // A migration that this version does not have.
        "INSERT INTO _atelier_migrations SELECT 99, 'newer', installed_on, success, checksum, execution_time
            FROM _atelier_migrations LIMIT 1",
    ] {
        let mut daemon = setup().start();
        daemon.sigterm();
        let database = daemon.data().join("atelier.db");
        on_the_database(&database, sql, |_| ());
        let known = || {
            let text = |row: &sqlx::sqlite::SqliteRow| sqlx::Row::get::<Option<String>, _>(row, 0);
            let number = |row: &sqlx::sqlite::SqliteRow| sqlx::Row::get::<i64, _>(row, 0);
            let tables = on_the_database(&database, "SELECT sql FROM sqlite_master ORDER BY name", text);
            let versions = on_the_database(&database, "SELECT version FROM _atelier_migrations ORDER BY 1", number);
            (tables, versions, on_the_database(&database, "PRAGMA user_version", number))
        };
        let before = known();
        says(&cli(&daemon, &["serve"]), 1, "was written by a newer Atelier (schema 99");
        says(&cli(&daemon, &["cleanup"]), 1, "newer Atelier");
        assert_eq!(known(), before, "{sql}");
        assert!(!daemon.data().join("daemon.json").exists());
    }
}

/// A daemon with a job that has ended, one that runs, one that waits with an upload, and one that was dropped.
fn busy() -> (Daemon, Vec<String>) {
    let daemon = setup().start();
    let job = |name: &str, prompt: &str, steps: u32| json!({"kind": "generate", "name": name, "params": {"prompt": prompt, "seed": 3, "steps": steps}});
    let done = daemon.submit(&job("done", "a house", 4));
    daemon.wait_for_status(&done, "succeeded", PATIENCE);
    let running = daemon.submit(&job("running", "fake:slow=20|a house", 60));
    daemon.wait_for_status(&running, "running", PATIENCE);
    let upscale = json!({"kind": "upscale", "name": "waiting", "params": {"scale": 2}});
    let waiting = daemon.submit_with_images(&upscale, &[("a.png", &png(&photo_like(20, 20, 1)))]);
    daemon.drop_file("dropped.png", &png(&photo_like(20, 20, 2)));
    let dropped = daemon.wait_for_source("dropped.png", PATIENCE);
    (daemon, vec![done, running, waiting, dropped])
}

#[test]
fn a_backup_of_a_busy_daemon_restored_elsewhere_finishes_every_job() {
    let (daemon, ids) = busy();
    let place = tempfile::tempdir().unwrap();
    let copy = place.path().join("copy");
    let said = cli(&daemon, &["backup", copy.to_str().unwrap(), "--json"]);
    assert_eq!(said.status.code(), Some(0), "{}", String::from_utf8_lossy(&said.stderr));
    let manifest: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!((&manifest["jobs"], &manifest["missing_outputs"]), (&json!(4), &json!(0)), "{manifest:#}");
    assert!(!copy.join("checkpoints").exists());
    let expected = daemon.get(&format!("/api/v1/jobs/{}/outputs/0", ids[0])).expect(200).body;
    // The first one is gone for good.
    drop(daemon);

    let mut other = setup().prepare();
    let restored = cli(&other, &["restore", copy.to_str().unwrap()]);
    assert_eq!(restored.status.code(), Some(0), "{}", String::from_utf8_lossy(&restored.stderr));
    other.start();
    for id in &ids {
        let job = other.wait_for_status(id, "succeeded", PATIENCE);
        other.get(&format!("/api/v1/jobs/{id}/outputs/0")).expect(200);
        assert_eq!(job["crashes"], 0, "{job:#}");
    }
    assert_eq!(other.get(&format!("/api/v1/jobs/{}/outputs/0", ids[0])).expect(200).body, expected);
    let done = other.inbox().join("done/dropped.png");
    wait_until("the dropped file to be put away", PATIENCE, || done.exists().then_some(()));
    let outputs = on_the_database(&other.data().join("atelier.db"), "SELECT output_paths FROM image_jobs", |row| {
        sqlx::Row::get::<String, _>(row, 0)
    });
    let outbox = other.outbox().display().to_string();
    assert!(outputs.iter().all(|paths| paths.contains(&outbox)), "{outputs:?}");
}

#[test]
fn nothing_is_written_over_and_no_daemon_is_disturbed() {
    let (mut daemon, _) = busy();
    let place = tempfile::tempdir().unwrap();
    let copy = place.path().join("copy");
    let copy = copy.to_str().unwrap();
    assert_eq!(cli(&daemon, &["backup", copy, "--no-outputs"]).status.code(), Some(0));
    assert!(!Path::new(copy).join("outbox").exists());
    says(&cli(&daemon, &["backup", copy]), 2, "is there already");
    says(&cli(&daemon, &["restore", copy]), 2, "another daemon (pid");
    daemon.sigterm();
    says(&cli(&daemon, &["restore", copy]), 2, "atelier.db is there already");
    says(&cli(&daemon, &["restore", place.path().to_str().unwrap()]), 2, "is no backup of Atelier");
    let nowhere = setup().prepare();
    says(&cli(&nowhere, &["backup", copy]), 2, "does not exist");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing unfinished is left");
}

#[test]
fn every_error_code_is_explained_to_operators() {
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATIONS.md")).unwrap();
    let missing: Vec<&str> = atelier_domain::ErrorCode::ALL
        .iter()
        .map(|code| code.as_str())
        .filter(|code| !guide.contains(&format!("`{code}`")))
        .collect();
    assert!(missing.is_empty(), "docs/OPERATIONS.md says nothing of {missing:?}");
}
