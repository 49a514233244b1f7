//! One connection to a next hop: dial, protect, greet, then mail after mail through the client machine.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rustls_pki_types::{CertificateDer, ServerName};
use tasuki_core::{
    accept,
    clock::Clock,
    store::{mail::BodySource, trail::Server},
};
use tasuki_proto::smtp::{
    Envelope, Reply,
    client::{Client, ClientConfig, ClientFailure, Event, Job as ClientJob, Problem, Security, Stage},
    tlsrpt::ResultType,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpSocket, TcpStream},
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    config::{Pool, Smarthost},
    context::{Context, Job},
    route::Candidate,
    tls_policy::{Demand, Trouble},
    tls_report, trail,
};

/// Writes below this size are gathered into one.
const GATHER: usize = 32 * 1024;

/// A socket, protected or not, of either side.
pub(crate) enum Socket {
    Plain(TcpStream),
    Client(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Server(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// Given away to a handshake that failed.
    Gone,
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Socket::Plain($stream) => $call,
            Socket::Client($stream) => $call,
            Socket::Server($stream) => $call,
            Socket::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// How connections of a lane are made.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) client: ClientConfig,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    /// Whether `tls` verifies certificates.
    pub(crate) verifies: bool,
    /// What that keeps to.
    pub(crate) demand: Arc<Demand>,
    /// TLS is left out because it failed there before.
    pub(crate) tls_is_known_broken: bool,
    pub(crate) connect_timeout: Duration,
    /// Our addresses to connect from, and which of them.
    pub(crate) source: Option<Arc<Pool>>,
    pub(crate) seed: u64,
}

/// An open connection that is ready for a mail.
pub(crate) struct Connection {
    socket: Socket,
    client: Client,
    input: BytesMut,
    pending: BytesMut,
    dialer: Dialer,
    /// Why the handshake failed.
    tls_trouble: Option<Trouble>,
    /// Where it is from.
    local_ip: Option<IpAddr>,
    /// The server's name, for people and TLS.
    pub(crate) host: String,
    to: Candidate,
    server: Arc<Server>,
    /// Mails that went over it.
    pub(crate) mails: usize,
    /// The smarthost it is to, with the place that it takes there.
    pub(crate) member: Option<(Arc<Smarthost>, OwnedSemaphorePermit)>,
    _permit: OwnedSemaphorePermit,
    _open: OpenGauge,
}

/// What a connection wants next.
enum Step {
    Event(Event),
    WantsBody,
}

struct OpenGauge(prometheus_client::metrics::gauge::Gauge);

impl Drop for OpenGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Dialer {
    /// Tries one server; ready for a mail, or the reason why not.
    pub(crate) async fn dial(
        &self,
        context: &Context,
        to: &Candidate,
        permit: OwnedSemaphorePermit,
    ) -> Result<Connection, ClientFailure> {
        let io_failure = |stage, what: String| ClientFailure::new(stage, Problem::Io(what));
        let mut config = self.client.clone();
        let from = match &self.source {
            None => None,
            Some(pool) => {
                let address = pool.pick(to.addr.is_ipv6(), self.seed).ok_or_else(|| {
                    let family = if to.addr.is_ipv6() { "IPv6" } else { "IPv4" };
                    let problem = format!("{}: the pool {:?} has no {family} address", to.addr, pool.name);
                    io_failure(Stage::Connect, problem)
                })?;
                if let Some(helo) = &address.helo {
                    config.helo = helo.as_str().to_owned();
                }
                Some(address.ip)
            }
        };
        let stream = match timeout(self.connect_timeout, connect(from, to.addr)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(io_failure(Stage::Connect, format!("{}: {error}", to.addr))),
            Err(_) => return Err(ClientFailure::new(Stage::Connect, Problem::TimedOut)),
        };
        accept::prepare(&stream);
        let local_ip = stream.local_addr().ok().map(|addr| addr.ip());
        context.metrics.connections.inc();
        context.metrics.connections_open.inc();
        let open = OpenGauge(context.metrics.connections_open.clone());
        let implicit = self.client.security == Security::Implicit;
        let socket = if implicit {
            let tls = self
                .handshake(stream, &to.host)
                .await
                .map_err(|trouble| io_failure(Stage::StartTls, trouble.words))?;
            Socket::Client(Box::new(tls))
        } else {
            Socket::Plain(stream)
        };
        let clock = &context.deps.clock;
        let client = Client::new(config, implicit.then_some(self.verifies), clock.now());
        let mut connection = Connection {
            socket,
            client,
            input: BytesMut::new(),
            pending: BytesMut::new(),
            dialer: self.clone(),
            tls_trouble: None,
            local_ip,
            host: to.host.clone(),
            to: to.clone(),
            server: Arc::new(Server {
                host: to.host.clone(),
                addr: Some(to.addr),
                tls: None,
            }),
            mails: 0,
            member: None,
            _permit: permit,
            _open: open,
        };
        let failure = match connection.next(clock).await {
            Event::Ready => None,
            Event::Closed(Some(failure)) => Some(failure),
            _ => Some(ClientFailure::new(Stage::Banner, Problem::Closed)),
        };
        tls_report::note(context, self, &connection, failure.as_ref());
        match failure {
            None => {
                connection.server = connection.look_at_server();
                Ok(connection)
            }
            Some(failure) => Err(self.demand.judge(&to.host, failure)),
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        host: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Trouble> {
        let failed = |trouble: Trouble| Trouble {
            words: format!("TLS with {host} failed: {}", trouble.words),
            ..trouble
        };
        let general = |words: &str| Trouble::new(ResultType::ValidationFailure, words);
        let asked = self.demand.tls_name.as_deref().unwrap_or(host);
        let name = match asked.parse::<IpAddr>() {
            Ok(ip) => ServerName::from(ip),
            Err(_) => ServerName::try_from(asked.to_owned()).map_err(|e| failed(general(&e.to_string())))?,
        };
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        match timeout(self.connect_timeout, connector.connect(name, stream)).await {
            Ok(Ok(tls)) => Ok(tls),
            Ok(Err(error)) => Err(failed(Trouble::of_io(&error))),
            Err(_) => Err(general(&format!("TLS with {host}: no answer in time"))),
        }
    }
}

/// Connects, from one of our addresses where it matters.
async fn connect(from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let Some(ip) = from else {
        return TcpStream::connect(to).await;
    };
    let socket = if to.is_ipv6() {
        TcpSocket::new_v6()
    } else {
        TcpSocket::new_v4()
    }?;
    let named = |error: io::Error| io::Error::new(error.kind(), format!("from {ip}: {error}"));
    socket.bind(SocketAddr::new(ip, 0)).map_err(named)?;
    socket.connect(to).await.map_err(named)
}

impl Connection {
    /// The pool of our addresses that it is from.
    pub(crate) fn source(&self) -> Option<&str> {
        self.dialer.source.as_ref().map(|pool| pool.name.as_str())
    }

    /// The server it is to.
    pub(crate) fn candidate(&self) -> &Candidate {
        &self.to
    }

    /// What it was made to keep to.
    pub(crate) fn demand(&self) -> &Demand {
        &self.dialer.demand
    }

    /// The server as the trail remembers it.
    pub(crate) fn server(&self) -> Arc<Server> {
        Arc::clone(&self.server)
    }

    fn look_at_server(&self) -> Arc<Server> {
        let verified = if self.dialer.verifies {
            "certificate verified"
        } else {
            "certificate not verified"
        };
        let tls = match &self.socket {
            Socket::Client(tls) => Some(format!("{}, {verified}", trail::tls_in_words(tls.get_ref().1))),
            _ => None,
        };
        Arc::new(Server {
            host: self.host.clone(),
            addr: Some(self.to.addr),
            tls,
        })
    }

    /// Whether TLS is on.
    pub(crate) fn is_protected(&self) -> bool {
        self.client.tls().is_some()
    }

    /// Whether the server offered STARTTLS.
    pub(crate) fn offers_starttls(&self) -> bool {
        self.client.capabilities().starttls
    }

    /// Why the handshake failed, if it did.
    pub(crate) fn tls_trouble(&self) -> Option<&Trouble> {
        self.tls_trouble.as_ref()
    }

    /// Our end's address.
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        self.local_ip
    }

    /// The server's certificate and what came with it; nothing in the clear.
    pub(crate) fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        match &self.socket {
            Socket::Client(tls) => tls.get_ref().1.peer_certificates().unwrap_or_default(),
            _ => &[],
        }
    }

    /// Whether the next hop sends success notices of its own.
    pub(crate) fn offers_dsn(&self) -> bool {
        self.client.capabilities().dsn
    }

    /// Sends one mail to some recipients; one result for each. `None` in the second place: the connection is over.
    pub(crate) async fn send(
        mut self,
        context: &Context,
        job: &Job,
        envelope: Envelope,
        prefix: Bytes,
    ) -> (Vec<Result<Reply, ClientFailure>>, Option<Self>) {
        let clock = &context.deps.clock;
        let count = envelope.recipients.len();
        let client_job = ClientJob {
            envelope,
            size: job.held.body.len + prefix.len() as u64,
            eight_bit: job.held.envelope.eight_bit,
        };
        self.client.start(clock.now(), client_job);
        self.mails += 1;
        let mut results = Vec::new();
        let mut source = None;
        let mut prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
        loop {
            match self.step(clock).await {
                Step::Event(Event::Done(done)) => results = done,
                Step::Event(Event::Ready) => return (results, Some(self)),
                Step::Event(Event::Closed(failure)) => {
                    let lost = || {
                        failure
                            .clone()
                            .unwrap_or(ClientFailure::new(Stage::Idle, Problem::Closed))
                    };
                    results.resize_with(count, || Err(lost()));
                    return (results, None);
                }
                Step::Event(_) => {}
                Step::WantsBody => match prefix.take() {
                    Some(prefix) => self.client.handle_body(clock.now(), prefix),
                    None => self.body(context, job, &mut source).await,
                },
            }
        }
    }

    /// Ends the connection in order; what the server says to that no longer matters.
    pub(crate) async fn quit(mut self, clock: &Clock) {
        self.client.quit(clock.now());
        while !matches!(self.next(clock).await, Event::Closed(_)) {}
    }

    /// Resolves when an unused connection is of no more use. Cancel-safe.
    pub(crate) async fn broken(&mut self) {
        // Whatever a server says unasked (421, or the end), it will not take another mail.
        let _ = self.socket.read_buf(&mut self.input).await;
    }

    /// Brings the next piece of the message.
    async fn body(&mut self, context: &Context, job: &Job, source: &mut Option<Box<dyn BodySource>>) {
        let clock = &context.deps.clock;
        if let Some(kept) = &job.body {
            for piece in &kept.pieces {
                self.client.handle_body(clock.now(), piece.clone());
            }
            return self.client.handle_body_end(clock.now());
        }
        if source.is_none() {
            match context.deps.store.body(&job.held.body).await {
                Ok(opened) => *source = Some(opened),
                Err(error) => return self.client.abort_body(error.to_string()),
            }
        }
        let Some(source) = source else { return };
        match source.next().await {
            Ok(Some(piece)) => self.client.handle_body(clock.now(), piece),
            Ok(None) => self.client.handle_body_end(clock.now()),
            Err(error) => self.client.abort_body(error.to_string()),
        }
    }

    /// The next event that is not about writing, STARTTLS or a body.
    async fn next(&mut self, clock: &Clock) -> Event {
        loop {
            if let Step::Event(event) = self.step(clock).await {
                return event;
            }
        }
    }

    async fn step(&mut self, clock: &Clock) -> Step {
        loop {
            while let Some(event) = self.client.poll_event() {
                match event {
                    Event::Write(octets) => self.write(clock, octets).await,
                    Event::StartTls => self.start_tls(clock).await,
                    event => {
                        self.flush(clock).await;
                        return Step::Event(event);
                    }
                }
            }
            if self.client.wants_body() {
                return Step::WantsBody;
            }
            self.flush(clock).await;
            self.read(clock).await;
        }
    }

    async fn write(&mut self, clock: &Clock, octets: Bytes) {
        if self.pending.len() + octets.len() <= GATHER {
            self.pending.extend_from_slice(&octets);
            return;
        }
        self.flush(clock).await;
        self.write_now(clock, &octets).await;
    }

    async fn flush(&mut self, clock: &Clock) {
        if !self.pending.is_empty() {
            let octets = self.pending.split();
            self.write_now(clock, &octets).await;
        }
    }

    async fn write_now(&mut self, clock: &Clock, octets: &[u8]) {
        let wait = self.dialer.client.timeouts.block;
        let socket = &mut self.socket;
        let write = async {
            socket.write_all(octets).await?;
            socket.flush().await
        };
        match timeout(wait, write).await {
            Ok(Ok(())) => {}
            // The reply that a server sends before it hangs up says more than the broken pipe; it is read if it is there.
            Ok(Err(error)) if !self.client.wants_body() => {
                if !self.last_words(clock).await {
                    self.client.handle_error(clock.now(), error.to_string());
                }
            }
            Ok(Err(error)) => self.client.handle_error(clock.now(), error.to_string()),
            Err(_) => self
                .client
                .handle_error(clock.now(), "the server does not read".to_owned()),
        }
    }

    async fn last_words(&mut self, clock: &Clock) -> bool {
        let read = timeout(Duration::from_secs(1), self.socket.read_buf(&mut self.input)).await;
        if !matches!(read, Ok(Ok(n)) if n > 0) {
            return false;
        }
        self.client.handle_input(clock.now(), &mut self.input);
        self.client.handle_eof(clock.now());
        true
    }

    async fn read(&mut self, clock: &Clock) {
        let now = clock.now();
        let Some(due) = self.client.poll_timeout() else {
            return self
                .client
                .handle_error(now, "the connection has nothing to wait for".to_owned());
        };
        self.input.reserve(2048);
        match timeout(
            due.saturating_duration_since(now),
            self.socket.read_buf(&mut self.input),
        )
        .await
        {
            Ok(Ok(0)) => self.client.handle_eof(clock.now()),
            Ok(Ok(_)) => self.client.handle_input(clock.now(), &mut self.input),
            Ok(Err(error)) => self.client.handle_error(clock.now(), error.to_string()),
            Err(_) => self.client.handle_timeout(due),
        }
    }

    async fn start_tls(&mut self, clock: &Clock) {
        self.flush(clock).await;
        // What came in the clear is not part of the protected conversation.
        self.input.clear();
        let Socket::Plain(stream) = std::mem::replace(&mut self.socket, Socket::Gone) else {
            return self
                .client
                .handle_error(clock.now(), "TLS is on already".to_owned());
        };
        match self.dialer.handshake(stream, &self.host).await {
            Ok(tls) => {
                self.socket = Socket::Client(Box::new(tls));
                self.client.handle_tls(clock.now(), self.dialer.verifies);
            }
            Err(trouble) => {
                self.client.handle_error(clock.now(), trouble.words.clone());
                self.tls_trouble = Some(trouble);
            }
        }
    }
}
