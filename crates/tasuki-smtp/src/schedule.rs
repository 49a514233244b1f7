//! The task that brings back what waits in the store: fresh mail of dead lives, and deferred mail when it is due.
//!
//! It reads by lane, a few at a time, and asks the store when the next one is due; it never scans the queue.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use tasuki_core::{
    clock::Timestamp,
    health::{Code, Condition},
    ids::{Epoch, LaneId},
    store::{
        StoreError,
        mail::{Held, QueueFilter},
    },
};

use crate::{
    context::{Context, Job},
    deliver::dispatch,
    lanes::Lane,
};

/// How long the store keeps a lane for us without a renewal.
const HOLD: Duration = Duration::from_secs(60);
/// How often the store is looked at without any reason: dead gateways, lost wake-ups.
const LOOK: Duration = Duration::from_secs(20);
/// Most lanes claimed at once, most fresh deliveries adopted at once.
const LANES: usize = 64;
const ADOPT: usize = 256;
/// Two looks are at least this far apart.
const BREATH: Duration = Duration::from_millis(50);

/// When the scheduler will look next, so that an earlier due time can wake it.
#[derive(Debug)]
pub(crate) struct NextLook(AtomicI64);

impl Default for NextLook {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN))
    }
}

impl Context {
    /// Something will be due at `due`.
    pub(crate) fn due_at(&self, due: Timestamp) {
        if due.0 < self.next_look.0.load(Ordering::Acquire) {
            self.wake.notify_one();
        }
    }
}

/// Runs until the engine closes; then gives the lanes back.
pub(crate) async fn scheduler(context: Arc<Context>) {
    let mut adopt_at = context.deps.clock.now();
    while !context.is_closing() {
        let wait = match look(&context, &mut adopt_at).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::error!(%error, "the queue cannot be read, trying again");
                Duration::from_secs(5)
            }
        };
        context.lanes.sweep(context.deps.clock.now());
        let until = context.deps.clock.wall().plus(wait);
        context.next_look.0.store(until.0, Ordering::Release);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = context.wake.notified() => tokio::time::sleep(BREATH).await,
            () = context.closing.cancelled() => {}
        }
        context.next_look.0.store(i64::MIN, Ordering::Release);
    }
}

/// Gives all lanes back to the store.
pub(crate) async fn release(context: &Context) {
    let owned: Vec<(LaneId, Epoch)> = context
        .lanes
        .owned()
        .into_iter()
        .map(|(_, id, epoch)| (id, epoch))
        .collect();
    if !owned.is_empty()
        && let Err(error) = context.deps.store.release_lanes(&owned).await
    {
        tracing::debug!(%error, "lanes were not given back; their hold ends by itself");
    }
}

/// Brings in what is due; returns how long to wait for the next look.
async fn look(context: &Arc<Context>, adopt_at: &mut Instant) -> Result<Duration, StoreError> {
    let (node, epoch) = context.deps.node;
    let store = &context.deps.store;
    let mut brought = 0;
    if *adopt_at <= context.deps.clock.now() && context.lanes.has_room() {
        context.refresh_pauses().await?;
        let adopted = store.adopt(node, epoch, ADOPT).await?;
        if adopted.len() < ADOPT {
            *adopt_at = context.deps.clock.now() + LOOK;
            report_age(context).await?;
        }
        brought += adopted.len();
        bring(context, adopted).await;
    }
    let now = context.deps.clock.wall();
    let owned = context.lanes.owned();
    let renew: Vec<(LaneId, Epoch)> = owned.iter().map(|(_, id, epoch)| (*id, *epoch)).collect();
    let room = if context.lanes.has_room() { LANES } else { 0 };
    for lane in store.claim_lanes(node, now, HOLD, room, &renew).await? {
        context
            .lanes
            .lane(&lane.key)
            .set_owner(Some((lane.id, lane.epoch)));
    }
    let mut idle = Vec::new();
    for (lane, id, epoch) in context.lanes.owned() {
        match fetch(context, &lane, id, epoch).await {
            Ok(0) if lane.is_quiet() => {
                lane.set_owner(None);
                idle.push((id, epoch));
            }
            Ok(n) => brought += n,
            Err(StoreError::StaleEpoch) => lane.set_owner(None),
            Err(error) => return Err(error),
        }
    }
    if !idle.is_empty() {
        store.release_lanes(&idle).await?;
    }
    if brought > 0 {
        // There may be more; look again as soon as what was brought has had a moment.
        return Ok(BREATH);
    }
    let wait = match store.next_due(node).await? {
        Some(due) => due.since(context.deps.clock.wall()).max(Duration::from_secs(1)),
        None => LOOK,
    };
    // While a lane's jobs are in flight, the store shows them as due; the settler wakes us when that changes.
    Ok(wait.min(LOOK))
}

/// Tells `status` when the oldest mail waits so long that its sender is told.
async fn report_age(context: &Context) -> Result<(), StoreError> {
    let oldest = context.deps.store.queue(&QueueFilter::default(), 1).await?;
    let now = context.deps.clock.wall();
    let limit = context.settings.load().delivery.delay_notice;
    let late = oldest.first().filter(|row| now.since(row.accepted_at) >= limit);
    let condition = late.map(|row| {
        let sentence = format!(
            "the oldest mail ({}) waits since {}; `tasuki mail queue` shows why",
            row.mail, row.accepted_at
        );
        Condition::warning(Code::QueueAge, sentence)
    });
    context.deps.health.set("mail.queue", condition);
    Ok(())
}

async fn fetch(
    context: &Arc<Context>,
    lane: &Arc<Lane>,
    id: LaneId,
    epoch: Epoch,
) -> Result<usize, StoreError> {
    let Some((room, in_flight)) = context.lanes.room(lane, context.deps.clock.now()) else {
        return Ok(0);
    };
    let due = context
        .deps
        .store
        .due(id, epoch, context.deps.clock.wall(), room, &in_flight)
        .await?;
    let count = due.len();
    for held in &due {
        lane.fetched(held.mail, held.delivery);
    }
    bring(context, due).await;
    Ok(count)
}

async fn bring(context: &Arc<Context>, all: Vec<Held>) {
    for held in all {
        dispatch(context, Job { held, body: None }).await;
    }
}
