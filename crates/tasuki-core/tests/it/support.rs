//! What several tests need.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use ipnet::IpNet;
use tasuki_core::bans::Bans;
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::events::EventBus;
use tasuki_core::ids::BanId;
use tasuki_core::store::bans::{Ban, BanStore, NewBan};
use tasuki_core::store::{AuditEntry, Sharing, StoreError, StoreResult};

/// Bans in memory.
#[derive(Default)]
pub(crate) struct MemoryBans(Mutex<Vec<Ban>>);

impl Sharing for MemoryBans {
    fn is_shared(&self) -> bool {
        true
    }
}

#[async_trait]
impl BanStore for MemoryBans {
    async fn bans(&self, _now: Timestamp) -> StoreResult<Vec<Ban>> {
        Ok(self.0.lock().unwrap().clone())
    }

    async fn add_ban(&self, new: NewBan, _audit: AuditEntry) -> StoreResult<Ban> {
        let mut bans = self.0.lock().unwrap();
        let ban = Ban {
            id: BanId(i64::try_from(bans.len()).unwrap()),
            net: new.net,
            engine: new.engine,
            reason: new.reason,
            by: new.by,
            since: new.since,
            until: new.until,
            repeats: 0,
        };
        bans.push(ban.clone());
        Ok(ban)
    }

    async fn remove_ban(&self, id: BanId, _audit: AuditEntry) -> StoreResult<()> {
        let mut bans = self.0.lock().unwrap();
        let before = bans.len();
        bans.retain(|ban| ban.id != id);
        if bans.len() == before {
            return Err(StoreError::NotFound(format!("ban {id}")));
        }
        Ok(())
    }

    async fn ban_repeats(&self, _net: IpNet, _now: Timestamp) -> StoreResult<u32> {
        Ok(0)
    }

    async fn note_proved(&self, _addresses: &[(IpAddr, Timestamp)]) -> StoreResult<()> {
        Ok(())
    }

    async fn proved(&self, _since: Timestamp) -> StoreResult<Vec<IpAddr>> {
        Ok(Vec::new())
    }
}

/// A table of bans without any.
pub(crate) fn no_bans(clock: &Clock) -> Bans {
    Bans::new(
        Arc::new(MemoryBans::default()),
        clock.clone(),
        EventBus::new(clock.clone()),
    )
}
