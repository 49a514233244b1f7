//! How long a flow may be blocked, and what flows share.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tasuki_core::budget::{Budget, BudgetPermit};
use tokio::net::TcpStream;

use super::meter::Meter;
use crate::pool::{BUFFER_BYTES, Pool};
use crate::shaper::Shaping;

/// How long a flow may be blocked. Blocked flows keep a part of the session's window each; when they could hold half of
/// it, the patience with all of them becomes short, so that the moving ones keep theirs.
#[derive(Debug)]
pub(crate) struct Patience {
    blocked: AtomicU32,
    many: u32,
    pub(super) usual: Duration,
}

/// Patience with a blocked flow while many are.
const CROWDED: Duration = Duration::from_secs(2);

impl Patience {
    /// `stream_window` and `session_window` as the receiving side grants them.
    pub(crate) fn new(usual: Duration, stream_window: u32, session_window: u32) -> Self {
        Self {
            blocked: AtomicU32::new(0),
            many: session_window / stream_window / 2,
            usual,
        }
    }

    /// Waits until `socket` takes bytes; false if the patience ended. It is short, too, for a flow whose `held` bytes do
    /// not fit into the budget.
    pub(super) async fn writable(
        &self,
        socket: &TcpStream,
        held: usize,
        budget: Option<&Budget>,
    ) -> io::Result<bool> {
        let permit = budget.map(|budget| budget.try_take(held as u64));
        let over_budget = matches!(permit, Some(None));
        self.blocked.fetch_add(1, Ordering::Relaxed);
        let _count = scopeguard(|| {
            self.blocked.fetch_sub(1, Ordering::Relaxed);
        });
        let mut waited = Duration::ZERO;
        loop {
            let crowded = self.blocked.load(Ordering::Relaxed) > self.many;
            let limit = if crowded || over_budget {
                CROWDED.min(self.usual)
            } else {
                self.usual
            };
            if waited >= limit {
                return Ok(false);
            }
            let step = CROWDED.min(limit - waited);
            match tokio::time::timeout(step, socket.writable()).await {
                Ok(done) => return done.map(|()| true),
                Err(_) => waited += step,
            }
        }
    }
}

fn scopeguard(on_drop: impl FnMut()) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(on_drop)
}

/// What flows share.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) patience: &'a Patience,
    pub(crate) meter: &'a Meter,
    /// The process's byte budget, on the gateway: one visitor is nothing, all of them together are bounded by it.
    pub(crate) budget: Option<&'a Budget>,
    /// The agent's bandwidth, on the gateway.
    pub(crate) shaping: Option<&'a Shaping>,
}

/// How often a flow that waits for room in the budget looks again.
const BUDGET_RETRY: Duration = Duration::from_millis(20);

impl Shared<'_> {
    /// Room in the budget for one read buffer. While there is none, the flow's socket is not read.
    pub(super) async fn room(&self) -> Option<BudgetPermit> {
        let budget = self.budget?;
        loop {
            if let Some(permit) = budget.try_take(BUFFER_BYTES as u64) {
                return Some(permit);
            }
            tokio::time::sleep(BUDGET_RETRY).await;
        }
    }
}
