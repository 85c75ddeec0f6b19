//! Connections: accepting them whatever happens, and ending them in good order.

use std::{
    io::{self, ErrorKind},
    mem::MaybeUninit,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo, http::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tower::ServiceExt as _;

use super::{Http, HttpError, Settings, clients, router_of};
use crate::app::App;

/// A server that has all it needs: what could keep it from serving was found out when it was made.
pub struct Server {
    http: Arc<Http>,
    listener: TcpListener,
}

impl Server {
    /// # Errors
    /// A tokens' file that cannot be used, no tokens on an address that others can reach, a spool that cannot be made.
    pub fn new(app: Arc<App>, listener: TcpListener, settings: Settings) -> Result<Self, HttpError> {
        let http = Arc::new(Http::new(app, settings)?);
        let address = listener.local_addr().map_err(HttpError::Listener)?;
        if !http.access.has_tokens() && !address.ip().is_loopback() {
            return Err(HttpError::OpenToAll(address));
        }
        Ok(Self { http, listener })
    }

    /// Serves until `app.shutdown`; then lets running requests end within `Settings::grace`, and returns.
    pub async fn run(self) {
        let Self { http, listener } = self;
        let settings = http.settings;
        let router = router_of(http.clone());
        http.connections.spawn(clients::replicate::files::forget_old(http.clone()));
        let shutdown = http.app.shutdown.clone();
        let places = Arc::new(Semaphore::new(settings.max_connections));
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await.ok()?;
                Some((accept(&listener).await, place))
            };
            let (stream, peer, place) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accepted => match accepted {
                    Some(((stream, peer), place)) => (stream, peer, place),
                    None => break,
                },
            };
            let connection = connection(router.clone(), stream, peer, settings, shutdown.clone());
            http.connections.spawn(async move {
                connection.await;
                drop(place);
            });
        }
        drop(listener);
        http.connections.close();
        if tokio::time::timeout(settings.grace + Duration::from_millis(500), http.connections.wait()).await.is_err() {
            tracing::warn!("connections that did not end in time are dropped");
        }
    }
}

/// The next connection. Running out of descriptors passes; it must not end the server.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut complained = false;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The client's own doing.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                if !complained {
                    tracing::error!(%error, "no connection can be accepted; waiting until one can");
                    complained = true;
                }
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(
    router: Router,
    stream: TcpStream,
    peer: SocketAddr,
    settings: Settings,
    shutdown: tokio_util::sync::CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    // A client that stops reading an answer is let go, with the file that is held open for it.
    let user_timeout = u32::try_from(settings.write_timeout.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, user_timeout);
    let asked = Arc::new(Notify::new());
    let asks = asked.clone();
    let service = router.map_request(move |mut request: Request<Incoming>| {
        asks.notify_one();
        request.extensions_mut().insert(ConnectInfo(peer));
        request.map(Body::new)
    });
    let io = TokioIo::new(Lingering::new(stream, settings.linger));
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .max_buf_size(64 << 10)
            .serve_connection(io, TowerToHyperService::new(service))
            .with_upgrades()
    );
    // A new connection whose request is on its way must not be closed for having none: who was let in is answered.
    let ending = async {
        let accepted = Instant::now();
        shutdown.cancelled().await;
        let _ = tokio::time::timeout_at(accepted + settings.first_request, asked.notified()).await;
    };
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, %peer, "a connection ended badly");
            }
            return;
        }
        () = ending => connection.as_mut().graceful_shutdown(),
    }
    if tokio::time::timeout(settings.grace, connection).await.is_err() {
        tracing::debug!(%peer, "a request did not end in time");
    }
}

/// A stream that, once its answer is out, still listens for a moment.
///
/// A server that closes while the client is still sending makes the client's kernel forget the answer that is on its
/// way; and answers to refused uploads are such answers.
struct Lingering {
    stream: TcpStream,
    patience: Duration,
    /// Set when our side is closed.
    until: Option<Pin<Box<Sleep>>>,
}

impl Lingering {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self { stream, patience, until: None }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.until.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.until = Some(Box::pin(tokio::time::sleep_until(Instant::now() + this.patience)));
        }
        loop {
            if let Some(until) = &mut this.until
                && until.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Ok(()));
            }
            let mut scratch = [MaybeUninit::uninit(); 16 << 10];
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
