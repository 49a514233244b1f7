//! The life of a host that cannot be reached: its lane tries it less and less often; after `suspend_after` it gets nothing new
//! and its actor is asked now and then; after `prune_after` it is removed, with a Reject. Any sign of life makes it whole.
//!
//! **Invariant:** removal by itself takes at most 2% of the subscribers a day, and nothing at all while the fault seems to be
//! ours ([`crate::outage`]).

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tasuki_core::clock::Timestamp;
use tasuki_core::events::What;
use tasuki_core::health::{Code, Condition};
use tasuki_core::shutdown::Shutdown;
use tasuki_core::store::StoreError;
use tasuki_core::store::fedi::{HostLife, Pruned};
use tasuki_proto::activitypub::ids::Authority;

use crate::engine::Inner;
use crate::handle::{Handle, HandleError, asker};
use crate::outage::{Fault, Turn};
use crate::subscribe::Asker;
use crate::subscribers::Subscriber;

/// How often lives are looked at, at most and at least.
const OFTEN: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(60);
/// One of so many subscribers may be removed in a day without an operator.
const PRUNED_SHARE: usize = 50;
const DAY_MS: i64 = 86_400_000;

/// A host that is to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadHost {
    /// Authority.
    pub host: String,
    /// Since when nothing reaches it.
    pub failing_since: Timestamp,
    /// The last failure, if it is known.
    pub last_error: Option<String>,
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// All hosts that nothing reached for `prune_after`, the longest dead first.
    pub dead: Vec<DeadHost>,
    /// Removed now.
    pub removed: Vec<String>,
    /// How many may still be removed today without `confirm`.
    pub allowance: usize,
}

/// Looks until the shutdown.
pub(crate) async fn run(inner: Arc<Inner>, shutdown: Shutdown) {
    loop {
        let pause = (inner.config.load().suspend_after / 10).clamp(OFTEN, SELDOM);
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if let Err(error) = inner.look_at_lives().await {
            tracing::debug!(error = %error, "the lives of hosts were not noted");
        }
    }
}

impl Inner {
    async fn look_at_lives(&self) -> Result<(), StoreError> {
        let looks = self.lanes.looks();
        let now = self.deps.clock.wall();
        let config = self.config.load_full();
        // Another gateway sends, or nobody is subscribed.
        if looks.is_empty() || self.subscribers.orders().brake.is_some() {
            return Ok(());
        }
        let turn = self.outage.look(&looks, config.retention, now);
        self.tell(turn).await?;
        if let Some(standstill) = self.outage.unkept() {
            self.store.note_standstill(standstill).await?;
            self.outage.is_kept(standstill);
        }
        if self.outage.fault().is_some() {
            // The probes may try.
            self.lanes.wake_all();
            return Ok(());
        }
        let table = self.subscribers.table();
        let looks: std::collections::HashMap<_, _> = looks.iter().map(|look| (look.host, look)).collect();
        let mut lives = Vec::new();
        for subscriber in table.by_host.values() {
            let Some(look) = looks.get(&subscriber.host_no) else {
                continue;
            };
            let mut life = life_of(subscriber);
            match life.failing_since {
                None if look.is_failing => life.failing_since = Some(now),
                Some(since) if !look.is_failing && look.answered_at.is_some_and(|at| at > since) => {
                    (life.failing_since, life.suspended_at) = (None, None);
                }
                Some(since) if life.suspended_at.is_none() && now.since(since) >= config.suspend_after => {
                    life.suspended_at = Some(now);
                    self.deps.events.emit(What::HostSuspended {
                        host: subscriber.authority.to_string(),
                        failing_since: since,
                    });
                }
                _ => {}
            }
            if life != life_of(subscriber) {
                lives.push(life);
            }
        }
        if !lives.is_empty() {
            self.store.note_lives(lives).await?;
            self.subscribers.refresh().await?;
        }
        let asker = Asker {
            who: "life cycle".to_owned(),
            from: "tasuki".to_owned(),
        };
        self.prune(false, asker).await.map(drop)
    }

    /// Says once that the fault seems to be ours, and once that it is over.
    async fn tell(&self, turn: Option<Turn>) -> Result<(), StoreError> {
        match turn {
            None => {}
            Some(Turn::Began(fault)) => {
                let reason = fault.in_words();
                let code = match fault {
                    Fault::Away { .. } | Fault::Before => Code::Network,
                    Fault::Clock { .. } => Code::Clock,
                };
                let condition = Condition::warning(code, reason.clone());
                self.deps.health.set("fediverse.outage", Some(condition));
                self.deps.events.emit(What::OutageBegan { reason });
            }
            Some(Turn::Ended(lasted)) => {
                self.deps.health.set("fediverse.outage", None);
                self.deps.events.emit(What::OutageEnded {
                    lasted_s: lasted.as_secs(),
                });
                // Nobody is dead for longer because we were away.
                let table = self.subscribers.table();
                let lives = table
                    .by_host
                    .values()
                    .map(|one| life_of(one))
                    .filter_map(|mut life| {
                        life.failing_since = Some(life.failing_since?.plus(lasted));
                        Some(life)
                    });
                let lives: Vec<HostLife> = lives.collect();
                if !lives.is_empty() {
                    self.store.note_lives(lives).await?;
                    self.subscribers.refresh().await?;
                }
                self.lanes.try_all();
            }
        }
        Ok(())
    }

    /// A host proved that it is there.
    pub(crate) async fn is_heard(&self, host: &Authority) {
        self.lanes.peer_is_alive(host);
        let table = self.subscribers.table();
        let Some(subscriber) = table.host(host).filter(|one| one.suspended_at.is_some()) else {
            return;
        };
        let life = HostLife {
            host: subscriber.host_no,
            failing_since: None,
            suspended_at: None,
        };
        let noted = self.store.note_lives(vec![life]).await;
        if let Err(error) = match noted {
            Ok(()) => self.subscribers.refresh().await.map(drop),
            Err(error) => Err(error),
        } {
            tracing::debug!(actor.host = %host, error = %error, "a sign of life was not noted");
        }
    }

    /// The hosts that nothing reached for `prune_after`, the longest dead first.
    fn dead(&self) -> Vec<(DeadHost, Arc<Subscriber>)> {
        let now = self.deps.clock.wall();
        let prune_after = self.config.load().prune_after;
        let table = self.subscribers.table();
        let errors: std::collections::HashMap<String, Option<String>> = self
            .lanes
            .status()
            .into_iter()
            .map(|lane| (lane.host, lane.last_error))
            .collect();
        let mut dead: Vec<_> = table
            .by_host
            .values()
            .filter(|one| one.suspended_at.is_some())
            .filter_map(|one| Some((one.failing_since?, one)))
            .filter(|(since, _)| now.since(*since) >= prune_after)
            .map(|(failing_since, one)| {
                let host = one.authority.to_string();
                let last_error = errors.get(&host).cloned().flatten();
                let dead = DeadHost {
                    host,
                    failing_since,
                    last_error,
                };
                (dead, Arc::clone(one))
            })
            .collect();
        dead.sort_by(|(a, _), (b, _)| (a.failing_since, &a.host).cmp(&(b.failing_since, &b.host)));
        dead
    }

    fn allowance(&self) -> (usize, Pruned) {
        let day = self.deps.clock.wall().0.div_euclid(DAY_MS);
        let known = self.subscribers.orders().pruned;
        let today = if known.day == day {
            known
        } else {
            Pruned { day, hosts: 0 }
        };
        let all = self.subscribers.table().by_host.len();
        let share = (all / PRUNED_SHARE).max(1);
        (share.saturating_sub(today.hosts as usize), today)
    }

    /// Removes dead hosts with a Reject to each: as many as a day allows, or all of them.
    async fn prune(&self, confirmed: bool, asker: Asker) -> Result<PruneReport, StoreError> {
        let dead = self.dead();
        let (allowance, mut today) = self.allowance();
        let mut report = PruneReport {
            dead: dead.iter().map(|(dead, _)| dead.clone()).collect(),
            removed: Vec::new(),
            allowance,
        };
        let Some(relay) = self.relay.as_ref() else {
            return Ok(report);
        };
        let n = if confirmed {
            dead.len()
        } else {
            allowance.min(dead.len())
        };
        if n == 0 {
            return Ok(report);
        }
        // Counted first: a crash in between removes fewer than a day allows, never more.
        today.hosts = today.hosts.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        self.store.note_pruned(today).await?;
        report.allowance = allowance.saturating_sub(n);
        for (_, subscriber) in dead.iter().take(n) {
            self.reject(relay, subscriber, None, asker.clone()).await?;
            report.removed.push(subscriber.authority.to_string());
        }
        Ok(report)
    }
}

fn life_of(subscriber: &Subscriber) -> HostLife {
    HostLife {
        host: subscriber.host_no,
        failing_since: subscriber.failing_since,
        suspended_at: subscriber.suspended_at,
    }
}

impl Handle {
    /// The hosts that nothing reached for `fediverse.prune_after`.
    pub fn dead_hosts(&self) -> PruneReport {
        PruneReport {
            dead: self.inner.dead().into_iter().map(|(dead, _)| dead).collect(),
            removed: Vec::new(),
            allowance: self.inner.allowance().0,
        }
    }

    /// Removes them with a Reject to each: as many as may be removed in a day, or with `confirmed` all.
    ///
    /// # Errors
    /// [`HandleError`]; nothing is removed while the fault seems to be ours.
    pub async fn prune(
        &self,
        confirmed: bool,
        (who, from): (&str, &str),
    ) -> Result<PruneReport, HandleError> {
        if let Some(fault) = self.inner.outage.fault() {
            return Err(HandleError::OurFault(fault.in_words()));
        }
        Ok(self.inner.prune(confirmed, asker(who, from)).await?)
    }
}
