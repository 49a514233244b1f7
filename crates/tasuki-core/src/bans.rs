//! Bans: who offended, for how long, and who is never banned.
//!
//! A ban starts with the single address (/32 of IPv4, /64 of IPv6) in the engine that saw the offence. An attack (scan,
//! password spray, relay probes) counts in all engines; the prefix (/24, /48) follows when several of its addresses
//! were banned. Repetition makes it longer. The thresholds stand side by side in `bans/rules.rs`.
//!
//! Never banned: loopback and what [`Bans::set_exempt`] names (trusted proxies, device networks, the networks of ACL
//! allow rules). The control socket has no address and never comes here. An address where a principal, agent or
//! subscribed host proved itself within 30 days is slowed, not banned, unless a person banned it.
//!
//! **Invariant:** only what a peer did is an offence; callers never report failures of our own (invariant 9). All tables
//! are bounded, and no call from a connection waits for the store.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::clock::{Clock, Timestamp};
use crate::engine::EngineKind;
use crate::events::EventBus;
use crate::ids::BanId;
use crate::net;
use crate::shutdown::Shutdown;
use crate::store::bans::{Ban, NewBan};
use crate::store::{Actor, BanStore, StoreError, StoreResult};

mod keeper;
mod rules;
mod table;
mod tally;
#[cfg(test)]
mod tests;

use keeper::Order;
use rules::Kind;
use table::{Held, Table};
use tally::{Full, Tally};

/// Who makes the bans that nobody made by hand.
const GATEWAY: &str = "gateway";

/// What an address did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offence {
    /// A wrong secret. The same wrong one again counts once: `secret_hash` tells them apart.
    WrongSecret {
        /// Any hash of name and secret that is equal for equal tries.
        secret_hash: u64,
    },
    /// A login with a name that nobody has. Counted together with wrong secrets, each name once; several of them are a
    /// password spray.
    UnknownName {
        /// Any hash of the name that is equal for equal names.
        name_hash: u64,
    },
    /// Tried to relay without permission.
    RelayProbe,
    /// Asked for names or ports that are not there, one after another.
    Scan,
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
    Slowed(Duration),
    /// Banned, for this reason.
    Banned(String),
}

/// A network that is never banned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exempt {
    /// The addresses.
    pub net: IpNet,
    /// Only in this engine; `None` for all.
    pub engine: Option<EngineKind>,
    /// Why, for `explain`: `server.trusted_proxies`, `mail.devices`, `rule 2 of the file`.
    pub why: String,
}

impl From<IpNet> for Exempt {
    fn from(net: IpNet) -> Self {
        Self {
            net,
            engine: None,
            why: "the configuration".to_owned(),
        }
    }
}

/// What is known against an address, and for it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Explanation {
    /// How the address is treated, by engine.
    pub standing: Vec<(EngineKind, String)>,
    /// The reasons, one sentence each.
    pub because: Vec<String>,
}

/// Why a ban was not made by hand.
#[derive(Debug, thiserror::Error)]
pub enum BanError {
    /// All its addresses are exempt.
    #[error("{net} is never banned: it belongs to {why}")]
    Exempt {
        /// What was to be banned.
        net: IpNet,
        /// What exempts it.
        why: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The table of bans; clones share it.
#[derive(Clone)]
pub struct Bans {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn BanStore>,
    clock: Clock,
    events: EventBus,
    table: RwLock<Table>,
    tally: Mutex<Tally>,
    proofs_by_net: RwLock<HashMap<IpNet, Proof>>,
    exempt: ArcSwap<Vec<Exempt>>,
    orders: mpsc::Sender<Order>,
    /// Taken by [`Bans::start`].
    waiting_orders: Mutex<Option<mpsc::Receiver<Order>>>,
    /// Counts changes of what is stored, so that a refresh that was overtaken by one reads again.
    changes: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Proof {
    at: Timestamp,
    /// Whether the keeper was told.
    told: bool,
}

/// Addresses whose proof is remembered; the oldest go when there are more.
const PROOFS: usize = 65_536;
/// A proof is written again when the noted one is this old.
const PROOF_AGAIN: Duration = Duration::from_secs(3600);
/// Changes that wait for the store; more are kept in memory only.
const ORDERS: usize = 1024;

impl Bans {
    /// The table on top of `store`. It knows what is stored after [`Bans::start`].
    #[must_use]
    pub fn new(store: Arc<dyn BanStore>, clock: Clock, events: EventBus) -> Self {
        let (orders, waiting_orders) = mpsc::channel(ORDERS);
        Self {
            inner: Arc::new(Inner {
                store,
                clock,
                events,
                table: RwLock::default(),
                tally: Mutex::default(),
                proofs_by_net: RwLock::default(),
                exempt: ArcSwap::default(),
                orders,
                waiting_orders: Mutex::new(Some(waiting_orders)),
                changes: AtomicU64::new(0),
            }),
        }
    }

    /// Loads what is stored, then starts the one task that stores new bans and, in a store that is shared, follows what other
    /// gateways change (every 30 seconds). `shutdown` waits for it. A second call only loads again.
    ///
    /// # Errors
    /// The store's, while loading.
    pub async fn start(&self, shutdown: &Shutdown) -> StoreResult<()> {
        self.refresh().await?;
        self.reload_proofs().await?;
        let waiting = self
            .inner
            .waiting_orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waiting) = waiting {
            let keeper = keeper::run(self.clone(), waiting, shutdown.clone());
            drop(shutdown.spawn(keeper));
        }
        Ok(())
    }

    /// Replaces the networks that are never banned. A network of all addresses (`0.0.0.0/0`, `::/0`) is left out: a rule
    /// that lets everybody in is a policy, not a word for an address, and would switch the bans off.
    pub fn set_exempt(&self, nets: impl IntoIterator<Item = impl Into<Exempt>>) {
        let nets = nets
            .into_iter()
            .map(Into::into)
            .filter(|exempt: &Exempt| exempt.net.prefix_len() > 0)
            .collect();
        self.inner.exempt.store(Arc::new(nets));
    }

    /// How `engine` should treat `from`; reads memory only.
    #[must_use]
    pub fn standing(&self, engine: EngineKind, from: IpAddr) -> Standing {
        let from = net::unmapped(from);
        let now = self.inner.clock.wall();
        let (by_hand, reason, repeats) = {
            let table = self.inner.table.read().unwrap_or_else(PoisonError::into_inner);
            match table.find(engine, from, now) {
                Some(held) => (held.by_hand, Arc::clone(&held.reason), held.repeats),
                None => return Standing::Clear,
            }
        };
        if self.why_exempt(engine, from).is_some() {
            Standing::Clear
        } else if !by_hand && self.is_proven(from, now) {
            Standing::Slowed(rules::delay(repeats))
        } else {
            Standing::Banned(reason.to_string())
        }
    }

    /// Notes an offence; bans when the rules say so. Never waits: the ban is stored in the background.
    pub fn offence(&self, engine: EngineKind, from: IpAddr, what: Offence) {
        let from = net::unmapped(from);
        if self.why_exempt(engine, from).is_some()
            || matches!(self.standing(engine, from), Standing::Banned(_))
        {
            return;
        }
        let single = net::single(from);
        let full = self.tally().note(self.inner.clock.now(), engine, single, what);
        if let Some(full) = full {
            self.impose(engine, from, what, full);
        }
    }

    /// Notes that somebody proved who they are from this address. Never waits.
    pub fn proved(&self, from: IpAddr) {
        let from = net::unmapped(from);
        if from.is_loopback() {
            return;
        }
        let net = net::single(from);
        let now = self.inner.clock.wall();
        let is_fresh = |p: &Proof| p.told && now.since(p.at) < PROOF_AGAIN;
        if self.proofs_read().get(&net).is_some_and(is_fresh) {
            return;
        }
        let told = self.inner.orders.try_send(Order::Proved(net.addr(), now)).is_ok();
        let mut proofs = self
            .inner
            .proofs_by_net
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if !proofs.contains_key(&net) {
            let holds = |_: &IpNet, p: &Proof| now.since(p.at) < rules::PROOF_HOLDS;
            tally::make_room(&mut proofs, PROOFS, holds, |p| p.at);
        }
        proofs.insert(net, Proof { at: now, told });
    }

    /// The bans that hold now, as stored.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self) -> StoreResult<Vec<Ban>> {
        self.inner.store.bans(self.inner.clock.wall()).await
    }

    /// Bans `net` by hand in `engine` (`None`: all) for `length` (`None`: for ever). It holds for proven addresses too.
    ///
    /// # Errors
    /// See [`BanError`].
    pub async fn add(
        &self,
        net: IpNet,
        engine: Option<EngineKind>,
        reason: &str,
        length: Option<Duration>,
        actor: &Actor,
    ) -> Result<Ban, BanError> {
        let net = net.trunc();
        if let Some(why) = self.why_wholly_exempt(net) {
            return Err(BanError::Exempt { net, why });
        }
        let now = self.inner.clock.wall();
        let new = NewBan {
            net,
            engine,
            reason: reason.to_owned(),
            // `gateway` marks those that made themselves.
            by: if actor.who == GATEWAY {
                "operator".to_owned()
            } else {
                actor.who.clone()
            },
            since: now,
            until: length.map(|l| now.plus(l)),
        };
        let audit = actor.entry(now, "ban.add", net.to_string(), describe(&new));
        Ok(self.store_ban(new, audit).await?)
    }

    /// Ends a ban, and forgets what was counted against its addresses.
    ///
    /// # Errors
    /// The store's: `NotFound` if it does not hold.
    pub async fn remove(&self, id: BanId, actor: &Actor) -> StoreResult<()> {
        let now = self.inner.clock.wall();
        let bans = self.inner.store.bans(now).await?;
        let ban = bans
            .into_iter()
            .find(|b| b.id == id)
            .ok_or_else(|| StoreError::NotFound(format!("the ban {id}")))?;
        let audit = actor.entry(now, "ban.remove", ban.net.to_string(), ban.reason);
        self.inner.store.remove_ban(id, audit).await?;
        self.inner.changes.fetch_add(1, Ordering::AcqRel);
        self.tally().forgive(&ban.net);
        self.table_write()
            .remove(|net, held| held.id == Some(id) || (*net == ban.net && held.engine == ban.engine));
        Ok(())
    }

    /// Why `from` is treated as it is, in words for a person.
    #[must_use]
    pub fn explain(&self, from: IpAddr) -> Explanation {
        let from = net::unmapped(from);
        let now = self.inner.clock.wall();
        let mut because: Vec<String> = Vec::new();
        for engine in EngineKind::ALL {
            if let Some(why) = self.why_exempt(engine, from) {
                because.push(format!("never banned in {engine}: it belongs to {why}"));
            }
        }
        if self.is_proven(from, now) {
            because.push("somebody proved who they are from here within 30 days".to_owned());
        }
        let table = self.inner.table.read().unwrap_or_else(PoisonError::into_inner);
        because.extend(table.all(from).filter(|(_, h)| h.holds(now)).map(|(net, held)| {
            let number = held.id.map_or(String::new(), |id| format!(" (ban {id})"));
            let scope = held.engine.map_or("all engines", EngineKind::name);
            let end = held
                .until
                .map_or("for ever".to_owned(), |until| format!("until {until}"));
            format!("{net} in {scope} {end}{number}: {}", held.reason)
        }));
        drop(table);
        let say = |engine| match self.standing(engine, from) {
            Standing::Clear => "clear".to_owned(),
            Standing::Slowed(by) => format!("slowed by {} s", by.as_secs()),
            Standing::Banned(reason) => format!("banned: {reason}"),
        };
        Explanation {
            standing: EngineKind::ALL.map(|e| (e, say(e))).into(),
            because,
        }
    }

    /// Reads the stored bans again.
    ///
    /// # Errors
    /// The store's; what was known stays then.
    pub async fn refresh(&self) -> StoreResult<()> {
        // A change while we were reading is not in what we read: read again, but not for ever.
        for _ in 0..3 {
            let before = self.inner.changes.load(Ordering::Acquire);
            let now = self.inner.clock.wall();
            let bans = self.inner.store.bans(now).await?;
            let mut table = self.table_write();
            if self.inner.changes.load(Ordering::Acquire) == before {
                table.replace_stored(bans, now);
                return Ok(());
            }
        }
        Ok(())
    }

    async fn reload_proofs(&self) -> StoreResult<()> {
        let now = self.inner.clock.wall();
        let proved = self.inner.store.proved(now.minus(rules::PROOF_HOLDS)).await?;
        let mut proofs = self
            .inner
            .proofs_by_net
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // What is stored ends 30 days after it was noted, which the next reload sees; what was proved since the last
        // reload may not be stored yet.
        proofs.retain(|_, p| now.since(p.at) < PROOF_AGAIN * 2);
        let room = PROOFS.saturating_sub(proofs.len());
        let stored = Proof {
            at: now.minus(PROOF_AGAIN * 2),
            told: true,
        };
        for ip in proved.into_iter().take(room) {
            proofs.entry(net::single(ip)).or_insert(stored);
        }
        Ok(())
    }

    fn impose(&self, engine: EngineKind, from: IpAddr, what: Offence, full: Full) {
        let rule = Kind::of(what).rule();
        let single = net::single(from);
        let scope = (!full.attack).then_some(engine);
        let reason = if full.attack && !rule.attack {
            "password spray".to_owned()
        } else {
            format!("{} {}", rule.tries, rule.name)
        };
        let now = self.inner.clock.wall();
        if self.is_proven(from, now) {
            self.slow(single, scope, reason, rule.first, now);
            return;
        }
        self.ban(single, scope, reason.clone(), rule.first, engine);
        let prefix = net::prefix(from);
        let several = self
            .tally()
            .note_banned(self.inner.clock.now(), prefix, single, full.attack);
        if let Some(several) = several {
            let scope = (!several.attack).then_some(engine);
            let reason = format!(
                "{} of its addresses were banned, the last for: {reason}",
                rules::PREFIX_ADDRESSES
            );
            self.ban(prefix, scope, reason, rule.first, engine);
        }
    }

    /// A proven address that goes on offending is slowed more each time; nothing of this is stored.
    fn slow(&self, net: IpNet, engine: Option<EngineKind>, reason: String, first: Duration, now: Timestamp) {
        let mut table = self.table_write();
        let repeats = table
            .all(net.addr())
            .find(|(n, held)| *n == net && held.engine == engine && held.holds(now))
            .map_or(0, |(_, held)| held.repeats.saturating_add(1));
        let held = Held {
            id: None,
            engine,
            until: Some(now.plus(rules::length(first, repeats))),
            reason: reason.into(),
            by_hand: false,
            repeats,
        };
        table.put(net, held, now);
    }

    /// Holds at once for the first length; the keeper stores it and makes it longer when it is a repetition.
    fn ban(
        &self,
        net: IpNet,
        scope: Option<EngineKind>,
        reason: String,
        first: Duration,
        seen_by: EngineKind,
    ) {
        let now = self.inner.clock.wall();
        let held = Held {
            id: None,
            engine: scope,
            until: Some(now.plus(first)),
            reason: reason.as_str().into(),
            by_hand: false,
            repeats: 0,
        };
        self.table_write().put(net, held, now);
        let new = NewBan {
            net,
            engine: scope,
            reason,
            by: GATEWAY.to_owned(),
            since: now,
            until: Some(now.plus(first)),
        };
        if self
            .inner
            .orders
            .try_send(Order::Ban(new, first, seen_by))
            .is_err()
        {
            tracing::debug!(%net, "the ban is kept in memory only: too many wait for the store");
        }
    }

    /// Stores a ban and puts what the store made of it into the table.
    async fn store_ban(&self, new: NewBan, audit: crate::store::AuditEntry) -> StoreResult<Ban> {
        let ban = self.inner.store.add_ban(new, audit).await?;
        self.inner.changes.fetch_add(1, Ordering::AcqRel);
        self.table_write()
            .put(ban.net, ban.clone().into(), self.inner.clock.wall());
        Ok(ban)
    }

    /// What exempts `from` in `engine`, if anything does.
    fn why_exempt(&self, engine: EngineKind, from: IpAddr) -> Option<String> {
        if from.is_loopback() {
            return Some("loopback".to_owned());
        }
        let exempt = self.inner.exempt.load();
        let found = exempt
            .iter()
            .find(|e| e.engine.is_none_or(|only| only == engine) && e.net.contains(&from));
        found.map(|e| e.why.clone())
    }

    fn why_wholly_exempt(&self, net: IpNet) -> Option<String> {
        let loopback =
            |ip: IpAddr| net.prefix_len() >= if ip.is_ipv4() { 8 } else { 128 } && ip.is_loopback();
        if loopback(net.addr()) {
            return Some("loopback".to_owned());
        }
        let exempt = self.inner.exempt.load();
        let found = exempt.iter().find(|e| e.engine.is_none() && e.net.contains(&net));
        found.map(|e| e.why.clone())
    }

    /// Whether somebody proved who they are from here within 30 days; loopback need not.
    #[must_use]
    pub fn has_proved(&self, from: IpAddr) -> bool {
        let from = net::unmapped(from);
        from.is_loopback() || self.is_proven(from, self.inner.clock.wall())
    }

    fn is_proven(&self, from: IpAddr, now: Timestamp) -> bool {
        self.proofs_read()
            .get(&net::single(from))
            .is_some_and(|p| now.since(p.at) < rules::PROOF_HOLDS)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.inner.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.inner.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn proofs_read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<IpNet, Proof>> {
        self.inner
            .proofs_by_net
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ban in words, for the audit.
fn describe(new: &NewBan) -> String {
    let scope = new.engine.map_or("all engines", EngineKind::name);
    let end = new
        .until
        .map_or("for ever".to_owned(), |until| format!("until {until}"));
    format!("in {scope} {end}: {}", new.reason)
}

impl fmt::Debug for Bans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bans")
    }
}
