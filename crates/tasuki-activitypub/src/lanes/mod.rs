//! The fan-out: one gateway of a store owns it, reads the log in order, and gives each host what is its own.
//!
//! The owner keeps a lane for each host. A slow or dead host holds up its own lane and nothing else; how far each host is
//! goes into the store at most once a second, so a crash repeats a second's deliveries and loses none.
//!
//! **Invariant:** every host gets every entry of its audience, or the store's cut of the log counts it as lost.

mod fanout;
mod knock;
mod lane;
mod log;
mod machine;
mod send;
mod settled;
mod shared;
mod stops;
mod style;
mod view;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

pub(crate) use fanout::Fanout;
pub(crate) use lane::Common;
use lane::Lane;
pub use lane::LaneStatus;
pub(crate) use log::Log;
pub(crate) use send::Sender;
pub use style::SignatureUse;
use tasuki_core::ids::HostNo;

use tasuki_proto::activitypub::ids::Authority;

use crate::outage::Look;

/// The lanes that run here, by host.
#[derive(Default)]
pub(crate) struct Lanes {
    running: RwLock<Running>,
}

#[derive(Default)]
struct Running {
    by_number: HashMap<HostNo, Arc<Lane>>,
    by_host: HashMap<String, Arc<Lane>>,
}

impl Lanes {
    /// A host sent something that is proven to be its own: what waits for it is tried now.
    pub(crate) fn peer_is_alive(&self, host: &Authority) {
        if let Some(lane) = self.read().by_host.get(host.as_str()) {
            lane.sign_of_life();
        }
    }

    /// All lanes for `status`, worst first.
    pub(crate) fn status(&self) -> Vec<LaneStatus> {
        let mut all: Vec<LaneStatus> = self.read().by_number.values().map(|lane| lane.status()).collect();
        all.sort_by(|a, b| (b.failures, b.waiting, &a.host).cmp(&(a.failures, a.waiting, &b.host)));
        all
    }

    /// All lanes look again at what is due.
    pub(crate) fn wake_all(&self) {
        self.all().iter().for_each(|lane| lane.wake());
    }

    /// How all hosts look that are served from here.
    pub(crate) fn looks(&self) -> Vec<Look> {
        self.all().iter().map(|lane| lane.look()).collect()
    }

    /// What failed is tried now.
    pub(crate) fn try_all(&self) {
        self.all().iter().for_each(|lane| lane.sign_of_life());
    }

    fn lane(&self, number: HostNo) -> Option<Arc<Lane>> {
        self.read().by_number.get(&number).cloned()
    }

    fn all(&self) -> Vec<Arc<Lane>> {
        self.read().by_number.values().cloned().collect()
    }

    fn insert(&self, lane: Arc<Lane>) {
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        running.by_host.insert(lane.host.clone(), Arc::clone(&lane));
        running.by_number.insert(lane.number, lane);
    }

    fn clear(&self) {
        *self.running.write().unwrap_or_else(PoisonError::into_inner) = Running::default();
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Running> {
        self.running.read().unwrap_or_else(PoisonError::into_inner)
    }
}
