//! Clients of the daemon, each on a thread of its own, that live through its deaths.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use atelier_testkit::daemon::{Answer, Http, Part, http::multipart};
use serde_json::Value;

use crate::wishes::Wish;

/// Where the daemon is to be found, while there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Address(Arc<Mutex<Option<String>>>);

impl Address {
    pub(crate) fn set(&self, address: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    pub(crate) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection to whoever is there now.
    pub(crate) fn http(&self, patience: Duration) -> Result<Http, String> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(address) = self.get() {
                return Ok(Http::new(&address));
            }
            if Instant::now() >= deadline {
                return Err(format!("no daemon for {patience:?}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Posted {
    /// Answered with this job. Nothing may take that back.
    Answered(String),
    /// The connection broke, and without a key there is no asking again: there may be a job, or none.
    Unknown,
    /// Something that no client should meet.
    Wrong(String),
}

/// How long a client goes on trying.
const PATIENCE: Duration = Duration::from_mins(3);

/// Sends `wish` as `name`. With a key it is sent again, and again with the same key, until there is an answer; and every
/// other client then asks once more, as one does that has forgotten, and must be told of the same job.
pub(crate) fn post(address: &Address, name: &str, wish: &Wish, keyed: bool) -> JoinHandle<Result<Posted, String>> {
    let (address, name, wish) = (address.clone(), name.to_owned(), wish.clone());
    std::thread::spawn(move || {
        let first = send(&address, &name, &wish, keyed)?;
        let is_forgetful = keyed && name.bytes().last().is_some_and(|byte| byte % 2 == 0);
        if is_forgetful {
            let second = send(&address, &name, &wish, keyed)?;
            if second != first {
                return Err(format!("{name}: {first:?}, and then {second:?}"));
            }
        }
        Ok(first)
    })
}

fn send(address: &Address, name: &str, wish: &Wish, keyed: bool) -> Result<Posted, String> {
    let (content_type, body) = request(name, wish);
    let mut headers = vec![("Content-Type", content_type.as_str())];
    if keyed {
        headers.push(("Idempotency-Key", name));
    }
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let http = address.http(PATIENCE)?;
        match http.try_send("POST", "/api/v1/jobs", &headers, &body) {
            Ok(answer) if [200, 202].contains(&answer.status) => return Ok(Posted::Answered(id(&answer)?)),
            // It says to come again.
            Ok(answer) if [429, 503].contains(&answer.status) => {}
            Ok(answer) => return Err(format!("{name}: {} {}", answer.status, answer.text())),
            Err(_) if keyed => {}
            Err(_) => return Ok(Posted::Unknown),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("{name}: no answer within {PATIENCE:?}"))
}

fn id(answer: &Answer) -> Result<String, String> {
    let job: Value = serde_json::from_slice(&answer.body).map_err(|error| format!("{error} in {}", answer.text()))?;
    job["id"].as_str().map(str::to_owned).ok_or_else(|| format!("no id in {job}"))
}

fn request(name: &str, wish: &Wish) -> (String, Vec<u8>) {
    let named = |job: &Value| {
        let mut job = job.clone();
        job["name"] = name.into();
        job.to_string()
    };
    match wish {
        Wish::Json(job) => ("application/json".into(), named(job).into_bytes()),
        Wish::Form { job, bytes } => {
            let job = named(job);
            let job = Part { content_type: Some("application/json"), ..Part::field("job", &job) };
            multipart(&[job, Part::file("image", "photo.png", bytes)])
        }
        Wish::Picture { .. } | Wish::Preset { .. } | Wish::Folder { .. } | Wish::Spec(_) => {
            unreachable!("{name} is dropped into the inbox")
        }
    }
}
