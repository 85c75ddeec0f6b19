//! The HTTP server: the native API, and what operators ask.
//!
//! One file per resource. A request walks `request_id` → `access_log` → panics → `cors` → `access` → its handler; a
//! handler asks `admission`, `queue` and `store`, and answers with JSON or a [`problem::Problem`]. Nothing here
//! speaks SQL, knows how a job is run, or holds a picture in memory.
//!
//! Adding an endpoint: its handler with `#[utoipa::path]` in the file of its resource, and one line in [`routes()`];
//! the document at `/openapi.json` follows by itself, and `tests/openapi.json` says what has changed.

mod access;
mod access_log;
mod cleanup;
mod clients;
mod coalesce;
mod cors;
mod dashboard;
mod docs;
mod extract;
mod feed;
mod health;
mod idempotency;
mod intake;
mod jobs;
mod links;
mod media;
mod metrics;
mod models;
mod openapi;
mod outputs;
mod prefer;
mod preview;
mod problem;
mod queue;
mod rate;
mod remote;
mod request_id;
mod root;
mod schema;
mod scope;
mod serve;
mod sse;
mod status;
mod submit;
#[cfg(test)]
mod tests;
mod tokens;
mod trace;
mod wire;
mod ws;

use std::{
    any::Any,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use atelier_domain::{ErrorCode, Timestamp};
use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{access::Access, intake::Spool, links::Links, problem::Problem, status::HttpCode};
pub use self::{intake::Patience, serve::Server, tokens::TokensError};
use crate::{
    app::App,
    egress::{Egress, Reach},
};

/// For a quick request's answer.
const ANSWER: Duration = Duration::from_secs(30);

/// How patient the server is, and how much it takes at once.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For a request's line and headers, also on a connection that is kept open.
    pub header_timeout: Duration,
    pub body: Patience,
    /// For a client to take what is sent to it.
    pub write_timeout: Duration,
    /// For a client that still sends when it has its answer.
    pub linger: Duration,
    /// For running requests when the daemon ends.
    pub grace: Duration,
    /// For the first request on a connection that was accepted just before the daemon ends.
    pub first_request: Duration,
    pub max_connections: usize,
    /// Jobs that are received at the same time.
    pub max_uploads: usize,
    /// From where pictures named by address may come.
    pub remote_reach: Reach,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            body: Patience::default(),
            write_timeout: Duration::from_mins(2),
            linger: Duration::from_secs(2),
            grace: Duration::from_secs(3),
            first_request: Duration::from_secs(1),
            max_connections: 1024,
            max_uploads: 32,
            remote_reach: Reach::Public,
        }
    }
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("the tokens: {0}")]
    Tokens(#[from] TokensError),
    #[error("{0} can be reached by others: set server.tokens_file, or listen on 127.0.0.1")]
    OpenToAll(SocketAddr),
    #[error("the key of addresses: {0}")]
    Links(io::Error),
    #[error("the spool: {0}")]
    Spool(io::Error),
    #[error("the listener: {0}")]
    Listener(io::Error),
}

/// What all handlers share.
pub(crate) struct Http {
    app: Arc<App>,
    settings: Settings,
    access: Access,
    /// Where tokens are asked for: without any, every address opens as it is.
    links: Option<Links>,
    spool: Spool,
    uploads: Semaphore,
    /// Reading pictures is work for a core.
    inspections: Semaphore,
    connections: TaskTracker,
    /// Made when it is first needed: most servers fetch nothing.
    egress: OnceLock<Egress>,
}

impl Http {
    fn new(app: Arc<App>, settings: Settings) -> Result<Self, HttpError> {
        let config = app.config();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let access = Access::open(&config.server)?;
        let links = access.has_tokens().then(|| Links::open(&config.paths.data)).transpose();
        Ok(Self {
            access,
            links: links.map_err(HttpError::Links)?,
            spool: Spool::open(&config.paths.data).map_err(HttpError::Spool)?,
            uploads: Semaphore::new(settings.max_uploads),
            inspections: Semaphore::new(cores),
            connections: TaskTracker::new(),
            egress: OnceLock::new(),
            settings,
            app,
        })
    }
}

impl Http {
    /// The address of an output, for whoever has nothing but that.
    pub(crate) fn link(&self, path: &str) -> String {
        self.links.as_ref().map_or_else(|| path.to_owned(), |links| links.sign(path, Timestamp::now()))
    }

    fn egress(&self) -> Result<Egress, Problem> {
        if let Some(egress) = self.egress.get() {
            return Ok(egress.clone());
        }
        let egress = Egress::new().map_err(|error| {
            tracing::error!(%error, "the TLS of outgoing requests cannot be set up");
            Problem::new(ErrorCode::Internal, "the server cannot fetch anything")
        })?;
        Ok(self.egress.get_or_init(|| egress).clone())
    }
}

/// All routes, for tests that need no socket.
///
/// # Errors
/// As [`Server::new`], except for the address.
pub fn router(app: Arc<App>) -> Result<Router, HttpError> {
    Ok(router_of(Arc::new(Http::new(app, Settings::default())?)))
}

/// The routes and their description.
fn routes() -> OpenApiRouter<Arc<Http>> {
    // Answers that are there at once, or something is wrong.
    let quick = OpenApiRouter::with_openapi(openapi::document())
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(jobs::manifest))
        .routes(routes!(outputs::download))
        .routes(routes!(preview::show))
        .routes(routes!(models::list))
        .routes(routes!(queue::show))
        .routes(routes!(queue::pause))
        .routes(routes!(queue::resume))
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::scrape))
        .routes(routes!(openapi::show))
        .routes(routes!(docs::page))
        .routes(routes!(docs::program))
        .routes(routes!(root::show))
        .routes(routes!(dashboard::show))
        .routes(routes!(dashboard::script))
        .routes(routes!(dashboard::style))
        .merge(clients::quick_routes())
        .layer(middleware::from_fn(deadline));
    // Answers that take as long as somebody sends, works or watches.
    let long = OpenApiRouter::new()
        .routes(routes!(submit::submit))
        .routes(routes!(jobs::delete))
        .routes(routes!(sse::one))
        .routes(routes!(sse::all))
        .routes(routes!(ws::watch))
        .routes(routes!(models::unload))
        .routes(routes!(models::unload_all))
        .routes(routes!(cleanup::run))
        .merge(clients::long_routes());
    quick.merge(long)
}

fn router_of(http: Arc<Http>) -> Router {
    let (router, _document) = routes().split_for_parts();
    router
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(http.clone(), access::guard))
        .layer(cors::layer(http.app.clone()))
        .layer(middleware::from_fn(cors::security_headers))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(access_log::record))
        .layer(middleware::from_fn(request_id::attach))
        .with_state(http)
}

/// A handler that hangs must not hang its client.
async fn deadline(request: Request, next: Next) -> Result<Response, Problem> {
    tokio::time::timeout(ANSWER, next.run(request)).await.map_err(|_| {
        Problem::http(HttpCode::Timeout, format!("no answer within {} seconds", ANSWER.as_secs())).retry_after(5)
    })
}

/// `CatchPanicLayer` knows this signature.
#[expect(clippy::needless_pass_by_value, reason = "the layer gives the panic away")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let what = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = what.unwrap_or("?"), "a handler panicked");
    Problem::new(ErrorCode::Internal, "the server made a mistake")
        .with_hint("the server's log tells more under this request id")
        .into_response()
}

async fn no_such_route(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::not_found(path).with_hint("/openapi.json lists what is there")
}

async fn no_such_method(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::http(HttpCode::MethodNotAllowed, format!("{path} does not take {}", request.method()))
}
