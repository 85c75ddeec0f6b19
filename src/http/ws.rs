//! The WebSocket: the same events as the streams, one JSON text each.

use std::{sync::Arc, time::Duration};

use atelier_domain::JobId;
use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    http::HeaderMap,
    response::Response,
};
use serde::Deserialize;
use tokio::time::{Instant, interval, timeout};
use utoipa::IntoParams;

use super::{
    Http,
    extract::QueryOf,
    feed::Feed,
    problem::{Problem, ProblemBody},
    status::HttpCode,
    wire,
};
use crate::store::Message as Told;

const PING: Duration = Duration::from_secs(15);
/// Neither a pong nor anything else for so long: the other side is gone.
const SILENCE: Duration = Duration::from_secs(45);
/// A client that does not read is let go.
const SEND: Duration = Duration::from_secs(15);

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Watch {
    /// Only this job; the socket is closed with its end.
    #[param(value_type = Option<String>)]
    job: Option<JobId>,
    /// Go on after the event with this `seq`.
    #[param(minimum = 0)]
    last_event_id: Option<i64>,
}

/// Watch jobs over a WebSocket
///
/// Texts `{"type":"job.updated","seq":…,"job":…}`, `{"type":"job.progress","id":…,"progress":…}` and
/// `{"type":"job.removed","seq":…,"id":…}`. Closed with 1000 when the watched job has ended, 1001 when the daemon
/// ends, 1008 for a client that does not read, 1011 when the daemon fails.
#[utoipa::path(
    get,
    path = "/api/v1/ws",
    operation_id = "open_socket",
    tag = "events",
    params(Watch),
    responses(
        (status = 101, description = "The socket is open"),
        (status = "4XX", description = "Not taken", body = ProblemBody<'static>, content_type = "application/problem+json"),
        (status = "5XX", description = "Failed", body = ProblemBody<'static>, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn watch(
    State(http): State<Arc<Http>>,
    QueryOf(watch): QueryOf<Watch>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = self::upgrade(&http, &headers, upgrade)?;
    let feed = Feed::open(http.app.clone(), watch.job, watch.last_event_id).await?;
    if let Some(id) = watch.job
        && feed.is_over()
        && watch.last_event_id.is_none()
    {
        return Err(Problem::not_found(format_args!("job {id}")));
    }
    Ok(open(http, upgrade, feed, wire::websocket))
}

/// A socket that a page of ours, or no page, asks for.
pub(super) fn upgrade(
    http: &Http,
    headers: &HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<WebSocketUpgrade, Problem> {
    http.check_socket_origin(headers)?;
    upgrade.map_err(|error| {
        Problem::http(HttpCode::UpgradeRequired, format!("this is a WebSocket: {}", error.body_text()))
    })
}

/// Opens the socket and tells the feed over it, each event as `frame` writes it.
pub(super) fn open(http: Arc<Http>, upgrade: WebSocketUpgrade, feed: Feed, frame: fn(&Told) -> String) -> Response {
    let upgrade = upgrade.max_message_size(4 << 10).max_frame_size(4 << 10).max_write_buffer_size(1 << 20);
    let running = http.connections.token();
    upgrade.on_upgrade(move |socket| async move {
        talk(&http, socket, feed, frame).await;
        drop(running);
    })
}

/// Why the talk is over.
enum End {
    /// The other side has closed, or is gone.
    Gone,
    Close(u16, &'static str),
}

async fn talk(http: &Http, mut socket: WebSocket, mut feed: Feed, frame: fn(&Told) -> String) {
    let mut ping = interval(PING);
    ping.tick().await;
    let mut heard = Instant::now();
    let end = loop {
        tokio::select! {
            () = http.app.shutdown.cancelled() => break End::Close(close_code::AWAY, "the daemon ends"),
            next = feed.next() => match next {
                Ok(Some(message)) => {
                    if let Some(end) = send(&mut socket, Message::Text(frame(&message).into())).await {
                        break end;
                    }
                }
                Ok(None) => break End::Close(close_code::NORMAL, "the job has ended"),
                Err(error) => {
                    tracing::error!(%error, "a WebSocket ends early");
                    break End::Close(close_code::ERROR, "the database failed");
                }
            },
            received = socket.recv() => match received {
                // Pings are answered by the library; what a client says is not asked for and means nothing.
                Some(Ok(Message::Text(_) | Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => heard = Instant::now(),
                Some(Ok(Message::Close(_)) | Err(_)) | None => break End::Gone,
            },
            now = ping.tick() => {
                if now.duration_since(heard) > SILENCE {
                    break End::Gone;
                }
                if let Some(end) = send(&mut socket, Message::Ping(bytes::Bytes::new())).await {
                    break end;
                }
            }
        }
    };
    if let End::Close(code, reason) = end {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        let _ = timeout(Duration::from_secs(1), async {
            socket.send(Message::Close(Some(frame))).await?;
            // The other side's own close, so that ours is not overtaken by the end of the connection.
            while let Some(Ok(_)) = socket.recv().await {}
            Ok::<_, axum::Error>(())
        })
        .await;
    }
}

async fn send(socket: &mut WebSocket, message: Message) -> Option<End> {
    match timeout(SEND, socket.send(message)).await {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some(End::Gone),
        Err(_) => Some(End::Close(close_code::POLICY, "the client does not read")),
    }
}
