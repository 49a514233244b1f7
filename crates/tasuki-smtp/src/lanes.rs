//! Lanes in memory: one for each next hop, with a bounded queue and a bounded number of workers.
//!
//! A worker is a task that takes jobs of one lane and delivers them over one connection. A push wakes an idle worker, or
//! starts one while the lane may have more. What does not fit, or would meet a next hop that just failed, goes back to
//! the caller, who defers it: memory is bounded, and the store keeps the rest.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tasuki_core::{
    ids::{DeliverySeq, Epoch, LaneId, MailId},
    store::mail::LaneKey,
};
use tokio::sync::{Notify, Semaphore};

use crate::context::Job;

/// Most jobs of one lane in memory.
const LANE_MAX: usize = 4096;
/// Most jobs in memory in all.
const TOTAL_MAX: usize = 65_536;
/// A settlement may ride in a commit 100 ms later; until then the store still shows the delivery as due.
const SETTLED_FOR: Duration = Duration::from_secs(2);

/// All lanes that have something to do.
pub(crate) struct Lanes {
    by_key: Mutex<HashMap<LaneKey, Arc<Lane>>>,
    /// Connections out, in all.
    pub(crate) connections: Arc<Semaphore>,
}

/// One next hop's lane.
pub(crate) struct Lane {
    pub(crate) key: LaneKey,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    workers: usize,
    idle: usize,
    /// Failures of the next hop in a row, until it works again.
    failures: u32,
    blocked_until: Option<Instant>,
    last_error: Option<String>,
    owned: Option<(LaneId, Epoch)>,
    /// Deliveries taken from the store's lane; with a time once their settlement was given to the store.
    in_flight: HashMap<(MailId, DeliverySeq), Option<Instant>>,
}

/// What became of a push.
pub(crate) enum Pushed {
    /// It is queued and somebody will take it.
    Queued,
    /// It is queued, and the caller must start a worker for the lane.
    StartWorker(Arc<Lane>),
    /// There is no room.
    Full(Job),
    /// The next hop failed just now; when it will be tried again, and what it said.
    Blocked(Job, Instant, String),
}

/// A lane for people.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LaneStatus {
    /// `mx:DOMAIN` or `via:SMARTHOST`.
    pub lane: String,
    /// Jobs in memory that wait for a worker.
    pub queued: usize,
    /// Connections.
    pub workers: usize,
    /// Failures of the next hop in a row.
    pub failures: u32,
    /// What went wrong last, until it works again.
    pub last_error: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lanes {
    pub(crate) fn new(max_connections: usize) -> Self {
        Self {
            by_key: Mutex::default(),
            connections: Arc::new(Semaphore::new(max_connections)),
        }
    }

    pub(crate) fn lane(&self, key: &LaneKey) -> Arc<Lane> {
        let mut lanes = lock(&self.by_key);
        if let Some(lane) = lanes.get(key) {
            return Arc::clone(lane);
        }
        let lane = Arc::new(Lane {
            key: key.clone(),
            state: Mutex::default(),
            wake: Notify::new(),
        });
        lanes.insert(key.clone(), Arc::clone(&lane));
        lane
    }

    /// Queues a job in its lane, which may have `limit` workers.
    pub(crate) fn push(&self, job: Job, limit: usize, now: Instant) -> Pushed {
        let lane = self.lane(&job.held.lane);
        let mut state = lock(&lane.state);
        if let Some(until) = state.blocked_until.filter(|until| *until > now) {
            let why = state.last_error.clone().unwrap_or_default();
            return Pushed::Blocked(job, until, why);
        }
        if state.queue.len() >= LANE_MAX {
            return Pushed::Full(job);
        }
        state.queue.push_back(job);
        if state.idle > 0 {
            lane.wake.notify_one();
        }
        // Idle workers will take one job each; what is left over deserves another connection.
        if state.queue.len() <= state.idle || state.workers >= limit {
            return Pushed::Queued;
        }
        state.workers += 1;
        drop(state);
        Pushed::StartWorker(lane)
    }

    /// Whether much more may be taken from the store.
    pub(crate) fn has_room(&self) -> bool {
        let lanes: Vec<_> = lock(&self.by_key).values().cloned().collect();
        lanes
            .iter()
            .map(|lane| lock(&lane.state).queue.len())
            .sum::<usize>()
            < TOTAL_MAX / 2
    }

    /// Lanes held in the store.
    pub(crate) fn owned(&self) -> Vec<(Arc<Lane>, LaneId, Epoch)> {
        let lanes: Vec<_> = lock(&self.by_key).values().cloned().collect();
        let owned = |lane: Arc<Lane>| lane.owner().map(|(id, epoch)| (lane, id, epoch));
        lanes.into_iter().filter_map(owned).collect()
    }

    /// Forgets lanes without work, workers, failures and hold.
    pub(crate) fn sweep(&self, now: Instant) {
        lock(&self.by_key).retain(|_, lane| {
            let state = lock(&lane.state);
            let blocked = state.blocked_until.is_some_and(|until| until > now);
            let used = Arc::strong_count(lane) > 1 || state.workers > 0 || state.owned.is_some();
            used || blocked || !state.queue.is_empty()
        });
    }

    pub(crate) fn status(&self) -> Vec<LaneStatus> {
        let lanes: Vec<_> = lock(&self.by_key).values().cloned().collect();
        let mut all: Vec<LaneStatus> = lanes.iter().map(|lane| lane.status()).collect();
        all.sort_by(|a, b| b.queued.cmp(&a.queued).then_with(|| a.lane.cmp(&b.lane)));
        all
    }

    /// Jobs in memory that nobody has taken yet.
    pub(crate) fn queued(&self) -> usize {
        let lanes: Vec<_> = lock(&self.by_key).values().cloned().collect();
        lanes.iter().map(|lane| lock(&lane.state).queue.len()).sum()
    }

    /// Lets every blocked lane try again at once.
    pub(crate) fn unblock(&self) {
        let lanes: Vec<_> = lock(&self.by_key).values().cloned().collect();
        for lane in lanes {
            lock(&lane.state).blocked_until = None;
        }
    }
}

impl Lane {
    /// The next job, if there is one now. A worker that gets none must call [`Lane::leave`] or [`Lane::wait`].
    pub(crate) fn take(&self) -> Option<Job> {
        lock(&self.state).queue.pop_front()
    }

    /// Ends a worker, unless a job came in between.
    pub(crate) fn leave(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        let job = state.queue.pop_front();
        if job.is_none() {
            state.workers -= 1;
        }
        job
    }

    /// Ends a worker whatever is queued (shutdown).
    pub(crate) fn quit(&self) {
        lock(&self.state).workers -= 1;
    }

    /// Marks this worker idle; `false` if there is a job after all.
    pub(crate) fn go_idle(&self) -> bool {
        let mut state = lock(&self.state);
        if state.queue.is_empty() {
            state.idle += 1;
            return true;
        }
        false
    }

    /// Resolves when a job may have come.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// An idle worker goes on, for whatever reason.
    pub(crate) fn stop_idling(&self) {
        lock(&self.state).idle -= 1;
    }

    /// The next hop answered as it should.
    pub(crate) fn works(&self) -> bool {
        let mut state = lock(&self.state);
        state.blocked_until = None;
        state.last_error = None;
        std::mem::take(&mut state.failures) > 0
    }

    /// The next hop failed; returns how often in a row, and what was queued behind.
    pub(crate) fn failed(&self, why: &str, until: impl FnOnce(u32) -> Instant) -> (u32, VecDeque<Job>) {
        let mut state = lock(&self.state);
        state.failures = state.failures.saturating_add(1);
        state.last_error = Some(why.to_owned());
        state.blocked_until = Some(until(state.failures));
        (state.failures, std::mem::take(&mut state.queue))
    }

    pub(crate) fn note_error(&self, why: &str) {
        lock(&self.state).last_error = Some(why.to_owned());
    }

    pub(crate) fn owner(&self) -> Option<(LaneId, Epoch)> {
        lock(&self.state).owned
    }

    pub(crate) fn set_owner(&self, owner: Option<(LaneId, Epoch)>) {
        lock(&self.state).owned = owner;
    }

    /// How many jobs may be fetched into this lane, and what is in flight; `None` while it is busy or blocked.
    pub(crate) fn room(&self, now: Instant) -> Option<(usize, Vec<(MailId, DeliverySeq)>)> {
        let mut state = lock(&self.state);
        state
            .in_flight
            .retain(|_, settled| settled.is_none_or(|at| now.saturating_duration_since(at) < SETTLED_FOR));
        if state.queue.len() >= 32 || state.blocked_until.is_some_and(|until| until > now) {
            return None;
        }
        Some((64, state.in_flight.keys().copied().collect()))
    }

    pub(crate) fn is_quiet(&self) -> bool {
        let state = lock(&self.state);
        state.queue.is_empty() && state.in_flight.values().all(Option::is_some)
    }

    pub(crate) fn wants_more(&self) -> bool {
        let state = lock(&self.state);
        state.owned.is_some() && state.queue.len() < 16
    }

    pub(crate) fn fetched(&self, mail: MailId, delivery: DeliverySeq) {
        lock(&self.state).in_flight.insert((mail, delivery), None);
    }

    pub(crate) fn settled(&self, mail: MailId, delivery: DeliverySeq, now: Instant) {
        if let Some(settled) = lock(&self.state).in_flight.get_mut(&(mail, delivery)) {
            *settled = Some(now);
        }
    }

    fn status(&self) -> LaneStatus {
        let state = lock(&self.state);
        LaneStatus {
            lane: self.key.0.clone(),
            queued: state.queue.len(),
            workers: state.workers,
            failures: state.failures,
            last_error: state.last_error.clone(),
        }
    }
}
