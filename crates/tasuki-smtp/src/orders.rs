//! What operators order: held, returned and deleted mail, lanes at rest, and how an order finds what is in memory.
//!
//! The store keeps the orders. A delivery that has one is due like any other, and is obeyed here in place of an attempt;
//! so whatever ends a mail passes through the same settlement, and the figures add up.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tasuki_core::{
    failure::{Blame, Failure, Verdict},
    ids::MailId,
    store::{
        AuditEntry, StoreError,
        mail::{DeliveryState, Hold, LaneKey, Order, Paused, QueueFilter, QueueState},
    },
};

use crate::{
    config::Settings,
    context::{Context, Job},
    deliver::conclude_all,
    engine::Handle,
    lanes::LaneStatus,
};

/// Deliveries looked at in one transaction of the store.
const AT_ONCE: usize = 2_000;
/// How long fresh mail that is taken out of memory for an order waits for it.
const FOR_AN_ORDER: Duration = Duration::from_secs(30);

/// Lanes to which nothing is sent, as last read from the store.
#[derive(Default)]
pub(crate) struct Pauses(ArcSwap<HashMap<LaneKey, String>>);

impl Pauses {
    pub(crate) fn replace(&self, paused: Vec<Paused>) {
        let by_lane = paused.into_iter().map(|p| (p.lane, p.reason)).collect();
        self.0.store(Arc::new(by_lane));
    }

    /// Why nothing is sent there.
    pub(crate) fn why(&self, lane: &LaneKey) -> Option<String> {
        let by_lane = self.0.load();
        if by_lane.is_empty() {
            return None;
        }
        let of_all = || by_lane.get(&LaneKey(LaneKey::ALL.to_owned()));
        by_lane
            .get(lane)
            .or_else(of_all)
            .map(|reason| match reason.as_str() {
                "" => "paused by an operator".to_owned(),
                reason => format!("paused by an operator: {reason}"),
            })
    }
}

/// Does what is ordered for a job; gives it back if it is to be tried.
pub(crate) async fn obey(context: &Arc<Context>, settings: &Settings, job: Job) -> Option<Job> {
    let expired = context.deps.clock.wall() >= job.held.expires_at;
    let rests = match job.held.orders.state {
        DeliveryState::Waiting => context.pauses.why(&job.held.lane),
        DeliveryState::Held => Some("held by an operator".to_owned()),
        DeliveryState::Bounce => {
            let why = "an operator of this server returned it".to_owned();
            give_up(context, settings, job, Verdict::Permanent, why).await;
            return None;
        }
        DeliveryState::Delete => {
            context.delete(job).await;
            return None;
        }
    };
    match rests {
        None => return Some(job),
        Some(why) if expired => {
            let why = format!("it expired while it was {why}");
            give_up(context, settings, job, Verdict::Retry { not_before: None }, why).await
        }
        Some(why) => {
            let end = job.held.expires_at;
            context.put_off(job, end, &why).await;
        }
    }
    None
}

pub(crate) fn of_lane(lane: LaneKey) -> QueueFilter {
    QueueFilter {
        lane: Some(lane).filter(|lane| lane.0 != LaneKey::ALL),
        ..QueueFilter::default()
    }
}

async fn give_up(context: &Arc<Context>, settings: &Settings, job: Job, verdict: Verdict, why: String) {
    let failure = || Failure {
        verdict,
        blame: Blame::Us,
        reply: None,
        source: Some(why.clone().into()),
    };
    conclude_all(context, settings, job, None, &failure).await;
}

impl Handle {
    /// Gives an order to all deliveries that match and that nobody tries at this moment; returns how many it changed.
    /// Fresh mail is taken out of memory for it.
    ///
    /// # Errors
    /// The store's; what was ordered before the error stays.
    pub async fn order(
        &self,
        filter: &QueueFilter,
        order: &Order,
        audit: &AuditEntry,
    ) -> Result<u64, StoreError> {
        let own = self.order_quietly(filter, order, audit).await?;
        match order {
            Order::Release | Order::Retry | Order::Reroute(_) => self.retry_now(),
            Order::Hold | Order::Bounce | Order::Delete => self.context.wake.notify_one(),
        }
        Ok(own + self.announce(filter, Some(order), audit).await)
    }

    /// As [`Handle::order`], without letting resting lanes try.
    pub(crate) async fn order_quietly(
        &self,
        filter: &QueueFilter,
        order: &Order,
        audit: &AuditEntry,
    ) -> Result<u64, StoreError> {
        self.recall(filter).await;
        let deliveries = self.give(filter, order, audit).await?;
        for job in self.matching(filter, |hold| matches!(hold, Hold::Lane(..))) {
            // It was read before the order.
            self.forget(&job);
        }
        Ok(deliveries)
    }

    /// Gives an order to what is in the store; returns how many deliveries it changed.
    pub(crate) async fn give(
        &self,
        filter: &QueueFilter,
        order: &Order,
        audit: &AuditEntry,
    ) -> Result<u64, StoreError> {
        let store = &self.context.deps.store;
        let mut rest = filter.clone();
        let mut deliveries = 0;
        loop {
            let now = self.context.deps.clock.wall();
            let done = store.order(&rest, order, now, AT_ONCE, audit.clone()).await?;
            deliveries += done.deliveries;
            if done.after.is_none() {
                return Ok(deliveries);
            }
            rest.after = done.after;
        }
    }

    /// Sends nothing more to this lane (or [`LaneKey::ALL`]) until it is resumed; what is being sent goes on. Mail waits there until it expires.
    ///
    /// # Errors
    /// The store's.
    pub async fn pause(&self, paused: Paused, audit: AuditEntry) -> Result<(), StoreError> {
        let lane = paused.lane.clone();
        let store = &self.context.deps.store;
        store.pause_lane(paused, audit.clone()).await?;
        self.context.refresh_pauses().await?;
        let of_lane = of_lane(lane);
        self.recall(&of_lane).await;
        self.announce(&of_lane, None, &audit).await;
        Ok(())
    }

    /// Ends a pause; what waits is tried now. Returns how many deliveries.
    ///
    /// # Errors
    /// The store's; `NotFound` if the lane is not paused.
    pub async fn resume(&self, lane: &LaneKey, audit: &AuditEntry) -> Result<u64, StoreError> {
        self.context.deps.store.resume_lane(lane, audit.clone()).await?;
        self.context.refresh_pauses().await?;
        self.announce(&of_lane(lane.clone()), None, audit).await;
        self.order(&of_lane(lane.clone()), &Order::Retry, audit).await
    }

    /// Takes what matches out of memory, so that an order finds it in the store; returns when it is there, and which of it
    /// was fresh.
    pub(crate) async fn recall(&self, filter: &QueueFilter) -> BTreeSet<MailId> {
        let context = &self.context;
        let mut fresh = BTreeSet::new();
        let due = context.deps.clock.wall().plus(FOR_AN_ORDER);
        for job in self.matching(filter, |_| true) {
            match job.held.hold {
                Hold::Fresh(_) => {
                    fresh.insert(job.held.mail);
                    context
                        .put_off(job, due, "taken out for an operator's order")
                        .await
                }
                Hold::Lane(..) => self.forget(&job),
            }
        }
        context.settled().await;
        fresh
    }

    fn matching(&self, filter: &QueueFilter, hold: impl Fn(Hold) -> bool) -> Vec<Job> {
        // Whatever state it was in when it was read, the store decides.
        let filter = QueueFilter {
            state: None,
            ..filter.clone()
        };
        self.context.lanes.recall(|job| {
            let held = &job.held;
            let recipients = held.recipients.iter().map(|r| &r.mailbox);
            hold(held.hold)
                && filter.matches_mail(held.mail, &held.envelope, held.accepted_at)
                && filter.matches_delivery(&held.lane, QueueState::Deferred, recipients)
        })
    }

    fn forget(&self, job: &Job) {
        let held = &job.held;
        self.context
            .lanes
            .lane(&held.lane)
            .forget(held.mail, held.delivery);
    }

    /// The lane in which mail for this domain waits; `None` if it is no domain.
    #[must_use]
    pub fn lane_to_domain(&self, domain: &str) -> Option<LaneKey> {
        let mailbox = format!("postmaster@{domain}").parse().ok()?;
        Some(crate::route::lane_of(&self.context.settings.load(), &mailbox))
    }

    /// Names the rule that each lane follows.
    pub(crate) fn with_rules(&self, mut lanes: Vec<LaneStatus>) -> Vec<LaneStatus> {
        let settings = self.context.settings.load();
        for lane in &mut lanes {
            let rule = crate::route::provider(&settings, &LaneKey(lane.lane.clone()));
            lane.provider = rule.map(|rule| rule.name.clone());
        }
        lanes
    }

    /// The lane of this key as it is in memory, and the one of its site; none if nothing is there.
    #[must_use]
    pub fn lanes_of(&self, key: &LaneKey) -> Vec<LaneStatus> {
        let lanes = self.context.lanes.status_of(key, self.context.deps.clock.now());
        self.with_rules(lanes)
    }
}

impl Context {
    pub(crate) async fn refresh_pauses(&self) -> Result<(), StoreError> {
        self.pauses.replace(self.deps.store.paused_lanes().await?);
        Ok(())
    }
}
