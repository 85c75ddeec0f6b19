//! Server-sent events: `GET /events` and `GET /jobs/{id}/events`.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt as _, stream};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Http,
    extract::{JobPath, QueryOf},
    feed::Feed,
    problem::{Problem, ProblemBody},
    wire,
};

/// How long a client waits before it connects again.
const RETRY: Duration = Duration::from_secs(2);
/// Proxies close what is silent for longer.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resume {
    /// Go on after the event with this number; for clients that cannot set the header `Last-Event-ID`, which wins.
    #[param(minimum = 0)]
    last_event_id: Option<i64>,
}

impl Resume {
    fn after(&self, headers: &HeaderMap) -> Option<i64> {
        // A browser repeats whatever it was last sent; what is no number was not sent by us.
        headers.get("last-event-id").and_then(|value| value.to_str().ok()?.trim().parse().ok()).or(self.last_event_id)
    }
}

/// Watch all jobs
///
/// Events `job.updated` (a job), `job.progress` (`{id, progress}`) and `job.removed` (`{id}`). Only `job.updated` and
/// `job.removed` carry an `id`, from which `Last-Event-ID` goes on without a gap.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    operation_id = "watch_all_jobs",
    tag = "events",
    params(Resume, ("Last-Event-ID" = Option<i64>, Header, description = "Go on after the event with this number")),
    responses(
        (status = 200, description = "A stream that does not end", body = String, content_type = "text/event-stream"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn all(
    State(http): State<Arc<Http>>,
    QueryOf(resume): QueryOf<Resume>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let feed = Feed::open(http.app.clone(), None, resume.after(&headers)).await?;
    Ok(answer(&http, feed))
}

/// Watch one job
///
/// Begins with the job as it is and ends with its end. 204 where a watcher comes back after that.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/events",
    operation_id = "watch_job",
    tag = "events",
    params(
        ("id" = String, Path, description = "The job's id"),
        Resume,
        ("Last-Event-ID" = Option<i64>, Header, description = "Go on after the event with this number")
    ),
    responses(
        (status = 200, description = "A stream that ends with the job", body = String, content_type = "text/event-stream"),
        (status = 204, description = "All of it was seen: the job has ended"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn one(
    State(http): State<Arc<Http>>,
    JobPath(id): JobPath,
    QueryOf(resume): QueryOf<Resume>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = resume.after(&headers);
    let feed = Feed::open(http.app.clone(), Some(id), after).await?;
    if feed.is_over() && after.is_some() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    if feed.is_over() {
        return Err(Problem::not_found(format_args!("job {id}")));
    }
    Ok(answer(&http, feed))
}

fn answer(http: &Http, feed: Feed) -> Response {
    let shutdown = http.app.shutdown.clone();
    // A bare id: a client whose connection breaks before the first event still knows where it was.
    let hello = Event::default().retry(RETRY);
    let hello = match feed.beginning() {
        Some(seq) => hello.id(seq.to_string()),
        None => hello,
    };
    let events = stream::once(async { Ok(hello) }).chain(frames(feed)).take_until(shutdown.cancelled_owned());
    let mut response = kept_alive(events).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A stream that speaks also when it has nothing to say.
pub(super) fn kept_alive<S>(events: S) -> impl IntoResponse
where
    S: Stream<Item = Result<Event, Infallible>> + Send + 'static,
{
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive"))
}

fn frames(feed: Feed) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(feed, |mut feed| async move {
        match feed.next().await {
            Ok(Some(message)) => Some((Ok(wire::sse(&message)), feed)),
            Ok(None) => None,
            Err(error) => {
                // The client comes back with the last number it has seen.
                tracing::error!(%error, "a stream of events ends early");
                None
            }
        }
    })
}
