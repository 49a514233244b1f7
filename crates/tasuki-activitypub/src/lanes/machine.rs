//! The delivery rules of one host, as a pure machine: it is told what is due and how attempts ended, and says what to try
//! next and when. It sends nothing and reads no clock.
//!
//! - Several entries are under way at once, never two of one object: a Delete does not overtake its Create.
//! - A failure while the host takes others is the entry's: it waits by itself, and is parked after three.
//! - A failure without a success since the attempt began is the host's: the lane stops, waits, and then tries two entries,
//!   so that one bad entry cannot pass for a dead host.
//! - A host that was never heard begins with one entry at a time and gains one with each success.
//! - What is older than a minute is backlog: it goes out at a pace, after what is new. The pace spares small servers that
//!   return (a stock Misskey works through 32 jobs a second).
//!
//! **Invariant:** what is due is settled, parked, waiting or under way, and never two of these.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tasuki_core::clock::Timestamp;
use tasuki_core::ids::LogSeq;
use tasuki_proto::backoff::Backoff;

use super::settled::Settled as Spans;

/// Failures of an entry, while the host takes others, after which it is parked.
const PARK_AFTER: u32 = 3;
/// The same for the relay's own letters: an Accept is worth more patience.
const PARK_LETTER_AFTER: u32 = 12;
/// Spans of entries settled beyond one that is not: the most that a checkpoint lists for a host.
const MAX_AHEAD: usize = 512;
/// What waits longer is backlog.
pub(crate) const NEW_FOR: Duration = Duration::from_secs(60);
/// A lane that was silent may send this much of its backlog at once.
const BURST: Duration = Duration::from_secs(1);
/// Entries tried at once at a host that failed.
const PROBES: usize = 2;

/// A unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) seq: LogSeq,
    /// The entry before it in this lane, if that is known.
    pub(crate) after: Option<LogSeq>,
    /// Equal for entries of one object.
    pub(crate) object: u64,
    /// One of the relay's own letters.
    pub(crate) is_letter: bool,
    /// When it was accepted.
    pub(crate) at: Timestamp,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The host took it.
    Done,
    /// There was nothing left to send: says nothing about the host.
    Void,
    /// The host refused it for good: it is alive.
    Refused(String),
    /// It did not work.
    Failed {
        why: String,
        /// The host's own wish. A host that says so is overloaded: it is not the entry's fault.
        retry_after: Option<Duration>,
    },
    /// We failed (no descriptors, no store): nobody's fault, tried again soon.
    OurFault(String),
}

/// What an ended attempt means for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is over.
    Over,
    /// It comes again.
    Again,
    /// It is set aside.
    Parked,
}

#[derive(Clone, Debug)]
struct Item {
    due: Due,
    /// Failures while the host took others.
    own_failures: u32,
    not_before: Option<Timestamp>,
    /// The machine's counts when the attempt began.
    successes_at_start: u64,
    failures_at_start: u32,
}

impl Item {
    /// The relay's own letters are never backlog: who subscribes again waits for the Accept.
    fn is_backlog(&self, now: Timestamp) -> bool {
        !self.due.is_letter && now.since(self.due.at) >= NEW_FOR
    }
}

/// The state of one host.
#[derive(Debug)]
pub(crate) struct Machine {
    concurrency: usize,
    /// Entries of the backlog in a second.
    pace: u32,
    /// When the next of the backlog may go out.
    backlog_at: Timestamp,
    backoff: Backoff,
    seed: u64,
    waiting: BTreeMap<LogSeq, Item>,
    under_way: BTreeMap<LogSeq, Item>,
    /// Everything after this place of the log is still to be read; new entries may be here before.
    reading_after: Option<LogSeq>,
    /// Settled beyond the first that is not.
    settled: Spans,
    parked: BTreeMap<LogSeq, u32>,
    successes: u64,
    failures: u32,
    next_try: Option<Timestamp>,
    last_error: Option<String>,
}

impl Machine {
    /// A host that is believed to be well, with the pace of its backlog in entries a second. `seed` moves its waits.
    pub(crate) fn new(concurrency: usize, pace: u32, backoff: Backoff, seed: u64) -> Self {
        Self {
            concurrency,
            pace,
            backlog_at: Timestamp(i64::MIN),
            backoff,
            seed,
            waiting: BTreeMap::new(),
            under_way: BTreeMap::new(),
            reading_after: None,
            settled: Spans::default(),
            parked: BTreeMap::new(),
            successes: 0,
            failures: 0,
            next_try: None,
            last_error: None,
        }
    }

    /// Takes up what a checkpoint noted.
    pub(crate) fn restore(
        &mut self,
        also: &[(LogSeq, LogSeq)],
        parked: &[(LogSeq, u32)],
        failures: u32,
        next_try: Option<Timestamp>,
        last_error: Option<String>,
    ) {
        self.settled = Spans::of(also);
        self.parked.extend(parked.iter().copied());
        self.failures = failures;
        self.next_try = next_try;
        self.last_error = last_error;
    }

    /// Something is due. What was settled or parked before a restart is not due again.
    pub(crate) fn handle_due(&mut self, due: Due) -> bool {
        if self.settled.contains(due.seq)
            || self.parked.contains_key(&due.seq)
            || self.under_way.contains_key(&due.seq)
            || self.waiting.contains_key(&due.seq)
        {
            return false;
        }
        self.waiting.insert(
            due.seq,
            Item {
                due,
                own_failures: 0,
                not_before: None,
                successes_at_start: 0,
                failures_at_start: 0,
            },
        );
        true
    }

    /// From now on the backlog goes out at this many entries a second.
    pub(crate) fn set_pace(&mut self, pace: u32) {
        self.pace = pace;
    }

    /// Tells from where the log is still to be read, if it is: what is settled beyond is remembered until then.
    pub(crate) fn set_reading(&mut self, after: Option<LogSeq>) {
        self.reading_after = after;
    }

    /// What to try now; the caller reports its end by [`Machine::handle_end`]. Call until `None`. With `letters_only` the
    /// rest waits: the operator stopped it.
    pub(crate) fn poll_attempt(&mut self, now: Timestamp, letters_only: bool) -> Option<Due> {
        let limit = if self.failures > 0 {
            if self.next_try.is_some_and(|at| now < at) {
                return None;
            }
            PROBES.min(self.concurrency)
        } else {
            let proven = usize::try_from(self.successes).unwrap_or(usize::MAX);
            self.concurrency.min(proven.saturating_add(1))
        };
        if self.under_way.len() >= limit {
            return None;
        }
        // With too many spans only the first open entry moves on: with it they become fewer.
        let last = match self.settled.len() >= MAX_AHEAD {
            true => self.first_open()?.0,
            false => LogSeq(i64::MAX),
        };
        let mut blocked: HashSet<u64> = self.under_way.values().map(|item| item.due.object).collect();
        let mut can_go = self.waiting.range(..=last).map(|(_, item)| item).filter(|item| {
            // An earlier entry of the object, under way or waiting for its own retry, goes first.
            let is_free = blocked.insert(item.due.object);
            let is_ready = item.not_before.is_none_or(|at| at <= now);
            let is_allowed = item.due.is_letter || !letters_only;
            is_free && is_ready && is_allowed
        });
        let oldest = can_go.next()?;
        let (seq, is_backlog) = match oldest.is_backlog(now) {
            false => (oldest.due.seq, false),
            true => match can_go.find(|item| !item.is_backlog(now)) {
                Some(new) => (new.due.seq, false),
                None if self.backlog_at > now => return None,
                None => (oldest.due.seq, true),
            },
        };
        if is_backlog {
            let spacing = Duration::from_secs(1) / self.pace.max(1);
            self.backlog_at = self.backlog_at.max(now.minus(BURST)).plus(spacing);
        }
        let mut item = self.waiting.remove(&seq)?;
        item.successes_at_start = self.successes;
        item.failures_at_start = self.failures;
        let due = item.due;
        self.under_way.insert(seq, item);
        Some(due)
    }

    /// An attempt ended.
    pub(crate) fn handle_end(&mut self, seq: LogSeq, end: End, now: Timestamp) -> Settled {
        let Some(mut item) = self.under_way.remove(&seq) else {
            return Settled::Over;
        };
        let (why, retry_after) = match end {
            End::Void => {
                self.settle(&item.due);
                return Settled::Over;
            }
            End::Done | End::Refused(_) => {
                self.successes += 1;
                self.failures = 0;
                self.next_try = None;
                self.last_error = match end {
                    End::Refused(why) => Some(why),
                    _ => None,
                };
                self.settle(&item.due);
                return Settled::Over;
            }
            End::OurFault(why) => {
                self.last_error = Some(why);
                item.not_before = Some(now.plus(self.delay(1, seq)));
                self.waiting.insert(seq, item);
                return Settled::Again;
            }
            End::Failed { why, retry_after } => (why, retry_after),
        };
        self.last_error = Some(why);
        let host_is_alive = self.successes > item.successes_at_start && retry_after.is_none();
        if host_is_alive {
            item.own_failures += 1;
            let patience = if item.due.is_letter {
                PARK_LETTER_AFTER
            } else {
                PARK_AFTER
            };
            if item.own_failures >= patience {
                self.parked.insert(seq, item.own_failures);
                self.settle(&item.due);
                return Settled::Parked;
            }
            item.not_before = Some(now.plus(self.delay(item.own_failures, seq)));
        } else if item.failures_at_start == self.failures {
            // Attempts that began together and fail together are one failure of the host.
            self.failures = self.failures.saturating_add(1);
            let wait = self
                .delay(self.failures, seq)
                .max(retry_after.unwrap_or_default());
            self.next_try = Some(now.plus(wait));
        }
        self.waiting.insert(seq, item);
        Settled::Again
    }

    /// The host was heard from: what waits for it need not wait longer.
    pub(crate) fn handle_sign_of_life(&mut self) {
        self.next_try = None;
    }

    /// When something can be tried that cannot be tried now.
    pub(crate) fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        if self.waiting.is_empty() {
            return None;
        }
        if self.failures > 0
            && let Some(at) = self.next_try
            && now < at
        {
            return Some(at);
        }
        let retries = self.waiting.values().filter_map(|item| item.not_before);
        let paced = self.waiting.values().any(|item| item.is_backlog(now));
        retries
            .chain(paced.then_some(self.backlog_at))
            .filter(|at| *at > now)
            .min()
    }

    /// The lowest entry that is neither settled nor parked, with the time of its acceptance.
    pub(crate) fn first_open(&self) -> Option<(LogSeq, Timestamp)> {
        let open =
            |items: &BTreeMap<LogSeq, Item>| items.values().next().map(|item| (item.due.seq, item.due.at));
        match (open(&self.waiting), open(&self.under_way)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Forgets what is settled below `floor`: nothing below comes again.
    pub(crate) fn forget_below(&mut self, floor: LogSeq) {
        self.settled.forget_below(floor);
        while self.parked.len() > MAX_AHEAD {
            self.parked.pop_first();
        }
    }

    /// How many entries wait or are under way.
    pub(crate) fn open(&self) -> usize {
        self.waiting.len() + self.under_way.len()
    }

    /// What is settled beyond the first open entry: first and last of each span.
    pub(crate) fn settled(&self) -> impl Iterator<Item = (LogSeq, LogSeq)> + '_ {
        self.settled.spans()
    }

    pub(crate) fn parked(&self) -> impl Iterator<Item = (LogSeq, u32)> + '_ {
        self.parked.iter().map(|(seq, times)| (*seq, *times))
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn next_try(&self) -> Option<Timestamp> {
        self.next_try
    }

    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    fn settle(&mut self, due: &Due) {
        self.settled.insert(due.seq, due.after);
        // Without anything open only the lane knows how far it has read: after a restart what comes next may be settled.
        let open = self.first_open().map(|(seq, _)| seq);
        if let Some(floor) = open.into_iter().chain(self.reading_after).min() {
            self.forget_below(floor);
        }
    }

    fn delay(&self, failures: u32, seq: LogSeq) -> Duration {
        self.backoff.delay(failures, self.seed ^ seq.0.cast_unsigned())
    }
}

#[cfg(test)]
mod tests;
