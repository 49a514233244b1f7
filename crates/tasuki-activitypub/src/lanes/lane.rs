//! The lane of one host: takes what is due, asks the machine what to try, sends, and keeps the checkpoint's view up to date.

use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::events::{EventBus, What};
use tasuki_core::failure::{Blame, Failure, Verdict};
use tasuki_core::ids::{HostNo, LogSeq};
use tasuki_core::store::FediStore;
use tasuki_core::store::fedi::{Entry, EntryKind, HostProgress};
use tasuki_proto::activitypub::decision::Delivery;
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::Authority;
use tasuki_proto::activitypub::software::{backlog_limit, inbox_limit_bytes, refuses_forwards};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::knock::knock;
use super::log::{Letter, Log, Payload, Ready};
use super::machine::{Due, End, Machine, Settled};
use super::send::{Sender, Target, in_words};
use super::stops::is_stopped;
use super::style;
use super::view::{LOW, View};
use crate::config::FediConfig;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::outage::{Look, Outage};
use crate::scout::Suspects;
use crate::subscribers::Subscribers;
use crate::trail::Trail;

/// Entries read from the log at once by a lane that is far behind.
const READ_ON: usize = 64;
/// Bytes of bodies read at once by such a lane.
const READ_ON_BYTES: u64 = 1 << 20;
/// How often a lane looks whether the operator released the brake, should it not be woken.
const HELD_PAUSE: Duration = Duration::from_secs(5);
/// Wait before the store is asked again after it failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What all lanes share.
pub(crate) struct Common {
    pub(crate) store: Arc<dyn FediStore>,
    pub(crate) config: Arc<ArcSwap<FediConfig>>,
    /// `None` without `server.host`: then nobody is subscribed either.
    pub(crate) relay: Option<Relay>,
    pub(crate) subscribers: Arc<Subscribers>,
    pub(crate) suspects: Arc<Suspects>,
    pub(crate) log: Arc<Log>,
    pub(crate) trail: Arc<Trail>,
    /// For what authors want.
    pub(crate) keys: Arc<Keys>,
    pub(crate) outage: Arc<Outage>,
    pub(crate) sender: Sender,
    pub(crate) metrics: Metrics,
    pub(crate) events: EventBus,
    pub(crate) clock: Clock,
    /// Entries of its backlog that a host is sent in a second.
    pub(crate) backlog_per_second: u32,
    /// Places for deliveries to all hosts together.
    pub(crate) places: Arc<Semaphore>,
    /// A lane came further, or failed: there is something for a checkpoint.
    pub(crate) progressed: Notify,
}

/// One host.
pub(crate) struct Lane {
    pub(crate) number: HostNo,
    pub(crate) host: String,
    pub(super) authority: Option<Authority>,
    target: ArcSwap<Option<Target>>,
    view: Mutex<View>,
    wake: Notify,
    alive: AtomicBool,
    /// What it is known to take.
    pub(super) known: style::Known,
}

/// What `status` tells of a host.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LaneStatus {
    /// Authority.
    pub host: String,
    /// Entries waiting or under way, as far as they are in memory.
    pub waiting: usize,
    /// The host is so far behind that the log is read for it; `waiting` is then not all.
    pub reads_log: bool,
    /// Entries set aside.
    pub parked: usize,
    /// Failures of the host in a row.
    pub failures: u32,
    /// When it is tried next.
    pub next_try: Option<Timestamp>,
    /// The last failure in words.
    pub last_error: Option<String>,
}

impl Lane {
    /// A lane that has everything up to `from`, or reads on from there when `reads_log`.
    pub(crate) fn new(
        number: HostNo,
        host: String,
        inbox: &str,
        reading_after: Option<Option<LogSeq>>,
    ) -> Self {
        Self {
            number,
            authority: Authority::parse(&host).ok(),
            host,
            target: ArcSwap::from_pointee(Target::of(inbox)),
            view: Mutex::new(View::new(reading_after)),
            wake: Notify::new(),
            alive: AtomicBool::new(false),
            known: style::Known::default(),
        }
    }

    /// Where the host takes deliveries. When that is news, what waits is tried there now.
    pub(crate) fn set_inbox(&self, inbox: &str) {
        let target = Target::of(inbox);
        if target != **self.target.load() {
            self.target.store(Arc::new(target));
            self.sign_of_life();
        }
    }

    /// Something is due for this host.
    pub(crate) fn push(&self, due: Due, kind: EntryKind) {
        self.lock().push(due, kind);
        self.wake.notify_one();
    }

    /// The host sent something itself: it is there.
    pub(crate) fn sign_of_life(&self) {
        if self.lock().failures > 0 {
            self.alive.store(true, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    pub(super) fn answered(&self, at: Timestamp, skew_s: Option<i64>) {
        let mut view = self.lock();
        view.answered_at = Some(at);
        view.skew_s = skew_s;
    }

    /// How the host looks from here.
    pub(crate) fn look(&self) -> Look {
        let view = self.lock();
        Look {
            host: self.number,
            is_failing: view.failures > 0,
            answered_at: view.answered_at,
            skew_s: view.skew_s,
        }
    }

    /// Looks at what is due again: something that stopped it has ended.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The first entry that is not settled, with its age; `None` when the host has all that was pushed.
    pub(crate) fn first_open(&self) -> Option<(LogSeq, Option<Timestamp>)> {
        self.lock().oldest()
    }

    /// Whether the lane is well: nothing failed, nothing overflowed.
    pub(crate) fn is_well(&self) -> bool {
        let view = self.lock();
        view.failures == 0 && view.reading_after.is_none()
    }

    /// The row of a checkpoint, with everything up to `up_to`.
    pub(crate) fn progress(&self, up_to: LogSeq) -> HostProgress {
        let view = self.lock();
        HostProgress {
            host: self.number,
            up_to,
            also: view
                .settled
                .iter()
                .copied()
                .filter(|(_, last)| *last > up_to)
                .collect(),
            parked: view.parked.clone(),
            failures: view.failures,
            next_try: view.next_try,
            last_error: view.last_error.clone(),
        }
    }

    pub(crate) fn status(&self) -> LaneStatus {
        let view = self.lock();
        LaneStatus {
            host: self.host.clone(),
            waiting: view.open + view.queue.len(),
            reads_log: view.reading_after.is_some(),
            parked: view.parked.len(),
            failures: view.failures,
            next_try: view.next_try,
            last_error: view.last_error.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves what is queued into the machine and shows the machine's state to the outside, in one step.
    fn sync(&self, common: &Common, machine: &mut Machine) {
        let fed = self.lock().feed(machine, common.clock.wall());
        common.metrics.due.inc_by(fed);
    }

    /// Works until `stop`, then finishes what is under way.
    pub(crate) async fn run(
        self: Arc<Self>,
        common: Arc<Common>,
        mut machine: Machine,
        stop: CancellationToken,
    ) {
        let mut under_way: FuturesUnordered<Attempt> = FuturesUnordered::new();
        self.sync(&common, &mut machine);
        while !stop.is_cancelled() {
            if self.alive.swap(false, Ordering::Relaxed) {
                machine.handle_sign_of_life();
            }
            let store_failed = self.read_log(&common, &mut machine).await;
            self.sync(&common, &mut machine);
            let now = common.clock.wall();
            machine.set_pace(self.pace(&common));
            let letters_only = common.subscribers.orders().brake.is_some();
            // When the fault seems to be ours, a few of those that fail are tried, not all.
            let rests = machine.failures() > 0 && !common.outage.lets_try(self.number);
            while !rests && let Some(due) = machine.poll_attempt(now, letters_only) {
                under_way.push(Box::pin(attempt(Arc::clone(&self), Arc::clone(&common), due)));
            }
            self.sync(&common, &mut machine);
            let timer = match (store_failed, machine.poll_timeout(now)) {
                (true, _) => Some(STORE_PAUSE),
                // Whoever releases the brake wakes the lanes.
                (false, _) if letters_only || rests => Some(HELD_PAUSE),
                (false, Some(at)) => Some(at.since(now)),
                (false, None) => None,
            };
            tokio::select! {
                Some((attempt, end)) = under_way.next(), if !under_way.is_empty() => self.settle(&common, &mut machine, &attempt, end),
                () = self.wake.notified() => {}
                () = sleep(timer) => {}
                () = stop.cancelled() => break,
            }
        }
        while let Some((attempt, end)) = under_way.next().await {
            self.settle(&common, &mut machine, &attempt, end);
        }
    }

    /// A lane that is far behind reads the log itself; true when the store failed.
    async fn read_log(&self, common: &Common, machine: &mut Machine) -> bool {
        while machine.open() < LOW {
            let after = {
                let view = self.lock();
                let waits = !view.joining && !view.queue.is_empty();
                match view.reading_after {
                    Some(after) if !waits => after,
                    _ => return false,
                }
            };
            let read = match common.log.peek(after, READ_ON, READ_ON_BYTES).await {
                Ok(read) => read,
                Err(error) => {
                    tracing::debug!(actor.host = %self.host, error = %error, "the log was not read");
                    return true;
                }
            };
            common.progressed.notify_one();
            let Some(last) = read.last().map(|entry| entry.seq) else {
                self.lock().join(after);
                continue;
            };
            let mut before = None;
            for entry in read.iter().filter(|entry| entry.audience.contains(self.number.0)) {
                let due = Due {
                    after: before.replace(entry.seq),
                    ..due_of(entry)
                };
                if machine.handle_due(due) {
                    common.metrics.due.inc();
                }
            }
            self.lock().was_read(last, machine);
        }
        false
    }

    /// How many entries of its backlog the host is sent in a second.
    fn pace(&self, common: &Common) -> u32 {
        let table = common.subscribers.table();
        let subscriber = self.authority.as_ref().and_then(|host| table.host(host));
        let limit = subscriber.and_then(|known| known.software.as_deref().and_then(backlog_limit));
        limit.map_or(common.backlog_per_second, |limit| {
            limit.min(common.backlog_per_second)
        })
    }

    /// Whether the host takes this forward now. A host that is not subscribed is sent what was decided.
    fn takes_forward(&self, common: &Common, ready: &Ready) -> bool {
        let table = common.subscribers.table();
        let Some(subscriber) = self.authority.as_ref().and_then(|host| table.host(host)) else {
            return true;
        };
        let limit = subscriber.software.as_deref().and_then(inbox_limit_bytes);
        let fits = limit.is_none_or(|limit| ready.entry.body.len() <= limit);
        fits && match ready.entry.kind {
            EntryKind::Delete => subscriber.takes_deletes(),
            _ => subscriber.delivery() == Delivery::Forward,
        }
    }

    /// Whether this answer to a forward says that the host takes none; that is remembered for what comes after.
    async fn learns(&self, common: &Common, failure: &Failure) -> bool {
        let table = common.subscribers.table();
        let subscriber = self.authority.as_ref().and_then(|host| table.host(host));
        let (Some(subscriber), Some(reply)) = (subscriber, &failure.reply) else {
            return false;
        };
        if subscriber.is_forward_chosen() || !refuses_forwards(subscriber.software.as_deref(), reply.code) {
            return false;
        }
        tracing::info!(actor.host = %self.host, answer = %reply.text, "a host takes no forwards: it is sent Announces");
        let noted = common.store.note_refused_forward(self.number, &reply.text).await;
        if let Err(error) = match noted {
            Ok(()) => common.subscribers.refresh().await.map(drop),
            Err(error) => Err(error),
        } {
            tracing::debug!(actor.host = %self.host, error = %error, "a refused forward was not noted");
        }
        true
    }

    fn settle(&self, common: &Common, machine: &mut Machine, attempt: &Attempted, end: Ended) {
        let now = common.clock.wall();
        let due = attempt.due;
        let seq = due.seq;
        if let Some(object) = &attempt.watched {
            common.trail.sent(&self.host, object, now, in_words_of(&end));
        }
        let metrics = &common.metrics;
        let (end, counter) = match end {
            Ended::Taken => (End::Done, Some(&metrics.delivered)),
            Ended::Blanked => (End::Void, Some(&metrics.blanked)),
            // The cut of the log counted it.
            Ended::Cut => (End::Void, None),
            Ended::Failed(failure) => (end_of(&failure), None),
        };
        let taken = counter.is_some();
        if let Some(counter) = counter {
            counter.inc();
        }
        let is_refusal = matches!(end, End::Refused(_));
        if let End::Failed { why, .. } | End::Refused(why) | End::OurFault(why) = &end {
            tracing::debug!(actor.host = %self.host, entry = seq.0, error = %why, "a delivery failed");
        }
        match machine.handle_end(seq, end, now) {
            Settled::Over if is_refusal => {
                metrics.refused.inc();
                self.tell(common, false);
            }
            Settled::Over if taken => {
                metrics.delay.observe(now.since(due.at).as_secs_f64());
                self.tell(common, true);
            }
            Settled::Over => {}
            Settled::Again => {
                metrics.retried.inc();
            }
            Settled::Parked => {
                metrics.parked.inc();
                tracing::info!(actor.host = %self.host, entry = seq.0, "an activity was set aside after repeated failures");
            }
        }
        self.sync(common, machine);
        common.progressed.notify_one();
    }

    fn tell(&self, common: &Common, taken: bool) {
        common.events.emit(What::ActivityDelivered {
            host: self.host.clone(),
            taken,
        });
    }
}

/// How one attempt ended.
enum Ended {
    Taken,
    /// A Delete left nothing to send.
    Blanked,
    /// The log no longer has it.
    Cut,
    Failed(Failure),
}

fn in_words_of(end: &Ended) -> (&'static str, String) {
    match end {
        Ended::Taken => ("taken", String::new()),
        Ended::Blanked => (
            "nothing",
            "it was deleted or taken out, or the host takes no such form".to_owned(),
        ),
        Ended::Cut => ("lost", "it was older than fediverse.retention".to_owned()),
        Ended::Failed(failure) => match end_of(failure) {
            End::Refused(why) => ("refused", why),
            End::Failed { why, .. } | End::OurFault(why) => ("failed", why),
            End::Done | End::Void => ("taken", String::new()),
        },
    }
}

/// What was tried.
struct Attempted {
    due: Due,
    /// The object, if somebody watches this host.
    watched: Option<String>,
}

type Attempt = Pin<Box<dyn Future<Output = (Attempted, Ended)> + Send>>;

async fn attempt(lane: Arc<Lane>, common: Arc<Common>, due: Due) -> (Attempted, Ended) {
    let mut attempted = Attempted { due, watched: None };
    let ended = match try_once(&lane, &common, &mut attempted).await {
        Ok(ended) => ended,
        Err(failure) => Ended::Failed(failure),
    };
    (attempted, ended)
}

async fn try_once(lane: &Lane, common: &Common, attempted: &mut Attempted) -> Result<Ended, Failure> {
    let found = common.log.entry(attempted.due.seq).await;
    let Some(ready) = found.map_err(Failure::us)? else {
        return Ok(Ended::Cut);
    };
    if common.trail.is_watched(&lane.host) {
        attempted.watched = Some(ready.entry.object.clone());
    }
    if is_stopped(common, lane.authority.as_ref(), &ready.entry) {
        return Ok(Ended::Blanked);
    }
    // Without a name of the relay nobody is subscribed; what waits from before is not sent.
    let Some(relay) = common.relay.as_ref() else {
        return Ok(Ended::Blanked);
    };
    let relay = relay.at(&ready.topic_for(lane.number.0));
    let is_forward = ready.is_forward_for(lane.number.0);
    let as_announce = ready.letter(false);
    // Decided when it was accepted, and overtaken by what the host answered since; or too large for its inbox.
    if is_forward && !lane.takes_forward(common, &ready) {
        return send(lane, common, &relay, ready.announced(&relay), as_announce).await;
    }
    let letter = ready.letter(is_forward);
    let payload = ready.payload_for(lane.number.0, &relay);
    let ended = send(lane, common, &relay, payload, letter).await;
    match ended {
        Err(failure) if is_forward && (is_too_large(&failure) || lane.learns(common, &failure).await) => {
            send(lane, common, &relay, ready.announced(&relay), as_announce).await
        }
        ended => ended,
    }
}

/// Its inbox takes less than ours: an Announce is small.
fn is_too_large(failure: &Failure) -> bool {
    failure.reply.as_ref().is_some_and(|reply| reply.code == 413)
}

async fn send(
    lane: &Lane,
    common: &Common,
    relay: &Relay,
    payload: Option<Payload>,
    letter: Letter,
) -> Result<Ended, Failure> {
    let Some(payload) = payload else {
        return Ok(Ended::Blanked);
    };
    let target = lane.target.load();
    let Some(target) = target.as_ref() else {
        return Err(Failure::route("the inbox of the host is not a usable URL"));
    };
    // The semaphore is never closed.
    let _place = common.places.acquire().await.map_err(Failure::us)?;
    let sent = knock(lane, common, relay, (target, &payload), letter).await;
    if let Err(Failure {
        reply: Some(reply), ..
    }) = &sent
        && matches!(reply.code, 300..=399 | 404 | 410)
    {
        // Perhaps it only moved.
        common.suspects.add(&lane.host);
    }
    sent.map(|()| Ended::Taken)
}

fn end_of(failure: &Failure) -> End {
    let why = in_words(failure);
    match (failure.blame, failure.verdict) {
        (Blame::Us, _) => End::OurFault(why),
        (_, Verdict::Permanent) => End::Refused(why),
        (_, Verdict::Retry { not_before }) => End::Failed {
            why,
            retry_after: not_before,
        },
    }
}

/// What a lane has to know of an entry before it is its turn.
pub(crate) fn due_of(entry: &Entry) -> Due {
    let mut hasher = DefaultHasher::new();
    entry.object.hash(&mut hasher);
    Due {
        seq: entry.seq,
        after: None,
        object: hasher.finish(),
        is_letter: entry.kind == EntryKind::Control,
        at: entry.at,
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
