//! Addresses that have stayed in a game lately: whoever plays here is not taken for a flood.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tasuki_core::clock::Timestamp;
use tasuki_core::net::single;

/// How long one has to stay.
pub(crate) const STAY: Duration = Duration::from_secs(300);
/// How long that counts.
pub(crate) const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
/// Addresses that are remembered; more would be no home's friends any more.
pub(crate) const MOST: u32 = 50_000;

/// The table. /32 of IPv4, /64 of IPv6.
#[derive(Debug, Default)]
pub(crate) struct Regulars(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    seen: HashMap<IpAddr, Timestamp>,
    /// Not in the store yet.
    fresh: HashSet<IpAddr>,
}

impl Regulars {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the store remembers.
    pub(crate) fn remember(&self, known: Vec<(IpAddr, Timestamp)>) {
        self.lock().seen.extend(known);
    }

    /// Somebody has stayed long enough.
    pub(crate) fn note(&self, ip: IpAddr, now: Timestamp) {
        let net = single(ip).addr();
        let mut known = self.lock();
        if known.seen.len() >= MOST as usize {
            known.seen.retain(|_, at| *at >= now.minus(WEEK));
        }
        if known.seen.len() < MOST as usize || known.seen.contains_key(&net) {
            known.seen.insert(net, now);
            known.fresh.insert(net);
        }
    }

    pub(crate) fn is(&self, ip: IpAddr, now: Timestamp) -> bool {
        let known = self.lock();
        known
            .seen
            .get(&single(ip).addr())
            .is_some_and(|at| *at >= now.minus(WEEK))
    }

    /// What the store does not know yet.
    pub(crate) fn take_fresh(&self) -> Vec<IpAddr> {
        self.lock().fresh.drain().collect()
    }

    /// The store could not take them now.
    pub(crate) fn give_back(&self, fresh: Vec<IpAddr>) {
        self.lock().fresh.extend(fresh);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_is_a_regular_for_a_week() {
        let regulars = Regulars::default();
        let (player, neighbour) = ("2001:db8::7".parse().unwrap(), "2001:db8::8".parse().unwrap());
        let then = Timestamp(1_000_000_000_000);
        assert!(!regulars.is(player, then));
        regulars.note(player, then);
        assert!(
            regulars.is(player, then) && regulars.is(neighbour, then),
            "one house"
        );
        assert!(regulars.is(player, then.plus(WEEK)));
        assert!(!regulars.is(player, then.plus(WEEK + Duration::from_secs(1))));
        let fresh = regulars.take_fresh();
        assert_eq!(fresh, ["2001:db8::".parse::<IpAddr>().unwrap()]);
        assert!(regulars.take_fresh().is_empty());
        regulars.give_back(fresh);
        assert_eq!(regulars.take_fresh().len(), 1);
    }
}
