//! Who visits this home now. Each visitor is in the table while their connection lasts, and can be cut out of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::rules::{Rules, Who};
use crate::splice::Meter;

/// One connection, or one flow of datagrams.
pub(super) struct Visitor {
    pub(super) number: u64,
    pub(super) label: String,
    pub(super) from: SocketAddr,
    pub(super) player: Option<String>,
    pub(super) since: Instant,
    pub(super) meter: Meter,
    pub(super) cut: CancellationToken,
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
    pub(super) fn enter(&self, label: &str, from: SocketAddr, player: Option<&str>) -> Option<Entered<'_>> {
        let visitor = Arc::new(Visitor {
            number: self.last.fetch_add(1, Ordering::Relaxed) + 1,
            label: label.to_owned(),
            from,
            player: player.map(str::to_owned),
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
