//! A server that plays the daemon's API: jobs that change as a script says, requests that are written down.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use atelier_domain::{
    ErrorCode, ErrorInfo, Job, JobId, JobKind, JobStatus, Output, Params, Progress, Source, SourceType, Timestamp,
};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{FromRequest as _, Multipart, Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What one connection for events sends before it ends.
pub(crate) type Script = Vec<(Option<u32>, &'static str, Value)>;

#[derive(Default)]
pub(crate) struct World {
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// Bytes of outputs by job, with the name that the server gives them.
    pub(crate) files: BTreeMap<JobId, (String, Vec<u8>)>,
    /// For each connection to a job's events, what it sends. None left: it stays open and silent.
    pub(crate) scripts: VecDeque<Script>,
    /// Events are refused with this status.
    pub(crate) no_events: Option<u16>,
    /// How the job stands that is asked for, in this order; the last stays.
    pub(crate) stages: VecDeque<Job>,
    /// The token that is asked for.
    pub(crate) token: Option<String>,
    /// What a new job is refused with.
    pub(crate) refusal: Option<(u16, Value)>,
    /// Method, path and query of every request.
    pub(crate) requests: Vec<String>,
    pub(crate) last_event_ids: Vec<Option<String>>,
    pub(crate) submitted: Vec<Submitted>,
    pub(crate) paused: bool,
    pub(crate) cleanups: Vec<Value>,
}

/// What a submission carried.
#[derive(Clone, Debug, Default)]
pub(crate) struct Submitted {
    pub(crate) job: Value,
    /// Part, file name, bytes.
    pub(crate) files: Vec<(String, String, Vec<u8>)>,
    pub(crate) idempotency_key: Option<String>,
}

type Shared = Arc<Mutex<World>>;

/// Dropped, it is gone with all its connections.
pub(crate) struct Api {
    pub(crate) world: Shared,
    pub(crate) address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Api {
    pub(crate) fn start(world: World) -> Self {
        Self::listen(Arc::new(Mutex::new(world)), ([127, 0, 0, 1], 0).into())
    }

    /// The same world on the same port, after the last one has gone.
    pub(crate) fn listen(world: Shared, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        // The last one's socket may take a moment to go.
        let listener =
            atelier_testkit::wait::wait_until("the port to be free", atelier_testkit::wait::PATIENCE, || {
                runtime.block_on(tokio::net::TcpListener::bind(address)).ok()
            });
        let address = listener.local_addr().unwrap();
        let router = router(world.clone());
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { world, address, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.world.lock().unwrap())
    }
}

fn router(world: Shared) -> Router {
    Router::new()
        .route("/healthz", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/api/v1/jobs", get(list).post(submit))
        .route("/api/v1/jobs/{id}", get(show).delete(remove))
        .route("/api/v1/jobs/{id}/cancel", post(cancel))
        .route("/api/v1/jobs/{id}/retry", post(retry))
        .route("/api/v1/jobs/{id}/events", get(events))
        .route("/api/v1/jobs/{id}/outputs/{index}", get(output))
        .route("/api/v1/events", get(events_of_all))
        .route("/api/v1/queue", get(queue))
        .route("/api/v1/queue/pause", post(|world: State<Shared>| async { pause(world, true) }))
        .route("/api/v1/queue/resume", post(|world: State<Shared>| async { pause(world, false) }))
        .route("/api/v1/models", get(models))
        .route("/api/v1/models/{id}/unload", post(|| async { Json(json!({"loaded": []})) }))
        .route("/api/v1/cleanup", post(cleanup))
        .layer(axum::middleware::from_fn_with_state(world.clone(), guard))
        .with_state(world)
}

async fn guard(State(world): State<Shared>, request: Request, next: axum::middleware::Next) -> Response {
    let allowed = {
        let mut world = world.lock().unwrap();
        world.requests.push(format!("{} {}", request.method(), request.uri()));
        world.token.as_ref().is_none_or(|token| {
            let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
            shown == Some(&format!("Bearer {token}"))
        })
    };
    if allowed || request.uri().path() == "/healthz" {
        next.run(request).await
    } else {
        problem(401, "unauthorized", "a token is needed", "")
    }
}

fn problem(status: u16, code: &str, detail: &str, hint: &str) -> Response {
    let body = json!({"type": format!("urn:atelier:problem:{code}"), "title": code, "status": status,
        "detail": detail, "code": code, "hint": hint, "request_id": "r1"});
    (StatusCode::from_u16(status).unwrap(), [(header::CONTENT_TYPE, "application/problem+json")], body.to_string())
        .into_response()
}

fn missing(id: &str) -> Response {
    problem(404, "not_found", &format!("job {id} does not exist"), "")
}

async fn submit(State(world): State<Shared>, headers: HeaderMap, request: Request) -> Response {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let mut submitted = Submitted { idempotency_key: text("idempotency-key"), ..Submitted::default() };
    if text("content-type").is_some_and(|kind| kind.starts_with("multipart/")) {
        let mut parts = Multipart::from_request(request, &()).await.unwrap();
        while let Some(part) = parts.next_field().await.unwrap() {
            let name = part.name().unwrap().to_owned();
            if name == "job" {
                submitted.job = serde_json::from_slice(&part.bytes().await.unwrap()).unwrap();
            } else {
                let file = part.file_name().unwrap().to_owned();
                submitted.files.push((name, file, part.bytes().await.unwrap().to_vec()));
            }
        }
    } else {
        submitted.job = serde_json::from_slice(&Bytes::from_request(request, &()).await.unwrap()).unwrap();
    }
    let mut world = world.lock().unwrap();
    world.submitted.push(submitted);
    if let Some((status, body)) = &world.refusal {
        let kind = [(header::CONTENT_TYPE, "application/problem+json"), (header::RETRY_AFTER, "7")];
        return (StatusCode::from_u16(*status).unwrap(), kind, body.to_string()).into_response();
    }
    let job = match world.stages.front() {
        Some(job) => job.clone(),
        None => job(1),
    };
    world.jobs.insert(job.id, job.clone());
    (StatusCode::ACCEPTED, [(header::LOCATION, format!("/api/v1/jobs/{}", job.id))], Json(job)).into_response()
}

async fn list(State(world): State<Shared>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let world = world.lock().unwrap();
    let limit: usize = query["limit"].parse().unwrap();
    let mut jobs: Vec<&Job> = world
        .jobs
        .values()
        .rev()
        .filter(|job| query.get("status").is_none_or(|status| *status == job.status.as_str()))
        .filter(|job| query.get("cursor").is_none_or(|cursor| job.id < cursor.parse().unwrap()))
        .take(limit + 1)
        .collect();
    let more = jobs.len() > limit;
    jobs.truncate(limit);
    let cursor = jobs.last().filter(|_| more).map(|job| job.id);
    Json(json!({"jobs": jobs, "next_cursor": cursor})).into_response()
}

async fn show(State(world): State<Shared>, Path(id): Path<String>) -> Response {
    let mut world = world.lock().unwrap();
    if let Some(job) = world.stages.front().cloned().filter(|job| job.id.to_string() == id) {
        if world.stages.len() > 1 {
            world.stages.pop_front();
        }
        return Json(job).into_response();
    }
    match id.parse().ok().and_then(|id| world.jobs.get(&id)) {
        Some(job) => Json(job).into_response(),
        None => missing(&id),
    }
}

fn change(world: &Shared, id: &str, status: JobStatus, allowed: &[JobStatus]) -> Response {
    let mut world = world.lock().unwrap();
    let Some(job) = id.parse().ok().and_then(|id| world.jobs.get_mut(&id)) else { return missing(id) };
    if !allowed.contains(&job.status) {
        return problem(409, "conflict", &format!("job {id} is {}", job.status), "");
    }
    job.status = status;
    (StatusCode::ACCEPTED, Json(&*job)).into_response()
}

async fn cancel(State(world): State<Shared>, Path(id): Path<String>) -> Response {
    change(&world, &id, JobStatus::Cancelled, &[JobStatus::Queued, JobStatus::Running])
}

async fn retry(State(world): State<Shared>, Path(id): Path<String>) -> Response {
    change(&world, &id, JobStatus::Queued, &[JobStatus::Failed, JobStatus::Cancelled])
}

async fn remove(State(world): State<Shared>, Path(id): Path<String>) -> Response {
    match id.parse().ok().and_then(|id| world.lock().unwrap().jobs.remove(&id)) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => missing(&id),
    }
}

fn stream(script: Option<Script>) -> Response {
    let mut text = "retry: 2000\nid: 0\n\n".to_owned();
    let ends = script.is_some();
    for (id, name, data) in script.unwrap_or_default() {
        if let Some(id) = id {
            let _ = writeln!(text, "id: {id}");
        }
        let _ = write!(text, "event: {name}\ndata: {data}\n\n");
    }
    let first = futures::stream::once(async move { Ok::<_, std::io::Error>(text) });
    let body = if ends {
        Body::from_stream(first)
    } else {
        Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending()))
    };
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

async fn events(State(world): State<Shared>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let mut world = world.lock().unwrap();
    if let Some(status) = world.no_events {
        return problem(status, "not_available", "no events here", "");
    }
    if id.parse().ok().is_none_or(|id: JobId| !world.jobs.contains_key(&id)) {
        return missing(&id);
    }
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap().to_owned());
    world.last_event_ids.push(last);
    let script = world.scripts.pop_front();
    stream(script)
}

async fn events_of_all(State(world): State<Shared>) -> Response {
    stream(world.lock().unwrap().scripts.pop_front())
}

async fn output(State(world): State<Shared>, Path((id, _)): Path<(String, u32)>) -> Response {
    let world = world.lock().unwrap();
    let Some((name, bytes)) = id.parse().ok().and_then(|id| world.files.get(&id)) else { return missing(&id) };
    let disposition = format!("attachment; filename=\"{name}\"");
    ([(header::CONTENT_DISPOSITION, disposition)], bytes.clone()).into_response()
}

async fn queue(State(world): State<Shared>) -> Json<Value> {
    let world = world.lock().unwrap();
    let running = world.jobs.values().find(|job| job.status == JobStatus::Running);
    Json(json!({"counts": {"queued": 3, "failed": 1}, "paused": world.paused, "blocked": null, "running": running,
        "free_places": 9997}))
}

fn pause(State(world): State<Shared>, paused: bool) -> Json<Value> {
    world.lock().unwrap().paused = paused;
    Json(json!({ "paused": paused }))
}

async fn models() -> Json<Value> {
    Json(json!({"models": [{"id": "span-x2", "family": "span", "class_name": "SPAN", "kinds": ["upscale"],
        "bytes": 827_280, "complete": true, "problem": null, "loaded": true, "loaded_bytes": 2_000_000}],
        "worker": {"state": "idle"}}))
}

async fn cleanup(State(world): State<Shared>, Json(body): Json<Value>) -> Json<Value> {
    world.lock().unwrap().cleanups.push(body.clone());
    Json(json!({"dry_run": body["dry_run"], "jobs": 2, "files": 3, "bytes": 4_000_000,
        "items": [{"job": id(1), "path": "outbox/a.png", "bytes": 4_000_000, "why": "succeeded 8d ago"}]}))
}

const AT: Timestamp = Timestamp(1_763_758_264_113);

pub(crate) fn id(n: u64) -> JobId {
    JobId::from_ulid(ulid::Ulid::from_parts(1_763_758_264_113 + n, u128::from(n)))
}

/// A job that waits.
pub(crate) fn job(n: u64) -> Job {
    let at = AT;
    Job {
        id: id(n),
        kind: JobKind::Upscale,
        model: Some("span-x2".into()),
        status: JobStatus::Queued,
        priority: 0,
        progress: Progress::queued(at),
        attempt: 0,
        max_attempts: 3,
        crashes: 0,
        resumed_from_step: None,
        source: Source { r#type: SourceType::Http, name: Some(format!("photo {n}.jpg")) },
        params: Params { scale: Some(2), ..Params::default() },
        inputs: vec![],
        outputs: vec![],
        result: None,
        error: None,
        created_at: at,
        started_at: None,
        finished_at: None,
    }
}

pub(crate) fn running(n: u64, step: u32) -> Job {
    Job { status: JobStatus::Running, progress: progress(step), attempt: 1, started_at: Some(Timestamp(0)), ..job(n) }
}

pub(crate) fn progress(step: u32) -> Progress {
    Progress {
        phase: "run".into(),
        step,
        steps: 20,
        fraction: f64::from(step) / 20.0,
        text: None,
        updated_at: AT.plus_millis(step.into()),
    }
}

/// A job that has made one file of these bytes.
pub(crate) fn succeeded(n: u64, name: &str, bytes: &[u8]) -> Job {
    let made = Output {
        index: 0,
        name: name.into(),
        media_type: "image/png".into(),
        bytes: bytes.len() as u64,
        width: 2,
        height: 2,
        sha256: atelier::admission::hex(&Sha256::digest(bytes)),
        url: Output::url_of(id(n), 0),
    };
    Job { status: JobStatus::Succeeded, outputs: vec![made], finished_at: Some(Timestamp(3_200)), ..running(n, 20) }
}

pub(crate) fn failed(n: u64) -> Job {
    let error = ErrorInfo::new(ErrorCode::ImageTruncated, "photo.jpg ends too early").with_hint("copy it again");
    Job { status: JobStatus::Failed, error: Some(error), ..running(n, 3) }
}
