//! Graceful shutdown: one signal, tracked tasks, a grace period.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells every task that the house closes, and waits for those that must finish.
///
/// Clones share the signal and the tracker. An engine gets a [`Shutdown::child`], so that it can be closed alone.
#[derive(Clone, Debug)]
pub struct Shutdown {
    token: CancellationToken,
    tracker: TaskTracker,
    /// In milliseconds; one for all children.
    grace: Arc<AtomicU64>,
}

impl Shutdown {
    /// A fresh signal; `grace` is how long a drain may take before what is left is cut.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
            grace: Arc::new(AtomicU64::new(millis(grace))),
        }
    }

    /// A signal of its own that also fires with this one; it tracks its own tasks.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
            tracker: TaskTracker::new(),
            grace: Arc::clone(&self.grace),
        }
    }

    /// Starts the shutdown. Repeating it does nothing.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Starts the shutdown with another grace, for all that share it: an upgrade waits less long than an end.
    pub fn begin_within(&self, grace: Duration) {
        self.grace.store(millis(grace), Ordering::Relaxed);
        self.begin();
    }

    /// Whether the shutdown has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves when the shutdown begins; cancel-safe.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// How long a drain may take.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace.load(Ordering::Relaxed))
    }

    /// Spawns a task on the current runtime that the drain waits for.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Waits until every spawned task has ended or the grace has passed. Returns how many were late.
    pub async fn drained(&self) -> usize {
        self.tracker.close();
        match tokio::time::timeout(self.grace(), self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What an engine did with its work when it closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Units of work that finished during the drain.
    pub finished: u64,
    /// Units given back to the store for the next start or another gateway.
    pub handed_back: u64,
    /// Tasks that did not end within the grace and were cut.
    pub late: u64,
}
