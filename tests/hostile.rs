//! What a server on a network meets, against the real program.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use atelier_testkit::daemon::{Daemon, Setup};
use rustix::process::{Resource, Rlimit};

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier"))
}

fn address(daemon: &Daemon) -> String {
    daemon.http().url("").trim_start_matches("http://").to_owned()
}

/// Sends bytes as they are; what comes back until the other side closes.
fn exchange(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address(daemon)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // The server may close before it has read all of it.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn ten_thousand_idle_connections_leave_room_for_one_that_asks() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    // Where the administrator allows fewer files, as many as there may be: both sides need one each.
    let most = limit.maximum.map_or(10_000, |most| most.saturating_sub(500).min(10_000));
    println!("{most} connections");
    assert!(most >= 1000, "the limit of open files ({most}) is too low for this test: ulimit -Hn");
    let daemon = setup().set("server.max_connections", i64::try_from(most).unwrap() + 100).start();
    let address = address(&daemon);
    let mut idle = Vec::new();
    for n in 0..most {
        let mut stream = TcpStream::connect(&address).unwrap();
        // Half of them have begun to ask.
        if n % 2 == 0 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n").unwrap();
        }
        idle.push(stream);
    }
    for path in ["/healthz", "/api/v1/queue", "/metrics"] {
        daemon.get(path).expect(200);
    }
    drop(idle);
    daemon.get("/readyz").expect(200);
}

#[test]
fn more_connections_than_allowed_wait_until_others_go() {
    let daemon = setup().set("server.max_connections", 8).start();
    let mut idle: Vec<_> = (0..8).map(|_| TcpStream::connect(address(&daemon)).unwrap()).collect();
    let mut waiting = TcpStream::connect(address(&daemon)).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    waiting.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let error = waiting.read(&mut [0; 16]).unwrap_err();
    assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{error}");
    idle.pop();
    waiting.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn headers_beyond_all_measure_are_refused() {
    let daemon = setup().start();
    let long = "x".repeat(300_000);
    let many = "A: b\r\n".repeat(5000);
    for head in [
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {long}\r\n\r\n"),
    ] {
        let answer = exchange(&daemon, head.as_bytes());
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "414", "431"].contains(&status), "{}: {answer}", &head[..60]);
    }
    daemon.get("/healthz").expect(200);
}

#[test]
fn requests_that_mean_two_things_are_refused() {
    let daemon = setup().start();
    for head in [
        "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        "GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ] {
        let answer = exchange(&daemon, head.as_bytes());
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "403"].contains(&status), "{head}: {answer}");
    }
    daemon.get("/healthz").expect(200);
}
