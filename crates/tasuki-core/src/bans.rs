//! Bans: who offended, for how long, and who is never banned.

use std::net::IpAddr;
use std::sync::Arc;

use crate::clock::Clock;
use crate::engine::EngineKind;
use crate::events::EventBus;
use crate::store::BanStore;

/// What an address did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offence {
    /// A wrong secret. The same wrong one again counts once: `secret_hash` tells them apart.
    WrongSecret {
        /// Any hash of name and secret that is equal for equal tries.
        secret_hash: u64,
    },
    /// Tried to relay without permission.
    RelayProbe,
    /// Broke the protocol again and again.
    ProtocolAbuse,
    /// A wrong enrolment code.
    WrongCode,
    /// A signature that does not verify, again and again.
    BadSignature,
}

/// What the bans say of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing against it.
    Clear,
    /// It offended, but proved itself within 30 days: slow it down by this much, never ban it.
    Slowed(std::time::Duration),
    /// Banned, for this reason.
    Banned(String),
}

/// The table of bans; clones share it.
#[derive(Clone)]
pub struct Bans {
    inner: Arc<Inner>,
}

#[expect(dead_code, reason = "filled in with the implementation")]
struct Inner {
    store: Arc<dyn BanStore>,
    clock: Clock,
    events: EventBus,
}

impl Bans {
    /// The table on top of `store`.
    #[must_use]
    pub fn new(store: Arc<dyn BanStore>, clock: Clock, events: EventBus) -> Self {
        Self {
            inner: Arc::new(Inner { store, clock, events }),
        }
    }

    /// How `engine` should treat `from`; reads memory only.
    #[must_use]
    pub fn standing(&self, engine: EngineKind, from: IpAddr) -> Standing {
        let _ = (engine, from);
        todo!("core1")
    }

    /// Notes an offence; bans when the rules say so. Never waits: the ban is stored in the background.
    pub fn offence(&self, engine: EngineKind, from: IpAddr, what: Offence) {
        let _ = (engine, from, what);
        todo!("core1")
    }

    /// Notes that somebody proved who they are from this address. Never waits.
    pub fn proved(&self, from: IpAddr) {
        let _ = from;
        todo!("core1")
    }
}
