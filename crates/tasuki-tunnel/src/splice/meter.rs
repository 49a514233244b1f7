//! Bytes of one flow, counted while they move.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;

/// Bytes of one flow, counted while they move.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    to_stream: AtomicU64,
    to_tcp: AtomicU64,
    totals: Option<Totals>,
}

/// The engine's counters, which every flow adds to.
#[derive(Debug, Clone)]
pub(crate) struct Totals {
    pub(crate) to_stream: Counter,
    pub(crate) to_tcp: Counter,
}

impl Meter {
    pub(crate) fn new(totals: Option<Totals>) -> Self {
        Self {
            totals,
            ..Self::default()
        }
    }

    /// Goes on from what was counted in another process; the engine's counters are those of this one.
    pub(crate) fn going_on(totals: Totals, to_stream: u64, to_tcp: u64) -> Self {
        Self {
            to_stream: AtomicU64::new(to_stream),
            to_tcp: AtomicU64::new(to_tcp),
            totals: Some(totals),
        }
    }

    /// From the TCP side into the stream.
    pub(crate) fn to_stream(&self) -> u64 {
        self.to_stream.load(Ordering::Relaxed)
    }

    /// From the stream to the TCP side.
    pub(crate) fn to_tcp(&self) -> u64 {
        self.to_tcp.load(Ordering::Relaxed)
    }

    pub(crate) fn add_to_stream(&self, bytes: usize) {
        self.to_stream.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(totals) = &self.totals {
            totals.to_stream.inc_by(bytes as u64);
        }
    }

    pub(crate) fn add_to_tcp(&self, bytes: usize) {
        self.to_tcp.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(totals) = &self.totals {
            totals.to_tcp.inc_by(bytes as u64);
        }
    }
}
