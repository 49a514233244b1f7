//! Room on the disk: new work is refused before the last bytes are gone, so that what is stored can still be settled.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tasuki_core::clock::Clock;
use tasuki_core::store::{StoreError, StoreResult};

use crate::error::is_io_error;

/// The reserve: this much, or a twentieth of a small file system.
const RESERVE: u64 = 64 << 20;
/// Less than this is nothing: a write of the database may not find room.
const EXHAUSTED: u64 = 1 << 20;
/// How long one look at the file system counts: less is written in this time than the reserve holds.
const LOOK_EVERY_MS: i64 = 5;

/// Looks at the free space of one directory's file system.
#[derive(Debug)]
pub(super) struct Space {
    dir: PathBuf,
    clock: Clock,
    looked_at: AtomicI64,
    is_low: AtomicBool,
}

impl Space {
    /// Watches the file system that holds `dir`.
    pub(super) fn new(dir: &Path, clock: Clock) -> Self {
        Self {
            dir: dir.to_owned(),
            clock,
            looked_at: AtomicI64::new(i64::MIN),
            is_low: AtomicBool::new(false),
        }
    }

    /// What an error of the operating system was: `Full` if there is no room now. SQLite says "disk full" itself when a
    /// write fails for it, but not when a sync or the growth of a shared file does.
    pub(super) fn explain(&self, error: StoreError) -> StoreError {
        if is_io_error(&error) && self.free().is_some_and(|(free, _)| free < EXHAUSTED) {
            return StoreError::Full;
        }
        error
    }

    /// Free and total bytes; `None` if the file system does not say.
    fn free(&self) -> Option<(u64, u64)> {
        let fs = rustix::fs::statvfs(&self.dir).ok()?;
        Some((
            fs.f_bavail.saturating_mul(fs.f_frsize),
            fs.f_blocks.saturating_mul(fs.f_frsize),
        ))
    }

    /// `Full` when free space is below the reserve.
    pub(super) fn require(&self) -> StoreResult<()> {
        let now = self.clock.wall().0;
        if now.saturating_sub(self.looked_at.load(Ordering::Relaxed)) >= LOOK_EVERY_MS {
            self.looked_at.store(now, Ordering::Relaxed);
            // An unreadable figure is no reason to refuse mail: the write itself will tell.
            let low = self
                .free()
                .is_some_and(|(free, total)| free < RESERVE.min(total / 20));
            self.is_low.store(low, Ordering::Relaxed);
        }
        if self.is_low.load(Ordering::Relaxed) {
            return Err(StoreError::Full);
        }
        Ok(())
    }
}

/// Whether `bytes` more fit on the file system of `dir` and the reserve stays; an unreadable figure says nothing.
pub(super) fn has_room(dir: &Path, bytes: u64) -> bool {
    let Ok(fs) = rustix::fs::statvfs(dir) else {
        return true;
    };
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    let total = fs.f_blocks.saturating_mul(fs.f_frsize);
    free >= bytes.saturating_add(RESERVE.min(total / 20))
}
