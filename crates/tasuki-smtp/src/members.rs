//! Smarthosts as they are: which one works, how fast it connects, and how many connections it has.
//!
//! One that fails rests for a while, as lanes do; the others of its group carry on. When its rest is over it is taken
//! again by itself, in the place that its latency gives it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Smarthost;

#[cfg(test)]
mod tests;

/// All smarthosts that were used so far, by name; as many as the configuration has had.
#[derive(Default)]
pub(crate) struct Members(Mutex<HashMap<Arc<str>, Member>>);

struct Member {
    seats: Arc<Semaphore>,
    limit: usize,
    failures: u32,
    rests_until: Option<Instant>,
    /// Smoothed time from dialling to a greeting and login that went well.
    latency: Option<Duration>,
}

impl Members {
    fn with<T>(&self, smarthost: &Smarthost, act: impl FnOnce(&mut Member) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let member = all.entry(Arc::clone(&smarthost.name)).or_insert_with(|| Member {
            seats: Arc::new(Semaphore::new(smarthost.connections)),
            limit: smarthost.connections,
            failures: 0,
            rests_until: None,
            latency: None,
        });
        if member.limit != smarthost.connections {
            // Connections made under the old limit end by themselves.
            member.seats = Arc::new(Semaphore::new(smarthost.connections));
            member.limit = smarthost.connections;
        }
        act(member)
    }

    /// In the order in which they are to be tried: those that work, the fastest first and those not measured yet before
    /// them, then those that rest, by the end of their rest.
    pub(crate) fn in_order(&self, group: &[Arc<Smarthost>], now: Instant) -> Vec<Arc<Smarthost>> {
        let mut order: Vec<_> = group
            .iter()
            .map(|smarthost| {
                let place = self.with(smarthost, |member| {
                    let rest = member.rests_until.filter(|until| *until > now);
                    (rest, member.latency.unwrap_or_default())
                });
                (place, Arc::clone(smarthost))
            })
            .collect();
        // Stable: equal ones stay in the order of the configuration.
        order.sort_by_key(|(place, _)| *place);
        order.into_iter().map(|(_, smarthost)| smarthost).collect()
    }

    /// A place for one more connection; waits for one.
    pub(crate) async fn seat(&self, smarthost: &Smarthost) -> Option<OwnedSemaphorePermit> {
        let seats = self.with(smarthost, |member| Arc::clone(&member.seats));
        seats.acquire_owned().await.ok()
    }

    /// It connected within `took`; whether it had failed before.
    pub(crate) fn works(&self, smarthost: &Smarthost, took: Duration) -> bool {
        self.with(smarthost, |member| {
            member.rests_until = None;
            member.latency = Some(member.latency.map_or(took, |known| (known * 7 + took) / 8));
            std::mem::take(&mut member.failures) > 0
        })
    }

    /// It failed; how often in a row.
    pub(crate) fn failed(&self, smarthost: &Smarthost, until: impl FnOnce(u32) -> Instant) -> u32 {
        self.with(smarthost, |member| {
            member.failures = member.failures.saturating_add(1);
            member.rests_until = Some(until(member.failures));
            member.failures
        })
    }

    /// Whether it failed when it was tried last.
    pub(crate) fn is_down(&self, name: &str) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).is_some_and(|member| member.failures > 0)
    }

    /// Lets one that rests be tried again at once.
    pub(crate) fn unblock_one(&self, name: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = all.get_mut(name) {
            member.rests_until = None;
        }
    }

    /// Lets all that rest be tried again at once.
    pub(crate) fn unblock(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for member in all.values_mut() {
            member.rests_until = None;
        }
    }
}
