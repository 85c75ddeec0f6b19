use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::{
    api::{Api, World},
    program::{Program, Said},
};

/// A folder in which all is well but for the daemon, with a worker that answers `script`.
fn healthy(script: &str) -> Program {
    let program = Program::new();
    program.write("models/span-x2/config.json", r#"{"_class_name":"SPAN"}"#);
    program.write("models/span-x2/model.safetensors", b"");
    let worker = program.write("worker.sh", format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(worker, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(program.path().join("watch-inbox")).unwrap();
    program.write("atelier.toml", "[worker]\ncommand = \"./worker.sh\"\n[server]\nlisten = \"127.0.0.1:1\"\n");
    program
}

const PROBE: &str = r#"test "$1" = --probe && echo '{"protocol":1,"worker_version":"0.1.0","libtorch":"2.13.0","device":{"name":"cpu","model":"A CPU","threads":2,"memory_bytes":1,"reason":"There is no driver."}}'"#;

fn verdict<'a>(json: &'a Value, name: &str) -> (&'a str, &'a str) {
    let check = json["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
    check.map_or(("none", ""), |check| (check["verdict"].as_str().unwrap(), check["message"].as_str().unwrap()))
}

fn doctor(program: &Program, more: &[&str]) -> Said {
    let args: Vec<&str> = ["doctor", "--config", "atelier.toml"].into_iter().chain(more.iter().copied()).collect();
    program.run(&args)
}

#[test]
fn all_well_is_exit_0_and_nothing_is_made() {
    let program = healthy(PROBE);
    let json = doctor(&program, &["--json"]).exits(0).json();
    assert_eq!(json["ok"], true);
    for name in ["version", "configuration", "worker", "data", "database", "outbox", "inbox", "claiming", "models"] {
        assert_eq!(verdict(&json, name).0, "ok", "{name}: {json:#}");
    }
    // A slow disk and an old driver are worth a word, and no failure.
    for name in ["graphics card", "clock", "file system", "durability"] {
        assert!(["ok", "warn"].contains(&verdict(&json, name).0), "{name}: {json:#}");
    }
    assert!(verdict(&json, "durability").1.contains("locks hold"), "{json:#}");
    assert_eq!(verdict(&json, "daemon").0, "warn");
    let (_, worker) = verdict(&json, "worker");
    assert!(worker.contains("libtorch 2.13.0, on cpu (A CPU)") && worker.contains("There is no driver."), "{worker}");
    assert!(!program.path().join("data").exists());
    let said = doctor(&program, &[]).exits(0);
    assert!(said.stdout.lines().any(|line| line.starts_with("OK   worker")), "{said:#?}");
    assert!(said.stdout.lines().any(|line| line.starts_with("WARN daemon")), "{said:#?}");
}

#[test]
fn a_worker_that_does_not_start_is_a_failure_that_says_why() {
    for (script, expected) in [
        ("echo 'libtorch_cpu.so: cannot open shared object file' >&2; exit 127", "cannot open shared object file"),
        ("echo no json", "ended with exit status: 0"),
        ("kill -9 $$", "signal: 9"),
        (r#"echo '{"protocol":99,"worker_version":"9.0.0","libtorch":null,"device":"cpu"}'"#, "it speaks protocol 99"),
    ] {
        let json = doctor(&healthy(script), &["--json"]).exits(1).json();
        let (verdict, message) = verdict(&json, "worker");
        assert_eq!(verdict, "fail");
        assert!(message.contains(expected), "{message}");
    }
    let program = healthy(PROBE);
    std::fs::remove_file(program.path().join("worker.sh")).unwrap();
    let json = doctor(&program, &["--json"]).exits(1).json();
    assert!(verdict(&json, "worker").1.contains("cannot be started: No such file"), "{json:#}");
}

#[test]
fn a_damaged_database_and_missing_models_are_failures() {
    let program = healthy(PROBE);
    program.write("data/atelier.db", vec![b'x'; 8192]);
    std::fs::remove_dir_all(program.path().join("models")).unwrap();
    let json = doctor(&program, &["--json"]).exits(1).json();
    assert_eq!(verdict(&json, "database").0, "fail", "{json:#}");
    assert_eq!(verdict(&json, "models").0, "fail", "{json:#}");
    let said = doctor(&program, &[]).exits(1);
    assert!(said.stdout.contains("FAIL models") && said.stdout.contains("→ "), "{said:#?}");
}

#[test]
fn a_whole_database_and_a_running_daemon_are_seen() {
    let program = healthy(PROBE);
    std::fs::create_dir(program.path().join("data")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = atelier::store::Store::open(&program.path().join("data/atelier.db")).await.unwrap();
        store.close().await;
    });
    let _lock = atelier::data_lock::acquire(&program.path().join("data")).unwrap();
    let api = Api::start(World::default());
    let json = doctor(&program, &["--json", "--data", "data", "--server", &api.url()]).exits(0).json();
    assert_eq!(verdict(&json, "database").0, "ok", "{json:#}");
    assert!(verdict(&json, "lock").1.contains(&format!("pid {}", std::process::id())), "{json:#}");
    assert_eq!(verdict(&json, "daemon").0, "ok", "{json:#}");
    api.world(|world| world.paused = true);
    let json = doctor(&program, &["--json", "--server", &api.url()]).exits(0).json();
    assert!(verdict(&json, "daemon").1.contains("paused"), "{json:#}");
    api.world(|world| world.token = Some("s3cret".into()));
    let json = doctor(&program, &["--json", "--server", &api.url()]).exits(1).json();
    assert_eq!(verdict(&json, "daemon").0, "fail", "{json:#}");
}

#[test]
fn a_wrong_configuration_is_told_and_nothing_else_is_guessed() {
    let program = healthy(PROBE);
    program.write("atelier.toml", "[inbox]\nsettle = 2\n");
    let said = doctor(&program, &[]).exits(1);
    assert!(said.stdout.contains("FAIL configuration atelier.toml:2: inbox.settle"), "{said:#?}");
    assert!(!said.stdout.contains("worker.sh"), "{said:#?}");
}
