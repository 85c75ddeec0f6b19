//! The harness for the daemon, tried on a shell script that behaves like one as far as the harness can see.

use std::{
    fs,
    os::unix::{fs::symlink, process::ExitStatusExt as _},
    path::{Path, PathBuf},
};

use atelier_testkit::daemon::{Daemon, PATIENCE, Setup, files_below, send_signal, wait_until};
use rustix::process::{Pid, Signal, test_kill_process};
use tempfile::TempDir;

/// A folder with the daemon's stand-in and, under the worker's name, a program that waits. Links and not copies: a
/// program that has just been written may not be started while another test's fork still holds it open.
fn programs() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-in/atelier");
    let sleep = ["/usr/bin/sleep", "/bin/sleep"].map(Path::new).into_iter().find(|path| path.exists());
    symlink(script, folder.path().join("atelier")).expect("linked");
    symlink(sleep.expect("every system has it"), folder.path().join("atelier-fake-worker")).expect("linked");
    folder
}

fn is_alive(pid: u32) -> bool {
    test_kill_process(Pid::from_raw(i32::try_from(pid).expect("small")).expect("positive")).is_ok()
}

#[test]
fn a_daemon_is_started_watched_and_ended() {
    let programs = programs();
    let mut daemon = Setup::new(programs.path().join("atelier")).env("ATELIER_FAILPOINTS", "publish=kill").start();
    let first = daemon.pid();
    let config = daemon.config_file();
    assert!(daemon.log().contains(&format!("run as: serve --config {}; failpoints: publish=kill", config.display())));
    let worker = wait_until("the worker", PATIENCE, || daemon.worker_pid());
    assert_ne!(worker, first);

    assert_eq!(daemon.sigterm().code(), Some(7));
    assert!(!is_alive(first));
    daemon.set_env("ATELIER_FAILPOINTS", "");
    daemon.start();
    assert_ne!(daemon.pid(), first, "the file that the first has left was taken for the second's");
    assert!(daemon.log().ends_with("failpoints: \n"), "{}", daemon.log());
    let worker = wait_until("the worker", PATIENCE, || daemon.worker_pid());
    daemon.sigkill();
    assert!(daemon.worker_pid().is_none());
    send_signal(worker, Signal::KILL);
}

#[test]
fn each_daemon_finds_its_own_worker() {
    let programs = programs();
    let daemons = [0, 1].map(|_| Setup::new(programs.path().join("atelier")).start());
    let workers = daemons.each_ref().map(|daemon| wait_until("the worker", PATIENCE, || daemon.worker_pid()));
    assert_ne!(workers[0], workers[1]);
    send_signal(workers[0], Signal::KILL);
    wait_until("the first to be gone", PATIENCE, || daemons[0].worker_pid().is_none().then_some(()));
    assert_eq!(daemons[1].worker_pid(), Some(workers[1]));
    send_signal(workers[1], Signal::KILL);
}

#[test]
fn a_start_that_fails_is_told_with_its_exit_code() {
    let programs = programs();
    let mut daemon = Setup::new(programs.path().join("atelier")).env("ATELIER_FAILPOINTS", "no-start").prepare();
    daemon.spawn();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(2));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| daemon.start())).expect_err("it must fail");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("before it was ready") && message.contains('2'), "{message}");
}

#[test]
fn a_dropped_daemon_is_killed() {
    let programs = programs();
    let daemon = Setup::new(programs.path().join("atelier")).start();
    let (pid, worker) = (daemon.pid(), wait_until("the worker", PATIENCE, || daemon.worker_pid()));
    drop(daemon);
    assert!(!is_alive(pid));
    send_signal(worker, Signal::KILL);
}

#[test]
fn a_daemon_killed_by_its_test_says_so() {
    let programs = programs();
    let mut daemon = Setup::new(programs.path().join("atelier")).start();
    let worker = wait_until("the worker", PATIENCE, || daemon.worker_pid());
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.wait_exit(PATIENCE).signal(), Some(Signal::KILL.as_raw()));
    send_signal(worker, Signal::KILL);
}

#[test]
fn the_configuration_names_folders_and_the_worker_and_can_be_changed() {
    let programs = programs();
    let setup = Setup::new(programs.path().join("atelier"))
        .set("queue.max_crashes", 2)
        .set("presets.poster.params.scale", 4)
        .worker_args(&["--step-ms", "50"])
        .model("span-x2", "SPAN");
    let root = setup.root().to_owned();
    let mut daemon: Daemon = setup.prepare();
    let read = || fs::read_to_string(root.join("config.toml")).expect("there").parse::<toml::Table>().expect("TOML");
    let config = read();
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    assert_eq!(config["inbox"]["dir"].as_str(), Some(text(&daemon.inbox()).as_str()));
    assert_eq!(config["paths"]["data"].as_str(), Some(text(&daemon.data()).as_str()));
    assert_eq!(config["queue"]["max_crashes"].as_integer(), Some(2));
    assert_eq!(config["presets"]["poster"]["params"]["scale"].as_integer(), Some(4));
    let worker = text(&programs.path().join("atelier-fake-worker"));
    assert_eq!(config["worker"]["command"], toml::Value::from(vec![worker.as_str(), "--step-ms", "50"]));
    assert!(root.join("models/fake/config.json").is_file());
    assert!(root.join("models/span-x2/model.safetensors").is_file());
    daemon.set("queue.max_crashes", 5);
    assert_eq!(read()["queue"]["max_crashes"].as_integer(), Some(5));
    assert_eq!(read()["inbox"], config["inbox"]);
}

#[test]
fn a_missing_worker_says_what_to_do() {
    let programs = programs();
    fs::remove_file(programs.path().join("atelier-fake-worker")).expect("removed");
    let setup = Setup::new(programs.path().join("atelier"));
    let panic = std::panic::catch_unwind(|| setup.prepare()).expect_err("it must fail");
    assert!(panic.downcast_ref::<String>().expect("a message").contains("run `cargo build` first"));
}

#[test]
fn a_dropped_file_appears_whole_and_nothing_else_does() {
    let programs = programs();
    let daemon = Setup::new(programs.path().join("atelier")).prepare();
    let path = daemon.drop_file("holiday/photo.jpg", b"bytes");
    assert_eq!(fs::read(&path).expect("there"), b"bytes");
    assert_eq!(files_below(&daemon.inbox()), [path]);
    assert_eq!(daemon.published(), Vec::<PathBuf>::new());
}
