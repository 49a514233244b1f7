//! Looks at what the engines share: disk, store, certificate, clock.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Code, Condition, Health};
use crate::clock::{Clock, Timestamp};
use crate::shutdown::Shutdown;
use crate::store::NodeStore;
use crate::tls::Tls;

/// How often [`watch`] looks.
const LOOK: Duration = Duration::from_secs(15);
/// A store that does not answer a trivial question in this time does not answer.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The reserve is a tenth of the disk, but never more than this.
const MOST_RESERVE_BYTES: u64 = 1 << 30;
/// Days left at which a certificate is reported, if a sixth of its life is not even less.
const CERTIFICATE_DAYS: i64 = 14;
/// A wall clock that moved by more than this between two looks has jumped.
const CLOCK_JUMP: Duration = Duration::from_secs(30);
/// A jump is reported for so long.
const JUMP_IS_NEWS: Duration = Duration::from_secs(600);
/// 2025-01-01: before it the clock is certainly wrong, and certificates and signatures fail.
const NOT_BEFORE: Timestamp = Timestamp(1_735_689_600_000);

/// What [`watch`] looks at.
#[derive(Clone)]
pub struct Watched {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The store.
    pub store: Arc<dyn NodeStore>,
    /// The certificate.
    pub tls: Tls,
    /// The clocks.
    pub clock: Clock,
}

/// Looks every quarter of a minute and reports to `health`, until `shutdown` begins.
pub async fn watch(health: Health, watched: Watched, shutdown: Shutdown) {
    let mut clock = ClockLook::default();
    loop {
        look_at_disk(&health, &watched.data_dir).await;
        health.set("store", store_condition(watched.store.as_ref()).await);
        health.set("certificate", certificate_condition(&watched.tls));
        health.set("clock", clock.look(watched.clock.now(), watched.clock.wall()));
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Space on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that we may still write.
    pub free_bytes: u64,
    /// Bytes in all.
    pub size_bytes: u64,
    /// Files that we may still make.
    pub free_inodes: u64,
    /// Files in all; zero where the file system has no such limit (btrfs).
    pub inodes: u64,
}

/// Asks the operating system about the disk of `path`.
///
/// # Errors
/// The operating system's.
pub fn disk_space(path: &Path) -> io::Result<DiskSpace> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(DiskSpace {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_inodes: stat.f_favail,
        inodes: stat.f_files,
    })
}

/// What stays free for the database's own needs: a tenth of the disk or 1 GiB, whichever is smaller.
#[must_use]
pub fn reserve_bytes(size_bytes: u64) -> u64 {
    (size_bytes / 10).min(MOST_RESERVE_BYTES)
}

/// Whether the disk counts as full. Once full it must be a quarter above the reserve again, so that the answer to
/// peers does not flap.
pub(super) fn is_full(space: DiskSpace, was_full: bool) -> bool {
    let reserve = reserve_bytes(space.size_bytes);
    let wanted = if was_full { reserve + reserve / 4 } else { reserve };
    let few_inodes = space.inodes > 0 && space.free_inodes < space.inodes / 100;
    space.free_bytes < wanted || few_inodes
}

async fn look_at_disk(health: &Health, data_dir: &Path) {
    let path = data_dir.to_owned();
    // A dead network mount blocks the question itself.
    let space = tokio::task::spawn_blocking(move || disk_space(&path)).await;
    let condition = match space {
        Ok(Ok(space)) => {
            let full = is_full(space, health.disk_full());
            health.set_disk_full(full);
            full.then(|| {
                Condition::critical(
                    Code::Disk,
                    format!(
                        "{} has {} MiB and {} files left (reserve {} MiB): new mail and activities are refused; make space",
                        data_dir.display(),
                        space.free_bytes >> 20,
                        space.free_inodes,
                        reserve_bytes(space.size_bytes) >> 20,
                    ),
                )
            })
        }
        Ok(Err(error)) => Some(Condition::critical(
            Code::Disk,
            format!(
                "{} cannot be looked at ({error}): is it mounted?",
                data_dir.display()
            ),
        )),
        Err(_) => return,
    };
    health.set("disk", condition);
}

async fn store_condition(store: &dyn NodeStore) -> Option<Condition> {
    let critical = |why: String| {
        Some(Condition::critical(
            Code::Store,
            format!("the store does not answer: {why}"),
        ))
    };
    match tokio::time::timeout(PING_TIMEOUT, store.ping()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => critical(error.to_string()),
        Err(_) => critical(format!("nothing came within {} s", PING_TIMEOUT.as_secs())),
    }
}

fn certificate_condition(tls: &Tls) -> Option<Condition> {
    let status = tls.status();
    let life_days = i64::try_from(tls.certificate().life().as_secs() / 86_400).unwrap_or(i64::MAX);
    let because = status.trouble.map_or_else(String::new, |why| format!(" ({why})"));
    if status.days_left < 0 {
        let sentence = format!(
            "the certificate for {} has expired{because}",
            status.names.join(", ")
        );
        return Some(Condition::critical(Code::Certificate, sentence));
    }
    (status.days_left < CERTIFICATE_DAYS.min(life_days / 6)).then(|| {
        let sentence = format!(
            "the certificate for {} expires in {} days{because}",
            status.names.join(", "),
            status.days_left
        );
        Condition::warning(Code::Certificate, sentence)
    })
}

/// Compares the wall clock with the monotonic one from look to look.
#[derive(Debug, Default)]
pub(super) struct ClockLook {
    last: Option<(Instant, Timestamp)>,
    jumped: Option<(Instant, i64)>,
}

impl ClockLook {
    pub(super) fn look(&mut self, now: Instant, wall: Timestamp) -> Option<Condition> {
        if let Some((then, wall_then)) = self.last.replace((now, wall)) {
            let expected = wall_then.plus(now.saturating_duration_since(then));
            let moved_ms = wall.0.saturating_sub(expected.0);
            if u128::from(moved_ms.unsigned_abs()) > CLOCK_JUMP.as_millis() {
                self.jumped = Some((now, moved_ms / 1000));
            }
        }
        if wall < NOT_BEFORE {
            let sentence =
                format!("the machine's clock says {wall}: set it, or certificates and signatures fail");
            return Some(Condition::critical(Code::Clock, sentence));
        }
        let (when, seconds) = self.jumped?;
        if now.saturating_duration_since(when) > JUMP_IS_NEWS {
            self.jumped = None;
            return None;
        }
        let sentence = format!("the machine's clock jumped by {seconds} s: is its time synchronised?");
        Some(Condition::warning(Code::Clock, sentence))
    }
}
