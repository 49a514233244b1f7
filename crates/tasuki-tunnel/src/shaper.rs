//! Spreads the bytes of an agent's visitors over time, so that they keep a limit and none is lost.
//!
//! Bytes are charged when they have moved, and whoever moved them waits until they are paid for. Small ones go on at once
//! as long as the debt is small: a download must not make the players beside it wait.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may move at once after a pause.
const BURST: Duration = Duration::from_millis(100);
/// Bytes that need not wait: a move, a word, a keep-alive.
const SMALL: usize = 1500;
/// A debt above this makes small ones wait too.
const MUCH: Duration = Duration::from_secs(1);

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Shaper(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Bytes a second; none is no limit.
    rate: Option<u64>,
    /// When everything charged so far is paid for.
    paid_at: Option<Instant>,
}

/// Both directions of an agent's visitors.
#[derive(Debug, Default)]
pub(crate) struct Shaping {
    /// From the sockets of visitors into streams.
    pub(crate) to_stream: Shaper,
    /// From streams to the sockets of visitors.
    pub(crate) to_socket: Shaper,
}

impl Shaping {
    pub(crate) fn set_rate(&self, rate: Option<u64>) {
        self.to_stream.set_rate(rate);
        self.to_socket.set_rate(rate);
    }
}

impl Shaper {
    fn set_rate(&self, rate: Option<u64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rate = rate;
    }

    /// How long to wait after these bytes.
    pub(crate) fn charge(&self, bytes: usize, now: Instant) -> Duration {
        let debt = self.debt(bytes, now);
        if bytes <= SMALL && debt < MUCH {
            Duration::ZERO
        } else {
            debt
        }
    }

    /// Whether these bytes fit into a debt of at most `limit`; those that do not are not charged.
    pub(crate) fn fits(&self, bytes: usize, limit: Duration, now: Instant) -> bool {
        self.debt(0, now) <= limit && {
            self.debt(bytes, now);
            true
        }
    }

    /// Charges the bytes; the debt after them.
    fn debt(&self, bytes: usize, now: Instant) -> Duration {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rate) = state.rate else {
            return Duration::ZERO;
        };
        let price = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let paid_at = state.paid_at.map_or(earliest, |at| at.max(earliest)) + price;
        state.paid_at = Some(paid_at);
        paid_at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bytes_are_spread_so_that_the_rate_is_kept() {
        let shaper = Shaper::default();
        let begun = Instant::now();
        assert_eq!(shaper.charge(1 << 30, begun), Duration::ZERO, "no limit");
        shaper.set_rate(Some(1_000_000));
        let mut now = begun;
        for _ in 0..100 {
            now += shaper.charge(50_000, now);
        }
        let took = (now - begun).as_secs_f64();
        assert!((4.8..5.01).contains(&took), "5 MB at 1 MB/s took {took} s");
    }

    #[test]
    fn small_ones_overtake_until_the_debt_is_large() {
        let shaper = Shaper::default();
        shaper.set_rate(Some(1_000_000));
        let now = Instant::now();
        assert!(shaper.charge(600_000, now) >= Duration::from_millis(400));
        assert_eq!(shaper.charge(100, now), Duration::ZERO);
        assert!(shaper.charge(900_000, now) > Duration::from_secs(1));
        assert!(
            shaper.charge(100, now) > Duration::from_secs(1),
            "they are no way round it"
        );
    }

    #[test]
    fn datagrams_that_would_come_too_late_are_not_charged() {
        let shaper = Shaper::default();
        shaper.set_rate(Some(1_000_000));
        let now = Instant::now();
        let taken = (0..1000).filter(|_| shaper.fits(1000, Duration::from_millis(50), now));
        assert!((150..=152).contains(&taken.count()));
    }
}
