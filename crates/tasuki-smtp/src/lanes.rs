//! Lanes in memory: one for each next hop, with a bounded queue and a bounded number of workers.
//!
//! In the store, mail waits by recipient domain. In memory, domains whose MX records name the same servers share one
//! lane, the **site's**, so that its limits hold for a provider as a whole and a connection serves all its domains. A
//! domain's own lane then only finds out its site; see [`Lanes::learn`].
//!
//! A worker is a task that takes jobs of one lane and delivers them over one connection. A push wakes an idle worker, or
//! starts one while the lane may have more. What does not fit, or would meet a next hop that just failed, goes back to
//! the caller, who defers it: memory is bounded, and the store keeps the rest.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tasuki_core::{
    ids::{DeliverySeq, Epoch, LaneId, MailId},
    store::mail::{Hold, LaneKey},
};
use tasuki_proto::smtp::pace::{Pace, PaceLimits};
use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore};

use crate::{
    context::Job,
    fair::{FairQueue, Sender},
};

/// Most jobs of one lane in memory, and most of one sender, so that the others find room.
const LANE_MAX: usize = 4096;
const SENDER_MAX: usize = LANE_MAX / 4 * 3;
/// How long a domain's site is believed, and most domains whose site is remembered.
const SITE_FOR: Duration = Duration::from_secs(600);
const MAX_SITES: usize = 50_000;
/// Most jobs in memory in all.
const TOTAL_MAX: usize = 65_536;
/// A settlement may ride in a commit 100 ms later; until then the store still shows the delivery as due.
const SETTLED_FOR: Duration = Duration::from_secs(2);

/// All lanes that have something to do.
pub(crate) struct Lanes {
    by_key: Mutex<HashMap<LaneKey, Arc<Lane>>>,
    /// The sites of domains' lanes, and until when each is believed.
    sites: Mutex<HashMap<LaneKey, (LaneKey, Instant)>>,
    /// Connections out, in all.
    pub(crate) connections: Connections,
}

/// How many connections out there may be. Unused ones are kept for the next mail, but give way to whoever waits.
pub(crate) struct Connections {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    wanted: Notify,
}

impl Connections {
    fn new(max: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max)),
            waiting: AtomicUsize::new(0),
            wanted: Notify::new(),
        }
    }

    /// A place for one more connection, if need be that of an unused one.
    pub(crate) async fn place(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        /// Counts also when the caller goes away.
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
        if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
            return Ok(place);
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waits = Waits(&self.waiting);
        self.wanted.notify_one();
        Arc::clone(&self.free).acquire_owned().await
    }

    /// Returns when an unused connection should be closed, because somebody waits for its place.
    pub(crate) async fn needed_elsewhere(&self) {
        let wanted = self.wanted.notified();
        if self.waiting.load(Ordering::Acquire) == 0 {
            wanted.await;
        }
    }
}

/// One next hop's lane.
pub(crate) struct Lane {
    pub(crate) key: LaneKey,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    queue: FairQueue<Job>,
    /// Deliveries from the store were queued since it was last asked for more.
    fed_by_store: bool,
    workers: usize,
    idle: usize,
    pace: Pace,
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
    /// `site:MX` (with a mark, where there are several), `mx:DOMAIN` until its site is known, or `via:SMARTHOST`.
    pub lane: String,
    /// Jobs in memory that wait for a worker.
    pub queued: usize,
    /// Connections.
    pub workers: usize,
    /// Failures of the next hop in a row.
    pub failures: u32,
    /// What went wrong last, until it works again.
    pub last_error: Option<String>,
    /// Seconds until it is tried again after a failure.
    pub rests_s: Option<u64>,
    /// Connections that it may have now.
    pub allowed: usize,
    /// Milliseconds between two mails, when there is a rate.
    pub pause_ms: Option<u64>,
    /// The receiver said not long ago that mail came too fast.
    pub slowed: bool,
    /// The rule for the receiver.
    pub provider: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lanes {
    pub(crate) fn new(max_connections: usize) -> Self {
        Self {
            by_key: Mutex::default(),
            sites: Mutex::default(),
            connections: Connections::new(max_connections),
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

    /// The lane in which a delivery of the store's lane `key` waits in memory.
    pub(crate) fn road(&self, key: &LaneKey, now: Instant) -> LaneKey {
        let sites = lock(&self.sites);
        let known = sites.get(key).filter(|(_, until)| *until > now);
        known.map_or_else(|| key.clone(), |(site, _)| site.clone())
    }

    /// Deliveries of `key` go through `site` for a while.
    pub(crate) fn learn(&self, key: &LaneKey, site: LaneKey, now: Instant) {
        let mut sites = lock(&self.sites);
        if sites.len() >= MAX_SITES {
            sites.retain(|_, (_, until)| *until > now);
            if sites.len() >= MAX_SITES {
                sites.clear();
            }
        }
        sites.insert(key.clone(), (site, now + SITE_FOR));
    }

    /// Queues a job in lane `road`, which may go as fast as `limits` say.
    pub(crate) fn push(&self, job: Job, road: &LaneKey, limits: PaceLimits, now: Instant) -> Pushed {
        let lane = self.lane(road);
        let mut state = lock(&lane.state);
        state.pace.set_limits(limits);
        if let Some(until) = state.blocked_until.filter(|until| *until > now) {
            let why = state.last_error.clone().unwrap_or_default();
            return Pushed::Blocked(job, until, why);
        }
        let (sender, class) = (Sender::of(&job.held.envelope), job.held.envelope.class);
        if state.queue.len() >= LANE_MAX || state.queue.len_of(&sender, class) >= SENDER_MAX {
            return Pushed::Full(job);
        }
        state.fed_by_store |= matches!(job.held.hold, Hold::Lane(..));
        state.queue.push(sender, class, job.held.body.len, job);
        if state.idle > 0 {
            lane.wake.notify_one();
        }
        // Idle workers will take one job each; what is left over deserves another connection.
        if state.queue.len() <= state.idle || state.workers >= state.pace.connections() {
            return Pushed::Queued;
        }
        state.workers += 1;
        drop(state);
        Pushed::StartWorker(lane)
    }

    /// How many jobs may be fetched for a lane of the store, and what is in flight of it; `None` while the lane they
    /// would wait in is busy or blocked.
    pub(crate) fn room(&self, lane: &Lane, now: Instant) -> Option<(usize, Vec<(MailId, DeliverySeq)>)> {
        let road = self.road(&lane.key, now);
        let takes_more = if road == lane.key {
            lane.takes_more(now)
        } else {
            self.lane(&road).takes_more(now)
        };
        takes_more.then(|| (64, lane.in_flight(now)))
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
            // What `status` says of a smarthost must be taken back when it works again.
            let told = state.failures > 0 && lane.key.0.starts_with("via:");
            // A receiver that wants it slower is not asked to say so again.
            let slowed = state.pace.is_slowed(now);
            used || blocked || told || slowed || !state.queue.is_empty()
        });
    }

    pub(crate) fn status(&self, now: Instant) -> Vec<LaneStatus> {
        let lanes: Vec<_> = lock(&self.by_key).values().cloned().collect();
        let mut all: Vec<LaneStatus> = lanes.iter().map(|lane| lane.status(now)).collect();
        all.sort_by(|a, b| b.queued.cmp(&a.queued).then_with(|| a.lane.cmp(&b.lane)));
        all
    }

    /// The lane of this key and the one that its deliveries wait in, where they are in memory.
    pub(crate) fn status_of(&self, key: &LaneKey, now: Instant) -> Vec<LaneStatus> {
        let road = self.road(key, now);
        let by_key = lock(&self.by_key);
        let also = Some(&road).filter(|road| *road != key);
        let keys = std::iter::once(key).chain(also);
        keys.filter_map(|key| Some(by_key.get(key)?.status(now)))
            .collect()
    }

    /// Takes the jobs that are wanted out of the queues; those that a worker has are its own.
    pub(crate) fn recall(&self, wanted: impl Fn(&Job) -> bool) -> Vec<Job> {
        let lanes: Vec<_> = lock(&self.by_key).values().cloned().collect();
        let mut recalled = Vec::new();
        for lane in lanes {
            let mut state = lock(&lane.state);
            for job in state.queue.take() {
                if wanted(&job) {
                    recalled.push(job);
                } else {
                    let (sender, class) = (Sender::of(&job.held.envelope), job.held.envelope.class);
                    state.queue.push(sender, class, job.held.body.len, job);
                }
            }
        }
        recalled
    }

    /// Jobs in memory that nobody has taken yet.
    pub(crate) fn queued(&self) -> usize {
        let lanes: Vec<_> = lock(&self.by_key).values().cloned().collect();
        lanes.iter().map(|lane| lock(&lane.state).queue.len()).sum()
    }

    /// Whether the next hop of this lane does not work.
    pub(crate) fn is_down(&self, key: &LaneKey) -> bool {
        let by_key = lock(&self.by_key);
        by_key.get(key).is_some_and(|lane| lock(&lane.state).failures > 0)
    }

    /// Lets one blocked lane try again at once.
    pub(crate) fn unblock_one(&self, key: &LaneKey) {
        if let Some(lane) = lock(&self.by_key).get(key) {
            lock(&lane.state).blocked_until = None;
        }
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
        lock(&self.state).queue.pop()
    }

    /// Ends a worker, unless a job came in between.
    pub(crate) fn leave(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        let job = state.queue.pop();
        if job.is_none() {
            state.workers -= 1;
        }
        job
    }

    /// Ends a worker and gives it all that is queued.
    pub(crate) fn leave_with_all(&self) -> VecDeque<Job> {
        let mut state = lock(&self.state);
        state.workers -= 1;
        state.queue.take()
    }

    /// Ends a worker whatever is queued (shutdown).
    pub(crate) fn quit(&self) {
        lock(&self.state).workers -= 1;
    }

    /// When the next mail's turn is.
    pub(crate) fn turn(&self, now: Instant) -> Duration {
        lock(&self.state).pace.turn(now)
    }

    /// The receiver took a mail; whether one more worker is wanted, and counted already.
    pub(crate) fn took_mail(&self) -> bool {
        let mut state = lock(&self.state);
        state.pace.succeeded();
        let wanted = state.queue.len() > state.idle && state.workers < state.pace.connections();
        state.workers += usize::from(wanted);
        wanted
    }

    /// The receiver said that this is too fast; whether that was news.
    pub(crate) fn slowed(&self, now: Instant) -> bool {
        lock(&self.state).pace.slowed(now)
    }

    /// Ends a worker that the pace has no place for any more.
    pub(crate) fn leave_if_too_many(&self) -> bool {
        let mut state = lock(&self.state);
        let too_many = state.workers > state.pace.connections();
        state.workers -= usize::from(too_many);
        too_many
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
        (state.failures, state.queue.take())
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

    /// What was taken from the store's lane and is not settled there yet.
    fn in_flight(&self, now: Instant) -> Vec<(MailId, DeliverySeq)> {
        let mut state = lock(&self.state);
        state
            .in_flight
            .retain(|_, settled| settled.is_none_or(|at| now.saturating_duration_since(at) < SETTLED_FOR));
        state.in_flight.keys().copied().collect()
    }

    fn takes_more(&self, now: Instant) -> bool {
        let state = lock(&self.state);
        state.queue.len() < 32 && state.blocked_until.is_none_or(|until| until <= now)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        let state = lock(&self.state);
        state.queue.is_empty() && state.in_flight.values().all(Option::is_some)
    }

    pub(crate) fn wants_more(&self) -> bool {
        let mut state = lock(&self.state);
        state.queue.len() < 16 && std::mem::take(&mut state.fed_by_store)
    }

    pub(crate) fn fetched(&self, mail: MailId, delivery: DeliverySeq) {
        lock(&self.state).in_flight.insert((mail, delivery), None);
    }

    pub(crate) fn settled(&self, mail: MailId, delivery: DeliverySeq, now: Instant) {
        if let Some(settled) = lock(&self.state).in_flight.get_mut(&(mail, delivery)) {
            *settled = Some(now);
        }
    }

    /// A delivery that was taken from the store's lane is left to it again.
    pub(crate) fn forget(&self, mail: MailId, delivery: DeliverySeq) {
        lock(&self.state).in_flight.remove(&(mail, delivery));
    }

    fn status(&self, now: Instant) -> LaneStatus {
        let state = lock(&self.state);
        LaneStatus {
            lane: self.key.0.clone(),
            queued: state.queue.len(),
            workers: state.workers,
            failures: state.failures,
            last_error: state.last_error.clone(),
            rests_s: state
                .blocked_until
                .and_then(|until| until.checked_duration_since(now))
                .map(|rest| rest.as_secs() + 1),
            allowed: state.pace.connections(),
            pause_ms: Some(state.pace.gap())
                .filter(|gap| !gap.is_zero())
                .map(|gap| u64::try_from(gap.as_millis()).unwrap_or(u64::MAX)),
            slowed: state.pace.is_slowed(now),
            provider: None,
        }
    }
}
