//! The router over the real store and queue, without a socket and without a worker: jobs end when a test says so.
#![allow(clippy::unwrap_used, clippy::format_collect, reason = "tests")]

mod access;
mod clients;
mod events;
mod hostile;
mod jobs;
mod openapi;
mod operations;
mod outputs;
mod serve;
mod submit;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use atelier_domain::{ErrorCode, ErrorInfo, Job, JobId, Output};
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode},
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::{Http, Settings, router_of};
use crate::{
    app::{App, Parts, engine_config},
    config::Config,
    engine::Engine,
    models::Registry,
    queue::Queue,
    store::{Published, Store},
};

/// A daemon without a socket.
pub(super) struct Scene {
    /// Kept for its folder.
    _root: Arc<TempDir>,
    pub(super) app: Arc<App>,
    router: Router,
}

/// Name, file name and data of a form's part.
type FormPart<'a> = (&'a str, Option<&'a str>, &'a [u8]);

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }

    /// Whether it is the problem that it should be, in the form that all have.
    #[track_caller]
    fn problem(self, status: u16, code: &str) -> Value {
        let answer = self.expect(status);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let problem = answer.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:atelier:problem:{code}"));
        assert_eq!(problem["request_id"], answer.header("x-request-id"));
        assert!(!problem["title"].as_str().unwrap().is_empty() && !problem["detail"].as_str().unwrap().is_empty());
        problem
    }
}

impl Scene {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::with_settings(change, Settings::default()).await
    }

    async fn with_settings(change: impl FnOnce(&mut Config), settings: Settings) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::defaults();
        config.paths.data = root.path().join("data");
        config.paths.models = vec![root.path().join("models")];
        config.log.dir = root.path().join("data/logs");
        config.outbox.dir = root.path().join("outbox");
        change(&mut config);
        for (model, class) in [("span-x2", "SPAN"), ("fake", "AtelierFake")] {
            let dir = root.path().join("models").join(model);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("config.json"), format!("{{\"_class_name\":\"{class}\"}}")).unwrap();
            std::fs::write(dir.join("model.safetensors"), "").unwrap();
        }
        std::fs::create_dir_all(&config.paths.data).unwrap();
        std::fs::create_dir_all(&config.outbox.dir).unwrap();
        Self::open(Arc::new(root), config, settings).await
    }

    async fn open(root: Arc<TempDir>, config: Config, settings: Settings) -> Self {
        let store = Store::open(&config.paths.data.join("atelier.db")).await.unwrap();
        let registry = Registry::scan(&config.all_model_dirs());
        let engine = Engine::new(engine_config(&config));
        let (config, config_receiver) = watch::channel(Arc::new(config));
        let (registry, registry_receiver) = watch::channel(Arc::new(registry));
        let queue = Queue::new(store.clone(), engine.clone(), config_receiver, registry_receiver).await.unwrap();
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        let app = App::new(Parts { config, registry, store, queue, engine, metrics });
        let http = Arc::new(Http::new(app.clone(), settings).unwrap());
        Self { _root: root, app, router: router_of(http) }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.send(request(method, path, headers, body)).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], Body::empty()).await
    }

    async fn post(&self, path: &str, json: &Value) -> Answer {
        self.call(Method::POST, path, &[("content-type", "application/json")], json.to_string()).await
    }

    /// A form; parts are name, file name and data.
    async fn form(&self, headers: &[(&str, &str)], parts: &[FormPart<'_>]) -> Answer {
        let (content_type, body) = form(parts);
        let headers: Vec<_> = headers.iter().copied().chain([("content-type", content_type.as_str())]).collect();
        self.call(Method::POST, "/api/v1/jobs", &headers, body).await
    }

    /// A queued upscale.
    pub(super) async fn submitted(&self) -> JobId {
        let answer = self.form(&[], &[("kind", None, b"upscale"), ("image", Some("photo.png"), &png())]).await;
        answer.expect(202).json()["id"].as_str().unwrap().parse().unwrap()
    }

    /// Ends a queued job well, with these files in the outbox.
    async fn succeed(&self, id: JobId, files: &[(&str, &[u8])]) -> Job {
        self.succeed_with(id, files, None).await
    }

    /// The same with something that is no file.
    async fn succeed_with(&self, id: JobId, files: &[(&str, &[u8])], result: Option<Value>) -> Job {
        self.app.store.start(id).await.unwrap().unwrap();
        let dir = self.app.config().outbox.dir.clone();
        let mut outputs = Vec::new();
        let mut output_paths = Vec::new();
        for (index, (name, data)) in files.iter().enumerate() {
            let index = u32::try_from(index).unwrap();
            std::fs::write(dir.join(name), data).unwrap();
            output_paths.push(dir.join(name).into());
            outputs.push(Output {
                index,
                name: (*name).to_owned(),
                media_type: "image/png".into(),
                bytes: data.len() as u64,
                width: 2,
                height: 2,
                sha256: crate::admission::hex(&<sha2::Sha256 as sha2::Digest>::digest(data)),
                url: Output::url_of(id, index),
            });
        }
        let published = Published {
            model: "span-x2".into(),
            outputs,
            output_paths,
            result,
            manifest: serde_json::json!({"seed": 7}),
            resumed_from_step: None,
        };
        self.app.store.succeed(id, published).await.unwrap().unwrap().job
    }

    async fn fail(&self, id: JobId) {
        self.app.store.start(id).await.unwrap().unwrap();
        let error = ErrorInfo::new(ErrorCode::ImageCorrupt, "it is broken");
        self.app.store.fail(id, error).await.unwrap().unwrap();
    }

    fn spool(&self) -> PathBuf {
        self.app.config().paths.data.join("spool")
    }

    /// Folders of jobs and files that are being received.
    fn spooled(&self) -> (Vec<String>, usize) {
        let names = |dir: &Path| -> Vec<String> {
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let mut jobs = names(&self.spool());
        jobs.retain(|name| name != ".uploads");
        (jobs, names(&self.spool().join(".uploads")).len())
    }

    #[track_caller]
    fn assert_nothing_is_left(&self) {
        assert_eq!(self.spooled(), (vec![], 0));
    }
}

fn request(method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        builder = builder.header("host", "127.0.0.1:8470");
    }
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).unwrap()
}

/// Content type and body.
fn form(parts: &[FormPart<'_>]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, file_name, data) in parts {
        body.extend_from_slice(format!("--XX-boundary\r\nContent-Disposition: form-data; name=\"{name}\"").as_bytes());
        if let Some(file_name) = file_name {
            body.extend_from_slice(format!("; filename=\"{file_name}\"\r\nContent-Type: image/png").as_bytes());
        }
        body.extend_from_slice(b"\r\n\r\n");
        body.extend_from_slice(data);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--XX-boundary--\r\n");
    ("multipart/form-data; boundary=XX-boundary".into(), body)
}

fn png() -> Vec<u8> {
    atelier_testkit::pictures::png(&atelier_testkit::pictures::photo_like(16, 12, 1))
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Waits for something that another task does.
async fn eventually(mut check: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !check() {
        assert!(tokio::time::Instant::now() < deadline, "it did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
