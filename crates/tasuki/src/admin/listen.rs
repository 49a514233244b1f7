//! The two doors of the admin API: the control socket and the TCP listener.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tasuki_core::accept::Acceptor;
use tasuki_core::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use super::auth::Door;

/// A client has this long to send its request's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// A request has this long in all, body and answer included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// An upgrade: the new process starts, and the old one finishes what is under way.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(230);
/// Connections at once on the control socket.
const MAX_SOCKET_CONNECTIONS: usize = 64;

/// Binds the control socket at `path` for its owner alone. A socket that a dead gateway left is replaced; the caller
/// holds the data directory's lock, so it is nobody else's.
pub(crate) fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    // Bound under another name first: under its own name it is never open to others, not even for a moment.
    let hidden = path.with_extension("sock.new");
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Serves the control socket until the shutdown has begun and its requests have ended.
pub(crate) async fn serve_socket(listener: UnixListener, router: Router, shutdown: Shutdown) {
    let permits = Arc::new(Semaphore::new(MAX_SOCKET_CONNECTIONS));
    loop {
        let permit = tokio::select! {
            () = shutdown.begun() => return,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = shutdown.begun() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot accept; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let uid = match stream.peer_cred() {
            Ok(cred) => cred.uid(),
            Err(error) => {
                tracing::warn!(%error, "a peer of the control socket has no user id; closed");
                continue;
            }
        };
        let (router, shutdown_of_it) = (router.clone(), shutdown.clone());
        shutdown.spawn(async move {
            connection(stream, router, Door::Socket { uid }, shutdown_of_it).await;
            drop(permit);
        });
    }
}

/// Serves the TCP listener until the shutdown has begun and its requests have ended.
pub(crate) async fn serve_tcp(acceptor: Acceptor, router: Router, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.begun() => return,
            accepted = acceptor.accept() => accepted,
        };
        let (router, shutdown_of_it) = (router.clone(), shutdown.clone());
        shutdown.spawn(async move {
            connection(accepted.stream, router, Door::Tcp(accepted.peer), shutdown_of_it).await;
            drop(accepted.permit);
        });
    }
}

async fn connection<S>(stream: S, router: Router, door: Door, shutdown: Shutdown)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request, door).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        result = serving.as_mut() => closed(result),
        () = shutdown.begun() => {
            serving.as_mut().graceful_shutdown();
            closed(serving.await);
        }
    }
}

fn closed(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection of the admin API ended early");
    }
}

async fn answer(router: Router, request: http::Request<Incoming>, door: Door) -> http::Response<Body> {
    let mut request: Request = request.map(Body::new);
    request.extensions_mut().insert(door);
    let deadline = match request.uri().path() {
        super::UPGRADE => UPGRADE_DEADLINE,
        _ => REQUEST_DEADLINE,
    };
    match tokio::time::timeout(deadline, router.oneshot(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            use axum::response::IntoResponse as _;
            super::problem::Problem::unavailable("the answer took too long").into_response()
        }
    }
}
