//! Who changed what, when, from where: append only, in the same transaction as the change.

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

/// Reading the audit. Writing happens with the changes themselves.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// The newest `limit` lines, newest first, older than `before` if given.
    async fn audit(&self, before: Option<Timestamp>, limit: usize) -> StoreResult<Vec<AuditEntry>>;
    /// Appends a line for a change that lives outside the store (a reload, a key export).
    async fn note(&self, entry: AuditEntry) -> StoreResult<()>;
}
