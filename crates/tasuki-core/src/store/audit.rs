//! Who changed what, when, from where: append only, in the same transaction as the change.

use std::net::IpAddr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::StoreResult;
use crate::clock::Timestamp;

/// One line of the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When the change was asked for.
    pub at: Timestamp,
    /// Who: a principal's name, `uid:1000` for the control socket, `gateway` for the process itself.
    pub who: String,
    /// From where: an address, `control.sock`, `start`.
    pub from: String,
    /// What was done, as the command names it: `user.add`, `ban.remove`.
    pub action: String,
    /// To what: a name or id.
    pub object: String,
    /// Details in plain words; never a secret.
    pub detail: String,
}

/// Who asks for a change, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// See [`AuditEntry::who`].
    pub who: String,
    /// See [`AuditEntry::from`].
    pub from: String,
}

impl Actor {
    /// The process itself; `from` says at which occasion (`start`, an engine's name).
    #[must_use]
    pub fn gateway(from: &str) -> Self {
        Self {
            who: "gateway".to_owned(),
            from: from.to_owned(),
        }
    }

    /// The command line on the control socket, by the peer's user id.
    #[must_use]
    pub fn control_socket(uid: u32) -> Self {
        Self {
            who: format!("uid:{uid}"),
            from: "control.sock".to_owned(),
        }
    }

    /// A principal that proved itself, by name.
    #[must_use]
    pub fn principal(name: &str, from: IpAddr) -> Self {
        Self {
            who: name.to_owned(),
            from: from.to_string(),
        }
    }

    /// The audit line of a change that this actor asks for at `at`. `action` as the command names it; `detail` never
    /// holds a secret.
    #[must_use]
    pub fn entry(
        &self,
        at: Timestamp,
        action: &str,
        object: impl Into<String>,
        detail: impl Into<String>,
    ) -> AuditEntry {
        AuditEntry {
            at,
            who: self.who.clone(),
            from: self.from.clone(),
            action: action.to_owned(),
            object: object.into(),
            detail: detail.into(),
        }
    }
}

/// Reading the audit. Writing happens with the changes themselves.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// The newest `limit` lines, newest first, older than `before` if given.
    async fn audit(&self, before: Option<Timestamp>, limit: usize) -> StoreResult<Vec<AuditEntry>>;
    /// Appends a line for a change that lives outside the store (a reload, a key export).
    async fn note(&self, entry: AuditEntry) -> StoreResult<()>;
}
