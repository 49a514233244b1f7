//! The bans that hold, by network, for one look-up per prefix length in use.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::tally::make_room;
use crate::clock::Timestamp;
use crate::engine::EngineKind;
use crate::ids::BanId;
use crate::store::bans::Ban;

/// Networks in the table; those that end first go when there are more.
const NETS: usize = 65_536;

/// A ban, or the slowing of a proven address, as held in memory.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// `None` while it is not stored.
    pub(super) id: Option<BanId>,
    /// `None` for all.
    pub(super) engine: Option<EngineKind>,
    pub(super) until: Option<Timestamp>,
    pub(super) reason: Arc<str>,
    /// Made by a person, so that it holds for proven addresses too.
    pub(super) by_hand: bool,
    pub(super) repeats: u32,
}

impl Held {
    pub(super) fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    fn counts_in(&self, engine: EngineKind) -> bool {
        self.engine.is_none_or(|e| e == engine)
    }
}

impl From<Ban> for Held {
    fn from(ban: Ban) -> Self {
        Self {
            id: Some(ban.id),
            engine: ban.engine,
            until: ban.until,
            reason: ban.reason.into(),
            by_hand: ban.by != super::GATEWAY,
            repeats: ban.repeats,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// At most one for each engine and one for all.
    by_net: HashMap<IpNet, Vec<Held>>,
    /// How many networks there are by family (true: IPv6) and prefix length, to look up only those in use.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Table {
    /// What holds against `ip` in `engine`: by hand before automatic, then the one that ends last.
    pub(super) fn find(&self, engine: EngineKind, ip: IpAddr, now: Timestamp) -> Option<&Held> {
        self.all(ip)
            .map(|(_, held)| held)
            .filter(|h| h.counts_in(engine) && h.holds(now))
            .max_by_key(|h| (h.by_hand, h.until.is_none(), h.until))
    }

    /// Everything kept against `ip`, also what has ended.
    pub(super) fn all(&self, ip: IpAddr) -> impl Iterator<Item = (IpNet, &Held)> {
        let is_v6 = ip.is_ipv6();
        self.lengths
            .range((is_v6, 0)..=(is_v6, 128))
            .filter_map(move |((_, length), _)| IpNet::new(ip, *length).ok())
            .filter_map(|net| self.by_net.get_key_value(&net.trunc()))
            .flat_map(|(net, all)| all.iter().map(|held| (*net, held)))
    }

    /// Puts a ban in the place of the one for the same network and engine.
    pub(super) fn put(&mut self, net: IpNet, held: Held, now: Timestamp) {
        let net = net.trunc();
        if !self.by_net.contains_key(&net) && self.by_net.len() >= NETS {
            make_room(
                &mut self.by_net,
                NETS,
                |_, all| all.iter().any(|h| h.holds(now)),
                |all| all.iter().map(|h| h.until.unwrap_or(Timestamp(i64::MAX))).max(),
            );
            self.count_lengths();
        }
        let all = self.by_net.entry(net).or_default();
        if all.is_empty() {
            *self.lengths.entry(length(&net)).or_default() += 1;
        }
        all.retain(|h| h.engine != held.engine && h.holds(now));
        all.push(held);
    }

    /// How many networks are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_net.len()
    }

    /// Removes what `gone` says of a network.
    pub(super) fn remove(&mut self, gone: impl Fn(&IpNet, &Held) -> bool) {
        self.by_net.retain(|net, all| {
            all.retain(|held| !gone(net, held));
            !all.is_empty()
        });
        self.count_lengths();
    }

    fn count_lengths(&mut self) {
        self.lengths.clear();
        for net in self.by_net.keys() {
            *self.lengths.entry(length(net)).or_default() += 1;
        }
    }

    /// Replaces everything that is stored by `bans`; what only this process knows stays while it holds.
    pub(super) fn replace_stored(&mut self, bans: Vec<Ban>, now: Timestamp) {
        self.remove(|_, held| held.id.is_some() || !held.holds(now));
        for ban in bans {
            let net = ban.net;
            self.put(net, ban.into(), now);
        }
    }
}

fn length(net: &IpNet) -> (bool, u8) {
    (net.addr().is_ipv6(), net.prefix_len())
}
