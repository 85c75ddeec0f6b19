//! `POST /jobs`: receive, check, keep, enqueue, answer. In that order, and each only when the one before is done.

use std::{sync::Arc, time::Duration};

use atelier_domain::{ErrorCode, Input, Job, JobSpec, Source, SourceType, Webhook};
use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};
use tokio::sync::SemaphorePermit;
use tracing::Instrument as _;

use super::{
    Http, coalesce, idempotency,
    intake::{self, Bounds, Draft, Received},
    prefer::Prefer,
    problem::{Problem, ProblemBody},
    remote, schema,
    status::HttpCode,
    trace,
};
use crate::{
    admission::{self, Resolved},
    config::Config,
    egress::{self, AddressError, Reach},
    failpoint,
    queue::{Enqueued, Idempotency, NewJob},
};

/// How long a request waits for its turn to be received.
const TURN: Duration = Duration::from_secs(30);

/// Submit a job
///
/// JSON, or a form with the same JSON in part `job`, or with its names as parts of their own. Answered when the job is
/// durable; with `Prefer: wait=SECONDS` when it has ended, or when the time is over.
#[utoipa::path(
    post,
    path = "/api/v1/jobs",
    operation_id = "submit_job",
    tag = "jobs",
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS`, at most 600, or `respond-async`"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters: the same request with the same key is the same job"),
    ),
    request_body(
        content(
            (schema::NewJob = "application/json"),
            (schema::NewJobForm = "multipart/form-data"),
        ),
        description = "What to do, and with which pictures"
    ),
    responses(
        (status = 202, description = "The job is queued", body = schema::Job, headers(
            ("Location" = String, description = "Where the job is"),
            ("Preference-Applied" = Option<String>, description = "Which preference was followed"),
            ("Idempotency-Replayed" = Option<String>, description = "`true`: this is the first request's job"),
        )),
        (status = 200, description = "The job has ended", body = schema::Job, headers(
            ("Location" = String, description = "Where the job is"),
            ("Preference-Applied" = Option<String>, description = "Which preference was followed"),
            ("Idempotency-Replayed" = Option<String>, description = "`true`: this is the first request's job"),
        )),
        (status = 400, description = "Not JSON, or not a form", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 408, description = "The body came too slowly", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 413, description = "A file, or the whole, is too large", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 415, description = "Neither JSON nor a form, or a file that is no picture", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 422, description = "Understood, and wrong", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full", body = ProblemBody<'static>, content_type = "application/problem+json", headers(
            ("Retry-After" = u64, description = "Seconds"),
        )),
        (status = 501, description = "Nothing installed does this", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn submit(State(http): State<Arc<Http>>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let prefer = Prefer::of(&headers);
    let key = idempotency::key(&headers)?;
    let turn = turn(&http, key.is_none()).await?;
    let bounds = Bounds::of(&http.app.config());
    let draft = intake::receive(&http.spool, bounds, http.settings.body, &headers, body).await?;
    failpoint::hit("http.received");
    let key = key.map_or(Key::None, Key::Given);
    let (enqueued, _key) = enqueue(&http, draft, key).await?;
    drop(turn);
    answer(&http, prefer, enqueued).await
}

/// What makes a request the same as one before.
#[derive(Clone, Debug)]
pub(crate) enum Key {
    /// Every request is a new job.
    None,
    /// The client says so.
    Given(String),
    /// The same wish with the same pictures, by the same caller in the same way, until its answer was delivered.
    Content { scope: String },
}

impl Key {
    /// The key of one of several jobs of the same request.
    pub(crate) fn nth(&self, index: usize) -> Self {
        match self {
            Self::None => Self::None,
            Self::Given(key) => Self::Given(format!("{key}/{index}")),
            Self::Content { scope } => Self::Content { scope: format!("{scope} {index}") },
        }
    }
}

/// Checks a received job and makes it durable. The second value is the key it lies under, where that was not given.
pub(crate) async fn enqueue(http: &Arc<Http>, draft: Draft, key: Key) -> Result<(Enqueued, Option<String>), Problem> {
    let config = http.app.config();
    let checked = check(http, &config, draft, &key).await?;
    let content_key = match &key {
        Key::Content { .. } => checked.idempotency.as_ref().map(|idempotency| idempotency.key.clone()),
        Key::None | Key::Given(_) => None,
    };
    if let Some(key) = &content_key {
        coalesce::let_go_if_stale(http, key).await?;
    }
    // A client that leaves now has a job all the same: half of it must not stay behind.
    let enqueued = tokio::spawn(keep(http.clone(), checked).in_current_span());
    let enqueued = enqueued.await.map_err(|_| Problem::new(ErrorCode::Internal, "the job could not be kept"))??;
    Ok((enqueued, content_key))
}

/// Whether there is any use in reading the body now.
pub(crate) async fn turn(http: &Http, needs_place: bool) -> Result<SemaphorePermit<'_>, Problem> {
    if http.app.shutdown.is_cancelled() {
        return Err(Problem::http(HttpCode::ShuttingDown, "the daemon is about to end").retry_after(10));
    }
    if needs_place && http.app.queue.free_places() == 0 {
        return Err(Problem::new(ErrorCode::QueueFull, "the queue is full").retry_after(10));
    }
    let busy = || Problem::http(HttpCode::Busy, "too many jobs are being received at once").retry_after(5);
    match tokio::time::timeout(TURN, http.uploads.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        Ok(Err(_)) | Err(_) => Err(busy()),
    }
}

/// A job that may be enqueued.
struct Checked {
    resolved: Resolved,
    files: Vec<Received>,
    images: Vec<Input>,
    mask: Option<Input>,
    idempotency: Option<Idempotency>,
    webhook: Option<Webhook>,
    trace_id: Option<String>,
}

/// The cheap checks first, then the pictures.
async fn check(http: &Arc<Http>, config: &Arc<Config>, draft: Draft, key: &Key) -> Result<Checked, Problem> {
    let Draft { mut job, mut images, mask, prediction_at } = draft;
    let webhook = webhook_of(&mut job, config)?.map(|webhook| Webhook { prediction_at, ..webhook });
    remote::fetch_all(http, config, &mut job, &mut images).await?;
    let spec = JobSpec::from_value(Value::Object(job))?;
    let asked = (!matches!(key, Key::None)).then(|| spec.clone());
    let resolved = admission::resolve(spec, None, config, &http.app.registry())?;
    admission::check_images(&resolved, images.len(), config)?;
    let mut inputs = Vec::with_capacity(images.len());
    let several = images.len() > 1;
    for (index, image) in images.iter().enumerate() {
        let nameless = || if several { format!("image-{index}") } else { "image".to_owned() };
        inputs.push(inspect(http, config, image, nameless).await?);
    }
    let mask_input = match &mask {
        Some(mask) => Some(inspect(http, config, mask, || "mask".to_owned()).await?),
        None => None,
    };
    let idempotency = asked.and_then(|spec| {
        let fingerprint = idempotency::fingerprint(&spec, &inputs, mask_input.as_ref(), webhook.as_ref());
        let key = match key {
            Key::None => return None,
            Key::Given(key) => key.clone(),
            Key::Content { scope } => coalesce::key(scope, &fingerprint),
        };
        Some(Idempotency { key, fingerprint })
    });
    let files = images.into_iter().chain(mask).collect();
    Ok(Checked { resolved, files, images: inputs, mask: mask_input, idempotency, webhook, trace_id: trace::current() })
}

/// Whom the client wants to be told; an address that will never be called is refused now.
fn webhook_of(job: &mut Map<String, Value>, config: &Config) -> Result<Option<Webhook>, Problem> {
    let Some(webhook) = job.remove("webhook").map(Webhook::from_value).transpose()?.flatten() else { return Ok(None) };
    let reach = if config.webhooks.allow_private { Reach::Anywhere } else { Reach::Public };
    egress::check(&webhook.url, reach).map_err(|error| {
        Problem::new(ErrorCode::InvalidRequest, format!("the webhook is not called: {error}")).with_hint(match error {
            AddressError::Private(_) => "webhooks.allow_private lets it be",
            AddressError::Unreadable | AddressError::Scheme | AddressError::Credentials | AddressError::NoHost => {
                "for example \"https://example.org/hook\""
            }
        })
    })?;
    Ok(Some(webhook))
}

async fn inspect(
    http: &Http,
    config: &Arc<Config>,
    file: &Received,
    nameless: impl FnOnce() -> String,
) -> Result<Input, Problem> {
    let _core = http.inspections.acquire().await;
    let (path, config) = (file.path().to_owned(), config.clone());
    let name = file.name.clone().unwrap_or_else(nameless);
    let inspected = tokio::task::spawn_blocking(move || admission::inspect(&path, &name, &config)).await;
    Ok(inspected.map_err(|_| Problem::new(ErrorCode::Internal, "the picture could not be looked at"))??)
}

/// Makes files and job durable, in this order. Whatever goes wrong, no files without a job stay.
async fn keep(http: Arc<Http>, checked: Checked) -> Result<Enqueued, Problem> {
    let Checked { resolved, files, images, mask, idempotency, webhook, trace_id } = checked;
    let id = http.app.queue.new_id();
    let folder = if files.is_empty() {
        None
    } else {
        let spool = http.spool.clone();
        let kept = tokio::task::spawn_blocking(move || spool.keep(id, files)).await;
        let kept = kept.map_err(|_| Problem::new(ErrorCode::Internal, "the pictures could not be kept"))?;
        Some(kept.map_err(|error| Problem::io("keeping the pictures", &error))?)
    };
    failpoint::hit("http.spooled");
    let mut paths = folder.iter().flat_map(|folder| folder.paths.iter().cloned());
    let new = NewJob {
        id,
        source: Source { r#type: SourceType::Http, name: resolved.name.clone() },
        resolved,
        source_path: None,
        inputs: images.into_iter().zip(&mut paths).collect(),
        mask: mask.zip(paths.next()),
        output_dir: None,
        output_stem: None,
        sidecars: Vec::new(),
        dedupe_key: None,
        idempotency,
        webhook,
        trace_id,
    };
    let enqueued = http.app.queue.enqueue(new).await?;
    failpoint::hit("http.enqueued");
    match (&enqueued, folder) {
        (Enqueued::New(_), Some(folder)) => folder.settle(),
        // The first request's job has files of its own.
        (Enqueued::New(_) | Enqueued::Duplicate(_) | Enqueued::Replayed(_), folder) => drop(folder),
    }
    Ok(enqueued)
}

async fn answer(http: &Http, prefer: Prefer, enqueued: Enqueued) -> Result<Response, Problem> {
    let (job, replayed) = match enqueued {
        Enqueued::New(job) => (job, false),
        Enqueued::Duplicate(job) | Enqueued::Replayed(job) => (job, true),
    };
    let job = match prefer.wait {
        Some(wait) => wait_for(http, job, wait).await?,
        None => job,
    };
    let job = http.live(job);
    let ended = job.status.is_ended();
    let location = HeaderValue::from_str(&format!("/api/v1/jobs/{}", job.id)).expect("a ULID is visible ASCII");
    let status = if ended && (replayed || prefer.wait.is_some()) { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (status, [(header::LOCATION, location)], Json(job)).into_response();
    if let Some((name, value)) = prefer.applied(!ended) {
        response.headers_mut().insert(name, value);
    }
    if replayed {
        let name = HeaderName::from_static("idempotency-replayed");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The job at its end, or as it is when the time is over, or the daemon.
async fn wait_for(http: &Http, job: Job, wait: Duration) -> Result<Job, Problem> {
    let id = job.id;
    let ended = tokio::select! {
        ended = http.app.queue.wait_ended(id, wait) => ended?,
        () = http.app.shutdown.cancelled() => http.app.store.job(id).await?,
    };
    // Removed meanwhile: what it was when it came in is all there is to say.
    Ok(ended.unwrap_or(job))
}
