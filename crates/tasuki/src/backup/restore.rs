//! A data directory from an archive, and the pause with which it begins its life.
//!
//! What was delivered after the backup is in the restored queue too, and would be sent again. So a restored gateway takes
//! mail and activities and sends none until its operator lets it. The key that marks a directory as a gateway's is
//! written last, and without it nothing starts in a directory that has anything else of a gateway
//! ([`crate::data::furnish`]).

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tasuki_core::clock::Timestamp;
use tasuki_core::files;
use tasuki_core::store::fedi::{Brake, BrakeMode};
use tasuki_core::store::mail::{LaneKey, Paused};
use tasuki_core::store::{Actor, Store, StoreError};

use super::verify::{self, Verified};
use super::{SEAL_KEY, read::Archive};
use crate::exit::{self, Fail, Outcome};
use crate::place::DataDir;

/// Makes `data` from the archive `path`, after looking into it as `backup verify` does.
pub(crate) fn restore(path: &Path, data: &DataDir, release: bool) -> Outcome<Verified> {
    require_empty(data)?;
    let (archive, verified) = verify::archive(path)?;
    let cannot = |what: &Path, e: &std::io::Error| {
        Fail::new(
            exit::CANT_CREATE,
            format!("{} cannot be made: {e}", what.display()),
        )
    };
    for dir in [data.path().to_owned(), data.keys(), data.path().join("segments")] {
        files::make_private_dir(&dir).map_err(|e| cannot(&dir, &e))?;
    }
    // A directory that was there before, as a mount point, is closed to others too.
    std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o700))
        .map_err(|e| cannot(data.path(), &e))?;
    require_room(data, &archive)?;
    if !release {
        files::write_private(&data.restored(), archive.manifest.taken_at.as_bytes())
            .map_err(|e| cannot(&data.restored(), &e))?;
    }
    let (last, others): (Vec<_>, Vec<_>) = archive.files().iter().partition(|file| file.name == SEAL_KEY);
    for file in others {
        extract(&archive, &file.name, data)?;
    }
    for file in last {
        extract(&archive, &file.name, data)?;
    }
    Ok(verified)
}

fn extract(archive: &Archive, name: &str, data: &DataDir) -> Outcome {
    let to = data.path().join(name);
    let dir = to.parent().unwrap_or(data.path());
    files::make_private_dir(dir).map_err(|e| Fail::io(dir.display(), &e))?;
    archive.extract(name, &to)?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Fail::io(dir.display(), &e))
}

/// A place in which nothing is yet.
fn require_empty(data: &DataDir) -> Outcome {
    let path = data.path();
    let found = match std::fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Fail::io(path.display(), &e)),
        // A file system of its own begins with this.
        Ok(mut entries) => entries.find(|entry| entry.as_ref().is_ok_and(|e| e.file_name() != "lost+found")),
    };
    match found {
        None => Ok(()),
        Some(_) => Err(Fail::new(
            exit::CANT_CREATE,
            format!(
                "{} is not empty, and a restore overwrites nothing: name a new directory with --data",
                path.display()
            ),
        )),
    }
}

fn require_room(data: &DataDir, archive: &Archive) -> Outcome {
    let needed: u64 = archive.files().iter().map(|file| file.size).sum();
    super::require_room(data.path(), needed)
}

/// When the backup was taken of which this directory was restored, if it has not been started since.
pub(crate) fn restored_of(data: &DataDir) -> Outcome<Option<String>> {
    let marker = data.restored();
    match std::fs::read_to_string(&marker) {
        Ok(taken_at) => Ok(Some(taken_at)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        // Whoever cannot tell must not send.
        Err(e) => Err(Fail::io(marker.display(), &e)),
    }
}

/// In a directory that was restored: nothing is sent until somebody says so, but for answers to those who follow or leave.
pub(crate) async fn hold(
    store: &dyn Store,
    data: &DataDir,
    taken_at: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let reason = format!("restored from the backup of {}", taken_at.trim());
    let by = Actor::gateway("restore");
    let paused = Paused {
        lane: LaneKey(LaneKey::ALL.to_owned()),
        since: now,
        by: by.who.clone(),
        reason: reason.clone(),
    };
    let entry = by.entry(now, "mail.pause", LaneKey::ALL, reason.clone());
    store.pause_lane(paused, entry).await?;
    let brake = Brake {
        mode: BrakeMode::Hold,
        reason: reason.clone(),
        at: now,
    };
    let entry = by.entry(now, "fedi.pause", "hold", reason.clone());
    store.set_brake(Some(brake), Some(entry)).await?;
    // Only now: after a crash before this it is simply done again.
    if let Err(error) = std::fs::remove_file(data.restored()) {
        tracing::warn!(%error, "data/restored cannot be deleted: the next start pauses everything again");
    }
    tracing::warn!(
        "{reason}: mail and activities are taken and not sent, as what was delivered after the backup would be sent again; \
         only answers to instances that follow or leave are. \
         Look at `tasuki mail queue`, then: tasuki mail resume '*'; tasuki fedi resume"
    );
    Ok(())
}
