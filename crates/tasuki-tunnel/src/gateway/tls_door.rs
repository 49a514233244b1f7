//! Agents that come in TLS connections at the front door, because their network lets no UDP out.
//!
//! The front door tells these connections apart by their ALPN and hands them on undecrypted. Here the agent proves its key
//! in TLS as it does in QUIC, says which way the connection belongs to, and the way's packets go to a QUIC endpoint of
//! their own; from there on nothing differs from UDP.
//!
//! Invariant: connections of a way belong to one key; a way lives no longer than its session, and at most
//! [`LINES_OF_WAY`] connections carry it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tasuki_core::front::{Prefixed, RawConnection, RawHandler};
use tasuki_core::shutdown::Shutdown;
use tasuki_proto::tunnel::{Preface, WayId};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::session::{self, MAX_GREETING};
use super::{Inner, admit};
use crate::quic;
use crate::tls::Fingerprint;
use crate::transport::Transport;
use crate::way::{Way, prepare_line};

/// Connections of one way.
const LINES_OF_WAY: usize = 8;
/// How long the last packets of a session may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Takes agents' connections from the front door.
pub(crate) struct TlsDoor {
    inner: Arc<Inner>,
    tls: Arc<rustls::ServerConfig>,
    quic: quinn::ServerConfig,
    /// The engine's own runtime: load at the front door does not delay players.
    runtime: Handle,
    ways: Mutex<HashMap<(Fingerprint, WayId), Arc<Way>>>,
    greeting: Arc<Semaphore>,
}

impl TlsDoor {
    /// Must be called on the engine's runtime.
    pub(crate) fn new(
        inner: Arc<Inner>,
        tls: Arc<rustls::ServerConfig>,
        quic: quinn::ServerConfig,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner,
            tls,
            quic,
            runtime: Handle::current(),
            ways: Mutex::default(),
            greeting: Arc::new(Semaphore::new(MAX_GREETING)),
        })
    }

    fn ways(&self) -> MutexGuard<'_, HashMap<(Fingerprint, WayId), Arc<Way>>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, connection: RawConnection) {
        let from = connection.client.0;
        let metrics = &self.inner.metrics;
        if let Err(refusal) = admit::may_connect(&self.inner, from.ip()) {
            return metrics.agent_refused(refusal.label());
        }
        if self.inner.closing.is_cancelled() {
            return metrics.agent_refused("closing");
        }
        let limit = self.inner.config().quic.handshake_timeout;
        let opening = tokio::time::timeout(limit, self.open(connection));
        let (stream, fingerprint, id) = match opening.await {
            Ok(Some(opened)) => opened,
            Ok(None) => return metrics.agent_refused("handshake"),
            Err(_) => return metrics.agent_refused("timeout"),
        };
        let Some(way) = self.way((fingerprint, id), from) else {
            return metrics.agent_refused("crowded");
        };
        if way.lines() >= LINES_OF_WAY {
            return;
        }
        if let Err(error) = way.carry(stream).await {
            tracing::debug!(peer.addr = %from, %error, "a connection of an agent broke");
        }
    }

    /// TLS, and the way's number.
    async fn open(
        &self,
        connection: RawConnection,
    ) -> Option<(TlsStream<Prefixed<TcpStream>>, Fingerprint, WayId)> {
        // Woken by the engine's runtime from here on.
        let moved = connection
            .stream
            .try_map(|stream| TcpStream::from_std(stream.into_std()?));
        let stream = moved.ok()?;
        prepare_line(stream.get_ref());
        let mut stream = TlsAcceptor::from(Arc::clone(&self.tls))
            .accept(stream)
            .await
            .ok()?;
        let fingerprint = {
            let (_, tls) = stream.get_ref();
            Fingerprint::of_certificate(tls.peer_certificates()?.first()?).ok()?
        };
        let mut preface = [0; Preface::LENGTH];
        stream.read_exact(&mut preface).await.ok()?;
        let preface = Preface::decode(preface).ok()?;
        Some((stream, fingerprint, preface.way))
    }

    /// The way, a new one if it is not there. `None` if too many agents are just beginning.
    fn way(self: &Arc<Self>, key: (Fingerprint, WayId), from: SocketAddr) -> Option<Arc<Way>> {
        let mut ways = self.ways();
        if let Some(way) = ways.get(&key) {
            return Some(Arc::clone(way));
        }
        let greeting = Arc::clone(&self.greeting).try_acquire_owned().ok()?;
        let way = Way::new(from);
        let endpoint = quic::endpoint_in(Arc::clone(&way), Some(self.quic.clone())).ok()?;
        ways.insert(key, Arc::clone(&way));
        let (door, of_task) = (Arc::clone(self), Arc::clone(&way));
        self.inner.tasks.spawn(async move {
            door.hold(&endpoint, greeting).await;
            let _ = tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await;
            of_task.end();
            door.ways().remove(&key);
        });
        Some(way)
    }

    /// The one session of a way.
    async fn hold(&self, endpoint: &quinn::Endpoint, greeting: tokio::sync::OwnedSemaphorePermit) {
        let limit = self.inner.config().quic.handshake_timeout;
        match tokio::time::timeout(limit, endpoint.accept()).await {
            Ok(Some(incoming)) => {
                let inner = Arc::clone(&self.inner);
                session::serve(inner, incoming, Transport::Tls, greeting).await;
            }
            Ok(None) => {}
            Err(_) => self.inner.metrics.agent_refused("timeout"),
        }
        endpoint.close(quinn::VarInt::from_u32(0), &[]);
    }
}

/// Hands connections of the front door to the engine's runtime.
pub(crate) struct ToTlsDoor(pub(crate) Arc<TlsDoor>);

#[async_trait]
impl RawHandler for ToTlsDoor {
    async fn handle(&self, connection: RawConnection, _shutdown: Shutdown) {
        // The drain of the engine ends ways, and with them their connections.
        let serving = Arc::clone(&self.0).serve(connection);
        let _ = self.0.runtime.spawn(serving).await;
    }
}
