//! Agents' host names on the web ports: TLS that goes home undecrypted, and who answers requests whose TLS ended here.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use tasuki_core::EngineKind;
use tasuki_core::front::{FrontAddrs, Guest, Guests, RawConnection, RawHandler, Route as WebRoute};
use tasuki_core::shutdown::Shutdown;
use tasuki_core::store::tunnel::EndpointKind;
use tasuki_proto::client_hello::Alert;
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::{EndpointId, StreamHeader, StreamKind};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::flow::{self, NotJoined, Visit};
use super::http::HttpGuest;
use super::registry::Route;
use super::{Inner, admit};
use crate::metrics::Door;
use crate::splice::prepare_socket;

/// The front door's ports.
#[derive(Debug)]
pub(crate) struct Doors {
    plain: Option<u16>,
    tls: Option<u16>,
}

impl Doors {
    pub(crate) fn new(addrs: &FrontAddrs) -> Self {
        let first = |addrs: &[SocketAddr]| addrs.first().map(SocketAddr::port);
        Self {
            plain: first(&addrs.plain),
            tls: first(&addrs.tls),
        }
    }

    /// Where a name is reached by TLS.
    pub(crate) fn https_url(&self, name: &Domain) -> Option<String> {
        self.tls.map(|port| match port {
            443 => format!("https://{name}"),
            _ => format!("https://{name}:{port}"),
        })
    }

    /// Where a name is reached whose TLS ends here, if there is TLS.
    pub(crate) fn http_url(&self, name: &Domain) -> Option<String> {
        self.https_url(name).or_else(|| {
            self.plain.map(|port| match port {
                80 => format!("http://{name}"),
                _ => format!("http://{name}:{port}"),
            })
        })
    }
}

/// Knows the agents' names for the front door.
pub(crate) struct Names {
    pub(crate) inner: Arc<Inner>,
    /// The engine's own: load at the front door does not delay players.
    pub(crate) runtime: Handle,
}

impl Guests for Names {
    fn find(&self, host: &str) -> Option<Guest> {
        let name = Domain::parse(host).ok()?;
        let kind = self.inner.registry.web(&name)?;
        let (inner, runtime) = (Arc::clone(&self.inner), self.runtime.clone());
        Some(match kind {
            EndpointKind::Http { .. } => Guest::Web(WebRoute {
                service: Arc::new(HttpGuest {
                    inner,
                    runtime,
                    kind,
                    name,
                }),
                engine: EngineKind::Tunnel,
            }),
            _ => Guest::Raw(Arc::new(TlsGuest {
                inner,
                runtime,
                kind,
                name,
            })),
        })
    }
}

/// Takes one name's TLS connections.
struct TlsGuest {
    inner: Arc<Inner>,
    runtime: Handle,
    kind: EndpointKind,
    name: Domain,
}

#[async_trait]
impl RawHandler for TlsGuest {
    async fn handle(&self, connection: RawConnection, _shutdown: Shutdown) {
        let visit = Visit {
            door: Door::Https,
            from: connection.client.0,
            name: Some(self.name.clone()),
            player: None,
            is_player: false,
        };
        let task = pass(Arc::clone(&self.inner), self.kind.clone(), visit, connection);
        // It ends by itself, and the engine's drain waits for it; here it is waited for so that it goes on being counted.
        let _ = self.inner.flows.spawn_on(task, &self.runtime).await;
    }
}

/// Carries one TLS connection home, beginning with its ClientHello.
async fn pass(inner: Arc<Inner>, kind: EndpointKind, visit: Visit, connection: RawConnection) {
    let moved = connection
        .stream
        .try_map(|stream| TcpStream::from_std(stream.into_std()?));
    let Ok(stream) = moved else { return };
    let (first, socket) = stream.into_parts();
    prepare_socket(&socket);
    if let Err(reason) = admit::may_visit(&inner, visit.from.ip(), visit.name.as_ref()) {
        return flow::turn_away(&inner, socket, reason);
    }
    let Ok(door) = socket.local_addr() else { return };
    let header = StreamHeader {
        kind: StreamKind::Tcp,
        endpoint: EndpointId(0),
        visitor: visit.from,
        door,
        player: None,
        flow: None,
    };
    let limit = inner.config.load().connect_timeout;
    // The client waits for the server's first word anyway, so the agent's answer may be waited for without any loss.
    let reached = match inner.registry.route(&kind) {
        Route::Live(targets) => flow::reach(&inner, targets, &header, &first, limit).await,
        Route::Away | Route::Unknown => Err(flow::AWAY),
    };
    match reached {
        Ok((target, opened)) => {
            let _ = flow::join(&inner, &target, &visit, socket, opened, None).await;
        }
        Err(not_joined) => refuse(&inner, socket, not_joined).await,
    }
}

/// Nobody but the name's owner can speak TLS with the client; an alert is what can be said without.
async fn refuse(inner: &Inner, mut socket: TcpStream, not_joined: NotJoined) {
    inner.metrics.refused(not_joined.label);
    let said = async {
        socket.write_all(&Alert::InternalError.record()).await?;
        socket.shutdown().await
    };
    let _ = tokio::time::timeout(inner.config.load().connect_timeout, said).await;
}
