//! Is the way to the gateway dead? Decided from counts alone, early enough to act before a player is lost.

use std::time::{Duration, Instant};

/// How long the other side may leave us unanswered while players are on.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(3);

/// Watches one session's packets. Silence alone says nothing: what counts is silence after we sent something.
#[derive(Debug, Clone, Copy, Default)]
pub struct PathWatch {
    sent: u64,
    received: u64,
    unanswered_since: Option<Instant>,
}

impl PathWatch {
    /// Takes the session's counts of packets. True if the path is suspect; then it is so again only after another
    /// [`SUSPECT_AFTER`] without an answer.
    pub fn observe(&mut self, sent: u64, received: u64, now: Instant) -> bool {
        if received != self.received {
            *self = Self {
                sent,
                received,
                unanswered_since: None,
            };
            return false;
        }
        if sent == self.sent && self.unanswered_since.is_none() {
            return false;
        }
        let since = *self.unanswered_since.get_or_insert(now);
        let suspect = now.saturating_duration_since(since) >= SUSPECT_AFTER;
        if suspect {
            self.unanswered_since = Some(now);
        }
        suspect
    }
}
