//! Bodies above 16 KiB: append-only files in `segments/`, never one file for a message.
//!
//! Bodies up to [`sink::SPILL`] are buffered and written at once into one of two shared segments, so that many callers
//! share each sync. Longer ones stream into a segment that they lease while they arrive. A body is durable when
//! [`Segments::sync`] returned for its segment; the store syncs beside the commit of the body's row.
//!
//! Space that no mail needs any more is punched out by the [`janitor`]; a closed segment without live bodies is
//! deleted. Closed segments that are known to be on the disk are `sealed` in the database and are not read again at
//! the next start.

pub(in crate::sqlite) mod file;
mod recover;
mod sink;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::store::{StoreError, StoreResult};
use tokio::sync::Notify;

use self::file::SegmentFile;
pub(super) use self::recover::{STATEMENTS, recover};
use self::sink::Sink;
use self::source::Source;
use super::space::Space;
use super::writer::Writer;
use crate::error::{io_error, store_error};

/// A segment that reached this size gets no more bodies.
const SEGMENT_BYTES: u64 = 64 << 20;
/// A shared segment without live bodies is given up from this size on.
const DEAD_BYTES: u64 = 16 << 20;
/// Segments kept open for streaming while nobody streams.
const IDLE: usize = 4;
/// A finished body that no mail claimed within this time is discarded.
const UNCLAIMED: Duration = Duration::from_secs(15 * 60);
/// Freed space is gathered this long, so that neighbours are punched together.
const GATHER: Duration = Duration::from_secs(1);
/// The janitor looks at least this often.
const ROUND: Duration = Duration::from_secs(60);

/// Where a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// All segments of a data directory.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    clock: Clock,
    space: Arc<Space>,
    state: Mutex<State>,
    syncs: AtomicU64,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    entries: HashMap<u64, Entry>,
    /// Two segments that take whole bodies in turn.
    shared: [Option<u64>; 2],
    turn: usize,
    /// Open segments for streaming that nobody leases.
    idle: Vec<u64>,
    unclaimed: HashMap<Place, Timestamp>,
    dead: Vec<Place>,
    /// Backups that read bodies: nothing is punched or deleted meanwhile.
    holds: usize,
}

/// As long as this lives, no body that was stored when it was taken leaves the disk.
#[derive(Debug)]
pub(super) struct BodyHold(Arc<Segments>);

impl Drop for BodyHold {
    fn drop(&mut self) {
        self.0.state().holds -= 1;
        self.0.freed.notify_one();
    }
}

#[derive(Debug, Default)]
struct Entry {
    /// Kept while there may be something to write or sync.
    file: Option<Arc<SegmentFile>>,
    tail: u64,
    punched: u64,
    /// Bodies that are stored, unclaimed or arriving.
    live: u64,
    is_closed: bool,
}

fn removed() -> StoreError {
    StoreError::Damaged("a segment file was removed while the gateway runs".into())
}

impl Segments {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs since the start.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Bytes that the segments occupy, about.
    pub(super) fn size_bytes(&self) -> u64 {
        self.state()
            .entries
            .values()
            .map(|e| e.tail.saturating_sub(e.punched))
            .sum()
    }

    /// A new body.
    pub(super) fn sink(self: &Arc<Self>, size_hint: Option<u64>) -> Sink {
        Sink::new(Arc::clone(self), size_hint)
    }

    /// Opens a body for reading.
    pub(super) async fn source(self: &Arc<Self>, place: Place, checksum: u32) -> StoreResult<Source> {
        Source::open(self.path(place.segment), place, checksum).await
    }

    /// Keeps on the disk what is there; see [`BodyHold`].
    pub(super) fn hold(self: &Arc<Self>) -> BodyHold {
        self.state().holds += 1;
        BodyHold(Arc::clone(self))
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.dir.join(file::name(segment))
    }

    /// These bodies belong to mails now.
    pub(super) fn claim(&self, places: &[Place]) {
        let mut state = self.state();
        for place in places {
            state.unclaimed.remove(place);
        }
    }

    /// Nobody needs these bodies any more.
    pub(super) fn free(&self, places: &[Place]) {
        if places.is_empty() {
            return;
        }
        let mut state = self.state();
        for place in places {
            state.release(*place);
        }
        drop(state);
        self.freed.notify_one();
    }

    /// Returns when everything in these places is on the disk.
    pub(super) async fn sync(&self, places: &[Place]) -> StoreResult<()> {
        let wanted: HashSet<u64> = places.iter().map(|p| p.segment).collect();
        let files = {
            let state = self.state();
            let mut files = Vec::with_capacity(wanted.len());
            for segment in wanted {
                // Without a file the segment is sealed, that is synced.
                files.extend(state.entries.get(&segment).ok_or_else(removed)?.file.clone());
            }
            files
        };
        futures_util::future::try_join_all(files.iter().map(|file| file.sync(&self.syncs)))
            .await
            .map_err(io_error)?;
        Ok(())
    }

    /// `Full` when what is free on the disk is kept for the work at hand.
    fn require_space(&self) -> StoreResult<()> {
        self.space.require()
    }

    /// Room for a whole body in a shared segment. Blocks when a segment has to be made.
    fn reserve(&self, len: u64) -> std::io::Result<(Arc<SegmentFile>, Place)> {
        let turn = {
            let mut state = self.state();
            state.turn = (state.turn + 1) % state.shared.len();
            let turn = state.turn;
            if let Some(found) = state.reserve_in(turn, len) {
                return Ok(found);
            }
            turn
        };
        let segment = self.create()?;
        let mut state = self.state();
        if let Some(old) = state.shared[turn].replace(segment) {
            state.close(old);
        }
        state
            .reserve_in(turn, len)
            .ok_or_else(|| std::io::Error::other("a new segment has no room"))
    }

    fn create(&self) -> std::io::Result<u64> {
        let segment = {
            let mut state = self.state();
            state.next += 1;
            state.next
        };
        let file = SegmentFile::create(&self.dir, segment)?;
        let entry = Entry {
            file: Some(Arc::new(file)),
            ..Entry::default()
        };
        self.state().entries.insert(segment, entry);
        Ok(segment)
    }

    /// A segment for one body that streams. Blocks when a segment has to be made.
    fn lease(&self) -> std::io::Result<(Arc<SegmentFile>, u64, u64)> {
        let idle = self.state().idle.pop();
        let segment = match idle {
            Some(segment) => segment,
            None => self.create()?,
        };
        let mut state = self.state();
        let found = state.entries.get_mut(&segment).and_then(|entry| {
            entry.live += 1;
            entry.file.clone().map(|file| (file, segment, entry.tail))
        });
        found.ok_or_else(|| std::io::Error::other("a segment has no file"))
    }

    /// Ends a lease: the body is kept until a mail claims it, or its space is free.
    fn end_lease(&self, place: Place, is_complete: bool) {
        let mut state = self.state();
        let mut is_full = false;
        if let Some(entry) = state.entries.get_mut(&place.segment) {
            entry.tail = entry.tail.max(place.offset + place.len);
            is_full = entry.tail >= SEGMENT_BYTES || entry.file.as_ref().is_none_or(|f| f.is_broken());
        }
        if is_full {
            state.close(place.segment);
        } else {
            state.idle.push(place.segment);
        }
        if is_complete {
            let now = self.clock.wall();
            state.unclaimed.insert(place, now);
        } else {
            state.release(place);
            drop(state);
            self.freed.notify_one();
        }
    }

    /// A body written by [`Segments::reserve`] is complete, or failed.
    fn end_reserved(&self, place: Place, is_complete: bool) {
        let mut state = self.state();
        if is_complete {
            let now = self.clock.wall();
            state.unclaimed.insert(place, now);
        } else {
            state.release(place);
        }
    }
}

impl State {
    fn reserve_in(&mut self, turn: usize, len: u64) -> Option<(Arc<SegmentFile>, Place)> {
        let segment = self.shared[turn]?;
        let entry = self.entries.get_mut(&segment)?;
        let file = entry.file.as_ref().filter(|file| !file.is_broken())?;
        if entry.tail > 0 && entry.tail + len > SEGMENT_BYTES {
            return None;
        }
        let place = Place {
            segment,
            offset: entry.tail,
            len,
        };
        entry.tail += len;
        entry.live += 1;
        Some((Arc::clone(file), place))
    }

    fn close(&mut self, segment: u64) {
        if let Some(entry) = self.entries.get_mut(&segment) {
            entry.is_closed = true;
        }
    }

    fn release(&mut self, place: Place) {
        self.unclaimed.remove(&place);
        if let Some(entry) = self.entries.get_mut(&place.segment) {
            entry.live = entry.live.saturating_sub(1);
            self.dead.push(place);
        }
    }

    /// Forgets bodies that nobody claimed, and gives up segments that hold nothing.
    fn tidy(&mut self, now: Timestamp) {
        let old: Vec<Place> = self
            .unclaimed
            .iter()
            .filter(|(_, since)| now.since(**since) >= UNCLAIMED)
            .map(|(place, _)| *place)
            .collect();
        for place in old {
            self.release(place);
        }
        for turn in 0..self.shared.len() {
            if let Some(segment) = self.shared[turn]
                && let Some(entry) = self.entries.get(&segment)
                && entry.live == 0
                && entry.tail >= DEAD_BYTES
            {
                self.close(segment);
                self.shared[turn] = None;
            }
        }
        while self.idle.len() > IDLE {
            let segment = self.idle.remove(0);
            self.close(segment);
        }
    }

    /// Closed segments without a live body; they are forgotten here.
    fn take_empty(&mut self) -> Vec<u64> {
        let empty: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, e)| e.is_closed && e.live == 0)
            .map(|(segment, _)| *segment)
            .collect();
        for segment in &empty {
            self.entries.remove(segment);
        }
        empty
    }

    /// Joins neighbours in the dead space, so that a long hold of many bodies stays a short list.
    fn join_dead(&mut self) {
        let mut dead = std::mem::take(&mut self.dead);
        dead.retain(|place| self.entries.contains_key(&place.segment));
        dead.sort_unstable();
        for place in dead {
            match self.dead.last_mut() {
                Some(last) if last.segment == place.segment && last.offset + last.len == place.offset => {
                    last.len += place.len;
                }
                _ => self.dead.push(place),
            }
        }
    }

    /// Dead space by segment, neighbours joined.
    fn take_dead(&mut self) -> Vec<Place> {
        self.join_dead();
        let joined = std::mem::take(&mut self.dead);
        for place in &joined {
            if let Some(entry) = self.entries.get_mut(&place.segment) {
                entry.punched += place.len;
            }
        }
        joined
    }

    /// Closed segments that may still have unsynced bytes.
    fn unsealed(&self) -> Vec<Arc<SegmentFile>> {
        self.entries
            .values()
            .filter(|e| e.is_closed)
            .filter_map(|e| e.file.clone())
            .filter(|file| file.is_quiet() && !file.is_broken())
            .collect()
    }
}

/// Punches out dead space, deletes empty segments, seals full ones; until it is aborted.
pub(super) async fn janitor(segments: Arc<Segments>, writer: Writer) {
    loop {
        let _ = tokio::time::timeout(ROUND, segments.freed.notified()).await;
        tokio::time::sleep(GATHER).await;
        if let Err(error) = round(&segments, &writer).await {
            tracing::warn!(error = %error, "segments could not be tidied; trying again later");
        }
    }
}

async fn round(segments: &Arc<Segments>, writer: &Writer) -> StoreResult<()> {
    let (empty, dead, unsealed) = {
        let mut state = segments.state();
        state.tidy(segments.clock.wall());
        if state.holds > 0 {
            state.join_dead();
            (Vec::new(), Vec::new(), state.unsealed())
        } else {
            (state.take_empty(), state.take_dead(), state.unsealed())
        }
    };
    if !empty.is_empty() || !dead.is_empty() {
        let dir = segments.dir.clone();
        blocking(move || {
            for segment in empty {
                file::delete(&dir, segment)?;
            }
            file::punch(&dir, &dead)
        })
        .await?;
    }
    for file in unsealed {
        file.sync(&segments.syncs).await.map_err(io_error)?;
        let segment = file.segment();
        writer
            .change(
                move |conn| Box::pin(async move { seal(conn, segment).await }),
                |()| (),
            )
            .await?;
        if let Some(entry) = segments.state().entries.get_mut(&segment) {
            entry.file = None;
        }
    }
    Ok(())
}

/// Notes that everything in the segment is on the disk.
async fn seal(conn: &mut sqlx::SqliteConnection, segment: u64) -> StoreResult<()> {
    sqlx::query("INSERT INTO segments (id, sealed) VALUES (?, TRUE) ON CONFLICT (id) DO NOTHING")
        .bind(segment.cast_signed())
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Runs file work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> StoreResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| StoreError::Unavailable(Box::new(error)))?
        .map_err(io_error)
}
