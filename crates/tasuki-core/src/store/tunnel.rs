//! Tunnel endpoints: which agent owns which name and port.

use std::net::IpAddr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tasuki_proto::names::Domain;

use super::{AuditEntry, StoreResult};
use crate::clock::Timestamp;
use crate::ids::{EndpointId, PrincipalId};

/// What an endpoint is to visitors.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum EndpointKind {
    /// A TCP port of the gateway.
    Tcp {
        /// The port; 0 asks for any free one of the configured range.
        port: u16,
    },
    /// A UDP port of the gateway. TCP and UDP of one number belong to one agent.
    Udp {
        /// The port.
        port: u16,
    },
    /// A name on the shared Minecraft port; without a name the default route.
    Minecraft {
        /// The host name.
        name: Option<Domain>,
    },
    /// A host name on the TLS port, handed on undecrypted. It is the HTTP endpoint's name or this one's, never both.
    Https {
        /// The host name.
        name: Domain,
    },
    /// A host name on the web ports, with the gateway's certificate.
    Http {
        /// The host name.
        name: Domain,
    },
}

impl EndpointKind {
    /// The host name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&Domain> {
        match self {
            Self::Minecraft { name } => name.as_ref(),
            Self::Https { name } | Self::Http { name } => Some(name),
            Self::Tcp { .. } | Self::Udp { .. } => None,
        }
    }
}

/// As listings and the audit say it.
impl std::fmt::Display for EndpointKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { port } => write!(f, "tcp {port}"),
            Self::Udp { port } => write!(f, "udp {port}"),
            Self::Minecraft { name: Some(name) } => write!(f, "minecraft {name}"),
            Self::Minecraft { name: None } => f.write_str("minecraft (default)"),
            Self::Https { name } => write!(f, "https {name}"),
            Self::Http { name } => write!(f, "http {name}"),
        }
    }
}

/// An endpoint as stored: it stays its agent's until released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its number.
    pub id: EndpointId,
    /// The agent that owns it.
    pub agent: PrincipalId,
    /// The agent's own name for it, unique for the agent: 1 to 64 characters.
    pub label: String,
    /// What it is.
    pub kind: EndpointKind,
    /// Since when.
    pub since: Timestamp,
    /// The group of agents that are one owner of it, if it is shared.
    pub group: Option<String>,
}

/// Verbs for the tunnel engine.
#[async_trait]
pub trait TunnelStore: Send + Sync {
    /// All endpoints.
    async fn endpoints(&self) -> StoreResult<Vec<Endpoint>>;
    /// Makes or changes the agent's endpoint of this label. `Conflict` if another agent owns the name or port (a port's
    /// TCP and UDP belong together, and so do a name's Minecraft and web endpoints), or a name was released less than 30
    /// days ago by another (its tombstone). Agents that say the same `group` are one owner.
    async fn claim_endpoint(
        &self,
        agent: PrincipalId,
        group: Option<&str>,
        label: &str,
        kind: EndpointKind,
        now: Timestamp,
        audit: AuditEntry,
    ) -> StoreResult<Endpoint>;
    /// Releases an endpoint; its name becomes a tombstone. `NotFound` if it is not there.
    async fn release_endpoint(&self, id: EndpointId, now: Timestamp, audit: AuditEntry) -> StoreResult<()>;
    /// Notes addresses (/32 of IPv4, /64 of IPv6) that have stayed in a game; forgets those noted before `forget`.
    async fn note_regulars(&self, addresses: &[IpAddr], at: Timestamp, forget: Timestamp) -> StoreResult<()>;
    /// The addresses noted since then, the latest first, at most so many.
    async fn regulars(&self, since: Timestamp, most: u32) -> StoreResult<Vec<(IpAddr, Timestamp)>>;
}
