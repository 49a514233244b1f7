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

use crate::failure::BoxError;

#[cfg(unix)]
mod deps;

#[cfg(unix)]
pub use deps::Deps;

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
