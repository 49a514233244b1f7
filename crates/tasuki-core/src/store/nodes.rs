//! Gateways as the store sees them.

use std::time::Duration;

use async_trait::async_trait;

use super::{Sharing, StoreResult, StoreStats};
use crate::ids::{Epoch, NodeId};

/// Verbs for a gateway's own place in the store.
#[async_trait]
pub trait NodeStore: Sharing {
    /// Joins as the node of this name (made once, kept in the data directory); starts a new epoch. What an earlier
    /// life of the same name held is free from now on.
    async fn join(&self, name: &str) -> StoreResult<(NodeId, Epoch)>;
    /// Says that this node lives. `StaleEpoch` if another process joined under the same name.
    /// A node without a heartbeat for `dead_after` (by the store's clock) has lost what it held.
    async fn heartbeat(&self, node: NodeId, epoch: Epoch, dead_after: Duration) -> StoreResult<()>;
    /// Asks the database for something trivial; for `/readyz`.
    async fn ping(&self) -> StoreResult<()>;
    /// Figures for metrics and `status`.
    fn stats(&self) -> StoreStats;
    /// Finishes what waits, syncs, closes.
    async fn close(&self);
}
