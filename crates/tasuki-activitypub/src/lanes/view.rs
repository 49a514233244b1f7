//! What waits for one host in memory, and how its work is seen from outside.
//!
//! Entries are given out in the order of the log. A lane that falls far behind drops them and reads the log itself; meanwhile
//! new entries overtake what is still to be read, as far as the order of an object allows.

use std::collections::{HashSet, VecDeque};

use tasuki_core::clock::Timestamp;
use tasuki_core::ids::LogSeq;
use tasuki_core::store::fedi::EntryKind;

use super::machine::{Due, Machine, NEW_FOR};

/// What may wait in memory for one host; beyond it the lane reads the log itself.
const MAX_QUEUE: usize = 256;
/// New entries that may wait in memory before the backlog, for a host that is far behind.
const MAX_NEW: usize = 256;
/// Objects known to be new while the log is read: what changes them may overtake too.
const MAX_NEW_OBJECTS: usize = 4096;
/// The machine is fed when it has fewer than this.
pub(super) const LOW: usize = 64;
/// Where a host's deliveries stand, as seen from outside.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) queue: VecDeque<Due>,
    /// The queue overflowed, or this is a restart: everything after this place is read from the log by the lane itself.
    pub(super) reading_after: Option<Option<LogSeq>>,
    /// The end of the log was seen: pushed entries queue up again while the gap between reading and pushing is closed.
    pub(super) joining: bool,
    /// What overtakes the backlog while the log is read. Whatever is not taken from here, reading comes to.
    new: VecDeque<Due>,
    /// Objects whose first entry came while the log was read.
    new_objects: HashSet<u64>,
    /// Perhaps an earlier letter is still to be read: letters keep their order then.
    letters_wait: bool,
    /// The entry that was given out last, whatever became of it.
    last_pushed: Option<LogSeq>,
    /// Everything up to here was read from the log; when it is pushed too, it is the same.
    read_up_to: Option<LogSeq>,
    /// The first entry that the machine has open.
    pub(super) first_open: Option<(LogSeq, Timestamp)>,
    pub(super) open: usize,
    pub(super) settled: Vec<(LogSeq, LogSeq)>,
    pub(super) parked: Vec<(LogSeq, u32)>,
    pub(super) failures: u32,
    pub(super) next_try: Option<Timestamp>,
    pub(super) last_error: Option<String>,
    /// When it last answered anything, and by how many seconds its clock differed from ours.
    pub(super) answered_at: Option<Timestamp>,
    pub(super) skew_s: Option<i64>,
}

impl View {
    /// A lane that has everything, or reads on from a place in the log.
    pub(super) fn new(reading_after: Option<Option<LogSeq>>) -> Self {
        Self {
            letters_wait: reading_after.is_some(),
            reading_after,
            ..Self::default()
        }
    }

    /// Takes what is given out for this host, in order.
    pub(super) fn push(&mut self, mut due: Due, kind: EntryKind) {
        due.after = self.last_pushed.replace(due.seq);
        if self.read_up_to.is_some_and(|seq| due.seq <= seq) {
            return;
        }
        if self.reading_after.is_some() && !self.joining {
            self.offer(due, kind);
        } else if self.queue.len() < MAX_QUEUE {
            self.queue.push_back(due);
        } else if self.joining {
            // All that is queued comes after the place of reading.
            self.joining = false;
            self.queue.clear();
            self.letters_wait = true;
        } else {
            self.reading_after = Some(self.queue.back().map(|due| due.seq));
            self.letters_wait = false;
            self.offer(due, kind);
        }
    }

    /// Something new, while the log is read: it overtakes what is still to be read unless its order forbids.
    fn offer(&mut self, due: Due, kind: EntryKind) {
        if self.new.len() >= MAX_NEW {
            // The newest are worth most. What is let go here is read from the log, and what changes it as well.
            self.new.clear();
            self.new_objects.clear();
            self.letters_wait = true;
        }
        let overtakes = match kind {
            EntryKind::Activity => {
                if self.new_objects.len() < MAX_NEW_OBJECTS {
                    self.new_objects.insert(due.object);
                }
                true
            }
            EntryKind::Change => self.new_objects.contains(&due.object),
            // It emptied in the log what waits of its object.
            EntryKind::Delete => true,
            EntryKind::Control => !self.letters_wait,
        };
        if overtakes {
            self.new.push_back(due);
        } else if kind == EntryKind::Control {
            self.letters_wait = true;
        }
    }

    /// Moves what waits here into the machine and notes the machine's state, in one step; how many the machine took.
    pub(super) fn feed(&mut self, machine: &mut Machine, now: Timestamp) -> u64 {
        machine.set_reading(self.reading_after.map(|after| after.unwrap_or(LogSeq(0))));
        let mut fed = 0;
        // A host that takes deliveries is given all that waits, or new entries could not be picked from it.
        let is_well = machine.failures() == 0;
        let room = if is_well { LOW + MAX_QUEUE } else { LOW };
        while machine.open() < room && !self.joining {
            let Some(due) = self.queue.pop_front() else { break };
            fed += u64::from(machine.handle_due(due));
        }
        while is_well && machine.open() < room + MAX_NEW {
            let Some(due) = self.new.pop_front() else { break };
            if self.read_up_to.is_some_and(|seq| due.seq <= seq) {
                continue;
            }
            if now.since(due.at) >= NEW_FOR {
                // It is not new any more: it has its place in the backlog, and so has what depends on it.
                self.new_objects.remove(&due.object);
                self.letters_wait |= due.is_letter;
                self.new
                    .retain(|other| other.object != due.object && !(due.is_letter && other.is_letter));
                continue;
            }
            fed += u64::from(machine.handle_due(due));
        }
        if self.queue.is_empty() && self.reading_after.is_none() && machine.open() == 0 {
            machine.forget_below(LogSeq(i64::MAX));
        }
        self.first_open = machine.first_open();
        self.open = machine.open();
        self.settled = machine.settled().collect();
        self.parked = machine.parked().collect();
        self.failures = machine.failures();
        self.next_try = machine.next_try();
        self.last_error = machine.last_error().map(str::to_owned);
        fed
    }

    /// The log was read up to `last`; what was for this host is in the machine.
    pub(super) fn was_read(&mut self, last: LogSeq, machine: &mut Machine) {
        machine.set_reading(Some(last));
        self.first_open = machine.first_open();
        self.reading_after = Some(Some(last));
        self.read_up_to = Some(last);
    }

    /// The log had nothing more. The first time, pushed entries begin to queue and the log is read once more; when there is
    /// still nothing, the queue goes on where reading ended, and no entry was missed between the two.
    pub(super) fn join(&mut self, after: Option<LogSeq>) {
        if self.joining {
            self.queue.retain(|due| after.is_none_or(|seq| due.seq > seq));
            self.reading_after = None;
            self.new.clear();
            self.new_objects.clear();
        }
        self.joining = !self.joining;
    }

    /// The first entry that is not settled, with its age if it was read; `None` when the host has all that was pushed.
    pub(super) fn oldest(&self) -> Option<(LogSeq, Option<Timestamp>)> {
        let queued = self.queue.front().map(|due| (due.seq, Some(due.at)));
        let open = self.first_open.map(|(seq, at)| (seq, Some(at)));
        let unread = self
            .reading_after
            .map(|after| (LogSeq(after.map_or(0, |seq| seq.0).saturating_add(1)), None));
        [open, queued, unread]
            .into_iter()
            .flatten()
            .min_by_key(|(seq, _)| *seq)
    }
}

#[cfg(test)]
mod tests;
