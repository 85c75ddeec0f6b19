//! A request's body as it arrives, with an end to patience.
//!
//! A client that stops sending, or sends a byte now and then, would hold an upload slot and a file for ever.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::time::{Instant, Sleep};

use crate::http::{problem::Problem, status::HttpCode};

/// How slow a client may be.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between two pieces of a body.
    pub idle: Duration,
    /// Over the whole body, counted once `idle` has passed.
    pub bytes_per_second: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { idle: Duration::from_secs(30), bytes_per_second: 1024 }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("nothing came for {} seconds", .0.as_secs())]
    Idle(Duration),
    #[error("less than {0} bytes a second")]
    Slow(u64),
    #[error("more than {0} bytes")]
    TooLong(u64),
    #[error("the body broke off: {0}")]
    Broken(axum::Error),
}

impl BodyError {
    pub(crate) fn problem(&self) -> Problem {
        match self {
            Self::Idle(_) | Self::Slow(_) => Problem::http(HttpCode::RequestTimeout, format!("the body: {self}")),
            Self::TooLong(_) => Problem::http(HttpCode::BodyTooLarge, format!("the body has {self}")),
            Self::Broken(_) => Problem::http(HttpCode::MalformedRequest, self.to_string()),
        }
    }
}

/// The body's pieces.
pub(crate) struct PacedBody {
    inner: BodyDataStream,
    patience: Patience,
    max_bytes: u64,
    started: Instant,
    received: u64,
    sleep: Pin<Box<Sleep>>,
    ended: bool,
}

impl PacedBody {
    pub(crate) fn new(body: Body, patience: Patience, max_bytes: u64) -> Self {
        let started = Instant::now();
        Self {
            inner: body.into_data_stream(),
            patience,
            max_bytes,
            started,
            received: 0,
            sleep: Box::pin(tokio::time::sleep_until(started + patience.idle)),
            ended: false,
        }
    }

    fn judge(&mut self, bytes: usize) -> Result<(), BodyError> {
        self.received += bytes as u64;
        if self.received > self.max_bytes {
            return Err(BodyError::TooLong(self.max_bytes));
        }
        let now = Instant::now();
        let elapsed = now - self.started;
        if elapsed > self.patience.idle && self.received < elapsed.as_secs() * self.patience.bytes_per_second {
            return Err(BodyError::Slow(self.patience.bytes_per_second));
        }
        self.sleep.as_mut().reset(now + self.patience.idle);
        Ok(())
    }
}

impl Stream for PacedBody {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let item = match this.inner.poll_next_unpin(cx) {
            Poll::Pending => match this.sleep.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => Some(Err(BodyError::Idle(this.patience.idle))),
            },
            Poll::Ready(None) => None,
            Poll::Ready(Some(Err(error))) => Some(Err(BodyError::Broken(error))),
            Poll::Ready(Some(Ok(bytes))) => Some(this.judge(bytes.len()).map(|()| bytes)),
        };
        this.ended = matches!(item, None | Some(Err(_)));
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience() -> Patience {
        Patience { idle: Duration::from_secs(30), bytes_per_second: 100 }
    }

    async fn read(body: Body, max: u64) -> Result<u64, BodyError> {
        let mut body = PacedBody::new(body, patience(), max);
        let read = async {
            let mut n = 0;
            while let Some(bytes) = body.next().await {
                n += bytes?.len() as u64;
            }
            Ok(n)
        };
        tokio::time::timeout(Duration::from_hours(1), read).await.expect("it does not wait for ever")
    }

    fn dripping(pause: Duration, bytes: &'static [u8]) -> Body {
        Body::from_stream(futures::stream::unfold(0, move |n| async move {
            tokio::time::sleep(pause).await;
            (n < 1000).then_some((Ok::<_, std::io::Error>(Bytes::from_static(bytes)), n + 1))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_falls_silent_is_given_up() {
        assert!(matches!(
            read(Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()), 100).await,
            Err(BodyError::Idle(_))
        ));
        assert!(matches!(read(dripping(Duration::from_secs(31), b"x"), 100).await, Err(BodyError::Idle(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_drips_is_given_up_and_a_slow_one_is_not() {
        assert!(matches!(read(dripping(Duration::from_secs(1), &[0; 50]), 1 << 20).await, Err(BodyError::Slow(_))));
        assert_eq!(read(dripping(Duration::from_secs(1), &[0; 200]), 1 << 20).await.expect("slow"), 200_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_longer_than_its_bound_is_cut_off() {
        assert!(matches!(read(Body::from(vec![0; 101]), 100).await, Err(BodyError::TooLong(100))));
        assert_eq!(read(Body::from(vec![0; 100]), 100).await.expect("fits"), 100);
    }
}
