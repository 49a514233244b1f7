//! What an engine is given.

use std::sync::Arc;

use super::Shared;
use crate::accounts::Accounts;
use crate::acl::Acl;
use crate::bans::Bans;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::events::EventBus;
use crate::health::Health;
use crate::ids::{Epoch, NodeId};
use crate::limits::Limits;
use crate::metrics::Branch;
use crate::pool::CpuPool;
use crate::seal::Secrets;
use crate::sockets::Sockets;
use crate::tls::Tls;

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
