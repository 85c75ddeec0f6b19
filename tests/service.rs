//! What the daemon says to a service manager, heard on a socket of the test's own. With a real systemd:
//! `tests/systemd/run.sh`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::VecDeque,
    fs,
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use atelier_testkit::daemon::{Daemon, PATIENCE, Setup, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The manager's end.
struct Manager {
    socket: UnixDatagram,
    heard: VecDeque<String>,
    daemon: Daemon,
}

impl Manager {
    /// A daemon that was not started yet.
    fn of(setup: Setup) -> Self {
        let path = setup.root().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let daemon = setup.set("log.format", "json").env("NOTIFY_SOCKET", path.to_str().unwrap()).prepare();
        Self { socket, heard: VecDeque::new(), daemon }
    }

    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(n) = self.socket.recv(&mut buffer) {
            self.heard.push_back(String::from_utf8_lossy(&buffer[..n]).into_owned());
        }
    }

    /// The next message with this line; earlier ones are forgotten.
    #[track_caller]
    fn next(&mut self, wanted: &str) -> String {
        let begun = Instant::now();
        loop {
            self.listen();
            while let Some(message) = self.heard.pop_front() {
                if message.lines().any(|line| line == wanted || (wanted.ends_with('=') && line.starts_with(wanted))) {
                    return message;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "{wanted} was not said; the log:\n{}", self.daemon.log());
        }
    }

    /// The status lines until one is as wanted.
    #[track_caller]
    fn status(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            let message = self.next("STATUS=");
            let status = message.lines().find_map(|line| line.strip_prefix("STATUS=")).unwrap();
            if wanted(status) {
                return status.to_owned();
            }
        }
    }

    /// Whether the watchdog is fed within this time from now on.
    fn is_fed_within(&mut self, time: Duration) -> bool {
        self.listen();
        self.heard.clear();
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.listen();
            if self.heard.iter().any(|message| message.lines().any(|line| line == "WATCHDOG=1")) {
                return true;
            }
        }
        false
    }
}

fn slow_job(steps: u32, slow: u32, more: &str) -> Value {
    json!({"kind": "generate", "params": {
        "prompt": format!("fake:slow={slow}{more}|a house"), "seed": 3, "steps": steps}})
}

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier"))
}

#[test]
fn it_is_ready_once_it_answers_says_what_it_is_at_and_ends_with_more_time() {
    let mut manager = Manager::of(setup());
    manager.daemon.spawn();
    let ready = manager.next("READY=1");
    assert!(ready.contains("STATUS=idle; 0 waiting"), "{ready}");
    let note = manager.daemon.data().join("daemon.json");
    assert!(note.exists(), "whoever waited for READY finds the daemon");
    // Gives the test its HTTP client; the daemon is ready already.
    let address = serde_json::from_slice::<Value>(&fs::read(&note).unwrap()).unwrap()["address"].clone();
    let http = atelier_testkit::daemon::Http::new(address.as_str().unwrap());
    let id = http.post("/api/v1/jobs", &slow_job(1000, 20, "")).expect(202).json()["id"].as_str().unwrap().to_owned();
    http.post("/api/v1/jobs", &slow_job(1, 1, "")).expect(202);
    let status = manager.status(|status| status.contains("run step"));
    assert!(status.starts_with(&format!("job {id}: run step ")), "{status}");
    assert!(status.ends_with(" of 1000; 1 waiting"), "{status}");
    http.post("/api/v1/queue/pause", &json!({})).expect(200);
    manager.status(|status| status.ends_with("waiting, paused"));

    manager.daemon.signal(Signal::TERM);
    let stopping = manager.next("STOPPING=1");
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC="), "{stopping}");
    assert!(stopping.contains(&format!("STATUS=stopping; job {id} writes its checkpoint")), "{stopping}");
    assert!(manager.daemon.wait_exit(PATIENCE).success());
}

#[test]
fn stopping_asks_for_more_time_for_as_long_as_a_step_takes() {
    let mut manager = Manager::of(setup());
    manager.daemon.start();
    let id = manager.daemon.submit(&slow_job(3, 2500, ""));
    manager.daemon.wait_for_status(&id, "running", PATIENCE);
    manager.status(|status| status.contains("run step"));
    manager.daemon.signal(Signal::TERM);
    manager.next("STOPPING=1");
    manager.next("EXTEND_TIMEOUT_USEC=");
    assert!(manager.daemon.wait_exit(PATIENCE).success());
    manager.daemon.start();
    let job = manager.daemon.wait_for_status(&id, "succeeded", PATIENCE);
    assert_eq!((&job["attempt"], &job["crashes"]), (&json!(1), &json!(0)), "{job:#}");
}

#[test]
fn a_reload_is_told_with_its_time_and_ends_when_the_new_configuration_counts() {
    let mut manager = Manager::of(setup());
    manager.daemon.start();
    manager.next("READY=1");
    manager.daemon.set("presets.sketch.kind", "generate");
    manager.daemon.signal(Signal::HUP);
    let reloading = manager.next("RELOADING=1");
    let stamp = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("in the same message");
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now_usec = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
    let age = now_usec - stamp.parse::<i128>().unwrap();
    assert!((0..60_000_000).contains(&age), "{age} µs ago");
    manager.next("READY=1");
    manager.daemon.submit(&json!({"preset": "sketch", "params": {"prompt": "a bird", "seed": 1}}));
}

#[test]
fn the_watchdog_is_fed_only_while_every_part_goes_on() {
    for (armed, part) in [
        ("inbox.look=hang@3,liveness.scanner=2000ms", "scanner"),
        // It looks every five seconds.
        ("queue.fetch=hang@2,liveness.fetcher=12000ms", "fetcher"),
        ("queue.progress=hang@5,liveness.step=2000ms", "running step"),
    ] {
        let mut manager = Manager::of(setup().env("WATCHDOG_USEC", "400000").env("ATELIER_FAILPOINTS", armed));
        manager.daemon.start();
        manager.next("WATCHDOG=1");
        if part == "running step" {
            manager.daemon.submit(&slow_job(1000, 20, ""));
        }
        wait_until(&format!("{part} to be told of"), PATIENCE, || {
            // Nothing is read from a full socket, and a full socket would hold the daemon up.
            manager.listen();
            manager.daemon.log().contains(&format!("the {part} hangs")).then_some(())
        });
        assert!(!manager.is_fed_within(Duration::from_millis(600)), "{part}: fed all the same");
        let log = manager.daemon.log();
        let told: Vec<&str> = log.lines().filter(|line| line.contains(" hangs: the watchdog")).collect();
        assert!(matches!(told.as_slice(), [line] if line.contains(&format!("the {part} hangs"))), "{told:#?}");
    }
}

#[test]
fn a_daemon_that_waits_works_or_is_paused_is_fed() {
    // Shorter than one poll of the queue and one step of the job would be wrong to kill for.
    let mut manager = Manager::of(
        setup()
            .env("WATCHDOG_USEC", "200000")
            .env("ATELIER_FAILPOINTS", "liveness.fetcher=12000ms,liveness.scanner=3000ms,liveness.step=3000ms"),
    );
    manager.daemon.start();
    assert!(manager.is_fed_within(PATIENCE));
    let id = manager.daemon.submit(&slow_job(10, 100, ""));
    assert!(manager.is_fed_within(PATIENCE));
    manager.daemon.wait_for_status(&id, "succeeded", PATIENCE);
    manager.daemon.post("/api/v1/queue/pause", &json!({})).expect(200);
    assert!(manager.is_fed_within(PATIENCE));
}

#[test]
fn a_socket_that_is_handed_over_is_served_and_the_worker_does_not_get_it() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // Not this one: it is another daemon's.
    let daemon = setup().set("server.listen", "127.0.0.1:1").prepare();
    let serve = format!(
        "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http; exec '{}' serve --config '{}' 2>serve.log",
        env!("CARGO_BIN_EXE_atelier"),
        daemon.config_file().display()
    );
    let mut child = Command::new("/bin/sh")
        .args(["-c", &serve])
        .current_dir(daemon.root())
        .stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())))
        .spawn()
        .unwrap();
    let http = atelier_testkit::daemon::Http::new(&address.to_string());
    // Connected before the daemon is there: the request waits.
    http.get("/healthz").expect(200);
    let id = http.post("/api/v1/jobs", &slow_job(2, 1, "")).expect(202).json()["id"].as_str().unwrap().to_owned();
    wait_until("the job", PATIENCE, || {
        (http.get(&format!("/api/v1/jobs/{id}")).expect(200).json()["status"] == "succeeded").then_some(())
    });
    let inode = |pid: u32, fd: &str| fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok();
    let ours = inode(child.id(), "3").expect("the daemon has it");
    let worker = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
    let workers: Vec<u32> = fs::read_dir(format!("/proc/{}/task", child.id()))
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok())
        .flat_map(|children| children.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    assert!(!workers.is_empty(), "an idle worker is there: {worker}");
    for pid in workers {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            assert_ne!(fs::read_link(entry.unwrap().path()).ok().as_ref(), Some(&ours), "the worker has the socket");
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn reload(daemon: &Daemon) -> Output {
    let config = daemon.config_file();
    daemon.command(["reload".as_ref(), "--config".as_ref(), config.as_os_str()]).output().unwrap()
}

#[test]
fn reload_returns_when_the_new_configuration_counts_and_says_what_needs_a_restart() {
    let mut daemon = setup().start();
    for n in 0..5 {
        daemon.set(&format!("presets.sketch-{n}.kind"), "generate");
        let said = reload(&daemon);
        assert_eq!(said.status.code(), Some(0), "{said:?}");
        daemon.submit(&json!({"preset": format!("sketch-{n}"), "params": {"prompt": "a bird", "seed": 1}}));
    }
    daemon.set("log.keep_files", 3);
    let said = reload(&daemon);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("only after a restart: log.keep_files"), "{said:?}");
}

#[test]
fn reload_of_a_broken_configuration_is_2_and_without_a_daemon_3() {
    let mut daemon = setup().start();
    let good = fs::read_to_string(daemon.config_file()).unwrap();
    fs::write(daemon.config_file(), format!("{good}\n[quue]\nmax_attempts = 9\n")).unwrap();
    let said = reload(&daemon);
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("config.toml:"), "{said:?}");
    daemon.get("/readyz").expect(200);
    fs::write(daemon.config_file(), good).unwrap();
    daemon.sigterm();
    assert_eq!(reload(&daemon).status.code(), Some(3));
}
