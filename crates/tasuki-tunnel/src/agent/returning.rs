//! When a session that travels in TLS tries UDP again: soon at first, then ever more rarely, since most networks that block
//! it do so for good.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::transport::Transport;

/// The first wait.
const FIRST: Duration = Duration::from_secs(5);
/// The longest.
const LONGEST: Duration = Duration::from_secs(600);
/// A session over UDP that lasted this long was a good one.
const GOOD: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Returning(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Tries without a good session after them.
    tries: u32,
    last_try: Option<Instant>,
    /// The session over UDP that began last.
    by_udp: Option<Instant>,
}

impl Returning {
    /// A session begins.
    pub(super) fn session_began(&self, transport: Transport, now: Instant) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = state.by_udp.take()
            && now.saturating_duration_since(since) >= GOOD
        {
            state.tries = 0;
        }
        if transport == Transport::Quic {
            state.by_udp = Some(now);
        }
    }

    /// Whether to try now, in a session that began at `began`; then the next try is later.
    pub(super) fn is_due(&self, began: Instant, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = FIRST.saturating_mul(1 << state.tries.min(16)).min(LONGEST);
        let since = state.last_try.map_or(began, |last| last.max(began));
        let is_due = now.saturating_duration_since(since) >= wait;
        if is_due {
            state.tries += 1;
            state.last_try = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(returning: &Returning, began: Instant, count: usize) -> Vec<u64> {
        let (mut now, mut last) = (began, began);
        let mut waits = Vec::new();
        while waits.len() < count {
            now += Duration::from_secs(1);
            if returning.is_due(began, now) {
                waits.push((now - last).as_secs());
                last = now;
            }
        }
        waits
    }

    #[test]
    fn tries_become_rare_and_never_stop() {
        let (returning, began) = (Returning::default(), tokio::time::Instant::now().into_std());
        assert_eq!(
            waits(&returning, began, 9),
            [5, 10, 20, 40, 80, 160, 320, 600, 600]
        );
    }

    #[test]
    fn only_a_good_session_over_udp_makes_them_frequent_again() {
        let (returning, began) = (Returning::default(), tokio::time::Instant::now().into_std());
        assert_eq!(waits(&returning, began, 2), [5, 10]);
        let short = began + Duration::from_secs(100);
        returning.session_began(Transport::Quic, short);
        returning.session_began(Transport::Tls, short + GOOD / 2);
        assert_eq!(waits(&returning, short + GOOD / 2, 1), [20]);
        returning.session_began(Transport::Quic, short + GOOD);
        returning.session_began(Transport::Tls, short + 2 * GOOD);
        assert_eq!(waits(&returning, short + 2 * GOOD, 1), [5]);
    }
}
