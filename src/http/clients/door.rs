//! The way in and the wait: from a client's request to a job, and to its end.

use std::{sync::Arc, time::Duration};

use atelier_domain::{ErrorCode, Job, JobId, JobStatus};
use axum::{
    body::Body,
    extract::FromRequestParts,
    http::{HeaderMap, request::Parts},
};
use serde_json::{Map, Value};
use tokio::sync::SemaphorePermit;

use super::super::{
    Http,
    access::Caller,
    coalesce, idempotency,
    intake::{self, Bounds, Draft, Fields, Received},
    problem::Problem,
    status::HttpCode,
    submit::{self, Key},
};
use crate::store::JobRecord;

/// Longer than any job.
const FOR_EVER: Duration = Duration::from_hours(24 * 30);

/// What of a request is not its body: who sends it, in which way, with which headers.
pub(crate) struct Visitor {
    pub(crate) headers: HeaderMap,
    caller: Option<String>,
    path: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Visitor {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        let caller = parts.extensions.get::<Caller>().and_then(|caller| caller.name.as_deref().map(str::to_owned));
        Ok(Self { headers: parts.headers.clone(), caller, path: parts.uri.path().to_owned() })
    }
}

impl Visitor {
    /// The key of a client that waits: its own, or what it asks for.
    pub(crate) fn key_of_waiting(&self) -> Result<Key, Problem> {
        Ok(match idempotency::key(&self.headers)? {
            Some(key) => Key::Given(key),
            None => Key::Content { scope: format!("{} {}", self.caller.as_deref().unwrap_or_default(), self.path) },
        })
    }

    /// The key of a client that is given a job's id and asks for it later.
    pub(crate) fn key_of_asking(&self) -> Result<Key, Problem> {
        Ok(idempotency::key(&self.headers)?.map_or(Key::None, Key::Given))
    }

    /// Where the client finds this server, without a slash at the end.
    pub(crate) fn base_url(&self) -> String {
        let text = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        // Set by the proxy that ends TLS before us.
        let scheme = text("x-forwarded-proto").filter(|scheme| *scheme == "https").unwrap_or("http");
        format!("{scheme}://{}", text("host").unwrap_or("localhost"))
    }
}

/// A job as the native API would be sent it.
#[derive(Debug, Default)]
pub(crate) struct Order {
    job: Map<String, Value>,
    params: Map<String, Value>,
    /// The first picture steers, it is not changed.
    pub(crate) is_control: bool,
    /// The webhook is told a prediction of the server at this address.
    pub(crate) prediction_at: Option<String>,
    pub(crate) images: Vec<Received>,
    pub(crate) mask: Option<Received>,
}

impl Order {
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.job.insert(name.to_owned(), value.into());
    }

    /// A parameter, where there is a value.
    pub(crate) fn param(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.params.insert(name.to_owned(), value.into());
        }
    }

    pub(crate) fn has_param(&self, name: &str) -> bool {
        self.params.contains_key(name)
    }

    fn draft(mut self) -> Draft {
        self.job.insert("params".into(), Value::Object(self.params));
        Draft { job: self.job, images: self.images, mask: self.mask, prediction_at: self.prediction_at }
    }
}

/// A job that a client waits for.
pub(crate) struct Placed {
    pub(crate) job: Job,
    /// To be forgotten once the answer is delivered.
    pub(crate) key: Option<String>,
}

/// A request that is being received, with its turn to be.
pub(crate) struct Arrival<'h> {
    pub(crate) fields: Fields,
    turn: SemaphorePermit<'h>,
}

/// Receives a request's fields.
pub(crate) async fn receive<'h>(http: &'h Http, visitor: &Visitor, body: Body) -> Result<Arrival<'h>, Problem> {
    // A full queue may still hold the job that this request means.
    let turn = submit::turn(http, false).await?;
    let bounds = Bounds::of(&http.app.config());
    let fields = intake::receive_fields(&http.spool, bounds, http.settings.body, &visitor.headers, body).await?;
    Ok(Arrival { fields, turn })
}

impl Arrival<'_> {
    /// Makes the job durable, or finds it.
    pub(crate) async fn place(self, http: &Arc<Http>, order: Order, key: Key) -> Result<Placed, Problem> {
        let placed = place(http, order, key).await;
        drop(self.turn);
        placed
    }
}

/// Makes one of several jobs of a request durable, or finds it.
pub(crate) async fn place(http: &Arc<Http>, order: Order, key: Key) -> Result<Placed, Problem> {
    let (enqueued, key) = submit::enqueue(http, order.draft(), key).await?;
    Ok(Placed { job: enqueued.into_job(), key })
}

/// The job at its end, with where its files lie. Leaving calls nothing off.
pub(crate) async fn ended(http: &Http, id: JobId) -> Result<JobRecord, Problem> {
    let ended = tokio::select! {
        ended = http.app.queue.wait_ended(id, FOR_EVER) => ended?,
        () = http.app.shutdown.cancelled() => {
            return Err(Problem::http(HttpCode::ShuttingDown, "the daemon is about to end, the job goes on after it")
                .with_hint("send the same request again")
                .retry_after(2));
        }
    };
    let removed = || Problem::not_found(format_args!("job {id}")).with_hint("somebody has removed it");
    ended.ok_or_else(removed)?;
    http.app.store.record(id).await?.ok_or_else(removed)
}

/// Why an ended job has nothing to give; `None`: it has.
pub(crate) fn failure(job: &Job) -> Option<Problem> {
    match (job.status, &job.error) {
        (JobStatus::Succeeded, _) => None,
        (_, Some(error)) => Some(error.clone().into()),
        (status, None) => Some(Problem::new(ErrorCode::Conflict, format!("job {} is {status}", job.id))),
    }
}

/// Waits for the job to succeed. A failure is told once, and asking again is a new job.
pub(crate) async fn succeeded(http: &Arc<Http>, placed: &Placed) -> Result<JobRecord, Problem> {
    let record = ended(http, placed.job.id).await?;
    let Some(problem) = failure(&record.job) else { return Ok(record) };
    if let Some(key) = placed.key.clone() {
        coalesce::delivered(http, key).await;
    }
    Err(problem)
}
