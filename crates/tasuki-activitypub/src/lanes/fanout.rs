//! The owner of the fan-out: claim, take up, read on, checkpoint, cut.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tasuki_core::ids::{Epoch, HostNo, LogSeq, NodeId};
use tasuki_core::shutdown::Shutdown;
use tasuki_core::store::fedi::{HostProgress, Orders, Progress};
use tasuki_core::store::{FediStore, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Lanes;
use super::lane::{Common, Lane, due_of};
use super::machine::Machine;
use crate::config::FediConfig;

/// How long the fan-out is held without another word, and how often the hold is renewed.
const HOLD: Duration = Duration::from_secs(30);
const RENEW: Duration = Duration::from_secs(10);
/// Shortest time between two checkpoints; also how often other gateways' entries are looked for, if there may be any.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// How often a gateway that does not send asks whether it should.
const CLAIM: Duration = Duration::from_secs(3);
/// How often the log is cut.
const CUT: Duration = Duration::from_secs(60);
/// Entries read at once.
const READ: usize = 64;
const READ_BYTES: u64 = 4 << 20;
/// A well lane this young holds the common mark back instead of getting a row of its own.
const YOUNG: Duration = Duration::from_secs(2);

/// Runs the lanes for as long as this gateway owns them.
pub(crate) struct Fanout {
    pub(crate) store: Arc<dyn FediStore>,
    pub(crate) node: NodeId,
    pub(crate) config: Arc<arc_swap::ArcSwap<FediConfig>>,
    pub(crate) common: Arc<Common>,
    pub(crate) lanes: Arc<Lanes>,
}

/// One time of owning.
struct Reign {
    epoch: Epoch,
    /// Everything up to here was given to the lanes.
    dispatched: Option<LogSeq>,
    /// The last checkpoint.
    all_up_to: Option<LogSeq>,
    rows: HashMap<HostNo, HostProgress>,
    /// The rows found at the start, for lanes that are not made yet.
    behind: HashMap<HostNo, HostProgress>,
    version: Option<i64>,
    orders: Arc<Orders>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Reign {
    /// However it ends, also in the middle of taking up: no lane works on without its owner.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Why a reign ended.
enum Ending {
    Shutdown,
    Lost,
}

impl Fanout {
    /// Owns and works until the shutdown; what is under way then is finished.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        while !shutdown.has_begun() {
            let claimed = self.store.claim_fanout(self.node, HOLD).await;
            let started = match claimed {
                Ok(Some(epoch)) => self.take_up(epoch).await,
                Ok(None) => {
                    // Another gateway sends; it is asked again before its hold could end.
                    pause(&shutdown, CLAIM).await;
                    continue;
                }
                Err(error) => Err(error),
            };
            match started {
                Ok(reign) => {
                    let ending = self.reign(reign, &shutdown).await;
                    if matches!(ending, Ending::Shutdown) {
                        return;
                    }
                }
                Err(error) => {
                    self.lanes.clear();
                    tracing::warn!(error = %error, "the store does not let deliveries begin");
                }
            }
            pause(&shutdown, CHECKPOINT).await;
        }
    }

    async fn take_up(&self, epoch: Epoch) -> Result<Reign, StoreError> {
        let Progress {
            all_up_to,
            behind,
            newest,
        } = self.store.progress().await?;
        let mut reign = Reign {
            epoch,
            dispatched: all_up_to,
            all_up_to,
            rows: behind.iter().map(|row| (row.host, row.clone())).collect(),
            behind: behind.into_iter().map(|row| (row.host, row)).collect(),
            version: None,
            orders: self.common.subscribers.orders(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        tracing::debug!(
            ?all_up_to,
            ?newest,
            behind = reign.behind.len(),
            "deliveries begin"
        );
        self.refresh_hosts(&mut reign).await?;
        let kept = self.common.subscribers.orders().standstill;
        self.common.outage.restore(kept, self.common.clock.wall());
        // Hosts that are behind have work without any new entry.
        let late: Vec<HostNo> = reign.behind.keys().copied().collect();
        for number in late {
            if self.lanes.lane(number).is_none() {
                self.open_lanes(&mut reign, &[number]).await?;
            }
        }
        Ok(reign)
    }

    async fn reign(&self, mut reign: Reign, shutdown: &Shutdown) -> Ending {
        let is_shared = self.store.is_shared();
        let mut subscriptions = self.store.subscription_news();
        let mut log = self.store.log_news();
        let mut cut = tokio::time::interval(CUT);
        let mut renew = tokio::time::interval(RENEW);
        // Nothing wakes an idle gateway that has its store for itself.
        let mut tick_at = Some(Instant::now());
        let ending = loop {
            let (result, is_open) = tokio::select! {
                () = shutdown.begun() => break Ending::Shutdown,
                Ok(()) = log.changed() => (self.dispatch(&mut reign).await, true),
                Ok(()) = subscriptions.changed() => (self.refresh_hosts(&mut reign).await, false),
                () = self.common.progressed.notified(), if tick_at.is_none() => (Ok(()), true),
                () = sleep_until(tick_at), if tick_at.is_some() => {
                    tick_at = None;
                    let done = self.tick(&mut reign).await;
                    (done, is_shared || reign.all_up_to < reign.dispatched)
                }
                _ = renew.tick(), if is_shared => (self.renew(&reign).await, false),
                _ = cut.tick() => (self.cut().await, false),
            };
            if is_open || result.is_err() {
                tick_at.get_or_insert_with(|| Instant::now() + CHECKPOINT);
            }
            match result {
                Ok(()) => {}
                Err(StoreError::StaleEpoch) => {
                    tracing::info!("another gateway of this store delivers from now on");
                    break Ending::Lost;
                }
                Err(error) => {
                    tracing::warn!(error = %error, "the store did not answer; deliveries go on with what is known")
                }
            }
        };
        self.close(&mut reign, shutdown.grace(), &ending).await;
        ending
    }

    /// Ends all lanes; what is under way may finish.
    async fn close(&self, reign: &mut Reign, grace: Duration, ending: &Ending) {
        reign.stop.cancel();
        reign.tasks.close();
        // A part of the grace is left for the last checkpoint.
        let late = tokio::time::timeout(grace.mul_f32(0.9), reign.tasks.wait())
            .await
            .is_err();
        if late {
            tracing::info!(
                lanes = reign.tasks.len(),
                "deliveries were cut off; they are repeated at the next start"
            );
        }
        if matches!(ending, Ending::Shutdown) {
            if let Err(error) = self.checkpoint(reign, true).await {
                tracing::warn!(error = %error, "the last checkpoint failed; the last second's deliveries are repeated");
            }
            let _ = self.store.release_fanout(self.node, reign.epoch).await;
        }
        self.lanes.clear();
    }

    async fn tick(&self, reign: &mut Reign) -> Result<(), StoreError> {
        self.refresh_hosts(reign).await?;
        self.dispatch(reign).await?;
        self.checkpoint(reign, false).await
    }

    async fn renew(&self, reign: &Reign) -> Result<(), StoreError> {
        match self.store.claim_fanout(self.node, HOLD).await? {
            Some(epoch) if epoch == reign.epoch => Ok(()),
            _ => Err(StoreError::StaleEpoch),
        }
    }

    /// Gives new entries to the lanes of their audience, in order.
    async fn dispatch(&self, reign: &mut Reign) -> Result<(), StoreError> {
        loop {
            let read = self
                .common
                .log
                .read_on(reign.dispatched, READ, READ_BYTES)
                .await?;
            let Some(last) = read.last().map(|ready| ready.entry.seq) else {
                return Ok(());
            };
            for ready in &read {
                let unknown: Vec<HostNo> = ready
                    .entry
                    .audience
                    .iter()
                    .map(HostNo)
                    .filter(|number| self.lanes.lane(*number).is_none())
                    .collect();
                if !unknown.is_empty() {
                    self.open_lanes(reign, &unknown).await?;
                }
                let due = due_of(&ready.entry);
                for number in &ready.entry.audience {
                    if let Some(lane) = self.lanes.lane(HostNo(number)) {
                        lane.push(due, ready.entry.kind);
                    }
                }
                reign.dispatched = Some(ready.entry.seq);
            }
            reign.dispatched = Some(last);
        }
    }

    /// Follows hosts that moved their inbox.
    async fn refresh_hosts(&self, reign: &mut Reign) -> Result<(), StoreError> {
        let version = self.store.subscriptions_version().await?;
        if reign.version == Some(version) {
            return Ok(());
        }
        self.common.subscribers.refresh().await?;
        let orders = self.common.subscribers.orders();
        if orders.purges != reign.orders.purges {
            self.common.log.forget_all();
        }
        let released = reign.orders.brake.is_some() && orders.brake.is_none();
        reign.orders = orders;
        if released {
            self.lanes.wake_all();
        }
        for (number, _, inbox) in self.store.hosts().await? {
            if let Some(lane) = self.lanes.lane(number) {
                lane.set_inbox(&inbox);
            }
        }
        reign.version = Some(version);
        Ok(())
    }

    /// Makes and starts lanes for numbers that have none.
    async fn open_lanes(&self, reign: &mut Reign, numbers: &[HostNo]) -> Result<(), StoreError> {
        let config = self.config.load();
        for (number, host, inbox) in self.store.hosts().await? {
            if !numbers.contains(&number) || self.lanes.lane(number).is_some() {
                continue;
            }
            let seed = u64::from(number.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut machine = Machine::new(
                config.host_concurrency,
                config.backlog_per_second,
                config.backoff(),
                seed,
            );
            let row = reign.behind.remove(&number);
            if let Some(row) = &row {
                machine.restore(
                    &row.also,
                    &row.parked,
                    row.failures,
                    row.next_try,
                    row.last_error.clone(),
                );
            }
            // Without a row the host has everything that was given out before this lane was made.
            let reading_after = row.map(|row| Some(row.up_to));
            let lane = Arc::new(Lane::new(number, host, &inbox, reading_after));
            self.lanes.insert(Arc::clone(&lane));
            let common = Arc::clone(&self.common);
            reign.tasks.spawn(lane.run(common, machine, reign.stop.clone()));
        }
        Ok(())
    }

    /// Notes how far everybody is. Most hosts share one mark; those that are behind it get rows.
    async fn checkpoint(&self, reign: &mut Reign, last: bool) -> Result<(), StoreError> {
        // The mark is read before the lanes: an entry given out in between is above it.
        let Some(dispatched) = reign.dispatched else {
            return Ok(());
        };
        let now = self.common.clock.wall();
        let lanes = self.lanes.all();
        let open: Vec<_> = lanes
            .iter()
            .filter_map(|lane| lane.first_open().map(|(seq, at)| (lane, seq, at)))
            .filter(|(_, seq, _)| *seq <= dispatched)
            .collect();
        let base = reign.all_up_to.map_or(i64::MIN, |seq| seq.0);
        let mark = open
            .iter()
            .filter(|(lane, seq, at)| {
                let young = at.is_some_and(|at| now.since(at) < YOUNG);
                !last && young && lane.is_well() && seq.0 > base
            })
            .map(|(_, seq, _)| LogSeq(seq.0 - 1))
            .fold(dispatched, LogSeq::min);
        let mut rows: HashMap<HostNo, HostProgress> = open
            .iter()
            .filter(|(_, seq, _)| *seq <= mark)
            .map(|(lane, seq, _)| (lane.number, lane.progress(LogSeq(seq.0 - 1))))
            .collect();
        // A host without a lane yet keeps the row that was found.
        for (number, row) in &reign.behind {
            rows.entry(*number).or_insert_with(|| row.clone());
        }
        self.common
            .metrics
            .hosts_behind
            .set(i64::try_from(rows.len()).unwrap_or(i64::MAX));
        let changed: Vec<HostProgress> = rows
            .values()
            .filter(|row| reign.rows.get(&row.host) != Some(row))
            .cloned()
            .collect();
        let caught_up: Vec<HostNo> = reign
            .rows
            .keys()
            .filter(|host| !rows.contains_key(host))
            .copied()
            .collect();
        if changed.is_empty() && caught_up.is_empty() && reign.all_up_to == Some(mark) {
            return Ok(());
        }
        self.store
            .checkpoint(self.node, reign.epoch, Some(mark), &changed, &caught_up)
            .await?;
        reign.all_up_to = Some(mark);
        reign.rows = rows;
        Ok(())
    }

    async fn cut(&self) -> Result<(), StoreError> {
        let (retention, max_bytes) = {
            let config = self.config.load();
            (config.retention, config.log_max_bytes)
        };
        // What waits because we stopped does not grow old.
        let before = match &self.common.subscribers.orders().brake {
            Some(brake) => brake.at.minus(retention),
            None => {
                let now = self.common.clock.wall();
                self.common.outage.age_from(now, retention)
            }
        };
        let report = self.store.cut(before, max_bytes).await?;
        for (number, entries) in &report.lost {
            self.common.metrics.lost.inc_by(*entries);
            let host = self
                .lanes
                .lane(*number)
                .map_or_else(|| number.to_string(), |lane| lane.host.clone());
            tracing::warn!(actor.host = %host, entries, "activities were dropped from the log before the host had them");
        }
        Ok(())
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn pause(shutdown: &Shutdown, time: Duration) {
    tokio::select! {
        () = shutdown.begun() => {}
        () = tokio::time::sleep(time) => {}
    }
}
