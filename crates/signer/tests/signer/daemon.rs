//! The daemon with a certificate: what it publishes is signed, exactly once, whatever is killed in between.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use atelier_domain::signing::SignatureAlgorithm::Es256;
use atelier_testkit::{
    daemon::{Daemon, PATIENCE, Setup},
    pictures::{photo_like, png},
};
use c2pa::ValidationState::Trusted;
use serde_json::{Value, json};

use crate::{
    pki::{PROFILE, Pki},
    run::{read, sha256},
};

/// The daemon beside the signer under test.
fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_atelier-signer")).with_file_name("atelier");
    assert!(program.exists(), "{} is missing: run `cargo build` first", program.display());
    program
}

fn setup(pki: &Pki) -> Setup {
    let path = |name: &str| pki.path(name).to_str().unwrap().to_owned();
    Setup::new(program())
        .set("provenance.certificate_file", path("es256.pem"))
        .set("provenance.key_file", path("es256.key"))
        .set("provenance.command", env!("CARGO_BIN_EXE_atelier-signer"))
        .set("queue.backoff", "10ms")
        .set("queue.backoff_max", "20ms")
}

fn photo() -> Vec<u8> {
    png(&photo_like(32, 24, 1))
}

fn edit(daemon: &Daemon, format: &str) -> String {
    let job = json!({"kind": "edit", "params": {"prompt": "sunset", "seed": 5, "steps": 2, "format": format}});
    daemon.submit_with_images(&job, &[("photo.png", &photo())])
}

/// The job has this one output, which is as the job says and verifies.
#[track_caller]
fn is_signed(daemon: &Daemon, pki: &Pki, job: &Value) -> PathBuf {
    let name = job["outputs"][0]["name"].as_str().unwrap();
    let id = job["id"].as_str().unwrap();
    let mine: Vec<_> = daemon.published().into_iter().filter(|path| path.to_str().unwrap().contains(id)).collect();
    assert_eq!(mine, [daemon.outbox().join(name)]);
    let bytes = fs::read(&mine[0]).unwrap();
    assert_eq!(job["outputs"][0]["sha256"], sha256(&bytes));
    assert_eq!(job["outputs"][0]["bytes"], bytes.len());
    let reader = read(&mine[0], &pki.anchor()).unwrap();
    assert_eq!(reader.validation_state(), Trusted, "{}", reader.json());
    mine[0].clone()
}

#[track_caller]
fn cli(daemon: &Daemon, args: &[&str], exit: i32) -> String {
    let config = daemon.config_file();
    let output = daemon.command([args, &["--config", config.to_str().unwrap()]].concat()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(exit), "{said}");
    said
}

#[test]
fn outputs_of_every_format_are_signed_and_served_so() {
    let pki = Pki::new();
    pki.good(Es256);
    let daemon = setup(&pki).start();
    for format in ["png", "jpeg", "webp"] {
        let id = edit(&daemon, format);
        let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
        let file = is_signed(&daemon, &pki, &job);
        let served = daemon.get(&format!("/api/v1/jobs/{id}/outputs/0")).expect(200).body;
        assert_eq!(served, fs::read(&file).unwrap());
        let reader = read(&file, &pki.anchor()).unwrap();
        let told = reader.json();
        for word in ["c2pa.opened", "c2pa.edited", "compositeWithTrainedAlgorithmicMedia", "parentOf"] {
            assert!(told.contains(word), "{format}: no {word} in {told}");
        }
        assert!(!told.contains("photo.png"), "{told}");
    }
}

#[test]
fn a_signed_job_is_replayed_by_what_was_signed() {
    let pki = Pki::new();
    pki.good(Es256);
    let mut daemon = setup(&pki).start();
    let id = edit(&daemon, "png");
    let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
    let mut manifest = daemon.get(&format!("/api/v1/jobs/{id}/manifest")).expect(200).json();
    let unsigned = manifest["signature"]["unsigned_sha256"][0].as_str().unwrap().to_owned();
    assert_eq!(manifest["signature"]["algorithm"], "es256");
    assert_ne!(job["outputs"][0]["sha256"], unsigned);
    assert_eq!(manifest["outputs"][0]["sha256"], job["outputs"][0]["sha256"]);

    let picture = daemon.root().join("photo.png");
    fs::write(&picture, photo()).unwrap();
    let about = daemon.root().join("manifest.json");
    fs::write(&about, manifest.to_string()).unwrap();
    let replay = ["replay", about.to_str().unwrap(), "--image", picture.to_str().unwrap(), "--verify"];
    assert!(cli(&daemon, &replay, 0).starts_with(&format!("the same: {unsigned}\n")));
    let again = daemon.jobs()[0]["outputs"][0]["sha256"].clone();
    assert_ne!(again, job["outputs"][0]["sha256"], "no two signatures are the same");

    // Without a certificate it is still the same picture, and another seed still another.
    for key in ["certificate_file", "key_file"] {
        daemon.set(&format!("provenance.{key}"), "");
    }
    daemon.restart();
    assert!(cli(&daemon, &replay, 0).starts_with(&format!("the same: {unsigned}\n")));
    manifest["params"]["seed"] = json!(6);
    fs::write(&about, manifest.to_string()).unwrap();
    assert!(cli(&daemon, &replay, 1).contains("made something else"));
}

#[test]
fn a_kill_at_any_step_leaves_exactly_one_signed_output() {
    let pki = Pki::new();
    pki.good(Es256);
    for place in [
        "queue.after_run",
        "signing.signed",
        "publish.after_note",
        "publish.rename",
        "publish.after_rename",
        "queue.before_succeed",
    ] {
        let mut daemon = setup(&pki).env("ATELIER_FAILPOINTS", format!("{place}=kill")).start();
        let id = edit(&daemon, "png");
        let status = daemon.wait_exit(PATIENCE);
        assert!(!status.success(), "{place}: {status}");
        daemon.set_env("ATELIER_FAILPOINTS", "");
        daemon.start();
        let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
        is_signed(&daemon, &pki, &job);
        assert_eq!(daemon.published().len(), 1, "{place}");
    }
}

#[test]
fn the_note_of_an_earlier_try_does_not_speak_for_a_later_one() {
    let pki = Pki::new();
    pki.good(Es256);
    // The first try is noted, and cannot be moved; the second is killed when it has signed anew.
    let mut daemon = setup(&pki).env("ATELIER_FAILPOINTS", "publish.rename=eio@1,signing.signed=kill@2").start();
    let id = edit(&daemon, "png");
    daemon.wait_exit(PATIENCE);
    daemon.set_env("ATELIER_FAILPOINTS", "");
    daemon.start();
    let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
    is_signed(&daemon, &pki, &job);
}

#[test]
fn what_is_wrong_is_said_by_check_start_doctor_and_reload() {
    let pki = Pki::new();
    pki.good(Es256);
    pki.certify("old", Es256, PROFILE, (-20, -1));
    let mut daemon = setup(&pki).start();
    let path = |name: &str| pki.path(name).to_str().unwrap().to_owned();
    assert!(cli(&daemon, &["config", "check"], 0).starts_with("OK"));
    let told = cli(&daemon, &["doctor"], 0);
    assert!(
        told.contains("signature") && told.contains("es256 as O=Tests, CN=es256, by O=Tests, CN=Authority"),
        "{told}"
    );

    for (key, value, words) in [
        ("certificate_file", path("old.pem"), "expired on"),
        ("certificate_file", path("none.pem"), "cannot be read"),
        ("key_file", path("old.key"), "is not the key of"),
        ("key_file", String::new(), "provenance.key_file"),
        ("algorithm", "ps256".into(), "cannot sign with \"ps256\""),
        ("algorithm", "rsa".into(), "es256"),
        ("command", "/no/such/signer".into(), "/no/such/signer cannot be started"),
    ] {
        let key = format!("provenance.{key}");
        let before = match key.as_str() {
            "provenance.certificate_file" => path("es256.pem"),
            "provenance.key_file" => path("es256.key"),
            "provenance.algorithm" => "es256".into(),
            _ => env!("CARGO_BIN_EXE_atelier-signer").into(),
        };
        daemon.set(&key, value);
        let said = cli(&daemon, &["config", "check"], 2);
        assert!(said.contains("config.toml:") && said.contains(words), "{said}");
        let doctor = cli(&daemon, &["doctor"], 1);
        assert!(doctor.contains("FAIL") && doctor.contains(words), "{doctor}");
        daemon.set(&key, before);
    }

    // A reload that is refused changes nothing; a start is refused.
    daemon.set("provenance.certificate_file", path("old.pem"));
    assert!(cli(&daemon, &["reload"], 2).contains("expired on"));
    let id = edit(&daemon, "png");
    let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
    is_signed(&daemon, &pki, &job);
    daemon.sigterm();
    daemon.spawn();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(2));
    assert!(
        daemon.log().contains("provenance.certificate_file") && daemon.log().contains("expired on"),
        "{}",
        daemon.log()
    );
}

#[test]
fn without_its_signature_nothing_is_published() {
    let pki = Pki::new();
    pki.good(Es256);
    let daemon = setup(&pki).start();
    let key = pki.path("es256.key");
    let aside = pki.path("aside");
    fs::rename(&key, &aside).unwrap();
    let id = edit(&daemon, "png");
    let job = daemon.wait_for_status(&id, "failed", PATIENCE);
    assert_eq!(job["error"]["code"], "signing_failed", "{job:#}");
    assert!(job["error"]["message"].as_str().unwrap().contains("es256.key cannot be read"), "{job:#}");
    assert_eq!(job["attempt"], job["max_attempts"]);
    assert_eq!(daemon.published(), Vec::<PathBuf>::new());

    fs::rename(&aside, &key).unwrap();
    daemon.post(&format!("/api/v1/jobs/{id}/retry"), &json!({})).expect(202);
    let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
    is_signed(&daemon, &pki, &job);
}

#[test]
fn a_source_that_breaks_the_signer_costs_only_its_own_manifest() {
    let pki = Pki::new();
    pki.good(Es256);
    let script = pki.folder().join("brittle");
    let signer = env!("CARGO_BIN_EXE_atelier-signer");
    let text = format!(
        "#!/bin/sh\ncat >request.$$\nif grep -q '\"gps\":\"keep\"' request.$$; then kill -SEGV $$; fi\nexec {signer} \"$@\" <request.$$\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = setup(&pki).set("provenance.command", script.to_str().unwrap()).start();
    let id = edit(&daemon, "png");
    let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
    is_signed(&daemon, &pki, &job);
    assert!(daemon.log().contains("tried again without the sources' own manifests"), "{}", daemon.log());
}

#[test]
fn a_new_certificate_counts_after_a_reload() {
    let pki = Pki::new();
    pki.good(Es256);
    pki.certify("next", Es256, PROFILE, (-1, 30));
    let mut daemon = setup(&pki).start();
    for (key, name) in [("certificate_file", "next.pem"), ("key_file", "next.key")] {
        daemon.set(&format!("provenance.{key}"), pki.path(name).to_str().unwrap());
    }
    cli(&daemon, &["reload"], 0);
    let id = edit(&daemon, "png");
    let job = daemon.wait_for_status(&id, "succeeded", PATIENCE);
    let file = is_signed(&daemon, &pki, &job);
    let reader = read(&file, &pki.anchor()).unwrap();
    assert_eq!(reader.active_manifest().unwrap().common_name().as_deref(), Some("next"));
}
