//! The gateway's end: agents in, visitors in, and the table that joins them.

pub(crate) mod admit;
pub(crate) mod counts;
pub(crate) mod declare;
pub(crate) mod flow;
mod forward;
pub(crate) mod grants;
pub(crate) mod handover;
pub(crate) mod here;
pub(crate) mod http;
pub(crate) mod minecraft;
pub(crate) mod owners;
pub(crate) mod ports;
mod progress;
mod proxied;
pub(crate) mod registry;
pub(crate) mod regulars;
mod round_trip;
pub(crate) mod session;
pub(crate) mod tcp;
pub(crate) mod tls_door;
pub(crate) mod udp;
pub(crate) mod visitors;
pub(crate) mod web;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::TunnelStore;
use tasuki_core::{Deps, Shared};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::TunnelConfig;
use crate::flows::Room;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::tls::Fingerprint;

/// What all tasks of the engine share.
pub(crate) struct Inner {
    pub(crate) deps: Deps<dyn TunnelStore>,
    pub(crate) config: ArcSwap<TunnelConfig>,
    pub(crate) shared: ArcSwap<Shared>,
    pub(crate) registry: registry::Registry,
    /// Who is here now.
    pub(crate) here: Arc<here::Here>,
    /// Who plays here.
    pub(crate) regulars: regulars::Regulars,
    /// When the engine started.
    pub(crate) started: Timestamp,
    /// Agents' TCP and UDP ports.
    pub(crate) ports: ports::Ports,
    /// The front door's ports, if there is one.
    pub(crate) web: OnceLock<web::Doors>,
    /// What all flows may keep.
    pub(crate) memory: Arc<Room>,
    /// Tells agents whether it is still the same process that knows their flows.
    pub(crate) incarnation: u64,
    /// The number of the newest flow.
    pub(crate) last_flow: AtomicU64,
    pub(crate) metrics: Metrics,
    pub(crate) pool: Pool,
    pub(crate) fingerprint: Fingerprint,
    /// Ports that the engine itself listens on.
    pub(crate) own_ports: Vec<u16>,
    /// The Minecraft door's port, if it is open.
    pub(crate) minecraft_port: Option<u16>,
    /// What another process of the gateway may get.
    pub(crate) handing: handover::Handing,
    /// Players by address.
    pub(crate) players: counts::PerAddress,
    /// Counts changes of rules, bans and accounts: whoever is here is looked up again at once.
    pub(crate) changes: watch::Sender<u64>,
    /// Fires when no new visitors and agents are let in any more.
    pub(crate) closing: CancellationToken,
    /// Visitors' connections; the drain waits for them.
    pub(crate) flows: TaskTracker,
    /// Sessions and doors; they end when they are told to.
    pub(crate) tasks: TaskTracker,
}

impl Inner {
    /// What to tell people who visit: the public name, or the address that a door is bound to.
    pub(crate) fn public_host(&self, bound: std::net::IpAddr) -> String {
        match &self.shared.load().host {
            Some(host) => host.as_str().to_owned(),
            None if bound.is_ipv6() => format!("[{bound}]"),
            None => bound.to_string(),
        }
    }

    /// Has certificates made for the names whose TLS ends here.
    pub(crate) fn certify_names(&self) {
        if self.web.get().is_some() {
            let names = self.registry.http_names();
            self.deps
                .tls
                .set_guests(names.iter().map(|name| name.as_str().to_owned()));
        }
    }

    pub(crate) fn config(&self) -> Arc<TunnelConfig> {
        self.config.load_full()
    }
}
