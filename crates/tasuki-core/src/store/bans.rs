//! Bans, and the addresses that proved themselves.

use std::net::IpAddr;

use async_trait::async_trait;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{AuditEntry, Sharing, StoreResult};
use crate::clock::Timestamp;
use crate::engine::EngineKind;
use crate::ids::BanId;

/// A ban as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// Its number.
    pub id: BanId,
    /// The banned addresses.
    pub net: IpNet,
    /// The engine it holds in; `None` for all.
    pub engine: Option<EngineKind>,
    /// Why, in plain words.
    pub reason: String,
    /// Who made it: `gateway` for one made by itself.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when; `None` for ever.
    pub until: Option<Timestamp>,
    /// How often these addresses were banned before.
    pub repeats: u32,
}

/// A ban to be stored. A ban of the same net and engine is replaced; `repeats` is counted by the store.
#[derive(Clone, Debug)]
pub struct NewBan {
    /// The addresses.
    pub net: IpNet,
    /// The engine; `None` for all.
    pub engine: Option<EngineKind>,
    /// Why.
    pub reason: String,
    /// Who made it.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when; `None` for ever.
    pub until: Option<Timestamp>,
}

/// Verbs for bans.
#[async_trait]
pub trait BanStore: Sharing {
    /// The bans that hold at `now`; ended ones are kept 30 days for the count of repeats, then removed.
    async fn bans(&self, now: Timestamp) -> StoreResult<Vec<Ban>>;
    /// Adds a ban.
    async fn add_ban(&self, new: NewBan, audit: AuditEntry) -> StoreResult<Ban>;
    /// Ends a ban. `NotFound` if it does not hold.
    async fn remove_ban(&self, id: BanId, audit: AuditEntry) -> StoreResult<()>;
    /// How often `net` was banned in the last 30 days.
    async fn ban_repeats(&self, net: IpNet, now: Timestamp) -> StoreResult<u32>;
    /// Notes addresses where a principal, agent or subscribed host proved itself; rides in a later commit.
    async fn note_proved(&self, addresses: &[(IpAddr, Timestamp)]) -> StoreResult<()>;
    /// Addresses proved since `since`.
    async fn proved(&self, since: Timestamp) -> StoreResult<Vec<IpAddr>>;
}
