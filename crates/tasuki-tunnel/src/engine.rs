//! The engine's face: build, addresses, reload, run.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use quinn::VarInt;
use quinn::crypto::rustls::QuicServerConfig;
use tasuki_core::accept::Acceptor;
use tasuki_core::front::{FrontDoor, RawHandler};
use tasuki_core::handover::Item;
use tasuki_core::seal::SealError;
use tasuki_core::shutdown::{Drained, Shutdown};
use tasuki_core::sockets::Sockets;
use tasuki_core::store::TunnelStore;
use tasuki_core::{Applied, BuildError, Deps, Snapshot};
use tasuki_proto::tunnel::{CloseCode, FromGateway};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::TunnelConfig;
use crate::flows::Room;
use crate::gateway::counts::PerAddress;
use crate::gateway::handover::{Given, Handing};
use crate::gateway::ports::Ports;
use crate::gateway::registry::Registry;
use crate::gateway::regulars::{MOST, Regulars, WEEK};
use crate::gateway::tls_door::{TlsDoor, ToTlsDoor};
use crate::gateway::{Inner, handover, here, minecraft, owners, session, web};
use crate::handle::Handle;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::quic;
use crate::tls::{self, Fingerprint, Identity};

/// Name of the gateway's tunnel key among the sealed secrets.
const KEY_NAME: &str = "tunnel.key";
/// The keys of the two listeners, and their names among sockets that are handed over.
const QUIC: &str = "tunnel.quic.listen";
const MINECRAFT: &str = "tunnel.minecraft.listen";

/// The tunnel engine, gateway side.
pub struct Engine {
    inner: Arc<Inner>,
    endpoint: quinn::Endpoint,
    minecraft: Option<Acceptor>,
    given: Given,
    runtime: tokio::runtime::Handle,
    tls_door: Arc<TlsDoor>,
    addrs: Addrs,
}

/// Where the engine listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addrs {
    /// UDP, for agents.
    pub quic: SocketAddr,
    /// TCP, for players; `None` if it is switched off.
    pub minecraft: Option<SocketAddr>,
}

impl Engine {
    /// Reads keys and owners, binds the listeners, starts nothing. Must be called on the engine's own runtime.
    ///
    /// # Errors
    /// What cannot be bound, used or read.
    pub async fn build(config: TunnelConfig, deps: Deps<dyn TunnelStore>) -> Result<Self, BuildError> {
        Self::build_from(config, deps, Vec::new()).await
    }

    /// As [`Engine::build`], with what the engine of another process gave ([`Handle::hand_over`]). Its sockets are in the
    /// dependencies.
    ///
    /// # Errors
    /// What cannot be bound, used or read.
    pub async fn build_from(
        config: TunnelConfig,
        deps: Deps<dyn TunnelStore>,
        given: Vec<Item>,
    ) -> Result<Self, BuildError> {
        config.check().map_err(|(key, problem)| BuildError::Config {
            key: key.to_owned(),
            problem,
        })?;
        let identity = load_identity(&deps).await?;
        let owned = deps.store.endpoints().await.map_err(|error| BuildError::Other {
            what: "tunnel: endpoints cannot be read",
            source: error.into(),
        })?;
        let given = Given::read(given).map_err(|source| BuildError::Other {
            what: "tunnel: what the other process gave cannot be read",
            source,
        })?;
        let handing = Handing::default();
        let (tls, server) = server_configs(&config, &identity)?;
        let endpoint = bind_quic(&config, server.clone(), &deps.sockets, &handing)?;
        let quic = endpoint
            .local_addr()
            .map_err(bind_error(QUIC, config.quic.listen))?;
        let minecraft = match config.minecraft.enabled {
            false => None,
            true => {
                let (addr, max) = (config.minecraft.listen, config.minecraft.max_connections);
                let bound = Acceptor::bind_as(&deps.sockets, MINECRAFT, addr, max);
                Some(bound.map_err(bind_error(MINECRAFT, addr))?)
            }
        };
        let addrs = Addrs {
            quic,
            minecraft: minecraft.as_ref().map(Acceptor::local_addr),
        };
        let now = deps.clock.wall();
        let regulars = Regulars::default();
        let known = deps.store.regulars(now.minus(WEEK), MOST).await;
        regulars.remember(known.map_err(|error| BuildError::Other {
            what: "tunnel: regular visitors cannot be read",
            source: error.into(),
        })?);
        let registry = Registry::default();
        registry.set_owned(owned, registry.owners_changed());
        let inner = Inner {
            metrics: Metrics::register(&deps.metrics),
            shared: ArcSwap::new(Arc::clone(&deps.shared)),
            memory: Room::new(config.memory),
            incarnation: given.incarnation.unwrap_or_else(rand::random),
            last_flow: AtomicU64::new(given.last_flow),
            config: ArcSwap::from_pointee(config),
            deps,
            registry,
            here: Arc::default(),
            regulars,
            started: now,
            ports: Ports::default(),
            web: OnceLock::new(),
            pool: Pool::default(),
            fingerprint: identity.fingerprint(),
            own_ports: addrs.minecraft.iter().map(SocketAddr::port).collect(),
            minecraft_port: addrs.minecraft.map(|addr| addr.port()),
            changes: watch::Sender::default(),
            handing,
            players: PerAddress::default(),
            closing: CancellationToken::new(),
            flows: TaskTracker::new(),
            tasks: TaskTracker::new(),
        };
        let inner = Arc::new(inner);
        let in_way = in_way(server, inner.config().quic.gso);
        Ok(Self {
            tls_door: TlsDoor::new(Arc::clone(&inner), tls, in_way),
            inner,
            endpoint,
            minecraft,
            given,
            runtime: tokio::runtime::Handle::current(),
            addrs,
        })
    }

    /// The bound addresses.
    #[must_use]
    pub fn addrs(&self) -> Addrs {
        self.addrs
    }

    /// The fingerprint of the gateway's tunnel key, for the command that enrols an agent.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.inner.fingerprint
    }

    /// Serves agents' host names on the ports of the front door.
    pub fn open_web(&self, front: &FrontDoor) {
        // The first front door stays; there is only one in a process.
        let _ = self.inner.web.set(web::Doors::new(&front.addrs()));
        self.inner.certify_names();
        front.routes().set_guests(Arc::new(web::Names {
            inner: Arc::clone(&self.inner),
            runtime: self.runtime.clone(),
        }));
    }

    /// Takes agents whose network lets no UDP out: the front door gives it the connections that offer
    /// [`tasuki_proto::tunnel::ALPN`].
    #[must_use]
    pub fn tls_door(&self) -> Arc<dyn RawHandler> {
        Arc::new(ToTlsDoor(Arc::clone(&self.tls_door)))
    }

    /// For commands and the admin API.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            inner: Arc::clone(&self.inner),
        }
    }

    /// Takes a new configuration; see [`Handle::apply`].
    pub fn apply(&self, snapshot: &Snapshot<TunnelConfig>) -> Applied {
        self.handle().apply(snapshot)
    }

    /// Serves until the shutdown begins, then drains: no new visitors, agents are told, running connections may end
    /// within the grace, the rest is cut.
    pub async fn run(self, shutdown: Shutdown) -> Drained {
        let Self {
            inner,
            endpoint,
            minecraft,
            given,
            ..
        } = self;
        let agents = given.take_up(&inner, minecraft.as_ref());
        inner
            .tasks
            .spawn(session::accept_agents(Arc::clone(&inner), endpoint.clone()));
        if let Some(acceptor) = minecraft {
            let (inner_of_task, token) = (Arc::clone(&inner), inner.closing.child_token());
            inner.tasks.spawn(async move {
                handover::agents_are_back(&inner_of_task, &agents).await;
                minecraft::serve(inner_of_task, acceptor, token).await;
            });
        }
        inner.tasks.spawn(owners::refresh(Arc::clone(&inner)));
        inner.tasks.spawn(here::tell_agents(Arc::clone(&inner)));
        tokio::select! {
            () = shutdown.begun() => drain(&inner, &endpoint, shutdown.grace()).await,
            () = inner.handing.said() => {
                inner.handing.fall_silent(&endpoint);
                Drained::default()
            }
        }
    }
}

impl Handle {
    /// Takes a new configuration. Limits, texts, times and grants' ranges are in force at once; what was bound or told
    /// to QUIC at the start needs a restart.
    pub fn apply(&self, snapshot: &Snapshot<TunnelConfig>) -> Applied {
        let (old, new) = (self.inner.config(), &snapshot.engine);
        let mut applied = Applied::default();
        let restart = [
            ("tunnel.quic", old.quic != new.quic),
            (
                "tunnel.minecraft.enabled",
                old.minecraft.enabled != new.minecraft.enabled,
            ),
            (
                "tunnel.minecraft.listen",
                old.minecraft.listen != new.minecraft.listen,
            ),
            (
                "tunnel.minecraft.max_connections",
                old.minecraft.max_connections != new.minecraft.max_connections,
            ),
        ];
        applied.needs_restart.extend(
            restart
                .iter()
                .filter(|(_, changed)| *changed)
                .map(|(key, _)| (*key).to_owned()),
        );
        // What needs a restart keeps its old value, so that nothing is half new.
        let mut next = new.clone();
        next.quic = old.quic.clone();
        next.minecraft.enabled = old.minecraft.enabled;
        next.minecraft.listen = old.minecraft.listen;
        next.minecraft.max_connections = old.minecraft.max_connections;
        let live = [
            (
                "tunnel.connect_timeout",
                old.connect_timeout != next.connect_timeout,
            ),
            ("tunnel.stall_timeout", old.stall_timeout != next.stall_timeout),
            ("tunnel.memory", old.memory != next.memory),
            ("tunnel.minecraft", old.minecraft != next.minecraft),
            ("tunnel.tcp", old.tcp != next.tcp),
            ("tunnel.udp", old.udp != next.udp),
            ("tunnel.http", old.http != next.http),
            ("tunnel.agents", old.agents != next.agents),
        ];
        applied.changed.extend(
            live.iter()
                .filter(|(_, changed)| *changed)
                .map(|(key, _)| (*key).to_owned()),
        );
        self.inner.memory.set_limit(next.memory);
        self.inner.config.store(Arc::new(next));
        self.inner.shared.store(Arc::clone(&snapshot.shared));
        applied
    }
}

async fn load_identity(deps: &Deps<dyn TunnelStore>) -> Result<Identity, BuildError> {
    let what = "tunnel: the gateway's key cannot be read";
    let der = deps
        .secrets
        .load_or_make(KEY_NAME, Identity::generate)
        .await
        .map_err(|error: SealError| BuildError::Other {
            what,
            source: error.into(),
        })?;
    Identity::from_pkcs8(&der).map_err(|error| BuildError::Other {
        what,
        source: error.into(),
    })
}

fn bind_error(key: &'static str, addr: SocketAddr) -> impl Fn(std::io::Error) -> BuildError {
    move |source| BuildError::Bind { key, addr, source }
}

/// TLS as agents meet it at the front door, and QUIC with the same key.
fn server_configs(
    config: &TunnelConfig,
    identity: &Identity,
) -> Result<(Arc<rustls::ServerConfig>, quinn::ServerConfig), BuildError> {
    let what = "tunnel: TLS cannot be set up";
    let tls = tls::server_config(identity).map_err(|error| BuildError::Other {
        what,
        source: error.into(),
    })?;
    let crypto = QuicServerConfig::try_from(tls.clone()).map_err(|error| BuildError::Other {
        what,
        source: error.into(),
    })?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(Arc::new(quic::gateway_transport(config.quic.gso)))
        .max_incoming(4096)
        .incoming_buffer_size_total(16 << 20);
    Ok((Arc::new(tls), server))
}

/// QUIC of one way in TLS connections. It carries one session: what else begins there waits for nobody.
fn in_way(mut server: quinn::ServerConfig, gso: bool) -> quinn::ServerConfig {
    server
        .transport_config(Arc::new(quic::in_way(quic::gateway_transport(gso))))
        .max_incoming(1)
        .incoming_buffer_size_total(64 << 10);
    server
}

fn bind_quic(
    config: &TunnelConfig,
    server: quinn::ServerConfig,
    sockets: &Sockets,
    handing: &Handing,
) -> Result<quinn::Endpoint, BuildError> {
    let addr = config.quic.listen;
    let asked = usize::try_from(config.quic.socket_buffer).unwrap_or(usize::MAX);
    let (socket, granted, noted) =
        handover::udp_socket(sockets, QUIC, addr, asked).map_err(bind_error(QUIC, addr))?;
    handing.hold(noted);
    tracing::info!(
        asked,
        granted,
        "tunnel socket buffer in bytes; the kernel caps it at net.core.rmem_max"
    );
    quic::endpoint(socket, Some(server)).map_err(bind_error(QUIC, addr))
}

async fn drain(inner: &Arc<Inner>, endpoint: &quinn::Endpoint, grace: Duration) -> Drained {
    inner.closing.cancel();
    endpoint.set_server_config(None);
    let sessions = inner.registry.sessions();
    let grace_s = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
    for session in &sessions {
        // A full outbox belongs to an agent that reads nothing; it will see the end of the session.
        let _ = session.outbox.try_send(FromGateway::GoAway { grace_s });
    }
    inner.flows.close();
    let before = inner.flows.len();
    let _ = tokio::time::timeout(grace, inner.flows.wait()).await;
    let late = inner.flows.len();
    // Nobody comes back to this process.
    for visitors in inner.registry.all_visitors() {
        visitors.gone.cancel();
    }
    let code = VarInt::from_u32(CloseCode::GoingAway.code());
    for session in inner.registry.sessions() {
        session.close(CloseCode::GoingAway, "the gateway stops");
    }
    endpoint.close(code, b"the gateway stops");
    inner.tasks.close();
    // Closing is a matter of milliseconds; a peer that does not listen is not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(2), async {
        inner.flows.wait().await;
        inner.tasks.wait().await;
        endpoint.wait_idle().await;
    })
    .await;
    Drained {
        finished: before.saturating_sub(late) as u64,
        handed_back: 0,
        late: late as u64,
    }
}
