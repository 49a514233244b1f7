//! Requests for agents' host names whose TLS ended here: each goes home on a flow of its own.
//!
//! The flow is the same as every visitor's, with its limits, counters and its life over a lost session: one end of a pair
//! of sockets is joined with it, at the other HTTP/1.1 is spoken.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{ACCEPT, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tasuki_core::front::{Arrival, WebBody, WebService, not_serving, problem};
use tasuki_core::net::ClientAddr;
use tasuki_core::store::tunnel::EndpointKind;
use tasuki_proto::minecraft::Page;
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::{StreamHeader, StreamKind};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::flow::{self, NotJoined, Visit};
use super::forward::{self, Asker};
use super::progress::{Flowing, Progress, Whole, copy_both};
use super::registry::Route;
use super::{Inner, admit};
use crate::metrics::Door;
use crate::splice::End;

/// How long a flow may take to end after its last byte.
const LAST_WORD: Duration = Duration::from_secs(10);

/// Answers requests for one name.
pub(crate) struct HttpGuest {
    pub(crate) inner: Arc<Inner>,
    /// The engine's own.
    pub(crate) runtime: Handle,
    pub(crate) kind: EndpointKind,
    pub(crate) name: Domain,
}

/// What all parts of one exchange need.
struct Exchange {
    inner: Arc<Inner>,
    kind: EndpointKind,
    visit: Visit,
    door: SocketAddr,
    progress: Progress,
}

/// How the flow ended.
type Ended = oneshot::Receiver<Result<End, NotJoined>>;

#[async_trait]
impl WebService for HttpGuest {
    async fn call(&self, request: Request<Incoming>, client: ClientAddr) -> Response<WebBody> {
        let Some(arrival) = request.extensions().get::<Arrival>().cloned() else {
            return problem(StatusCode::INTERNAL_SERVER_ERROR, "the request came by no door");
        };
        let exchange = Exchange {
            inner: Arc::clone(&self.inner),
            kind: self.kind.clone(),
            visit: Visit {
                door: Door::Http,
                from: client.0,
                name: Some(self.name.clone()),
                player: None,
                is_player: false,
            },
            door: arrival.door,
            progress: Progress::new(self.inner.config().http.idle_timeout),
        };
        let task = self.runtime.spawn(exchange.run(request, arrival));
        // A visitor who leaves takes the request along.
        AbortOnDropHandle::new(task).await.unwrap_or_else(|_| {
            problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the request ended by a fault of the gateway",
            )
        })
    }

    fn bounds_its_time(&self) -> bool {
        true
    }
}

impl Exchange {
    async fn run(self, request: Request<Incoming>, arrival: Arrival) -> Response<WebBody> {
        let is_page = accepts_html(&request);
        if let Err(reason) = admit::may_visit(&self.inner, self.visit.from.ip(), self.visit.name.as_ref()) {
            self.inner.metrics.refused(reason);
            return problem(StatusCode::FORBIDDEN, "requests from this address are refused");
        }
        if self.inner.closing.is_cancelled() {
            return page(Page::Closing, is_page);
        }
        match self.ask(request, arrival).await {
            Ok(response) => response,
            Err(NotServed::Request(refused)) => problem(refused.status, refused.detail),
            Err(NotServed::Home(why)) => {
                self.inner.metrics.refused(why.label);
                page(why.page, is_page)
            }
            Err(NotServed::Broken) => not_serving(
                StatusCode::BAD_GATEWAY,
                "サーバーとの接続が切れました。もう一度お試しください。",
                "The connection to the server broke. Please try again.",
                is_page,
            ),
            Err(NotServed::Idle) => not_serving(
                StatusCode::GATEWAY_TIMEOUT,
                "サーバーが応答しません。しばらくしてからお試しください。",
                "The server does not answer. Please try again later.",
                is_page,
            ),
        }
    }

    async fn ask(
        &self,
        mut request: Request<Incoming>,
        arrival: Arrival,
    ) -> Result<Response<WebBody>, NotServed> {
        let has_body = !request.body().is_end_stream();
        let upgraded = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let upgrade = forward::wants_upgrade(&parts, has_body).then_some(upgraded);
        let is_head = parts.method == Method::HEAD;
        let asker = Asker {
            from: self.visit.from,
            secure: arrival.secure,
        };
        forward::to_server(&mut parts, asker, upgrade.is_some()).map_err(NotServed::Request)?;
        parts.extensions.clear();
        let body = Flowing::new(body, self.progress.clone(), None);
        let (socket, ended) = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|_| NotServed::Broken)?;
        // It ends with the socket, and that with the flow.
        self.inner
            .tasks
            .spawn(async move { drop(connection.with_upgrades().await) });
        let answered = tokio::select! {
            answered = sender.send_request(Request::from_parts(parts, body)) => answered,
            () = self.progress.idle() => return Err(NotServed::Idle),
        };
        let Ok(response) = answered else {
            return Err(why_broken(ended).await);
        };
        self.give(response, ended, upgrade, arrival, is_head)
    }

    /// A socket that leads home.
    async fn connect(&self) -> Result<(UnixStream, Ended), NotServed> {
        let Route::Live(targets) = self.inner.registry.route(&self.kind) else {
            return Err(NotServed::Home(flow::AWAY));
        };
        let header = StreamHeader {
            kind: StreamKind::Tcp,
            endpoint: targets[0].endpoint,
            visitor: self.visit.from,
            door: self.door,
            player: None,
            flow: None,
        };
        let limit = self.inner.config.load().connect_timeout;
        // With one server the request goes ahead of its answer; with several the answer decides whose the request is.
        let (target, opened, reply_limit) = match &targets[..] {
            [only] => {
                let opened = flow::open(&self.inner, only, &header, &[], limit).await;
                (only.clone(), opened.map_err(NotServed::Home)?, Some(limit))
            }
            _ => {
                let reached = flow::reach(&self.inner, targets, &header, &[], limit).await;
                let (target, opened) = reached.map_err(NotServed::Home)?;
                (target, opened, None)
            }
        };
        let (near, far) = pair().map_err(|_| NotServed::Broken)?;
        let (tell, ended) = oneshot::channel();
        let (inner, visit) = (Arc::clone(&self.inner), self.visit.clone());
        self.inner.flows.spawn(async move {
            let end = flow::join(&inner, &target, &visit, far, opened, reply_limit).await;
            // Nobody waits for it any more if the visitor has left.
            let _ = tell.send(end);
        });
        Ok((near, ended))
    }

    /// The answer as the visitor gets it.
    fn give(
        &self,
        mut response: Response<Incoming>,
        ended: Ended,
        upgrade: Option<OnUpgrade>,
        arrival: Arrival,
        is_head: bool,
    ) -> Result<Response<WebBody>, NotServed> {
        let is_upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if is_upgraded {
            // A server that changes the protocol without being asked.
            let visitor = upgrade.ok_or(NotServed::Broken)?;
            let home = hyper::upgrade::on(&mut response);
            let progress = self.progress.clone();
            self.inner.flows.spawn(async move {
                if let (Ok(visitor), Ok(home)) = (visitor.await, home.await) {
                    copy_both(visitor, home, &progress).await;
                }
                drop(arrival);
            });
        }
        let headers = response.headers_mut();
        let by_close = !is_head
            && !headers.contains_key(CONTENT_LENGTH)
            && !headers.contains_key(TRANSFER_ENCODING)
            && !is_upgraded;
        forward::to_visitor(headers, is_upgraded);
        // A body that ends with its connection is whole only if the connection was not cut.
        let last = by_close.then(|| Box::pin(whole(ended)) as Whole);
        let progress = self.progress.clone();
        Ok(response.map(|body| Flowing::new(body, progress, last).boxed_unsync()))
    }
}

/// Why there is no answer of the server.
enum NotServed {
    Request(forward::Refused),
    Home(NotJoined),
    Broken,
    Idle,
}

async fn why_broken(ended: Ended) -> NotServed {
    match tokio::time::timeout(LAST_WORD, ended).await {
        Ok(Ok(Err(not_joined))) => NotServed::Home(not_joined),
        _ => NotServed::Broken,
    }
}

/// Whether the flow came to its end.
async fn whole(ended: Ended) -> bool {
    matches!(
        tokio::time::timeout(LAST_WORD, ended).await,
        Ok(Ok(Ok(End::Clean)))
    )
}

/// Two ends of one connection within the process. A flow takes a stream socket, and for the calls that it makes one of this
/// family is as good as one of TCP.
fn pair() -> io::Result<(UnixStream, TcpStream)> {
    let (near, far) = StdUnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    let far = std::net::TcpStream::from(OwnedFd::from(far));
    Ok((UnixStream::from_std(near)?, TcpStream::from_std(far)?))
}

fn accepts_html(request: &Request<Incoming>) -> bool {
    let accept = request
        .headers()
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

fn page(page: Page, is_page: bool) -> Response<WebBody> {
    let (status, japanese, english) = match page {
        Page::ServerRefused => (
            StatusCode::BAD_GATEWAY,
            "サーバーが起動していません。しばらくしてからお試しください。",
            "The server is not running. Please try again later.",
        ),
        Page::ServerSilent => (
            StatusCode::GATEWAY_TIMEOUT,
            "サーバーが応答しません。しばらくしてからお試しください。",
            "The server does not answer. Please try again later.",
        ),
        Page::Denied => (
            StatusCode::FORBIDDEN,
            "このサーバーは利用できません。",
            "You may not use this server.",
        ),
        Page::Full | Page::TooMany => (
            StatusCode::SERVICE_UNAVAILABLE,
            "混み合っています。少し待ってからお試しください。",
            "This server is busy. Please try again in a moment.",
        ),
        Page::Closing => (
            StatusCode::SERVICE_UNAVAILABLE,
            "中継を再起動しています。少し待ってからお試しください。",
            "The gateway is restarting. Please try again in a moment.",
        ),
        _ => (
            StatusCode::SERVICE_UNAVAILABLE,
            "このサーバーは現在オフラインです。",
            "This server is offline now.",
        ),
    };
    not_serving(status, japanese, english, is_page)
}
