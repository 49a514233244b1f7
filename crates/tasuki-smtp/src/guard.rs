//! Guards people against thieves of their passwords: how much is sent in their name in an hour, and from how many
//! addresses. Who goes far beyond what a person does is switched off (`Accounts::lock`), until an operator undoes it.
//!
//! Counted in memory, by each gateway for itself; an hour begins with the clock's.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tasuki_core::{
    accounts::PrincipalKind, clock::Timestamp, ids::PrincipalId, net, store::accounts::Principal,
};
use tasuki_proto::smtp::Reply;

use crate::{config::Settings, context::Context};

#[cfg(test)]
mod tests;

/// RFC 4954 6: what was let in is let in no more; what is under way is over.
pub(crate) const LOGIN_ENDED: Reply = Reply::new(421, (4, 7, 0), "your login is not good any more, closing");

const HOUR_MS: i64 = 3_600_000;
const HOUR: Duration = Duration::from_secs(3600);
/// A person whose program tries again this often after the cap is no thief yet.
const LEAST_REFUSED: u64 = 100;

/// What was done in whose name. Bounded by the number of principals and their caps.
#[derive(Default)]
pub(crate) struct Guard(Mutex<HashMap<PrincipalId, Watched>>);

#[derive(Default)]
struct Watched {
    hour: i64,
    recipients: u64,
    refused: u64,
    addresses: HashMap<IpNet, Instant>,
    /// It was switched off for that, and sessions from before may still be open.
    locked: bool,
}

/// What a recipient comes to.
#[derive(Debug, PartialEq, Eq)]
enum Charged {
    Fine,
    /// The cap is reached.
    Over,
    /// And was reached so often that nobody waits for it.
    FarOver,
    /// It was switched off in the middle of this mail.
    Locked,
}

/// A cap of people, unless its grant says otherwise.
fn cap(principal: &Principal, granted: Option<u32>, of_people: u32) -> Option<u64> {
    let people = (principal.kind == PrincipalKind::Person && of_people > 0).then_some(of_people);
    granted.or(people).map(u64::from)
}

/// To how many recipients the principal may send in an hour.
pub(crate) fn hourly_cap(settings: &Settings, principal: &Principal) -> Option<u64> {
    cap(principal, principal.mail_hourly(), settings.recipients_per_hour)
}

/// From how many addresses the principal may send within an hour.
pub(crate) fn address_cap(settings: &Settings, principal: &Principal) -> Option<u64> {
    cap(principal, principal.mail_addresses(), settings.addresses_per_hour)
}

impl Guard {
    fn with<T>(&self, who: PrincipalId, look: impl FnOnce(&mut Watched) -> T) -> T {
        let mut by = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(by.entry(who).or_default())
    }

    /// Takes one recipient off the hour's cap.
    fn charge(&self, who: PrincipalId, cap: u64, now: Timestamp) -> Charged {
        let hour = now.0.div_euclid(HOUR_MS);
        self.with(who, |watched| {
            if watched.locked {
                return Charged::Locked;
            }
            if watched.hour != hour {
                (watched.hour, watched.recipients, watched.refused) = (hour, 0, 0);
            }
            if watched.recipients < cap {
                watched.recipients += 1;
                return Charged::Fine;
            }
            watched.refused += 1;
            if watched.refused < cap.max(LEAST_REFUSED) {
                Charged::Over
            } else {
                Charged::FarOver
            }
        })
    }

    /// Notes the address of a login; the number of addresses within the hour if that is above the cap.
    fn seen(&self, who: PrincipalId, cap: u64, from: IpAddr, now: Instant) -> Option<usize> {
        self.with(who, |watched| {
            watched
                .addresses
                .retain(|_, at| now.saturating_duration_since(*at) < HOUR);
            watched.addresses.insert(net::single(from), now);
            let count = watched.addresses.len();
            (count as u64 > cap).then_some(count)
        })
    }

    /// The principal is switched on, as the store says now: after a lock it begins anew.
    pub(crate) fn welcome(&self, who: PrincipalId) {
        let mut by = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if by.get(&who).is_some_and(|watched| watched.locked) {
            by.remove(&who);
        }
    }
}

/// Notes that a principal logged in from here; true if it was locked for that.
pub(crate) async fn seen_from(
    context: &Context,
    settings: &Settings,
    principal: &Principal,
    from: IpAddr,
) -> bool {
    let Some(cap) = address_cap(settings, principal) else {
        return false;
    };
    context.guard.welcome(principal.id);
    let now = context.deps.clock.now();
    let Some(count) = context.guard.seen(principal.id, cap, from, now) else {
        return false;
    };
    let reason =
        format!("it logged in from {count} addresses within an hour, {cap} are allowed: a stolen password?");
    lock(context, principal, &reason).await;
    true
}

/// Takes one recipient off the principal's cap of the hour, or says when it is free again.
pub(crate) async fn charge(
    context: &Context,
    settings: &Settings,
    principal: &Principal,
) -> Result<(), Reply> {
    let Some(cap) = hourly_cap(settings, principal) else {
        return Ok(());
    };
    let now = context.deps.clock.wall();
    let charged = context.guard.charge(principal.id, cap, now);
    match charged {
        Charged::Fine => return Ok(()),
        Charged::Locked => return Err(LOGIN_ENDED),
        Charged::Over | Charged::FarOver => {}
    }
    // A program's queue tries again by itself, and is no thief for that.
    if charged == Charged::FarOver && principal.kind == PrincipalKind::Person {
        let reason = format!(
            "it went on after {cap} recipients in an hour, as many as are allowed: a stolen password?"
        );
        lock(context, principal, &reason).await;
        return Err(LOGIN_ENDED);
    }
    let reset = Timestamp((now.0.div_euclid(HOUR_MS) + 1) * HOUR_MS);
    let text = format!("the hourly cap of {cap} recipients is reached, it is free again at {reset}");
    Err(Reply::with_text(451, (4, 7, 1), text))
}

async fn lock(context: &Context, principal: &Principal, reason: &str) {
    match context.deps.accounts.lock(principal, reason).await {
        Ok(()) => context.guard.with(principal.id, |watched| watched.locked = true),
        // It is tried again with the next login or recipient.
        Err(error) => {
            tracing::error!(%error, principal = principal.name, "an account cannot be locked now");
        }
    }
}
