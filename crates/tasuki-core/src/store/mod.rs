//! Storage traits, one for each owner: verbs of the domain, not rows; batches first.
//!
//! `tasuki-store` implements all of them for SQLite and PostgreSQL; one contract suite runs on both.
//!
//! **Invariant:** a verb that changes something returns after its commit is on stable storage, except where its
//! documentation says that it rides in a later commit.

pub mod accounts;
pub mod audit;
pub mod backup;
pub mod bans;
pub mod fedi;
pub mod mail;
pub mod nodes;
pub mod queue;
pub mod suppress;
pub mod tls;
pub mod trail;
pub mod tunnel;

pub use accounts::{AccountStore, SecretStore};
pub use audit::{Actor, AuditEntry, AuditStore};
pub use backup::BackupStore;
pub use bans::BanStore;
pub use fedi::FediStore;
pub use mail::MailStore;
pub use nodes::NodeStore;
pub use suppress::SuppressionStore;
pub use tls::TlsStore;
pub use trail::TrailStore;
pub use tunnel::TunnelStore;

use crate::failure::BoxError;

/// Everything a store does; held by the composition root, which gives each engine only its own part.
pub trait Store:
    AccountStore
    + SecretStore
    + AuditStore
    + BanStore
    + NodeStore
    + MailStore
    + FediStore
    + TunnelStore
    + BackupStore
{
}

/// Who else writes to a store.
pub trait Sharing: Send + Sync {
    /// Whether other gateways may change what is stored. Only then a reader that is told of its own gateway's changes has
    /// to look again from time to time.
    fn is_shared(&self) -> bool;
}

/// Why a verb did not do its work. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or did not answer in time. Try again.
    #[error("the store is not available")]
    Unavailable(#[source] BoxError),
    /// The disk is full (or below its reserve). Try again when there is space.
    #[error("the disk is full")]
    Full,
    /// Somebody else holds what was to be taken: a name, a port, a principal's name.
    #[error("{0}")]
    Conflict(String),
    /// There is no such thing.
    #[error("{0} does not exist")]
    NotFound(String),
    /// This node's epoch, or its hold of the lane, is over.
    #[error("this gateway no longer holds what it wanted to change")]
    StaleEpoch,
    /// The stored data does not have the expected form.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
}

/// Shorthand for the result of a verb.
pub type StoreResult<T> = Result<T, StoreError>;

/// What is stored, in figures, for metrics and `status`.
#[derive(Clone, Debug, Default)]
pub struct StoreStats {
    /// Readings since the start.
    pub reads: u64,
    /// Commits since the start.
    pub commits: u64,
    /// Syncs to stable storage since the start, where the store makes them itself.
    pub syncs: u64,
    /// Changes that are waiting for their commit now.
    pub waiting: u64,
    /// Bytes the database and its segments occupy.
    pub size_bytes: u64,
}
