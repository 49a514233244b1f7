//! Whether a database is whole: its pages, and the body of each mail in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tasuki_core::ids::MailId;
use tasuki_core::store::{StoreError, StoreResult};

use super::segments::file;
use crate::bodies::PIECE;
use crate::error::store_error;
use crate::migrate;

/// Faults told one by one; further ones are counted.
const FAULTS: usize = 100;
/// Rows read at once.
const PAGE: i64 = 1_000;

/// Where bodies of more than 16 KiB are read.
pub trait Bodies: Sync {
    /// Fills `buffer` from this place of a segment.
    ///
    /// # Errors
    /// `NotFound` if there is no such segment, `UnexpectedEof` if it ends before; else the operating system's.
    fn read_at(&self, segment: u64, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// The segment files of a data directory.
#[derive(Debug)]
pub struct SegmentFiles(PathBuf);

impl SegmentFiles {
    /// Those in this data directory.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self(data_dir.join("segments"))
    }
}

impl Bodies for SegmentFiles {
    fn read_at(&self, segment: u64, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        File::open(self.0.join(file::name(segment)))?.read_exact_at(buffer, offset)
    }
}

/// What was found in a database.
#[derive(Debug, Default)]
pub struct Checked {
    /// The newest migration.
    pub migration: i64,
    /// Mails that wait.
    pub mails: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// Sealed secrets by name; whether they open is for who has the key.
    pub secrets: Vec<(String, Vec<u8>)>,
    /// What is wrong, one sentence each, at most a hundred.
    pub faults: Vec<String>,
    /// All that is wrong, counted.
    pub fault_count: u64,
}

impl Checked {
    fn fault(&mut self, text: String) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS {
            self.faults.push(text);
        }
    }
}

/// Looks at every page of the database `file` and at every body. With `is_live` a gateway may be at work on it: mail that
/// leaves meanwhile is no fault.
///
/// # Errors
/// `Damaged` if the file cannot be read as a database of ours at all.
pub async fn check(file: &Path, is_live: bool, bodies: &dyn Bodies) -> StoreResult<Checked> {
    let unreadable = |e: sqlx::Error| match store_error(e) {
        StoreError::Unavailable(source) => StoreError::Damaged(format!(
            "{} cannot be read as a database: {source}",
            file.display()
        )),
        other => other,
    };
    let mut conn = SqliteConnectOptions::new()
        .filename(file)
        .read_only(true)
        .immutable(!is_live)
        .disable_statement_logging()
        .connect()
        .await
        .map_err(unreadable)?;
    let mut checked = Checked::default();
    let pages: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(100)")
        .fetch_all(&mut conn)
        .await
        .map_err(unreadable)?;
    for page in pages.into_iter().filter(|page| page != "ok") {
        checked.fault(format!("the database: {page}"));
    }
    checked.migration = sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM migrations")
        .fetch_one(&mut conn)
        .await
        .map_err(unreadable)?;
    if checked.migration > migrate::newest() {
        checked.fault(format!(
            "the database has migration {}, this program knows {} at most: it was written by a newer version",
            checked.migration,
            migrate::newest()
        ));
        return Ok(checked);
    }
    checked.secrets = sqlx::query_as("SELECT name, sealed FROM secrets ORDER BY name")
        .fetch_all(&mut conn)
        .await
        .map_err(unreadable)?;
    check_mails(&mut conn, bodies, &mut checked)
        .await
        .map_err(unreadable)?;
    conn.close().await.map_err(unreadable)?;
    Ok(checked)
}

struct Row {
    id: i64,
    body_len: i64,
    segment: Option<i64>,
    place: Option<i64>,
    checksum: Option<i64>,
    inline: i64,
}

/// The columns of a [`Row`], in its order.
type Columns = (i64, i64, Option<i64>, Option<i64>, Option<i64>, i64);

async fn check_mails(
    conn: &mut SqliteConnection,
    bodies: &dyn Bodies,
    checked: &mut Checked,
) -> Result<(), sqlx::Error> {
    let mut after = i64::MIN;
    loop {
        // No transaction is held while bodies are read: the WAL of a gateway at work stays short.
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT id, body_len, segment, place, checksum, COALESCE(LENGTH(body), 0) FROM mails
             WHERE id > ? ORDER BY id LIMIT ?",
        )
        .bind(after)
        .bind(PAGE)
        .fetch_all(&mut *conn)
        .await?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = last.0;
        for (id, body_len, segment, place, checksum, inline) in rows {
            let row = Row {
                id,
                body_len,
                segment,
                place,
                checksum,
                inline,
            };
            checked.mails += 1;
            checked.body_bytes += row.body_len.max(0).cast_unsigned();
            let Some(fault) = fault_of(&row, bodies) else {
                continue;
            };
            // Delivered while it was looked at, its body is gone rightly.
            let is_there: Option<i64> = sqlx::query_scalar("SELECT id FROM mails WHERE id = ?")
                .bind(row.id)
                .fetch_optional(&mut *conn)
                .await?;
            if is_there.is_some() {
                checked.fault(format!("mail {}: {fault}", MailId(row.id)));
            }
        }
    }
}

fn fault_of(row: &Row, bodies: &dyn Bodies) -> Option<String> {
    let (Some(segment), Some(place), Some(checksum)) = (row.segment, row.place, row.checksum) else {
        return (row.inline != row.body_len)
            .then(|| format!("its body has {} bytes in place of {}", row.inline, row.body_len));
    };
    let (segment, place, len) = (
        segment.cast_unsigned(),
        place.cast_unsigned(),
        row.body_len.cast_unsigned(),
    );
    match checksum_of(bodies, segment, place, len) {
        Ok(found) if i64::from(found) == checksum => None,
        Ok(_) => Some("its body does not match its checksum".to_owned()),
        Err(e) => Some(format!("its body in {} cannot be read: {e}", file::name(segment))),
    }
}

fn checksum_of(bodies: &dyn Bodies, segment: u64, place: u64, len: u64) -> io::Result<u32> {
    let mut checksum = 0;
    let mut done = 0;
    let mut buffer = vec![0; usize::try_from(len.min(PIECE)).unwrap_or(0)];
    while done < len {
        let piece = usize::try_from((len - done).min(PIECE)).unwrap_or(0);
        let at = place.checked_add(done).ok_or(io::ErrorKind::UnexpectedEof)?;
        bodies.read_at(segment, at, &mut buffer[..piece])?;
        checksum = crc32c::crc32c_append(checksum, &buffer[..piece]);
        done += piece as u64;
    }
    Ok(checksum)
}
