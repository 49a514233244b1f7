//! The face of every engine, and what it is given.
//!
//! An engine is a struct with four methods (by convention, not by trait: each has its own configuration and store):
//! ```ignore
//! pub async fn build(config: Config, deps: Deps<dyn XStore>) -> Result<Self, BuildError>; // binds, starts nothing
//! pub fn addrs(&self) -> Addrs;                                   // port 0 resolved
//! pub fn apply(&self, snapshot: &Snapshot<Config>) -> Applied;    // reload: what changed, what needs a restart
//! pub async fn run(self, shutdown: Shutdown) -> Drained;          // until the shutdown has drained
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::accounts::Accounts;
use crate::acl::Acl;
use crate::bans::Bans;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::events::EventBus;
use crate::failure::BoxError;
use crate::health::Health;
use crate::ids::{Epoch, NodeId};
use crate::limits::Limits;
use crate::metrics::Branch;
use crate::pool::CpuPool;
use crate::seal::Secrets;
use crate::sockets::Sockets;
use crate::tls::Tls;

/// The three engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The SMTP relay.
    Mail,
    /// The ActivityPub relay.
    Fediverse,
    /// The QUIC tunnel.
    Tunnel,
}

impl EngineKind {
    /// All engines, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Mail, Self::Fediverse, Self::Tunnel];

    /// The name in configuration, metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mail => "mail",
            Self::Fediverse => "fediverse",
            Self::Tunnel => "tunnel",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for EngineKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|e| e.name() == text)
            .ok_or_else(|| format!("{text:?} is not an engine; known: mail, fediverse, tunnel"))
    }
}

/// What an engine is given: passed in, never global. `S` is the engine's own storage trait.
pub struct Deps<S: ?Sized> {
    /// The engine's own verbs of the store.
    pub store: Arc<S>,
    /// This gateway process in the store's `nodes` table, with the epoch of this life.
    pub node: (NodeId, Epoch),
    /// People, services, agents.
    pub accounts: Accounts,
    /// Access rules.
    pub acl: Acl,
    /// Rates by principal, address, prefix.
    pub limits: Limits,
    /// Banned addresses.
    pub bans: Bans,
    /// The process-wide byte budget.
    pub budget: Budget,
    /// The pool for work that burns CPU.
    pub pool: CpuPool,
    /// Time.
    pub clock: Clock,
    /// Where facts are announced.
    pub events: EventBus,
    /// The engine's branch of the metrics registry.
    pub metrics: Branch,
    /// Secrets that must be readable again, sealed in the store.
    pub secrets: Secrets,
    /// Certificates and client trust.
    pub tls: Tls,
    /// Where conditions are reported, and whether the disk is full.
    pub health: Health,
    /// What all engines read from the configuration's shared part.
    pub shared: Arc<Shared>,
    /// Sockets that an earlier process handed over, and those that the next one may have.
    pub sockets: Sockets,
}

impl<S: ?Sized> Clone for Deps<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            node: self.node,
            accounts: self.accounts.clone(),
            acl: self.acl.clone(),
            limits: self.limits.clone(),
            bans: self.bans.clone(),
            budget: self.budget.clone(),
            pool: self.pool.clone(),
            clock: self.clock.clone(),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
            secrets: self.secrets.clone(),
            tls: self.tls.clone(),
            health: self.health.clone(),
            shared: Arc::clone(&self.shared),
            sockets: self.sockets.clone(),
        }
    }
}

/// The shared part of the configuration, validated.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// `server.host`: the one public name. Actor ids, HELO, DSNs and printed commands come from it.
    pub host: Option<tasuki_proto::names::Domain>,
    /// Where the front door is reached, without a slash at the end: `https://HOST`, or what
    /// `server.danger_public_url` says (plain HTTP on loopback, for the demo and tests; its port 0 stands for the
    /// front door's bound port). `None` without a host.
    pub public_url: Option<String>,
    /// Peers whose `Forwarded`, `X-Forwarded-For` and PROXY headers are believed.
    pub trusted_proxies: Vec<ipnet::IpNet>,
}

/// One validated configuration, as an engine gets it at a reload.
#[derive(Clone, Debug)]
pub struct Snapshot<C> {
    /// The part that all engines read.
    pub shared: Arc<Shared>,
    /// The engine's own part.
    pub engine: C,
}

/// What a reload did in an engine; keys are named as in the file (`mail.max_size`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Keys whose new value is in force.
    pub changed: Vec<String>,
    /// Keys whose new value needs a restart.
    pub needs_restart: Vec<String>,
}

/// An engine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A listener could not be bound.
    #[error("{key}: cannot listen on {addr}: {source}")]
    Bind {
        /// The configuration key, for example `mail.relay.listen`.
        key: &'static str,
        /// The address asked for.
        addr: SocketAddr,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A value of the configuration cannot be used.
    #[error("{key}: {problem}")]
    Config {
        /// The configuration key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Something else that is needed was missing.
    #[error("{what}: {source}")]
    Other {
        /// What was being done.
        what: &'static str,
        /// The cause.
        source: BoxError,
    },
}
