//! A copy of the database at one moment, and of the bodies that it needs.
//!
//! `VACUUM INTO` only reads: the writer goes on, and what it commits meanwhile stays in the WAL, which is longer until the
//! copy is made. A [`BodyHold`] from before that moment keeps the bodies on the disk.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tasuki_core::ids::MailId;
use tasuki_core::store::backup::{BackupStore, BodyFile, Snapshot};
use tasuki_core::store::{StoreError, StoreResult};

use super::segments::{BodyHold, file};
use super::{Db, PRIVATE, space};
use crate::bodies::PIECE;
use crate::error::{io_error, store_error};

/// Bodies that several rows name count once.
const FILES: &str = "SELECT segment, CAST(SUM(body_len) AS INTEGER) FROM
    (SELECT DISTINCT segment, place, body_len FROM mails WHERE segment IS NOT NULL)
    GROUP BY segment ORDER BY segment";

struct Copied {
    copy: SqliteConnection,
    segments: PathBuf,
    files: Vec<BodyFile>,
    mails: u64,
    migration: i64,
    _hold: Option<BodyHold>,
}

/// Copies `database` to `file`; its bodies are in `segments`, and `hold` keeps them there.
pub(super) async fn take(
    database: &Path,
    segments: &Path,
    file: &Path,
    hold: Option<BodyHold>,
) -> StoreResult<Box<dyn Snapshot>> {
    let target = file
        .to_str()
        .ok_or_else(|| StoreError::Conflict(format!("{} is not a name in UTF-8", file.display())))?;
    let size = |suffix: &str| {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        std::fs::metadata(path).map_or(0, |m| m.len())
    };
    let dir = file.parent().unwrap_or(Path::new("."));
    if !space::has_room(dir, size("") + size("-wal")) {
        return Err(StoreError::Full);
    }
    // SQLite fills an empty file that is there, and leaves its mode alone.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(file)
        .map_err(io_error)?;
    let mut source = SqliteConnectOptions::new()
        .filename(database)
        .busy_timeout(Duration::from_secs(10))
        .disable_statement_logging()
        .connect()
        .await
        .map_err(store_error)?;
    sqlx::query("VACUUM INTO ?")
        .bind(target)
        .execute(&mut source)
        .await
        .map_err(store_error)?;
    source.close().await.map_err(store_error)?;
    // A crash here loses a copy that nobody has yet.
    let mut copy = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Delete)
        .synchronous(SqliteSynchronous::Off)
        .disable_statement_logging()
        .connect()
        .await
        .map_err(store_error)?;
    // What is copied has to be looked at again before it is believed.
    sqlx::query("DELETE FROM segments")
        .execute(&mut copy)
        .await
        .map_err(store_error)?;
    let files: Vec<(i64, i64)> = sqlx::query_as(FILES)
        .fetch_all(&mut copy)
        .await
        .map_err(store_error)?;
    let (mails, migration): (i64, i64) =
        sqlx::query_as("SELECT (SELECT COUNT(*) FROM mails), (SELECT MAX(version) FROM migrations)")
            .fetch_one(&mut copy)
            .await
            .map_err(store_error)?;
    let files = files.into_iter().map(|(segment, bytes)| BodyFile {
        segment: segment.cast_unsigned(),
        bytes: bytes.cast_unsigned(),
    });
    Ok(Box::new(Copied {
        copy,
        segments: segments.to_owned(),
        files: files.collect(),
        mails: mails.cast_unsigned(),
        migration,
        _hold: hold,
    }))
}

#[async_trait]
impl Snapshot for Copied {
    fn body_files(&self) -> &[BodyFile] {
        &self.files
    }

    fn mails(&self) -> u64 {
        self.mails
    }

    fn migration(&self) -> i64 {
        self.migration
    }

    async fn write_bodies(&mut self, segment: u64, out: &mut (dyn Write + Send)) -> StoreResult<()> {
        // One segment has some thousand bodies at most: none is shorter than 16 KiB.
        let rows: Vec<(i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT id, place, body_len, checksum FROM mails WHERE segment = ? ORDER BY place, id",
        )
        .bind(segment.cast_signed())
        .fetch_all(&mut self.copy)
        .await
        .map_err(store_error)?;
        let file = File::open(self.segments.join(file::name(segment))).map_err(io_error)?;
        let mut written = 0;
        let mut last = None;
        let mut moved = self.copy.begin().await.map_err(store_error)?;
        for (mail, place, len, checksum) in rows {
            let (from, len) = (place.cast_unsigned(), len.cast_unsigned());
            let to = match last {
                Some((known, to)) if known == (from, len) => to,
                _ => {
                    let found = copy_body(&file, (from, len), out).map_err(|e| damaged(mail, e))?;
                    if i64::from(found) != checksum {
                        return Err(damaged(mail, std::io::ErrorKind::InvalidData.into()));
                    }
                    let to = written;
                    written += len;
                    last = Some(((from, len), to));
                    to
                }
            };
            sqlx::query("UPDATE mails SET place = ? WHERE id = ?")
                .bind(to.cast_signed())
                .bind(mail)
                .execute(&mut *moved)
                .await
                .map_err(store_error)?;
        }
        moved.commit().await.map_err(store_error)
    }

    async fn finish(self: Box<Self>) -> StoreResult<()> {
        self.copy.close().await.map_err(store_error)
    }
}

/// Copies one body; gives its checksum.
fn copy_body(file: &File, (from, len): (u64, u64), out: &mut (dyn Write + Send)) -> std::io::Result<u32> {
    let mut checksum = 0;
    let mut done = 0;
    let mut buffer = vec![0; usize::try_from(len.min(PIECE)).unwrap_or(0)];
    while done < len {
        let piece = usize::try_from((len - done).min(PIECE)).unwrap_or(0);
        file.read_exact_at(&mut buffer[..piece], from + done)?;
        checksum = crc32c::crc32c_append(checksum, &buffer[..piece]);
        out.write_all(&buffer[..piece])?;
        done += piece as u64;
    }
    Ok(checksum)
}

/// The reader of the copy going away is not the body's fault.
fn damaged(mail: i64, error: std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => StoreError::Damaged(format!(
            "the body of mail {} is not what was accepted: look at it with `tasuki mail queue show {}`, and delete it to back up the rest",
            MailId(mail),
            MailId(mail)
        )),
        _ => io_error(error),
    }
}

#[async_trait]
impl BackupStore for Db {
    async fn snapshot(&self, file: &Path) -> StoreResult<Option<Box<dyn Snapshot>>> {
        // What was delivered a moment ago need not be sent again after a restore.
        self.land().await?;
        let hold = self.segments.hold();
        take(&self.database, self.segments.dir(), file, Some(hold))
            .await
            .map(Some)
    }
}
