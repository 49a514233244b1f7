//! The front door of the public web ports: plain HTTP, and TLS told apart by its ClientHello.
//!
//! A TLS connection goes to a [`RawHandler`] when its ALPN or server name has one (`acme-tls/1` to ACME's proofs);
//! otherwise TLS ends here, and each request goes by its host to a [`WebService`], 421 if nobody has that host.
//! Who the client is, is decided here once ([`ClientAddr`]): the peer, or what a trusted proxy says of it.
//!
//! **Invariant:** no peer holds a connection for nothing. Opening, handshake, header, request, idleness and writing have
//! deadlines, headers a size, addresses a number of connections; a body is the service's to bound.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use rustls::ServerConfig;

use crate::accept::Acceptor;
use crate::bans::Bans;
use crate::engine::{Applied, BuildError, Shared, Snapshot};
use crate::failure::BoxError;
use crate::metrics::Branch;
use crate::net::ClientAddr;
use crate::shutdown::{Drained, Shutdown};
use crate::sockets::Sockets;
use crate::tls::{ACME_ALPN, Tls};

mod answer;
mod arrival;
mod caps;
mod client;
mod config;
mod connection;
mod http_service;
mod metrics;
mod routes;
mod stream;

pub use answer::{full, not_serving, problem};
pub use arrival::{Arrival, Hold};
pub use client::read_proxied;
pub use config::FrontConfig;
pub use routes::{Guest, Guests, RawConnection, RawHandler, Route, Routes};
pub use stream::Prefixed;

use caps::Caps;
use connection::AcmeProofs;
use metrics::FrontMetrics;

/// The body of an answer.
pub type WebBody = UnsyncBoxBody<Bytes, BoxError>;

/// What an engine answers to requests for the gateway's own name. An axum `Router` is adapted to it by its engine.
#[async_trait]
pub trait WebService: Send + Sync {
    /// Answers one request. The front door gives up after `front.request_timeout` (the future is dropped then); the
    /// length of the body is for the service to bound.
    ///
    /// Among the request's extensions is its [`Arrival`].
    async fn call(&self, request: Request<Incoming>, client: ClientAddr) -> Response<WebBody>;

    /// Whether the service itself ends a request that makes no progress, so that one whose body streams for longer than
    /// `front.request_timeout` may go on.
    fn bounds_its_time(&self) -> bool {
        false
    }
}

/// What the front door is given.
#[derive(Clone)]
pub struct FrontDeps {
    /// Certificates and ACME's proofs.
    pub tls: Tls,
    /// Banned addresses.
    pub bans: Bans,
    /// The branch `front` of the registry.
    pub metrics: Branch,
    /// Own name and trusted proxies.
    pub shared: Arc<Shared>,
    /// Sockets that an earlier process handed over, and those that the next one may have.
    pub sockets: Sockets,
}

/// The front door; clones share it, so that one can run it while others ask and reload it.
#[derive(Clone)]
pub struct FrontDoor {
    inner: Arc<Inner>,
}

struct Inner {
    plain: Vec<Acceptor>,
    secure: Vec<Acceptor>,
    live: ArcSwap<Live>,
    routes: Routes,
    tls: Tls,
    https: Arc<ServerConfig>,
    bans: Bans,
    caps: Caps,
    metrics: FrontMetrics,
    warnings: Mutex<BTreeSet<&'static str>>,
}

/// What a reload replaces.
struct Live {
    config: FrontConfig,
    shared: Arc<Shared>,
}

/// Where the front door listens, port 0 resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontAddrs {
    /// Plain HTTP.
    pub plain: Vec<SocketAddr>,
    /// TLS.
    pub tls: Vec<SocketAddr>,
}

/// The keys of the two kinds of ports.
const PLAIN: &str = "front.listen";
const SECURE: &str = "front.tls_listen";

impl FrontDoor {
    /// Binds the ports; serves nobody yet.
    ///
    /// # Errors
    /// An address cannot be bound, or a value is out of its range.
    pub fn build(config: FrontConfig, deps: FrontDeps) -> Result<Self, BuildError> {
        config.check()?;
        let plain = config.listen.iter().map(|addr| (PLAIN, *addr));
        let secure = config.tls_listen.iter().map(|addr| (SECURE, *addr));
        let addrs: Vec<_> = plain.chain(secure).collect();
        let mut acceptors =
            Acceptor::bind_all(&deps.sockets, &addrs, config.max_connections).map_err(|(addr, source)| {
                BuildError::Bind {
                    key: if config.listen.contains(&addr) {
                        PLAIN
                    } else {
                        SECURE
                    },
                    addr,
                    source,
                }
            })?;
        let secure = acceptors.split_off(config.listen.len());
        let routes = Routes::default();
        routes.set_own_names(&routes::own_names(&deps.shared));
        routes.set_raw_alpn(ACME_ALPN, Arc::new(AcmeProofs::new(&deps.tls)));
        Ok(Self {
            inner: Arc::new(Inner {
                plain: acceptors,
                secure,
                https: deps.tls.server(&[b"h2", b"http/1.1"]),
                live: ArcSwap::from_pointee(Live {
                    config,
                    shared: deps.shared,
                }),
                routes,
                tls: deps.tls,
                bans: deps.bans,
                caps: Caps::default(),
                metrics: FrontMetrics::new(&deps.metrics),
                warnings: Mutex::default(),
            }),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addrs(&self) -> FrontAddrs {
        let addrs = |acceptors: &[Acceptor]| acceptors.iter().map(Acceptor::local_addr).collect();
        FrontAddrs {
            plain: addrs(&self.inner.plain),
            tls: addrs(&self.inner.secure),
        }
    }

    /// Who answers for which name.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.inner.routes
    }

    /// What the operator should know, in sentences, for `serve` and `status`.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.inner.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.iter().map(|text| (*text).to_owned()).collect()
    }

    /// Takes a new configuration (reload). Connections that are open keep the limits they began with.
    pub fn apply(&self, snapshot: &Snapshot<FrontConfig>) -> Applied {
        let old = self.inner.live.load_full();
        let (was, new) = (&old.config, &snapshot.engine);
        let mut applied = Applied::default();
        for (key, differs, restart) in [
            ("front.listen", was.listen != new.listen, true),
            ("front.tls_listen", was.tls_listen != new.tls_listen, true),
            (
                "front.max_connections",
                was.max_connections != new.max_connections,
                true,
            ),
            (
                "front.max_connections_per_address",
                was.max_connections_per_address != new.max_connections_per_address,
                false,
            ),
            (
                "front.redirect_to_https",
                was.redirect_to_https != new.redirect_to_https,
                false,
            ),
            (
                "front.header_timeout",
                was.header_timeout != new.header_timeout,
                false,
            ),
            ("front.idle_timeout", was.idle_timeout != new.idle_timeout, false),
            (
                "front.request_timeout",
                was.request_timeout != new.request_timeout,
                false,
            ),
            (
                "front.max_header_bytes",
                was.max_header_bytes != new.max_header_bytes,
                false,
            ),
            (
                "front.proxy_protocol_from",
                was.proxy_protocol_from != new.proxy_protocol_from,
                false,
            ),
        ] {
            if differs && restart {
                applied.needs_restart.push(key.to_owned());
            } else if differs {
                applied.changed.push(key.to_owned());
            }
        }
        self.inner
            .routes
            .set_own_names(&routes::own_names(&snapshot.shared));
        self.inner.live.store(Arc::new(Live {
            config: snapshot.engine.clone(),
            shared: Arc::clone(&snapshot.shared),
        }));
        if !snapshot.shared.trusted_proxies.is_empty() {
            let mut warnings = self.inner.warnings.lock().unwrap_or_else(PoisonError::into_inner);
            warnings.remove(connection::UNTRUSTED_PROXY);
        }
        applied
    }

    /// Serves until `shutdown` begins; then tells clients to go and waits for requests under way.
    pub async fn run(self, shutdown: Shutdown) -> Drained {
        connection::run(Arc::clone(&self.inner), &shutdown).await;
        Drained {
            late: shutdown.drained().await as u64,
            ..Drained::default()
        }
    }
}

impl fmt::Debug for FrontDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FrontDoor").field(&self.addrs()).finish()
    }
}
