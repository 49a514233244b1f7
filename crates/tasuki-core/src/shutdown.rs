//! Graceful shutdown: one signal, tracked tasks, a grace period.

use std::future::Future;
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
    grace: Duration,
}

impl Shutdown {
    /// A fresh signal; `grace` is how long a drain may take before what is left is cut.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
            grace,
        }
    }

    /// A signal of its own that also fires with this one; it tracks its own tasks.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
            tracker: TaskTracker::new(),
            grace: self.grace,
        }
    }

    /// Starts the shutdown. Repeating it does nothing.
    pub fn begin(&self) {
        self.token.cancel();
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
        self.grace
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
        match tokio::time::timeout(self.grace, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        }
    }
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
