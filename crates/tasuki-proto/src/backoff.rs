//! The only retry arithmetic: a table of delays, and jitter from a seed the caller rolled.
//!
//! Every engine waits by this: attempt n fails, wait the table's nth delay (the last one repeats), moved by a few per
//! cent either way so that what failed together does not come back together.

use std::time::Duration;

#[cfg(test)]
mod tests;

/// A table of delays with jitter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    steps: Box<[Duration]>,
    jitter_percent: u8,
}

/// Why a table of delays is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackoffError {
    /// No delay at all.
    #[error("a retry schedule needs at least one delay")]
    Empty,
    /// A delay of zero would retry in a hot loop.
    #[error("a retry delay must be longer than zero")]
    ZeroDelay,
    /// Jitter of 100% or more could make a delay vanish.
    #[error("jitter must be below 100 per cent")]
    Jitter,
}

impl Backoff {
    /// Takes the delays after the first, second, ... failure, and the jitter in per cent either way.
    pub fn try_new(steps: impl Into<Box<[Duration]>>, jitter_percent: u8) -> Result<Self, BackoffError> {
        let steps = steps.into();
        if steps.is_empty() {
            return Err(BackoffError::Empty);
        }
        if steps.iter().any(Duration::is_zero) {
            return Err(BackoffError::ZeroDelay);
        }
        if jitter_percent >= 100 {
            return Err(BackoffError::Jitter);
        }
        Ok(Self {
            steps,
            jitter_percent,
        })
    }

    /// How long to wait after the `failures`th failure in a row (1 is the first; 0 counts as 1).
    pub fn delay(&self, failures: u32, seed: u64) -> Duration {
        let at = usize::try_from(failures.saturating_sub(1))
            .unwrap_or(usize::MAX)
            .min(self.steps.len() - 1);
        jittered(self.steps[at], self.jitter_percent, seed)
    }

    /// The table.
    pub fn steps(&self) -> &[Duration] {
        &self.steps
    }
}

/// `base` moved by at most `percent` per cent either way, the same for the same seed.
pub fn jittered(base: Duration, percent: u8, seed: u64) -> Duration {
    // 0..=2000 thousandths of `percent` per cent, so that 1000 is no change.
    let roll = scramble(seed) % 2001;
    let permyriad_times_ten = i128::from(percent) * (i128::from(roll) - 1000);
    let nanos = base.as_nanos() as i128;
    let moved = nanos + nanos * permyriad_times_ten / 100_000;
    let moved = u64::try_from(moved.max(0)).unwrap_or(u64::MAX);
    Duration::from_nanos(moved)
}

/// SplitMix64's finaliser: neighbouring seeds (ids, counters) give unrelated rolls.
fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
