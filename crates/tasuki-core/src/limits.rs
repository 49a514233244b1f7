//! Rates by principal, address, prefix, domain and engine, in a table of bounded size.
//!
//! The generic cell rate algorithm (ITU-T I.371): for each who, one number is kept, the time at which its whole burst
//! would be free again. A unit passes if that time is not further away than the burst lasts.
//!
//! **Invariant:** the table never holds more than its capacity, whoever asks. Entries whose burst is free again say
//! nothing and go first; then those nearest to that go, so that a flood of fresh names throws out its own entries
//! before it throws out somebody who is at a limit.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::engine::EngineKind;
use crate::net;

#[cfg(test)]
mod tests;

/// A rate: `burst` at once, then one in each `period / per_period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units that may pass at once. With 0 nothing passes.
    pub burst: u32,
    /// Units that pass in each `period` in the long run; 0 counts as 1.
    pub per_period: u32,
    /// The period.
    pub period: Duration,
}

impl Rate {
    /// `burst` at once, then `per_minute` a minute.
    #[must_use]
    pub const fn per_minute(burst: u32, per_minute: u32) -> Self {
        Self {
            burst,
            per_period: per_minute,
            period: Duration::from_secs(60),
        }
    }

    /// `burst` at once, then `per_second` a second.
    #[must_use]
    pub const fn per_second(burst: u32, per_second: u32) -> Self {
        Self {
            burst,
            per_period: per_second,
            period: Duration::from_secs(1),
        }
    }

    /// Nanoseconds from one unit to the next in the long run.
    fn interval(self) -> u64 {
        let period = u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX);
        (period / u64::from(self.per_period.max(1))).max(1)
    }
}

/// The rates of one kind of work for a single address (/32, /64) and for its prefix (/24, /48).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRates {
    /// For the single address, behind which there may be a whole office or twenty players.
    pub address: Rate,
    /// For the prefix, in which there may be many such addresses.
    pub prefix: Rate,
}

/// Logins that are not answered from the cache of successes: an office of a hundred starts its mail programs at once
/// after our restart, and each of them asks again once in ten minutes at most.
pub const LOGINS: AddressRates = AddressRates {
    address: Rate::per_minute(120, 60),
    prefix: Rate::per_minute(600, 300),
};

/// Passwords tried for one name from addresses where nobody proved to be anybody within 30 days: many guessers together
/// are no faster than one. Its owner, where she is known, is not held up by them.
pub const LOGINS_OF_NAME: Rate = Rate {
    burst: 100,
    per_period: 100,
    period: Duration::from_secs(3600),
};

/// Enrolment codes and API tokens that were wrong: nobody types them by the dozen.
pub const WRONG_TOKENS: AddressRates = AddressRates {
    address: Rate::per_minute(10, 6),
    prefix: Rate::per_minute(50, 30),
};

/// New connections to an engine: a bulk sender opens one for each mail, a browser six at once; a carrier's NAT has
/// hundreds of customers behind one address. Only a flood is above this.
pub const CONNECTIONS: AddressRates = AddressRates {
    address: Rate::per_second(1_000, 300),
    prefix: Rate::per_second(4_000, 1_200),
};

/// Inbox requests whose signature is not proven yet, each of which may cost a key fetch and an RSA check. A large
/// instance sends a burst from one address; once its key is cached, its requests are not counted here.
pub const UNVERIFIED_INBOX: AddressRates = AddressRates {
    address: Rate::per_second(100, 20),
    prefix: Rate::per_second(300, 60),
};

/// Who is limited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// One address: the /32 of IPv4, the /64 of IPv6.
    Address(IpAddr),
    /// The address's /24 or /48.
    Prefix(IpAddr),
    /// A principal.
    Principal(crate::ids::PrincipalId),
    /// A domain or host.
    Domain(String),
    /// Everybody together.
    Engine,
}

impl Who {
    /// The form in which equal ones are equal: addresses cut to their networks.
    fn cut(self) -> Self {
        match self {
            Self::Address(ip) => Self::Address(net::single(ip).addr()),
            Self::Prefix(ip) => Self::Prefix(net::prefix(ip).addr()),
            other => other,
        }
    }
}

/// The table; clones share it.
#[derive(Clone)]
pub struct Limits {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    start: Instant,
    /// Randomly keyed, so that nobody can choose names that meet in one shard or in one entry.
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    shard_capacity: usize,
}

/// Nanoseconds since the table's start at which the whole burst is free again, by the hash of engine, what and who.
type Shard = HashMap<u64, u64>;

const SHARDS: usize = 64;
/// Entries of a gateway's table; about 2 MiB when full.
const CAPACITY: usize = 65_536;

impl Limits {
    /// An empty table for 65,536 entries.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self::with_capacity(clock, CAPACITY)
    }

    /// An empty table for about `capacity` entries.
    #[must_use]
    pub fn with_capacity(clock: Clock, capacity: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                start: clock.now(),
                clock,
                hasher: RandomState::new(),
                shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
                shard_capacity: capacity.div_ceil(SHARDS).max(4),
            }),
        }
    }

    /// Takes one unit of `what` (a name in code, such as `login` or `status`) for `who` at `rate`.
    ///
    /// # Errors
    /// How long to wait until one would pass.
    pub fn take(&self, engine: EngineKind, what: &'static str, who: Who, rate: Rate) -> Result<(), Duration> {
        self.inner.take(self.inner.now(), (Some(engine), what), who, rate)
    }

    /// Takes one unit of `what` for the single address and for the prefix of `from`. A unit that the prefix refuses is
    /// lost to the address too.
    ///
    /// # Errors
    /// How long to wait until one would pass.
    pub fn take_from(
        &self,
        engine: EngineKind,
        what: &'static str,
        from: IpAddr,
        rates: AddressRates,
    ) -> Result<(), Duration> {
        self.take_for_address(Some(engine), what, from, rates)
    }

    /// As [`Limits::take_from`], also for what belongs to no engine.
    pub(crate) fn take_for_address(
        &self,
        engine: Option<EngineKind>,
        what: &'static str,
        from: IpAddr,
        rates: AddressRates,
    ) -> Result<(), Duration> {
        let now = self.inner.now();
        self.inner
            .take(now, (engine, what), Who::Address(from), rates.address)?;
        self.inner
            .take(now, (engine, what), Who::Prefix(from), rates.prefix)
    }

    /// How many entries the table holds now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.shards.iter().map(|s| lock(s).len()).sum()
    }

    /// Whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Inner {
    fn now(&self) -> u64 {
        let since = self.clock.now().saturating_duration_since(self.start);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn take(
        &self,
        now: u64,
        (engine, what): (Option<EngineKind>, &'static str),
        who: Who,
        rate: Rate,
    ) -> Result<(), Duration> {
        let key = self.hasher.hash_one((engine, what, who.cut()));
        let interval = rate.interval();
        let burst = interval.saturating_mul(u64::from(rate.burst));
        let mut shard = lock(&self.shards[(key % SHARDS as u64) as usize]);
        let free_at = shard
            .get(&key)
            .copied()
            .unwrap_or(now)
            .max(now)
            .saturating_add(interval);
        if free_at - now > burst {
            return Err(Duration::from_nanos(free_at - now - burst));
        }
        if shard.len() >= self.shard_capacity && !shard.contains_key(&key) {
            make_room(&mut shard, now, self.shard_capacity);
        }
        shard.insert(key, free_at);
        Ok(())
    }
}

fn lock(shard: &Mutex<Shard>) -> std::sync::MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops what says nothing any more and, if that is not enough, the quarter that is nearest to it.
fn make_room(shard: &mut Shard, now: u64, capacity: usize) {
    shard.retain(|_, free_at| *free_at > now);
    if shard.len() < capacity {
        return;
    }
    let mut times: Vec<u64> = shard.values().copied().collect();
    let (_, quarter, _) = times.select_nth_unstable(capacity / 4);
    let quarter = *quarter;
    shard.retain(|_, free_at| *free_at > quarter);
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits").field("entries", &self.len()).finish()
    }
}
