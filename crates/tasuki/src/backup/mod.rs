//! Backup and restore: everything that makes a gateway what it is, in one file.
//!
//! The archive is a tar file that `tar -tf` lists: keys, node name, configuration, mail bodies, the database, and last of
//! all a manifest with the SHA-256 of each. [`write`] makes it, [`read`] opens it and believes nothing, [`verify`] looks
//! into it, [`restore`] makes a data directory of it.
//!
//! **Invariant:** nothing is written outside the directory that a restore names, whatever the archive says.

pub(crate) mod read;
pub(crate) mod restore;
mod tar;
#[cfg(test)]
mod tests;
pub(crate) mod verify;
pub(crate) mod write;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::exit::{self, Fail, Outcome};

/// The shape of the archive. Another number is refused.
const FORMAT: u32 = 1;

/// Names in the archive.
const MANIFEST: &str = "manifest.json";
const MANIFEST_SUM: &str = "manifest.sha256";
const DATABASE: &str = "tasuki.db";
const CONFIG: &str = "tasuki.toml";
const NODE_NAME: &str = "node-name";
const SEAL_KEY: &str = "keys/seal.key";
/// In place of a manifest: why the gateway could not go on.
const FAILED: &str = "failed";

/// What an archive holds, and what of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// See [`FORMAT`].
    pub format: u32,
    /// The program that wrote it.
    pub version: String,
    /// When the copy was begun.
    pub taken_at: String,
    /// `sqlite`, or `postgresql`, whose database is not in the archive.
    pub store: String,
    /// The newest migration of the database.
    pub migration: Option<i64>,
    /// The gateway's public name.
    pub host: Option<String>,
    /// Mails that waited.
    pub mails: u64,
    /// How long copying the database took.
    pub snapshot_ms: u64,
    /// Files that the configuration names and that are not in the archive.
    pub not_included: Vec<String>,
    /// All others in the archive.
    pub files: Vec<FileSum>,
}

/// One file of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileSum {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Whether a file of this name belongs into an archive. Only such names are ever written to a disk.
fn is_known(name: &str) -> bool {
    match name.split_once('/') {
        None => [MANIFEST, MANIFEST_SUM, DATABASE, CONFIG, NODE_NAME].contains(&name),
        Some(("keys", rest)) => rest.split('/').count() <= 4 && rest.split('/').all(is_plain),
        Some(("segments", file)) => tasuki_store::segment_of_file(file).is_some(),
        Some(_) => false,
    }
}

/// One step of a path that leads nowhere else.
fn is_plain(step: &str) -> bool {
    !step.is_empty() && !step.starts_with('.') && step.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
}

/// Two digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Refuses work that the file system of `dir` has no room for; one that does not tell is tried.
pub(crate) fn require_room(dir: &Path, needed: u64) -> Outcome {
    let Ok(fs) = rustix::fs::statvfs(dir) else {
        return Ok(());
    };
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    if free < needed {
        return Err(Fail::new(
            exit::CANT_CREATE,
            format!(
                "{} has {} MiB free, and {} MiB are needed",
                dir.display(),
                free >> 20,
                (needed >> 20) + 1
            ),
        ));
    }
    Ok(())
}
