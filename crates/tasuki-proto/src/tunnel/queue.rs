//! Datagrams that wait for the session: flows take turns, the oldest go first when there are too many, and none is sent
//! that is too old. A late voice packet is worse than a lost one.
//!
//! Invariant: never more than [`QueueLimits::total_bytes`] are held, and no flow has more than its share of them, so a
//! flood of one visitor costs the others nothing.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::datagram::FlowId;

/// What a queue may hold.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Bytes of one flow.
    pub flow_bytes: usize,
    /// Bytes of all flows.
    pub total_bytes: usize,
    /// How old a datagram may be when it is sent.
    pub max_age: Duration,
}

#[derive(Debug, Default)]
struct Waiting {
    datagrams: VecDeque<(Instant, Bytes)>,
    bytes: usize,
}

/// The queue of one session in one direction.
#[derive(Debug)]
pub struct DatagramQueue {
    limits: QueueLimits,
    flows: HashMap<FlowId, Waiting>,
    /// Flows with something to send, the next one first; each is here once.
    turns: VecDeque<FlowId>,
    bytes: usize,
    dropped: u64,
}

impl DatagramQueue {
    /// An empty queue.
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            flows: HashMap::new(),
            turns: VecDeque::new(),
            bytes: 0,
            dropped: 0,
        }
    }

    /// Takes a datagram. What has no room any more is dropped, oldest first.
    pub fn push(&mut self, flow: FlowId, datagram: Bytes, now: Instant) {
        let length = datagram.len();
        if length > self.limits.flow_bytes || length > self.limits.total_bytes {
            self.dropped += 1;
            return;
        }
        while self
            .flows
            .get(&flow)
            .is_some_and(|waiting| waiting.bytes + length > self.limits.flow_bytes)
        {
            self.drop_oldest_of(flow);
        }
        // The flow whose turn is next has waited longest.
        while self.bytes + length > self.limits.total_bytes {
            let Some(&longest) = self.turns.front() else { break };
            self.drop_oldest_of(longest);
        }
        let waiting = self.flows.entry(flow).or_default();
        if waiting.datagrams.is_empty() {
            self.turns.push_back(flow);
        }
        waiting.datagrams.push_back((now, datagram));
        waiting.bytes += length;
        self.bytes += length;
    }

    fn drop_oldest_of(&mut self, flow: FlowId) {
        if self.take_oldest_of(flow).is_some() {
            self.dropped += 1;
        }
        if !self.flows.contains_key(&flow) {
            self.turns.retain(|other| *other != flow);
        }
    }

    /// The oldest datagram of a flow; a flow without any is forgotten, but keeps its place in `turns`.
    fn take_oldest_of(&mut self, flow: FlowId) -> Option<(Instant, Bytes)> {
        let waiting = self.flows.get_mut(&flow)?;
        let oldest = waiting.datagrams.pop_front()?;
        waiting.bytes -= oldest.1.len();
        self.bytes -= oldest.1.len();
        if waiting.datagrams.is_empty() {
            self.flows.remove(&flow);
        }
        Some(oldest)
    }

    /// The next datagram to send.
    pub fn pop(&mut self, now: Instant) -> Option<Bytes> {
        while let Some(flow) = self.turns.pop_front() {
            while let Some((since, datagram)) = self.take_oldest_of(flow) {
                if now.saturating_duration_since(since) > self.limits.max_age {
                    self.dropped += 1;
                    continue;
                }
                if self.flows.contains_key(&flow) {
                    self.turns.push_back(flow);
                }
                return Some(datagram);
            }
        }
        None
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many were dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}
