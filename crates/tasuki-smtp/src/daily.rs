//! Daily caps: to how many recipients a principal may send between two midnights (UTC).
//!
//! Recipients are reserved at RCPT, counted when their mail is accepted, and added to the store's sums within seconds,
//! so that a restart does not refill a cap and gateways on one store share it. A crash forgets the last seconds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tasuki_core::{
    accounts::PrincipalKind,
    clock::{Clock, Timestamp},
    events::{EventBus, What},
    ids::PrincipalId,
    store::{MailStore, StoreError, accounts::Principal},
};
use tasuki_proto::smtp::Reply;
use tokio::sync::Notify;

use crate::{config::Settings, context::Context, counts};

#[cfg(test)]
mod tests;

const DAY_MS: i64 = 86_400_000;

const UNAVAILABLE: Reply = Reply::new(
    451,
    (4, 3, 0),
    "the daily cap cannot be checked now, try again later",
);

/// The counts of the day. Bounded by the number of principals.
#[derive(Default)]
pub(crate) struct Daily {
    counts: Mutex<Counts>,
    counted: Notify,
}

#[derive(Default)]
struct Counts {
    day: i64,
    by: HashMap<PrincipalId, Count>,
}

#[derive(Default)]
struct Count {
    /// The store's sum, of all gateways.
    stored: u64,
    /// Accepted here and not in that sum yet.
    pending: u64,
    /// Named in transactions that are open.
    reserved: u64,
    told: Level,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    #[default]
    Below,
    Near,
    Full,
}

impl Count {
    fn used(&self) -> u64 {
        self.stored + self.pending
    }

    fn level(&self, cap: u64) -> Level {
        let used = self.used();
        if used >= cap {
            Level::Full
        } else if used.saturating_mul(5) >= cap.saturating_mul(4) {
            Level::Near
        } else {
            Level::Below
        }
    }
}

/// The cap of a principal: its own, or the one of people.
pub(crate) fn cap_of(settings: &Settings, principal: &Principal) -> Option<u64> {
    let people = (principal.kind == PrincipalKind::Person && settings.recipients_per_day > 0)
        .then_some(settings.recipients_per_day);
    principal.mail_daily().or(people).map(u64::from)
}

fn has_room(count: &Count, day: i64, cap: u64) -> Result<(), Reply> {
    if count.used() + count.reserved < cap {
        return Ok(());
    }
    let reset = Timestamp((day + 1) * DAY_MS);
    let text = format!("the daily cap of {cap} recipients is reached, it is free again at {reset}");
    Err(Reply::with_text(451, (4, 7, 1), text))
}

fn day_of(now: Timestamp) -> i64 {
    now.0.div_euclid(DAY_MS)
}

impl Daily {
    fn today(&self, day: i64) -> MutexGuard<'_, Counts> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.day != day {
            counts.day = day;
            counts.by.clear();
        }
        counts
    }

    /// Reserves one recipient.
    async fn take(
        &self,
        store: &dyn MailStore,
        clock: &Clock,
        who: PrincipalId,
        cap: u64,
    ) -> Result<(), Reply> {
        let (day, mut counts) = self.counts_with(store, clock, who, cap).await?;
        let count = counts.by.entry(who).or_default();
        has_room(count, day, cap)?;
        count.reserved += 1;
        Ok(())
    }

    /// The counts of today, with this principal's among them.
    async fn counts_with(
        &self,
        store: &dyn MailStore,
        clock: &Clock,
        who: PrincipalId,
        cap: u64,
    ) -> Result<(i64, MutexGuard<'_, Counts>), Reply> {
        let day = day_of(clock.wall());
        if !self.today(day).by.contains_key(&who) {
            let sums = store.add_sent(day, vec![(who, 0)]).await.map_err(|error| {
                tracing::error!(%error, "a daily cap cannot be read");
                UNAVAILABLE
            })?;
            let mut count = Count {
                stored: sums.first().copied().unwrap_or(0),
                ..Count::default()
            };
            count.told = count.level(cap);
            self.today(day).by.entry(who).or_insert(count);
        }
        Ok((day, self.today(day)))
    }

    /// How many recipients of the cap are used, or the refusal that the next one gets.
    pub(crate) async fn look(
        &self,
        store: &dyn MailStore,
        clock: &Clock,
        who: PrincipalId,
        cap: u64,
    ) -> Result<u64, Reply> {
        let (day, mut counts) = self.counts_with(store, clock, who, cap).await?;
        let count = counts.by.entry(who).or_default();
        has_room(count, day, cap)?;
        Ok(count.used() + count.reserved)
    }

    /// A transaction is over.
    fn end(&self, clock: &Clock, events: &EventBus, open: &Open, accepted: bool) {
        let mut counts = self.today(day_of(clock.wall()));
        let count = counts.by.entry(open.who).or_default();
        count.reserved = count.reserved.saturating_sub(open.recipients);
        if !accepted {
            return;
        }
        count.pending += open.recipients;
        let level = count.level(open.cap);
        if level > count.told {
            count.told = level;
            events.emit(What::DailyCapNear {
                principal: open.who,
                name: open.name.clone(),
                used: count.used(),
                cap: open.cap,
            });
        }
        self.counted.notify_one();
    }

    /// Adds what is pending to the store's sums.
    async fn flush(&self, store: &dyn MailStore, clock: &Clock) -> Result<(), StoreError> {
        let day = day_of(clock.wall());
        let mut pending: Vec<(PrincipalId, u64)> = self
            .today(day)
            .by
            .iter()
            .filter(|(_, count)| count.pending > 0)
            .map(|(who, count)| (*who, count.pending))
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        // In one order everywhere, so that gateways do not wait for each other in a circle.
        pending.sort_by_key(|(who, _)| who.0);
        let sums = store.add_sent(day, pending.clone()).await?;
        let mut counts = self.today(day);
        for ((who, added), sum) in pending.into_iter().zip(sums) {
            if let Some(count) = counts.by.get_mut(&who) {
                count.pending = count.pending.saturating_sub(added);
                count.stored = sum;
            }
        }
        Ok(())
    }
}

/// Recipients that are reserved for the transaction of a session; given back unless it is accepted.
pub(crate) struct Reserved {
    context: Arc<Context>,
    open: Open,
}

struct Open {
    who: PrincipalId,
    name: String,
    cap: u64,
    recipients: u64,
}

impl Reserved {
    /// Reserves one more recipient, or says which cap is reached and until when.
    pub(crate) async fn add(
        reserved: &mut Option<Self>,
        context: &Arc<Context>,
        principal: &Principal,
        cap: u64,
    ) -> Result<(), Reply> {
        let deps = &context.deps;
        context
            .daily
            .take(&*deps.store, &deps.clock, principal.id, cap)
            .await?;
        let reserved = reserved.get_or_insert_with(|| Self {
            context: Arc::clone(context),
            open: Open {
                who: principal.id,
                name: principal.name.clone(),
                cap,
                recipients: 0,
            },
        });
        reserved.open.recipients += 1;
        Ok(())
    }

    /// The mail is accepted: what was reserved is used.
    pub(crate) fn accepted(mut self) {
        let deps = &self.context.deps;
        self.context
            .daily
            .end(&deps.clock, &deps.events, &self.open, true);
        self.open.recipients = 0;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.open.recipients > 0 {
            let deps = &self.context.deps;
            self.context
                .daily
                .end(&deps.clock, &deps.events, &self.open, false);
        }
    }
}

/// Brings counts into the store until the engine closes.
pub(crate) async fn keeper(context: Arc<Context>) {
    counts::keep(&context, &context.daily.counted, || flush(&context)).await;
}

/// Brings counts into the store now.
pub(crate) async fn flush(context: &Context) {
    if let Err(error) = context
        .daily
        .flush(&*context.deps.store, &context.deps.clock)
        .await
    {
        tracing::warn!(%error, "daily counts cannot be stored, they are kept and tried again");
        context.daily.counted.notify_one();
    }
}
