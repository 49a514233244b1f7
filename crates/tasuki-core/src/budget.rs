//! The process-wide byte budget: one bound on what all peers together can make us hold in memory.
//!
//! Per-peer bounds multiply; this one does not. Mail bodies, activity bodies and retained flow bytes take permits
//! here. A refused permit is answered in the protocol's own form: 421, 429, or by not reading on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The shared budget; clones share the count.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit_bytes: AtomicU64,
    used_bytes: AtomicU64,
    refused: AtomicU64,
}

impl Budget {
    /// A budget of `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Self(Arc::new(Inner {
            limit_bytes: AtomicU64::new(limit_bytes),
            used_bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// Takes `bytes` if they fit; the permit gives them back when dropped.
    #[must_use]
    pub fn try_take(&self, bytes: u64) -> Option<BudgetPermit> {
        self.try_add(bytes).then(|| BudgetPermit {
            budget: self.clone(),
            bytes,
        })
    }

    fn try_add(&self, bytes: u64) -> bool {
        let limit = self.0.limit_bytes.load(Ordering::Relaxed);
        let taken = self
            .0
            .used_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= limit)
            });
        if taken.is_err() {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// Bytes held now.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.0.limit_bytes.load(Ordering::Relaxed)
    }

    /// How often a permit was refused since the start.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Changes the limit (reload). Bytes already held stay held.
    pub fn set_limit(&self, limit_bytes: u64) {
        self.0.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }
}

/// Bytes taken from the budget; given back on drop.
#[derive(Debug)]
#[must_use = "a dropped permit gives its bytes back at once"]
pub struct BudgetPermit {
    budget: Budget,
    bytes: u64,
}

impl BudgetPermit {
    /// Takes `more` bytes onto this permit. `false` means that they do not fit; the permit is unchanged then.
    #[must_use]
    pub fn grow(&mut self, more: u64) -> bool {
        let fits = self.budget.try_add(more);
        if fits {
            self.bytes += more;
        }
        fits
    }

    /// Gives `fewer` bytes back, at most all.
    pub fn shrink(&mut self, fewer: u64) {
        let fewer = fewer.min(self.bytes);
        self.bytes -= fewer;
        self.budget.0.used_bytes.fetch_sub(fewer, Ordering::AcqRel);
    }

    /// Bytes held by this permit.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for BudgetPermit {
    fn drop(&mut self) {
        self.budget.0.used_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;

    #[test]
    fn permits_never_exceed_the_limit_and_come_back() {
        let budget = Budget::new(10);
        let mut a = budget.try_take(6).expect("fits");
        assert!(budget.try_take(5).is_none());
        assert!(a.grow(4));
        assert!(!a.grow(1));
        assert_eq!(budget.used_bytes(), 10);
        a.shrink(3);
        assert_eq!(budget.used_bytes(), 7);
        drop(a);
        assert_eq!(budget.used_bytes(), 0);
        assert_eq!(budget.refused(), 2);
    }

    #[test]
    fn a_sum_that_overflows_is_refused() {
        let budget = Budget::new(u64::MAX);
        let _all = budget.try_take(u64::MAX).expect("fits exactly");
        assert!(budget.try_take(1).is_none());
    }
}
