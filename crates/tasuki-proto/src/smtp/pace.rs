//! How fast mail goes to one site: how many connections, and how far apart mails are.
//!
//! A site begins with few connections, and each mail that it takes allows one more, up to its limit (slow start). When it
//! says that this is too fast, connections are halved and mails go further apart; from then on it takes several mails to
//! win one step back. One refusal is heard by several connections at about the same time, and counts once.

use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// Refusals this close together are one.
const SAME: Duration = Duration::from_secs(10);
/// The first pause where there was none, and the longest.
const FIRST_GAP: Duration = Duration::from_secs(1);
const LONGEST_GAP: Duration = Duration::from_secs(60);
/// Mails for a step back, after a refusal.
const STEP: u32 = 10;
/// How long a site is remembered as one that said so.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What is allowed at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PaceLimits {
    /// Connections at a time.
    pub connections: usize,
    /// Connections to begin with.
    pub start: usize,
    /// Between two mails.
    pub gap: Duration,
}

/// The pace of one site.
#[derive(Debug, Default)]
pub struct Pace {
    limits: Option<PaceLimits>,
    connections: usize,
    gap: Duration,
    next_at: Option<Instant>,
    mails: u32,
    slowed_at: Option<Instant>,
}

impl Pace {
    /// What holds from now on; the first time, where it begins.
    pub fn set_limits(&mut self, limits: PaceLimits) {
        match self.limits {
            Some(known) if known == limits => return,
            Some(_) if self.slowed_at.is_some() => {
                self.connections = self.connections.min(limits.connections);
                self.gap = self.gap.max(limits.gap);
            }
            _ => {
                self.connections = limits.start.min(limits.connections);
                self.gap = limits.gap;
            }
        }
        self.limits = Some(limits);
    }

    /// How many connections there may be now.
    pub fn connections(&self) -> usize {
        self.connections.max(1)
    }

    /// How far apart mails are now.
    pub fn gap(&self) -> Duration {
        self.gap
    }

    /// Takes the next mail's place in time; how long to wait for it.
    pub fn turn(&mut self, now: Instant) -> Duration {
        if self.gap.is_zero() {
            return Duration::ZERO;
        }
        let at = self.next_at.map_or(now, |at| at.max(now));
        self.next_at = Some(at + self.gap);
        at.saturating_duration_since(now)
    }

    /// The site took a mail.
    pub fn succeeded(&mut self) {
        let limits = self.limits.unwrap_or_default();
        self.mails += 1;
        if self.slowed_at.is_some() && self.mails < STEP {
            return;
        }
        self.mails = 0;
        if self.gap > limits.gap {
            let shorter = self.gap / 2;
            self.gap = if shorter < FIRST_GAP / 2 {
                limits.gap
            } else {
                shorter.max(limits.gap)
            };
        } else if self.connections < limits.connections {
            self.connections += 1;
        }
    }

    /// The site said that this is too fast; whether that was news.
    pub fn slowed(&mut self, now: Instant) -> bool {
        let heard = |at: Instant| now.saturating_duration_since(at) < SAME;
        if self.slowed_at.is_some_and(heard) {
            return false;
        }
        self.slowed_at = Some(now);
        self.mails = 0;
        if self.connections > 1 {
            self.connections /= 2;
            self.gap = (self.gap * 2).min(LONGEST_GAP);
        } else {
            self.gap = (self.gap * 2).clamp(FIRST_GAP, LONGEST_GAP);
        }
        true
    }

    /// Whether it goes slower than it may, because the site said so not long ago.
    pub fn is_slowed(&self, now: Instant) -> bool {
        let limits = self.limits.unwrap_or_default();
        let recent = |at: Instant| now.saturating_duration_since(at) < REMEMBERED;
        let slower = self.connections < limits.connections || self.gap > limits.gap;
        slower && self.slowed_at.is_some_and(recent)
    }
}
