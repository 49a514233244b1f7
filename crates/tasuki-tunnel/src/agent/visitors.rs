//! Who visits this home now. Each visitor is in the table while their connection lasts, and can be cut out of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

use arc_swap::ArcSwap;
use tasuki_proto::minecraft::Edition;
use tasuki_proto::tunnel::FlowNumber;
use tokio_util::sync::CancellationToken;

use super::rules::{Rules, Who};
use super::{LocalDoor, LocalEndpoint};
use crate::splice::Meter;

/// One connection, or one flow of datagrams.
pub(super) struct Visitor {
    pub(super) number: u64,
    pub(super) label: String,
    pub(super) from: SocketAddr,
    pub(super) player: Option<String>,
    is_java: bool,
    /// The datagrams of one who comes by UDP began as RakNet's do.
    speaks_raknet: AtomicBool,
    flow: Option<FlowNumber>,
    /// They came from this home's own network, not through the gateway.
    pub(super) is_at_home: bool,
    /// As the gateway told it last; 0 is not known.
    to_gateway_us: AtomicU64,
    /// How long the local server took for the connection; 0 is not known.
    local_us: AtomicU64,
    pub(super) since: Instant,
    pub(super) meter: Meter,
    pub(super) cut: CancellationToken,
}

/// Somebody who wants in.
pub(super) struct Coming<'a> {
    pub(super) endpoint: &'a LocalEndpoint,
    pub(super) from: SocketAddr,
    pub(super) player: Option<&'a str>,
    /// The number of a flow that the gateway knows.
    pub(super) flow: Option<FlowNumber>,
    pub(super) is_at_home: bool,
}

/// The table, and the rules that decide who gets into it. As bounded as the agent's places are.
#[derive(Default)]
pub(super) struct Visitors {
    last: AtomicU64,
    by_number: Mutex<HashMap<u64, Arc<Visitor>>>,
    rules: ArcSwap<Rules>,
}

/// A visitor who is here; leaves the table when dropped.
pub(super) struct Entered<'a> {
    visitors: &'a Visitors,
    visitor: Arc<Visitor>,
}

impl Visitors {
    /// Lets a visitor in, unless the rules keep them out.
    pub(super) fn enter(&self, coming: &Coming<'_>) -> Option<Entered<'_>> {
        let Coming {
            endpoint,
            from,
            player,
            flow,
            is_at_home,
        } = *coming;
        let visitor = Arc::new(Visitor {
            number: self.last.fetch_add(1, Ordering::Relaxed) + 1,
            label: endpoint.label.clone(),
            from,
            player: player.map(str::to_owned),
            is_java: matches!(endpoint.door, LocalDoor::Minecraft(_)),
            speaks_raknet: AtomicBool::new(false),
            flow,
            is_at_home,
            to_gateway_us: AtomicU64::new(0),
            local_us: AtomicU64::new(0),
            since: Instant::now(),
            meter: Meter::default(),
            cut: CancellationToken::new(),
        });
        self.lock().insert(visitor.number, Arc::clone(&visitor));
        let entered = Entered {
            visitors: self,
            visitor,
        };
        // Asked after they stand in the table: rules that change meanwhile find them there.
        self.rules.load().allow(from.ip(), player).then_some(entered)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Visitor>>> {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All, the first one first.
    pub(super) fn all(&self) -> Vec<Arc<Visitor>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by_key(|visitor| visitor.number);
        all
    }

    /// Notes how far visitors are from the gateway.
    pub(super) fn note_round_trips(&self, flows: &[(u64, u32)]) {
        let us_by_flow: HashMap<u64, u32> = flows.iter().copied().collect();
        for visitor in self.lock().values() {
            let us = visitor.flow.and_then(|flow| us_by_flow.get(&flow.0));
            if let Some(us) = us {
                visitor.to_gateway_us.store(u64::from(*us), Ordering::Relaxed);
            }
        }
    }

    /// Cuts the connections of everybody who is meant; how many.
    pub(super) fn cut(&self, who: &Who) -> usize {
        self.cut_if(|visitor| who.is(visitor.from.ip(), visitor.player.as_deref()))
    }

    pub(super) fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Puts rules in force, also for those who are here; how many connections were cut.
    pub(super) fn set_rules(&self, rules: Rules) -> usize {
        let rules = Arc::new(rules);
        self.rules.store(Arc::clone(&rules));
        self.cut_if(|visitor| !rules.allow(visitor.from.ip(), visitor.player.as_deref()))
    }

    fn cut_if(&self, is_meant: impl Fn(&Visitor) -> bool) -> usize {
        let table = self.lock();
        let meant = table.values().filter(|visitor| is_meant(visitor));
        meant.map(|visitor| visitor.cut.cancel()).count()
    }
}

impl Visitor {
    /// Which Minecraft they play, if it is one.
    pub(super) fn edition(&self) -> Option<Edition> {
        if self.is_java {
            return Some(Edition::Java);
        }
        let is_bedrock = self.speaks_raknet.load(Ordering::Relaxed);
        is_bedrock.then_some(Edition::Bedrock)
    }

    pub(super) fn speaks_raknet(&self) {
        self.speaks_raknet.store(true, Ordering::Relaxed);
    }

    /// Notes how long the local server took for the connection.
    pub(super) fn note_local(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.local_us.store(us.max(1), Ordering::Relaxed);
    }

    pub(super) fn to_gateway_us(&self) -> Option<u64> {
        Some(self.to_gateway_us.load(Ordering::Relaxed)).filter(|us| *us > 0)
    }

    pub(super) fn local_us(&self) -> Option<u64> {
        Some(self.local_us.load(Ordering::Relaxed)).filter(|us| *us > 0)
    }
}

impl std::ops::Deref for Entered<'_> {
    type Target = Visitor;

    fn deref(&self) -> &Visitor {
        &self.visitor
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.visitors.lock().remove(&self.visitor.number);
    }
}
