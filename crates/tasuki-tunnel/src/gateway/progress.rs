//! Bodies and upgraded connections that may last as long as something moves in them.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tasuki_core::failure::BoxError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes read at once from an upgraded connection.
const BUFFER: usize = 16 * 1024;

/// When something moved last, and how long nothing may.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    last: Arc<Mutex<Instant>>,
    limit: Duration,
}

impl Progress {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            last: Arc::new(Mutex::new(Instant::now())),
            limit,
        }
    }

    fn moved(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When it will have been too long, if nothing moves until then.
    fn until(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) + self.limit
    }

    /// Resolves when nothing has moved for too long.
    pub(super) async fn idle(&self) {
        loop {
            let until = self.until();
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Says at a body's end whether that was all of it.
pub(super) type Whole = Pin<Box<dyn Future<Output = bool> + Send>>;

/// A body on its way.
pub(super) struct Flowing {
    body: Incoming,
    progress: Progress,
    idle: Option<Pin<Box<Sleep>>>,
    whole: Option<Whole>,
}

impl Flowing {
    pub(super) fn new(body: Incoming, progress: Progress, whole: Option<Whole>) -> Self {
        Self {
            body,
            progress,
            idle: None,
            whole,
        }
    }

    /// Waits with the body; fails when nothing has moved for too long.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<BoxError> {
        loop {
            let until = self.progress.until();
            if until <= Instant::now() {
                return Poll::Ready("nothing has moved for too long".into());
            }
            let idle = self.idle.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if idle.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.idle = None;
        }
    }
}

impl Body for Flowing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.progress.moved();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                let Some(whole) = &mut self.whole else {
                    return Poll::Ready(None);
                };
                let is_whole = std::task::ready!(whole.as_mut().poll(cx));
                self.whole = None;
                Poll::Ready((!is_whole).then(|| Err("the connection was cut".into())))
            }
            Poll::Pending => self.poll_idle(cx).map(|error| Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.whole.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Carries an upgraded connection until one side ends it or nothing moves for too long.
pub(super) async fn copy_both(visitor: Upgraded, home: Upgraded, progress: &Progress) {
    let (visitor_read, visitor_write) = tokio::io::split(TokioIo::new(visitor));
    let (home_read, home_write) = tokio::io::split(TokioIo::new(home));
    let up = copy(visitor_read, home_write, progress);
    let down = copy(home_read, visitor_write, progress);
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        () = progress.idle() => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    progress: &Progress,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        progress.moved();
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        progress.moved();
    }
}
