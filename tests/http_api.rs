//! The HTTP API of the real program, as a client meets it: over sockets, restarts and failures.
#![allow(clippy::unwrap_used, clippy::format_collect, reason = "tests")]

use std::{
    io::{BufRead as _, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use atelier_testkit::{
    daemon::{Daemon, Http, PATIENCE, Part, Setup, wait_until},
    pictures,
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use sha2::Digest as _;

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier"))
}

fn png() -> Vec<u8> {
    pictures::png(&pictures::photo_like(16, 12, 1))
}

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files that are being received.
fn uploads(daemon: &Daemon) -> usize {
    std::fs::read_dir(daemon.data().join("spool/.uploads")).unwrap().count()
}

/// Folders of jobs' inputs.
fn folders(daemon: &Daemon) -> Vec<String> {
    let entries = std::fs::read_dir(daemon.data().join("spool")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name != ".uploads").collect()
}

fn address(daemon: &Daemon) -> String {
    daemon.http().url("").strip_prefix("http://").unwrap().to_owned()
}

/// Sends the request's head and these bytes of its body.
fn begin(daemon: &Daemon, head: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address(daemon)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream
}

#[test]
fn a_job_is_posted_waited_for_and_downloaded() {
    let daemon = setup().start();
    let image = png();
    let job = json!({"kind": "edit", "params": {"prompt": "warmer", "seed": 7}}).to_string();
    let (content_type, body) =
        atelier_testkit::daemon::http::multipart(&[Part::file("image", "Grüße.png", &image), Part::field("job", &job)]);
    let headers = [("Content-Type", content_type.as_str()), ("Prefer", "wait=60")];
    let answer = daemon.http().send("POST", "/api/v1/jobs", &headers, &body).expect(200);
    assert_eq!(answer.header("preference-applied"), "wait=60");
    let job = answer.json();
    assert_eq!(
        (job["status"].as_str(), job["inputs"][0]["name"].as_str()),
        (Some("succeeded"), Some("Grüße.png")),
        "{job:#}"
    );
    assert_eq!(job["inputs"][0]["sha256"], sha256(&image));

    let output = &job["outputs"][0];
    let url = output["url"].as_str().unwrap();
    let whole = daemon.get(url).expect(200);
    assert_eq!(sha256(&whole.body), output["sha256"].as_str().unwrap());
    assert_eq!(whole.header("etag"), format!("\"{}\"", output["sha256"].as_str().unwrap()));
    let part = daemon.http().send("GET", url, &[("Range", "bytes=1-8")], &[]).expect(206);
    assert_eq!(part.body, whole.body[1..9]);
    let id = job["id"].as_str().unwrap();
    assert!(daemon.get(&format!("/api/v1/jobs/{id}/manifest")).expect(200).json().is_object());
    daemon.http().delete(&format!("/api/v1/jobs/{id}")).expect(204);
    assert!(daemon.published().is_empty());
}

#[test]
fn a_running_job_shows_its_last_preview_and_an_ended_one_none() {
    let daemon = setup().start();
    let previews: String = (1..100).map(|step| format!(";preview@{step}")).collect();
    let prompt = format!("fake:slow=100{previews}|a house");
    let wish = json!({"kind": "generate", "params": {"prompt": prompt, "steps": 100}});
    let id = daemon.submit(&wish);
    let path = format!("/api/v1/jobs/{id}/preview");
    let mut seen = Vec::new();
    // Two, each a whole picture, the second in the first's place.
    while seen.len() < 2 {
        let answer = wait_until("another preview", PATIENCE, || {
            let answer = daemon.get(&path);
            (answer.status == 200 && !seen.contains(&answer.body)).then_some(answer)
        });
        assert_eq!((answer.header("content-type"), answer.header("cache-control")), ("image/jpeg", "no-store"));
        assert!(answer.body.starts_with(b"\xff\xd8") && answer.body.ends_with(b"\xff\xd9"), "a whole JPEG");
        seen.push(answer.body);
    }
    daemon.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({})).expect(202);
    daemon.wait_for_status(&id, "cancelled", PATIENCE);
    assert_eq!(daemon.get(&path).expect(404).json()["code"], "not_found");
}

/// Events from a stream, until `enough` says so.
fn watch(http: &Http, path: &str, last: Option<i64>, enough: impl Fn(&[(i64, Value)]) -> bool) -> Vec<(i64, Value)> {
    let last = last.map(|id| id.to_string());
    let headers: Vec<_> = last.iter().map(|id| ("Last-Event-ID", id.as_str())).collect();
    let mut lines = http.stream(path, &headers, PATIENCE).lines();
    let (mut events, mut id, mut data) = (Vec::new(), None, None);
    while !enough(&events) {
        let line = lines.next().expect("the stream goes on").unwrap();
        if let Some(number) = line.strip_prefix("id: ") {
            id = Some(number.parse().unwrap());
        } else if let Some(json) = line.strip_prefix("data: ") {
            data = Some(serde_json::from_str(json).unwrap());
        } else if line.is_empty()
            && let (Some(id), Some(data)) = (id.take(), data.take())
        {
            // Progress has no number, and the first number has no data.
            events.push((id, data));
        }
    }
    events
}

#[test]
fn a_watcher_goes_on_after_a_restart_without_a_gap() {
    let mut daemon = setup().start();
    let first = daemon.submit(&json!({"kind": "generate", "params": {"prompt": "one"}}));
    let ended = |id: &str| {
        let id = id.to_owned();
        move |events: &[(i64, Value)]| {
            events.iter().any(|(_, job)| job["id"] == id.as_str() && job["status"] == "succeeded")
        }
    };
    let before = watch(daemon.http(), "/api/v1/events?last_event_id=0", None, ended(&first));
    let last = before.last().unwrap().0;
    let second = daemon.submit(&json!({"kind": "generate", "params": {"prompt": "two"}}));
    daemon.wait_for_status(&second, "succeeded", PATIENCE);
    daemon.restart();
    let third = daemon.submit(&json!({"kind": "generate", "params": {"prompt": "three"}}));
    let after = watch(daemon.http(), "/api/v1/events", Some(last), ended(&third));
    let numbers: Vec<_> = before.iter().chain(&after).map(|(id, _)| *id).collect();
    assert_eq!(numbers, (1..=i64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
    assert!(after.iter().any(|(_, job)| job["id"] == second.as_str()));
}

#[test]
fn a_key_is_remembered_over_a_restart() {
    let mut daemon = setup().start();
    let job = json!({"kind": "generate", "params": {"prompt": "x"}}).to_string();
    let send = |daemon: &Daemon, body: &str| {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", "order-17")];
        daemon.http().send("POST", "/api/v1/jobs", &headers, body.as_bytes())
    };
    let first = send(&daemon, &job).expect(202).json();
    daemon.wait_for_status(first["id"].as_str().unwrap(), "succeeded", PATIENCE);
    daemon.restart();
    let again = send(&daemon, &job).expect(200);
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.json()["id"], first["id"]);
    assert_eq!(again.json()["params"]["seed"], first["params"]["seed"]);
    send(&daemon, &job.replace('x', "y")).expect(422);
    assert_eq!(daemon.jobs().len(), 1);
}

#[test]
fn a_client_that_leaves_in_mid_upload_leaves_nothing() {
    let daemon = setup().start();
    let head = "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 50000000\r\n\r\n";
    let part = [
        b"--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\n".as_slice(),
        &vec![7; 3 << 20],
    ]
    .concat();
    let form = begin(&daemon, head, &part);
    let json_head = head.replace("multipart/form-data; boundary=b", "application/json");
    let json = begin(&daemon, &json_head, format!("{{\"images\":[\"{}", "QUJD".repeat(1 << 19)).as_bytes());
    wait_until("both uploads to be on disk", PATIENCE, || (uploads(&daemon) == 2).then_some(()));
    drop((form, json));
    wait_until("both uploads to be gone", PATIENCE, || (uploads(&daemon) == 0).then_some(()));
    assert!(folders(&daemon).is_empty() && daemon.jobs().is_empty());
}

#[test]
fn a_full_disk_is_507_and_leaves_nothing() {
    let daemon = setup().env("ATELIER_FAILPOINTS", "http.upload.write=enospc@1,http.spool.keep=enospc@1").start();
    let image = png();
    let parts = [Part::field("kind", "edit"), Part::field("prompt", "x"), Part::file("image", "a.png", &image)];
    for _ in ["while it is received", "when it is kept"] {
        let answer = daemon.http().post_multipart("/api/v1/jobs", &parts).expect(507);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() > 0);
        let problem = answer.json();
        assert_eq!(problem["code"], "disk_full");
        assert!(!problem.to_string().contains("spool"), "{problem} tells where files lie");
        assert_eq!((uploads(&daemon), folders(&daemon).len()), (0, 0));
    }
    daemon.http().post_multipart("/api/v1/jobs", &parts).expect(202);
}

#[test]
fn what_a_crash_left_of_an_upload_is_swept_at_the_next_start() {
    for point in ["http.received=kill", "http.spooled=kill"] {
        let mut daemon = setup().env("ATELIER_FAILPOINTS", point).start();
        let image = png();
        let (content_type, body) = atelier_testkit::daemon::http::multipart(&[
            Part::field("kind", "edit"),
            Part::field("prompt", "x"),
            Part::file("image", "a.png", &image),
        ]);
        let sent = daemon.http().try_send("POST", "/api/v1/jobs", &[("Content-Type", &content_type)], &body);
        assert!(sent.is_err(), "{point}: the daemon is dead");
        daemon.wait_exit(PATIENCE);
        assert_eq!(uploads(&daemon) + folders(&daemon).len(), 1, "{point}: something is left");
        daemon.set_env("ATELIER_FAILPOINTS", "");
        daemon.start();
        assert_eq!((uploads(&daemon), folders(&daemon).len()), (0, 0), "{point}");
        assert!(daemon.jobs().is_empty());
    }
}

#[test]
fn a_job_that_was_acknowledged_is_there_after_a_crash() {
    let mut daemon = setup().env("ATELIER_FAILPOINTS", "http.enqueued=kill").start();
    let image = png();
    let parts = [Part::field("kind", "edit"), Part::field("prompt", "x"), Part::file("image", "a.png", &image)];
    let (content_type, body) = atelier_testkit::daemon::http::multipart(&parts);
    daemon.http().try_send("POST", "/api/v1/jobs", &[("Content-Type", &content_type)], &body).unwrap_err();
    daemon.wait_exit(PATIENCE);
    daemon.set_env("ATELIER_FAILPOINTS", "");
    daemon.start();
    let id = daemon.jobs()[0]["id"].as_str().unwrap().to_owned();
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
}

#[test]
fn running_out_of_descriptors_passes() {
    let daemon = setup().start();
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let before = getrlimit(Resource::Nofile);
    let few = Rlimit { current: Some(open as u64 + 4), maximum: before.maximum };
    prlimit(pid, Resource::Nofile, few).unwrap();
    let clients: Vec<_> = (0..30).map(|_| TcpStream::connect(address(&daemon)).unwrap()).collect();
    wait_until("the daemon to complain", PATIENCE, || {
        daemon.log().contains("no connection can be accepted").then_some(())
    });
    drop(clients);
    // Only now is there certainly room: the database and the inbox want descriptors as much as clients do.
    prlimit(pid, Resource::Nofile, Rlimit { current: before.current, maximum: before.maximum }).unwrap();
    daemon.get("/healthz").expect(200);
    daemon.get("/api/v1/jobs").expect(200);
}

#[test]
fn tokens_close_the_door_and_may_be_changed() {
    let setup = setup();
    let file = setup.root().join("tokens");
    std::fs::write(&file, "laptop:first-secret\n").unwrap();
    let daemon = setup.set("server.tokens_file", file.to_str().unwrap()).start();
    let ask = |token: &str| {
        let bearer = format!("Bearer {token}");
        daemon.http().send("GET", "/api/v1/jobs", &[("Authorization", &bearer)], &[]).status
    };
    assert_eq!((daemon.get("/api/v1/jobs").status, daemon.get("/healthz").status), (401, 200));
    assert_eq!((ask("first-secret"), ask("second-secret")), (200, 401));
    std::fs::write(&file, "second-secret\n").unwrap();
    wait_until("the new token to be known", PATIENCE, || (ask("second-secret") == 200).then_some(()));
    assert_eq!(ask("first-secret"), 401);
    assert!(!daemon.log().contains("secret"), "a token is in the log");
}

#[test]
fn requests_that_are_no_requests_do_not_disturb_others() {
    let daemon = setup().start();
    let huge = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "A: b\r\n".repeat(500));
    for request in [
        huge.as_str(),
        &many,
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let mut stream = begin(&daemon, "", &[]);
        // The server may refuse while we still send.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let shown: String = request.chars().take(60).collect();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown:?}: {answer}");
        daemon.get("/healthz").expect(200);
    }
    assert!(
        !Path::new(&daemon.data())
            .join("spool")
            .read_dir()
            .unwrap()
            .any(|entry| entry.unwrap().file_name() != ".uploads")
    );
}

#[test]
fn five_hundred_idle_clients_do_not_lock_others_out() {
    let daemon = setup().start();
    let idle: Vec<_> = (0..500).map(|_| TcpStream::connect(address(&daemon)).unwrap()).collect();
    for _ in 0..20 {
        daemon.get("/api/v1/jobs").expect(200);
    }
    drop(idle);
}

#[test]
fn a_daemon_that_ends_lets_its_watchers_go() {
    let mut daemon = setup().start();
    let mut lines = daemon.http().stream("/api/v1/events", &[], 2 * PATIENCE).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("id: ") || lines.next().is_some());
    let begun = std::time::Instant::now();
    assert!(daemon.sigterm().success());
    assert!(begun.elapsed() < PATIENCE + Duration::from_secs(1));
    for line in lines {
        line.expect("the stream ends, it does not break");
    }
}

#[test]
fn a_trace_is_found_in_the_lines_of_its_request_and_of_its_job() {
    let daemon = setup().set("log.format", "json").start();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [("Content-Type", "application/json"), ("traceparent", traceparent.as_str())];
    let job = json!({"kind": "generate", "params": {"prompt": "a house"}}).to_string();
    let id = daemon.http().send("POST", "/api/v1/jobs", &headers, job.as_bytes()).expect(202).json()["id"].clone();
    let id = id.as_str().unwrap();
    daemon.wait_for_status(id, "succeeded", PATIENCE);
    let of_trace: Vec<Value> = wait_until("the job's last line", PATIENCE, || {
        let log = daemon.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<Value> = lines.filter(|line| line["span"]["trace_id"] == trace).collect();
        lines.iter().any(|line| line["status"] == "succeeded").then_some(lines)
    });
    let says = |span: &str, text: &str| {
        of_trace.iter().any(|line| {
            line["span"]["name"] == span && line["message"].as_str().is_some_and(|message| message.contains(text))
        })
    };
    assert!(says("http", "queued") && says("http", "answered"), "{of_trace:#?}");
    assert!(says("job", "running"), "{of_trace:#?}");
    assert!(of_trace.iter().filter(|line| line["span"]["name"] == "job").all(|line| line["span"]["id"] == id));
}

#[test]
fn what_an_operator_watches_is_measured() {
    let daemon = setup().start();
    let id = daemon.submit(&json!({"kind": "generate", "params": {"prompt": "a house"}}));
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
    let text = daemon.get("/metrics").expect(200).text();
    for part in [
        "atelier_jobs{status=\"succeeded\"} 1\n",
        "atelier_job_seconds_bucket{kind=\"generate\",model=\"fake\",status=\"succeeded\",le=\"60\"} 1\n",
        "atelier_job_wait_seconds_bucket{kind=\"generate\",le=\"+Inf\"} 1\n",
        "atelier_http_request_seconds_bucket{",
        "atelier_webhook_outbox 0\n",
        "atelier_webhook_oldest_seconds 0.000\n",
        "atelier_job_running_seconds 0.000\n",
        "atelier_worker_resident_bytes ",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // The dashboard asks for nothing that is not there; some are there only once something has happened.
    let dashboard = include_str!("../docs/grafana-dashboard.json");
    let later = [
        "atelier_progress_writes_total",
        "atelier_events_dropped_total",
        "atelier_webhooks_total",
        "atelier_inbox_problems",
    ];
    for name in
        dashboard.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|w| w.starts_with("atelier_"))
    {
        assert!(text.contains(name) || later.contains(&name), "{name} of the dashboard in {text}");
    }
}
