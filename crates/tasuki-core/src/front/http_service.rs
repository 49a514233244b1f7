//! HTTP/1.1 and HTTP/2 on one connection: each request to its host's service, and no connection idle for long.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::answer::{acme_proof, problem, redirect};
use super::connection::{UNTRUSTED_PROXY, is_exempt};
use super::routes::{Route, Target, normal};
use super::{Arrival, FrontConfig, Inner, Live, WebBody, arrival, client};
use crate::bans::Standing;
use crate::failure::BoxError;
use crate::net::{ClientAddr, is_special};
use crate::shutdown::Shutdown;

/// RFC 8555 8.3.
const ACME_PATH: &str = "/.well-known/acme-challenge/";
/// Streams at once in an HTTP/2 connection, and what each and all may send ahead of our reading.
const MAX_STREAMS: u32 = 100;
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// After it was told to go, an idle peer may stay so long.
const GOING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a client that is to be slowed; a longer one would only hold memory.
const LONGEST_SLOWING: Duration = Duration::from_secs(5);

/// Whose connection it is.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    pub(super) client: ClientAddr,
    pub(super) door: SocketAddr,
    /// TLS ended here.
    pub(super) secure: bool,
}

/// Serves `stream` until it ends, is idle for too long, or `shutdown` has begun and its requests are answered.
pub(super) async fn serve<S>(
    inner: &Arc<Inner>,
    config: &FrontConfig,
    stream: S,
    peer: Peer,
    shutdown: Shutdown,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    let (hold, held) = arrival::hold();
    let (of_requests, begun) = (Arc::clone(inner), Arc::clone(&activity));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let inner = Arc::clone(&of_requests);
        let busy = begun.begin();
        request.extensions_mut().insert(Arrival {
            door: peer.door,
            secure: peer.secure,
            hold: hold.clone(),
        });
        async move {
            let mut response = inner.answer(request, peer).await;
            inner.metrics.answered(response.status());
            if response.status() == StatusCode::REQUEST_TIMEOUT {
                response
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response.map(|body| Watched { body, _busy: busy }))
        }
    });
    let builder = builder(config);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = Box::pin(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = shutdown.begun() => None,
        () = activity.idle_for(config.idle_timeout) => None,
    };
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => Ok(ended),
                () = activity.idle_for(GOING_TIMEOUT) => Err(()),
            }
        }
    };
    match ended {
        Ok(Ok(())) => {
            drop(connection);
            // A service may go on with the connection after it was upgraded; it ends that by itself.
            held.released().await;
            Ok(())
        }
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(()) => Ok(()),
    }
}

fn builder(config: &FrontConfig) -> Builder<TokioExecutor> {
    let header_bytes = usize::try_from(config.max_header_bytes).unwrap_or(usize::MAX);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(64 * 1024)
        .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX));
    builder
}

impl Inner {
    async fn answer(&self, mut request: Request<Incoming>, peer: Peer) -> Response<WebBody> {
        let Peer {
            client: peer, secure, ..
        } = peer;
        if let Some(proof) = self.acme_proof(&request) {
            return proof;
        }
        let host = match host_of(&request) {
            Ok(host) => host,
            Err(detail) => return problem(StatusCode::BAD_REQUEST, detail),
        };
        let live = self.live.load_full();
        let client = self.client_of(&live, peer, &request);
        let (route, is_own) = match self.routes.web(&host) {
            Target::Route(route, is_own) => (route, is_own),
            Target::NothingThere => {
                return problem(StatusCode::NOT_FOUND, "nothing is served under this name here");
            }
            Target::OnlyTls if !secure && !came_by_https(&live, peer, &request) => {
                return redirect(&https_url(&host, &request));
            }
            // A browser that found the name on our certificate asks again on a connection of its own (RFC 9110 15.5.20).
            Target::OnlyTls => {
                let detail = "this name is reached by a TLS connection of its own, with this name in it";
                return problem(StatusCode::MISDIRECTED_REQUEST, detail);
            }
            Target::Unknown => {
                let shown: String = host.chars().take(253).collect();
                let detail = format!("this gateway does not serve {shown:?}");
                return problem(StatusCode::MISDIRECTED_REQUEST, &detail);
            }
        };
        if let Some(refusal) = self.judge(&live, &route, client).await {
            return refusal;
        }
        let by_proxy = came_by_https(&live, peer, &request);
        if !secure && !by_proxy && live.config.redirect_to_https {
            return match is_own {
                true => to_https(&live, &host, &request),
                false => redirect(&https_url(&host, &request)),
            };
        }
        if let Some(arrival) = request.extensions_mut().get_mut::<Arrival>() {
            arrival.secure |= by_proxy;
        }
        if route.service.bounds_its_time() {
            return route.service.call(request, client).await;
        }
        let limit = live.config.request_timeout;
        timeout(limit, route.service.call(request, client))
            .await
            .unwrap_or_else(|_| {
                problem(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request took too long to arrive or to answer",
                )
            })
    }

    fn acme_proof(&self, request: &Request<Incoming>) -> Option<Response<WebBody>> {
        let token = request.uri().path().strip_prefix(ACME_PATH)?;
        if request.method() != Method::GET {
            return None;
        }
        self.tls.acme_http_answer(token).map(acme_proof)
    }

    fn client_of(&self, live: &Live, peer: ClientAddr, request: &Request<Incoming>) -> ClientAddr {
        let trusted = &live.shared.trusted_proxies;
        if trusted.is_empty() && is_special(peer.0.ip()) && client::is_forwarded(request.headers()) {
            self.warn_once(UNTRUSTED_PROXY);
        }
        client::of_request(peer, request.headers(), trusted)
    }

    /// What the bans of the route's engine say: a refusal, or nothing after a wait.
    async fn judge(&self, live: &Live, route: &Route, client: ClientAddr) -> Option<Response<WebBody>> {
        if is_exempt(live, client.0.ip()) {
            return None;
        }
        match self.bans.standing(route.engine, client.0.ip()) {
            Standing::Clear => None,
            Standing::Slowed(wait) => {
                sleep(wait.min(LONGEST_SLOWING)).await;
                None
            }
            // The reason is for the operator (`tasuki ban`), not for the one who is banned.
            Standing::Banned(_) => Some(problem(
                StatusCode::FORBIDDEN,
                "requests from this address are refused for now",
            )),
        }
    }
}

/// The host a request is for, as routes compare it.
fn host_of(request: &Request<Incoming>) -> Result<String, &'static str> {
    // RFC 9112 3.2.2 and RFC 9113 8.3.1: the authority of the target wins over the Host field.
    if let Some(authority) = request.uri().authority() {
        return checked(authority);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let authority =
                Authority::try_from(host.as_bytes()).map_err(|_| "the Host header is not a host name")?;
            checked(&authority)
        }
        // RFC 9112 3.2: neither none nor two.
        (Some(_), Some(_)) => Err("there is more than one Host header"),
        (None, _) if request.version() <= Version::HTTP_10 => Err("this server needs a Host header"),
        (None, _) => Err("the Host header is missing"),
    }
}

fn checked(authority: &Authority) -> Result<String, &'static str> {
    if authority.as_str().contains('@') {
        return Err("a host must not carry a user name");
    }
    Ok(normal(authority.host()))
}

fn came_by_https(live: &Live, peer: ClientAddr, request: &Request<Incoming>) -> bool {
    let said = request.headers().get("x-forwarded-proto");
    client::is_in(&live.shared.trusted_proxies, peer.0.ip()) && said.is_some_and(|proto| proto == "https")
}

fn https_url(host: &str, request: &Request<Incoming>) -> String {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    format!("https://{host}{path}")
}

fn to_https(live: &Live, host: &str, request: &Request<Incoming>) -> Response<WebBody> {
    let base = live
        .shared
        .public_url
        .as_deref()
        .filter(|url| url.starts_with("https://"))
        .map_or_else(|| format!("https://{host}"), ToOwned::to_owned);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    redirect(&format!("{base}{path}"))
}

/// How many requests of a connection are under way, their answers' bodies included.
struct Activity {
    busy: AtomicUsize,
    changed: watch::Sender<()>,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            busy: AtomicUsize::new(0),
            changed: watch::Sender::new(()),
        }
    }
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.changed.send_replace(());
        Busy(Arc::clone(self))
    }

    /// Resolves when nothing has been under way for `limit`.
    async fn idle_for(&self, limit: Duration) {
        let mut changed = self.changed.subscribe();
        loop {
            let quiet = self.busy.load(Ordering::Acquire) == 0;
            tokio::select! {
                () = sleep(limit), if quiet => return,
                _ = changed.changed() => {}
            }
        }
    }
}

/// One request under way.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.send_replace(());
    }
}

/// An answer's body that keeps its request under way until it is sent.
struct Watched {
    body: WebBody,
    _busy: Busy,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
