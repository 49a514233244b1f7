//! Tunnel endpoints: which agent owns which name and port.

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
}

/// Verbs for the tunnel engine.
#[async_trait]
pub trait TunnelStore: Send + Sync {
    /// All endpoints.
    async fn endpoints(&self) -> StoreResult<Vec<Endpoint>>;
    /// Makes or changes the agent's endpoint of this label. `Conflict` if another agent owns the name or port (a port's
    /// TCP and UDP belong together), or a
    /// name was released less than 30 days ago by another (its tombstone).
    async fn claim_endpoint(
        &self,
        agent: PrincipalId,
        label: &str,
        kind: EndpointKind,
        now: Timestamp,
        audit: AuditEntry,
    ) -> StoreResult<Endpoint>;
    /// Releases an endpoint; its name becomes a tombstone. `NotFound` if it is not there.
    async fn release_endpoint(&self, id: EndpointId, now: Timestamp, audit: AuditEntry) -> StoreResult<()>;
}
