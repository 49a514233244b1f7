//! One segment file: positioned writes, shared syncs, holes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::FallocateFlags;
use tokio::sync::Mutex;

use super::Place;

/// The file name of a segment.
pub(crate) fn name(segment: u64) -> String {
    format!("{segment:016x}.seg")
}

/// The segment of a file name.
pub(crate) fn number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".seg")?, 16).ok()
}

/// A segment that is open for writing.
#[derive(Debug)]
pub(super) struct SegmentFile {
    segment: u64,
    file: Arc<File>,
    begun: AtomicU64,
    written: Arc<AtomicU64>,
    synced: AtomicU64,
    syncing: Mutex<()>,
    is_broken: AtomicBool,
}

impl SegmentFile {
    /// Makes the file, with its directory entry on the disk.
    pub(super) fn create(dir: &Path, segment: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(dir.join(name(segment)))?;
        File::open(dir)?.sync_all()?;
        Ok(Self {
            segment,
            file: Arc::new(file),
            begun: AtomicU64::new(0),
            written: Arc::new(AtomicU64::new(0)),
            synced: AtomicU64::new(0),
            syncing: Mutex::new(()),
            is_broken: AtomicBool::new(false),
        })
    }

    pub(super) fn segment(&self) -> u64 {
        self.segment
    }

    /// A sync failed: what was written since the one before may be lost, so nothing more is written here.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Acquire)
    }

    /// No write is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.begun.load(Ordering::Acquire) == self.written.load(Ordering::Acquire)
    }

    /// Writes at a place that belongs to the caller. Blocks.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.begun.fetch_add(1, Ordering::AcqRel);
        let result = self.file.write_all_at(bytes, offset);
        self.written.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// Returns when all finished writes are on the disk; callers share one sync.
    pub(super) async fn sync(&self, syncs: &AtomicU64) -> io::Result<()> {
        let ticket = self.written.load(Ordering::Acquire);
        if self.synced.load(Ordering::Acquire) >= ticket {
            return Ok(());
        }
        let _turn = self.syncing.lock().await;
        if self.synced.load(Ordering::Acquire) >= ticket {
            return Ok(());
        }
        if self.is_broken() {
            return Err(io::Error::other("an earlier sync of this segment failed"));
        }
        let up_to = self.written.load(Ordering::Acquire);
        let file = Arc::clone(&self.file);
        let result = tokio::task::spawn_blocking(move || file.sync_data())
            .await
            .map_err(io::Error::other)?;
        syncs.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(()) => {
                self.synced.fetch_max(up_to, Ordering::AcqRel);
                Ok(())
            }
            Err(error) => {
                self.is_broken.store(true, Ordering::Release);
                Err(error)
            }
        }
    }
}

/// Deletes a segment. Blocks.
pub(super) fn delete(dir: &Path, segment: u64) -> io::Result<()> {
    match std::fs::remove_file(dir.join(name(segment))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives the space of these places back to the file system. Blocks.
pub(super) fn punch(dir: &Path, places: &[Place]) -> io::Result<()> {
    let mut open: Option<(u64, File)> = None;
    for place in places.iter().filter(|p| p.len > 0) {
        if open.as_ref().is_none_or(|(segment, _)| *segment != place.segment) {
            let file = OpenOptions::new()
                .write(true)
                .open(dir.join(name(place.segment)))?;
            open = Some((place.segment, file));
        }
        if let Some((_, file)) = &open {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(file, flags, place.offset, place.len) {
                // Without holes the space comes back when the segment is deleted.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
