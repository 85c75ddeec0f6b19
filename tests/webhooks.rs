//! Webhooks as their receiver meets them: a real daemon, a real socket, signatures, retries and restarts.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeMap,
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use atelier::outbox::webhooks::secret::Secrets;
use atelier_testkit::daemon::{Daemon, PATIENCE, Setup, wait_until};
use serde_json::{Value, json};

/// One request that came in.
#[derive(Clone, Debug)]
struct Told {
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }
}

/// Somebody who is told. Answers with what it was given, the last answer again and again.
struct Receiver {
    address: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Receiver {
    fn new(answers: &[&str]) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), answers)
    }

    fn at(address: SocketAddr, answers: &[&str]) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (all, answers) = (told.clone(), answers.iter().map(|answer| (*answer).to_owned()).collect::<Vec<_>>());
        std::thread::spawn(move || {
            for (index, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let request = read(&mut BufReader::new(&mut stream));
                all.lock().unwrap().push(request);
                let answer = answers.get(index).or(answers.last()).unwrap();
                stream
                    .write_all(
                        format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes(),
                    )
                    .unwrap();
            }
        });
        Self { address, told }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?key=of-the-receiver", self.address)
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// Waits until it was told so often.
    fn wait(&self, count: usize) -> Vec<Told> {
        wait_until(&format!("{count} messages"), PATIENCE, || {
            let told = self.told();
            (told.len() >= count).then_some(told)
        })
    }
}

fn read(stream: &mut impl std::io::BufRead) -> Told {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    Told { path, headers, body: String::from_utf8(body).unwrap() }
}

fn setup() -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_atelier")).set("webhooks.allow_private", true).set("webhooks.backoff", "100ms")
}

fn job(webhook: impl Into<Value>) -> Value {
    json!({"kind": "generate", "params": {"prompt": "a house", "seed": 3}, "webhook": webhook.into()})
}

/// The number behind a metric's name.
fn metric(daemon: &Daemon, name: &str) -> u64 {
    let text = daemon.get("/metrics").expect(200).text();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_end_of_a_job_is_told_once_and_signed() {
    let receiver = Receiver::new(&["204 No Content"]);
    let daemon = setup().start();
    let id = daemon.submit(&job(receiver.url()));
    let told = &receiver.wait(1)[0];
    assert_eq!(told.path, "/hook?key=of-the-receiver");
    assert_eq!(told.headers["content-type"], "application/json");
    let message = told.json();
    assert_eq!((&message["type"], &message["data"]["id"]), (&json!("job.succeeded"), &json!(id)));
    let mut shown = daemon.job(&id);
    // Whoever asks later is told the same, but for the time of the last step.
    shown["progress"] = message["data"]["progress"].clone();
    assert_eq!(message["data"], shown);
    let secrets = Secrets::load(None, &daemon.data()).unwrap();
    let timestamp: i64 = told.headers["webhook-timestamp"].parse().unwrap();
    assert_eq!(told.headers["webhook-signature"], secrets.sign(told.id(), timestamp, &told.body));
    wait_until("the outbox to be empty", PATIENCE, || (metric(&daemon, "atelier_webhook_outbox ") == 0).then_some(()));
    assert_eq!(receiver.told().len(), 1);
    assert!(!daemon.log().contains("of-the-receiver"), "what a URL asks for may be a secret");
}

#[test]
fn a_predictions_receiver_is_told_the_prediction_of_the_events_that_it_asked_for() {
    let receiver = Receiver::new(&["200 OK"]);
    let daemon = setup().start();
    let predict = |prompt: &str, more: Value| {
        let mut wish = json!({"version": "fake", "input": {"prompt": prompt}, "webhook": receiver.url()});
        wish.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let id = daemon.post("/v1/predictions", &wish).expect(201).json()["id"].as_str().unwrap().to_owned();
        daemon.wait_for_status(
            &id,
            if prompt == "fake:fail@1=image_corrupt" { "failed" } else { "succeeded" },
            PATIENCE,
        );
        id
    };
    let done = predict("a house", json!({}));
    let told = &receiver.wait(1)[0];
    let mut shown = daemon.get(&format!("/v1/predictions/{done}")).expect(200).json();
    // Who asks is given the pictures themselves.
    shown["output"] = json!([daemon.http().url(&format!("/api/v1/jobs/{done}/outputs/0"))]);
    let mut message = told.json();
    assert_eq!(message["status"], "succeeded");
    // The last step may have been written since.
    (message["logs"], shown["logs"]) = (json!(null), json!(null));
    assert_eq!(message, shown);
    let secrets = Secrets::load(None, &daemon.data()).unwrap();
    let timestamp: i64 = told.headers["webhook-timestamp"].parse().unwrap();
    assert_eq!(told.headers["webhook-signature"], secrets.sign(told.id(), timestamp, &told.body));

    let mut count = 1;
    for (prompt, filter, statuses) in [
        ("start alone", json!(["start"]), &["processing"][..]),
        ("both", json!(["start", "completed", "logs"]), &["processing", "succeeded"]),
        ("output", json!(["output"]), &["succeeded"]),
        ("fake:fail@1=image_corrupt", json!(["output"]), &[]),
        ("lines of the log", json!(["logs"]), &[]),
    ] {
        let id = predict(prompt, json!({"webhook_events_filter": filter}));
        count += statuses.len();
        let told = receiver.wait(count);
        let of_this = told.iter().map(Told::json).filter(|message| message["id"] == id.as_str());
        let found: Vec<_> = of_this.map(|message| message["status"].as_str().unwrap().to_owned()).collect();
        assert_eq!(found, statuses, "{prompt}");
    }
    wait_until("the outbox to be empty", PATIENCE, || (metric(&daemon, "atelier_webhook_outbox ") == 0).then_some(()));
    assert_eq!(receiver.told().len(), count);
    for wrong in [json!(["end"]), json!("completed"), json!([1])] {
        let wish = json!({"version": "fake", "input": {"prompt": "x"}, "webhook": receiver.url(),
            "webhook_events_filter": wrong});
        daemon.post("/v1/predictions", &wish).expect(422);
    }
}

#[test]
fn what_is_not_taken_is_told_again_the_same_and_in_its_order() {
    let receiver = Receiver::new(&["500 No", "302 Found\r\nLocation: /elsewhere", "200 OK"]);
    let daemon = setup().start();
    let id = daemon.submit(&job(json!({"url": receiver.url(), "events": ["job.running", "job.succeeded"]})));
    let told = receiver.wait(4);
    let types: Vec<_> = told.iter().map(|told| told.json()["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(types, ["job.running", "job.running", "job.running", "job.succeeded"]);
    assert!(told.iter().all(|told| told.path.starts_with("/hook") && told.json()["data"]["id"] == id.as_str()));
    assert!(told[..3].iter().all(|again| again.id() == told[0].id() && again.body == told[0].body));
    assert_ne!(told[3].id(), told[0].id());
}

#[test]
fn what_waits_survives_a_crash_and_is_signed_with_the_secret_of_the_day() {
    // Nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut daemon = setup().start();
    let id = daemon.submit(&job(format!("http://{address}/")));
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
    assert_eq!(metric(&daemon, "atelier_webhook_outbox "), 1);
    daemon.sigkill();
    let secret = daemon.root().join("secret");
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    daemon.set("webhooks.secret_file", secret.display().to_string());
    let receiver = Receiver::at(address, &["200 OK"]);
    daemon.start();
    let told = &receiver.wait(1)[0];
    assert_eq!(told.json()["data"]["id"], id.as_str());
    let secrets = Secrets::load(Some(&secret), &daemon.data()).unwrap();
    let timestamp: i64 = told.headers["webhook-timestamp"].parse().unwrap();
    assert_eq!(told.headers["webhook-signature"], secrets.sign(told.id(), timestamp, &told.body));
}

#[test]
fn a_crash_between_telling_and_noting_it_tells_twice_under_one_id() {
    let receiver = Receiver::new(&["200 OK"]);
    let mut daemon = setup().env("ATELIER_FAILPOINTS", "webhook.after_send=kill").start();
    daemon.submit(&job(receiver.url()));
    daemon.wait_exit(PATIENCE);
    daemon.set_env("ATELIER_FAILPOINTS", "");
    daemon.start();
    let told = receiver.wait(2);
    assert_eq!((told[0].id(), &told[0].body), (told[1].id(), &told[1].body));
}

#[test]
fn nothing_private_is_called_unless_it_is_allowed() {
    let receiver = Receiver::new(&["200 OK"]);
    let daemon = setup().set("webhooks.allow_private", false).start();
    for literal in
        [receiver.url(), "http://[::1]/".into(), "http://169.254.169.254/latest".into(), "http://2130706433/".into()]
    {
        let refused = daemon.post("/api/v1/jobs", &job(literal.clone())).expect(422).json();
        assert!(refused["detail"].as_str().unwrap().contains("public internet"), "{literal}: {refused}");
    }
    // A name is judged when it is resolved.
    let id = daemon.submit(&job(format!("http://localhost:{}/", receiver.address.port())));
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
    wait_until("a try", PATIENCE, || {
        daemon.get("/metrics").text().contains("atelier_webhooks_total{result=\"failed\"}").then_some(())
    });
    assert!(receiver.told().is_empty());
    assert_eq!(metric(&daemon, "atelier_webhook_outbox "), 1);
}

#[test]
fn a_receiver_that_is_gone_for_good_is_not_asked_again_and_one_that_never_answers_is_given_up() {
    let gone = Receiver::new(&["410 Gone"]);
    let broken = Receiver::new(&["503 No"]);
    let daemon = setup().set("webhooks.give_up", "2s").start();
    daemon.submit(&job(gone.url()));
    let id = daemon.submit(&job(broken.url()));
    daemon.wait_for_status(&id, "succeeded", PATIENCE);
    wait_until("both to be given up", PATIENCE, || (metric(&daemon, "atelier_webhook_outbox ") == 0).then_some(()));
    assert_eq!(gone.told().len(), 1);
    assert!(broken.told().len() >= 2, "{:?}", broken.told());
    assert_eq!(metric(&daemon, "atelier_webhooks_total{result=\"given_up\"}"), 2);
}
