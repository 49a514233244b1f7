//! One connection: who it is, what it speaks, to whom it goes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustls::ServerConfig;
use tasuki_proto::client_hello::{self, Alert, ClientHello, Opening};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::http_service::{self, Peer};
use super::metrics::Reason;
use super::routes::Way;
use super::stream::{Prefixed, WriteDeadline};
use super::{Inner, Live, RawConnection, RawHandler, client};
use crate::accept::{Accepted, Acceptor};
use crate::bans::Standing;
use crate::engine::EngineKind;
use crate::net::ClientAddr;
use crate::shutdown::Shutdown;
use crate::tls::Tls;

/// How long a client may take for its PROXY header and ClientHello.
const OPENING_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take for the rest of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take nothing of what we write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The sentence for a reverse proxy that is not in the list.
pub(super) const UNTRUSTED_PROXY: &str = "requests come through a reverse proxy on a private address, but \
     server.trusted_proxies is empty: all its clients look like one; add the proxy's address there";

/// Answer to plain HTTP on the TLS port; nobody can read a TLS alert there.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\
    content-length: 44\r\n\r\nThis port speaks TLS: use https:// for it.\r\n";

/// Accepts on all ports until `shutdown` begins.
pub(super) async fn run(inner: Arc<Inner>, shutdown: &Shutdown) {
    let loops = inner.plain.iter().map(|acceptor| (acceptor, false));
    let loops = loops.chain(inner.secure.iter().map(|acceptor| (acceptor, true)));
    let loops = loops.map(|(acceptor, secure)| accept(&inner, acceptor, secure, shutdown));
    tokio::select! {
        () = shutdown.begun() => {}
        _ = futures_util::future::join_all(loops) => {}
    }
}

async fn accept(inner: &Arc<Inner>, acceptor: &Acceptor, secure: bool, shutdown: &Shutdown) {
    loop {
        let accepted = acceptor.accept().await;
        let inner = Arc::clone(inner);
        let closing = shutdown.clone();
        shutdown.spawn(async move {
            let peer = accepted.peer;
            if let Err(error) = inner.serve(accepted, secure, closing).await {
                tracing::debug!(peer.addr = %peer, %error, "web connection ended with an error");
            }
        });
    }
}

impl Inner {
    async fn serve(self: Arc<Self>, accepted: Accepted, secure: bool, shutdown: Shutdown) -> io::Result<()> {
        let _open = self.metrics.enter();
        let live = self.live.load_full();
        let Accepted { stream, peer, permit } = accepted;
        let mut stream = Prefixed::new(stream);
        let mut from = ClientAddr(peer);
        if client::is_in(&live.config.proxy_protocol_from, peer.ip()) {
            match timeout(OPENING_TIMEOUT, read_proxy_header(&mut stream, from)).await {
                Ok(Ok(client)) => from = client,
                Ok(Err(error)) => {
                    self.metrics.refused(Reason::ProxyHeader);
                    return Err(error);
                }
                Err(_) => {
                    self.metrics.refused(Reason::ProxyHeader);
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
        let door = stream.get_ref().local_addr()?;
        // From here on a connection costs something: count it against its address.
        let _counted = match self.admit(&live, from.0.ip()) {
            Ok(counted) => counted,
            Err(reason) => {
                self.metrics.refused(reason);
                return Ok(());
            }
        };
        let served = if secure {
            self.serve_tls(&live, stream, (from, door), shutdown).await
        } else {
            let stream = WriteDeadline::new(stream, WRITE_TIMEOUT);
            let peer = Peer {
                client: from,
                door,
                secure: false,
            };
            http_service::serve(&self, &live.config, stream, peer, shutdown).await
        };
        drop(permit);
        served
    }

    /// `None` for those that are not counted: loopback and trusted proxies, behind which many may stand.
    fn admit(&self, live: &Live, ip: IpAddr) -> Result<Option<super::caps::Counted>, Reason> {
        if is_exempt(live, ip) {
            return Ok(None);
        }
        let is_banned = |engine| matches!(self.bans.standing(engine, ip), Standing::Banned(_));
        if EngineKind::ALL.into_iter().all(is_banned) {
            return Err(Reason::Banned);
        }
        self.caps
            .enter(ip, live.config.max_connections_per_address)
            .map(Some)
            .ok_or(Reason::TooMany)
    }

    async fn serve_tls(
        self: &Arc<Self>,
        live: &Live,
        mut stream: Prefixed<TcpStream>,
        (from, door): (ClientAddr, SocketAddr),
        shutdown: Shutdown,
    ) -> io::Result<()> {
        let hello = match timeout(OPENING_TIMEOUT, read_hello(&mut stream)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(error)) => {
                self.metrics.refused(Reason::Hello);
                return Err(error);
            }
            Err(_) => {
                self.metrics.refused(Reason::Hello);
                return Err(io::ErrorKind::TimedOut.into());
            }
        };
        match self.routes.way(&hello) {
            Way::Ours => {}
            Way::Raw(handler) => {
                let connection = RawConnection {
                    stream,
                    hello,
                    client: from,
                };
                handler.handle(connection, shutdown).await;
                return Ok(());
            }
            // The certificate has not that name: a client that says which one it wants is told so at once.
            Way::Stranger => {
                self.metrics.refused(Reason::UnknownName);
                return refuse(&mut stream, Alert::UnrecognizedName).await;
            }
        }
        let stream = WriteDeadline::new(stream, WRITE_TIMEOUT);
        let stream = match shake_hands(Arc::clone(&self.https), stream).await {
            Ok(stream) => stream,
            Err(error) => {
                self.metrics.refused(Reason::Handshake);
                return Err(error);
            }
        };
        let peer = Peer {
            client: from,
            door,
            secure: true,
        };
        http_service::serve(self, &live.config, stream, peer, shutdown).await
    }

    /// Remembers a warning for the operator; logs it the first time.
    pub(super) fn warn_once(&self, text: &'static str) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if warnings.insert(text) {
            tracing::warn!("{text}");
        }
    }
}

/// Whether bans and caps do not apply to `ip`.
pub(super) fn is_exempt(live: &Live, ip: IpAddr) -> bool {
    ip.is_loopback()
        || client::is_in(&live.shared.trusted_proxies, ip)
        || client::is_in(&live.config.proxy_protocol_from, ip)
}

async fn shake_hands<S>(
    config: Arc<ServerConfig>,
    stream: S,
) -> io::Result<tokio_rustls::server::TlsStream<S>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read_proxy_header(stream: &mut Prefixed<TcpStream>, peer: ClientAddr) -> io::Result<ClientAddr> {
    loop {
        match client::read_proxy_header(stream.peeked()) {
            client::Proxied::Header(size, client) => {
                stream.consume(size);
                return Ok(client.unwrap_or(peer));
            }
            client::Proxied::Malformed => return Err(io::Error::other("a PROXY header was required")),
            client::Proxied::Incomplete => {
                if !stream.peek_more(client::MAX_PROXY_HEADER_BYTES).await? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}

async fn read_hello(stream: &mut Prefixed<TcpStream>) -> io::Result<ClientHello> {
    loop {
        match client_hello::read(stream.peeked()) {
            Opening::Hello(hello) => return Ok(hello),
            Opening::Incomplete => {
                if !stream.peek_more(client_hello::MAX_SIZE_BYTES).await? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Opening::NotTls => {
                stream.write_all(SPEAK_TLS).await?;
                stream.shutdown().await?;
                return Err(io::Error::other("the client does not speak TLS"));
            }
            Opening::Malformed(problem) => {
                refuse(stream, Alert::DecodeError).await?;
                return Err(io::Error::other(problem));
            }
        }
    }
}

/// Says why no TLS is spoken with the client, and closes.
async fn refuse(stream: &mut Prefixed<TcpStream>, alert: Alert) -> io::Result<()> {
    stream.write_all(&alert.record()).await?;
    stream.shutdown().await
}

/// Shows the ACME server the certificate it looks for (RFC 8737), and closes.
pub(super) struct AcmeProofs(Arc<ServerConfig>);

impl AcmeProofs {
    pub(super) fn new(tls: &Tls) -> Self {
        Self(tls.acme_server())
    }
}

#[async_trait]
impl RawHandler for AcmeProofs {
    async fn handle(&self, connection: RawConnection, _shutdown: Shutdown) {
        match shake_hands(Arc::clone(&self.0), connection.stream).await {
            Ok(mut stream) => {
                let _ = timeout(OPENING_TIMEOUT, stream.shutdown()).await;
            }
            Err(error) => {
                tracing::debug!(peer.addr = %connection.client.0, %error, "ACME proof was not taken")
            }
        }
    }
}
