//! A lane's queue: transactional mail before bulk, and within each the senders take turns.
//!
//! A sender with a thousand mails and one with a single mail each get every second turn. A large mail uses up several
//! turns, so that a sender of large ones does not take the connection for itself either.

use std::collections::{HashMap, VecDeque};

use tasuki_core::{
    ids::PrincipalId,
    store::mail::{Class, Envelope},
};
use tasuki_proto::names::Domain;

#[cfg(test)]
mod tests;

/// While transactional mail waits, bulk gets one turn in this many, so that it still moves.
const BULK_TURN: u32 = 16;
/// Octets that one turn is good for, and most turns that one mail costs.
const TURN_OCTETS: u64 = 256 * 1024;
const MAX_COST: u64 = 64;

/// Whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sender {
    /// Who logged in, or whose network it came from.
    Principal(PrincipalId),
    /// Mail for relay domains, by the sender's domain.
    Domain(Domain),
    /// Notices, and what else has no sender with a domain.
    Nobody,
}

impl Sender {
    pub(crate) fn of(envelope: &Envelope) -> Self {
        if let Some(principal) = envelope.principal {
            return Self::Principal(principal);
        }
        let domain = envelope.reverse_path.mailbox().and_then(|m| m.domain());
        domain.cloned().map_or(Self::Nobody, Self::Domain)
    }
}

/// The queue. What it holds is bounded by whoever pushes.
pub(crate) struct FairQueue<T> {
    transactional: Band<T>,
    bulk: Band<T>,
    since_bulk: u32,
}

struct Band<T> {
    /// Senders with something queued, in the order of their turns.
    turns: VecDeque<Sender>,
    by_sender: HashMap<Sender, Share<T>>,
    len: usize,
}

struct Share<T> {
    queue: VecDeque<(u64, T)>,
    /// Turns to sit out for a large mail that went before.
    debt: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            transactional: Band::default(),
            bulk: Band::default(),
            since_bulk: 0,
        }
    }
}

impl<T> Default for Band<T> {
    fn default() -> Self {
        Self {
            turns: VecDeque::new(),
            by_sender: HashMap::new(),
            len: 0,
        }
    }
}

impl<T> FairQueue<T> {
    pub(crate) fn len(&self) -> usize {
        self.transactional.len + self.bulk.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How much of one class a sender has queued.
    pub(crate) fn len_of(&self, sender: &Sender, class: Class) -> usize {
        let band = match class {
            Class::Transactional => &self.transactional,
            Class::Bulk => &self.bulk,
        };
        band.by_sender.get(sender).map_or(0, |share| share.queue.len())
    }

    pub(crate) fn push(&mut self, sender: Sender, class: Class, size: u64, item: T) {
        match class {
            Class::Transactional => self.transactional.push(sender, size, item),
            Class::Bulk => self.bulk.push(sender, size, item),
        }
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let bulk_is_due = self.bulk.len > 0 && self.since_bulk + 1 >= BULK_TURN;
        if self.transactional.len > 0 && !bulk_is_due {
            self.since_bulk = if self.bulk.len > 0 { self.since_bulk + 1 } else { 0 };
            return self.transactional.pop();
        }
        self.since_bulk = 0;
        self.bulk.pop()
    }

    /// Everything, in the order in which it would have gone.
    pub(crate) fn take(&mut self) -> VecDeque<T> {
        let mut all = VecDeque::with_capacity(self.len());
        while let Some(item) = self.pop() {
            all.push_back(item);
        }
        all
    }
}

impl<T> Band<T> {
    fn push(&mut self, sender: Sender, size: u64, item: T) {
        let cost = (1 + size / TURN_OCTETS).min(MAX_COST);
        let share = self.by_sender.entry(sender.clone()).or_insert_with(|| Share {
            queue: VecDeque::new(),
            debt: 0,
        });
        if share.queue.is_empty() {
            self.turns.push_back(sender);
        }
        share.queue.push_back((cost, item));
        self.len += 1;
    }

    fn pop(&mut self) -> Option<T> {
        loop {
            let sender = self.turns.pop_front()?;
            let Some(share) = self.by_sender.get_mut(&sender) else {
                continue;
            };
            // Nobody is kept waiting by a debt when nobody else is there.
            if share.debt > 0 && !self.turns.is_empty() {
                share.debt -= 1;
                self.turns.push_back(sender);
                continue;
            }
            let Some((cost, item)) = share.queue.pop_front() else {
                continue;
            };
            share.debt = cost - 1;
            self.len -= 1;
            if share.queue.is_empty() {
                self.by_sender.remove(&sender);
            } else {
                self.turns.push_back(sender);
            }
            return Some(item);
        }
    }
}
