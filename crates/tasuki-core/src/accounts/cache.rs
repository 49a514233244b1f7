//! Caches that follow the store's version, and one login at a time for equal ones.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::clock::Clock;
use crate::store::{AccountStore, StoreResult};

/// For how long the version is believed before it is read again; within it, a change that another gateway made may
/// not be seen.
const VERSION_HOLDS: Duration = Duration::from_secs(1);

/// The store's version of principals, credentials and rules, as last read.
#[derive(Default)]
pub(super) struct Follower {
    known: Mutex<Option<(i64, Instant)>>,
}

impl Follower {
    pub(super) async fn version(&self, store: &dyn AccountStore, clock: &Clock) -> StoreResult<i64> {
        let now = clock.now();
        if let Some((version, at)) = *self.lock()
            && now.saturating_duration_since(at) < VERSION_HOLDS
        {
            return Ok(version);
        }
        let version = store.accounts_version().await?;
        *self.lock() = Some((version, now));
        Ok(version)
    }

    /// Reads the version again next time: something was changed here.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(i64, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Values that hold as long as the store's version is the one they were read under.
pub(super) struct Versioned<K, V> {
    entries: Cache<K, (i64, V)>,
}

impl<K: Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static> Versioned<K, V> {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            entries: Cache::new(capacity),
        }
    }

    pub(super) fn find(&self, key: &K, version: i64) -> Option<V> {
        let (read_under, value) = self.entries.get(key)?;
        (read_under == version).then_some(value)
    }

    /// `version` must have been read before `value`.
    pub(super) fn keep(&self, key: K, version: i64, value: V) {
        self.entries.insert(key, (version, value));
    }
}

/// Lets equal logins through one at a time: when a program opens a hundred connections, the first pays for the
/// password and the others find it in the cache. As many entries as logins that wait.
#[derive(Default)]
pub(super) struct Queues {
    by_key: Mutex<HashMap<[u8; 32], Arc<tokio::sync::Mutex<()>>>>,
}

/// A turn; ends when dropped.
pub(super) struct Turn<'a> {
    queues: &'a Queues,
    key: [u8; 32],
    held: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Queues {
    pub(super) async fn turn(&self, key: [u8; 32]) -> Turn<'_> {
        let queue = Arc::clone(self.lock().entry(key).or_default());
        // Made before the wait, so that a login that is cancelled while it waits cleans up as well.
        let mut turn = Turn {
            queues: self,
            key,
            held: None,
        };
        turn.held = Some(queue.lock_owned().await);
        turn
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Arc<tokio::sync::Mutex<()>>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut by_key = self.queues.lock();
        // Only the map's own handle is left: nobody waits.
        if by_key.get(&self.key).is_some_and(|q| Arc::strong_count(q) == 1) {
            by_key.remove(&self.key);
        }
    }
}
