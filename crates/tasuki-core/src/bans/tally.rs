//! Counts offences by engine, address and kind, and banned addresses by prefix; both tables are bounded.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

use ipnet::IpNet;

use super::Offence;
use super::rules::{Kind, PREFIX_ADDRESSES, PREFIX_WITHIN, SPRAY_NAMES};
use crate::engine::EngineKind;

/// Addresses with open counts; the oldest go when there are more.
const COUNTS: usize = 16_384;
/// Prefixes with banned addresses; the oldest go when there are more.
const PREFIXES: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: HashMap<(EngineKind, IpNet, Kind), Count>,
    offenders_by_prefix: HashMap<IpNet, Vec<Offender>>,
}

#[derive(Debug)]
struct Count {
    since: Instant,
    count: u32,
    /// What was counted already, where the same again does not count: at most as many as `Rule::tries`.
    seen: Vec<u64>,
    unknown_names: u32,
}

#[derive(Debug)]
struct Offender {
    net: IpNet,
    at: Instant,
    attack: bool,
}

/// The count is full: ban it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) attack: bool,
}

impl Tally {
    /// Counts one offence; says when it was the last one.
    pub(super) fn note(
        &mut self,
        now: Instant,
        engine: EngineKind,
        net: IpNet,
        what: Offence,
    ) -> Option<Full> {
        let kind = Kind::of(what);
        let rule = kind.rule();
        let key = (engine, net, kind);
        if !self.counts.contains_key(&key) {
            make_room(
                &mut self.counts,
                COUNTS,
                |(_, _, kind), c| now.duration_since(c.since) < kind.rule().within,
                |c| c.since,
            );
        }
        let fresh = || Count {
            since: now,
            count: 0,
            seen: Vec::new(),
            unknown_names: 0,
        };
        let count = self.counts.entry(key).or_insert_with(fresh);
        if now.duration_since(count.since) >= rule.within {
            *count = fresh();
        }
        if let Some(hash) = once(what) {
            if count.seen.contains(&hash) {
                return None;
            }
            count.seen.push(hash);
        }
        count.count += 1;
        count.unknown_names += u32::from(matches!(what, Offence::UnknownName { .. }));
        if count.count < rule.tries {
            return None;
        }
        let attack = rule.attack || count.unknown_names >= SPRAY_NAMES;
        self.counts.remove(&key);
        Some(Full { attack })
    }

    /// Notes that `net` of `prefix` was banned. Says when several of the prefix's addresses were, and whether all of
    /// them for attacks.
    pub(super) fn note_banned(
        &mut self,
        now: Instant,
        prefix: IpNet,
        net: IpNet,
        attack: bool,
    ) -> Option<Full> {
        let recent = |o: &Offender| now.duration_since(o.at) < PREFIX_WITHIN;
        if !self.offenders_by_prefix.contains_key(&prefix) {
            make_room(
                &mut self.offenders_by_prefix,
                PREFIXES,
                |_, all| all.iter().any(recent),
                |all| all.last().map_or(now, |o| o.at),
            );
        }
        let offenders = self.offenders_by_prefix.entry(prefix).or_default();
        offenders.retain(|o| recent(o) && o.net != net);
        offenders.push(Offender { net, at: now, attack });
        if offenders.len() < PREFIX_ADDRESSES {
            return None;
        }
        let attack = offenders.iter().all(|o| o.attack);
        self.offenders_by_prefix.remove(&prefix);
        Some(Full { attack })
    }

    /// How many counts and prefixes are kept.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.counts.len(), self.offenders_by_prefix.len())
    }

    /// Forgets what was counted against `net`, after its ban was removed by hand.
    pub(super) fn forgive(&mut self, net: &IpNet) {
        self.counts.retain(|(_, n, _), _| !net.contains(n));
        self.offenders_by_prefix.retain(|_, all| {
            all.retain(|o| !net.contains(&o.net));
            !all.is_empty()
        });
    }
}

/// What makes an offence the same as an earlier one; `None` where each counts.
fn once(what: Offence) -> Option<u64> {
    match what {
        Offence::WrongSecret { secret_hash } => Some(secret_hash),
        Offence::UnknownName { name_hash } => Some(name_hash),
        _ => None,
    }
}

/// Keeps `map` below `capacity`: first what `holds` no longer, then the older half.
pub(super) fn make_room<K: Eq + Hash, V, T: Ord + Copy>(
    map: &mut HashMap<K, V>,
    capacity: usize,
    holds: impl Fn(&K, &V) -> bool,
    age: impl Fn(&V) -> T,
) {
    if map.len() < capacity {
        return;
    }
    map.retain(|k, v| holds(k, v));
    if map.len() < capacity {
        return;
    }
    let mut ages: Vec<T> = map.values().map(&age).collect();
    let (_, middle, _) = ages.select_nth_unstable(capacity / 2);
    let middle = *middle;
    map.retain(|_, v| age(v) > middle);
}
