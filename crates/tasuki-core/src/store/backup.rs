//! A consistent copy of what is stored, taken while everything goes on.

use std::io::Write;
use std::path::Path;

use async_trait::async_trait;

use super::StoreResult;

/// Mail bodies that lie beside the database: one file of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyFile {
    /// The number of the segment.
    pub segment: u64,
    /// Bytes of the bodies in it that are still needed.
    pub bytes: u64,
}

/// A copy under way. Dropped early, it leaves nothing behind but the file that it was writing.
#[async_trait]
pub trait Snapshot: Send {
    /// The bodies beside the database, a file each.
    fn body_files(&self) -> &[BodyFile];

    /// Mails in the copy.
    fn mails(&self) -> u64;

    /// The newest migration of the database.
    fn migration(&self) -> i64;

    /// Writes the bodies of a segment one behind the other, each checked, and notes in the copy of the database where they
    /// are now. Reads and writes in pieces, and blocks its thread.
    ///
    /// # Errors
    /// `Damaged` names a mail whose body is not what was accepted; else the disk's or the writer's.
    async fn write_bodies(&mut self, segment: u64, out: &mut (dyn Write + Send)) -> StoreResult<()>;

    /// Completes the copy of the database: from here on it is one file that nobody has open.
    ///
    /// # Errors
    /// The database's.
    async fn finish(self: Box<Self>) -> StoreResult<()>;
}

/// Who can copy what is stored.
#[async_trait]
pub trait BackupStore: Send + Sync {
    /// Copies the database to `file`, which must not exist, as it is at one moment after the call. Mail goes on meanwhile;
    /// only its bodies stay on the disk until the snapshot is dropped. `None` where the database server makes its own
    /// copies.
    ///
    /// # Errors
    /// `Full` if there is no room for the copy; else the database's.
    async fn snapshot(&self, file: &Path) -> StoreResult<Option<Box<dyn Snapshot>>>;
}
