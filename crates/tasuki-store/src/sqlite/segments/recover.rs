//! What is left of an earlier life: bodies are checked, space is punched out, everything is sealed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use sqlx::SqliteConnection;
use tasuki_core::clock::Clock;
use tasuki_core::ids::MailId;
use tasuki_core::store::StoreResult;
use tokio::sync::Notify;

use super::super::space::Space;
use super::super::totals;
use super::super::writer::ALL_NODES;
use super::file;
use super::{Entry, Place, Segments, State, blocking, seal};
use crate::bodies::PIECE;
use crate::error::store_error;

struct Row {
    mail: i64,
    place: Place,
    checksum: u32,
}

/// Looks at `dir` and at the rows that point into it. A mail whose body is not whole was never acknowledged: its row
/// and the body's sync began together, and the answer waited for both. It is dropped.
pub(in crate::sqlite) async fn recover(
    conn: &mut SqliteConnection,
    dir: &Path,
    space: Arc<Space>,
) -> StoreResult<Segments> {
    let dir_owned = dir.to_owned();
    let files = blocking(move || list(&dir_owned)).await?;
    let sealed: Vec<i64> = sqlx::query_scalar("SELECT id FROM segments WHERE sealed")
        .fetch_all(&mut *conn)
        .await
        .map_err(store_error)?;
    let sealed: HashSet<u64> = sealed.into_iter().map(i64::cast_unsigned).collect();
    let mut by_segment = rows(conn).await?;
    let mut state = State {
        next: files
            .keys()
            .chain(by_segment.keys())
            .chain(&sealed)
            .copied()
            .max()
            .unwrap_or(0),
        ..State::default()
    };
    for segment in sealed.iter().filter(|segment| !files.contains_key(segment)) {
        sqlx::query("DELETE FROM segments WHERE id = ?")
            .bind(segment.cast_signed())
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    for (segment, size) in &files {
        let rows = by_segment.remove(segment).unwrap_or_default();
        let check = !sealed.contains(segment);
        let (dir_owned, segment, size) = (dir.to_owned(), *segment, *size);
        let looked = blocking(move || look(&dir_owned, segment, size, rows, check)).await?;
        drop_mails(conn, &looked.lost).await?;
        if let Some(entry) = looked.entry {
            seal(conn, segment).await?;
            state.entries.insert(segment, entry);
        }
    }
    // Rows of segments that are not there at all.
    for rows in by_segment.into_values() {
        let lost: Vec<i64> = rows.iter().map(|r| r.mail).collect();
        drop_mails(conn, &lost).await?;
    }
    Ok(Segments {
        dir: dir.to_owned(),
        clock: Clock::system(),
        space,
        state: Mutex::new(state),
        syncs: AtomicU64::new(0),
        freed: Notify::new(),
    })
}

fn list(dir: &PathBuf) -> io::Result<BTreeMap<u64, u64>> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(segment) = entry.file_name().to_str().and_then(file::number) {
            files.insert(segment, entry.metadata()?.len());
        }
    }
    Ok(files)
}

async fn rows(conn: &mut SqliteConnection) -> StoreResult<HashMap<u64, Vec<Row>>> {
    let rows: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT segment, place, body_len, checksum, id FROM mails
         WHERE segment IS NOT NULL ORDER BY segment, place",
    )
    .fetch_all(conn)
    .await
    .map_err(store_error)?;
    let mut by_segment: HashMap<u64, Vec<Row>> = HashMap::new();
    for (segment, offset, len, checksum, mail) in rows {
        let segment = segment.cast_unsigned();
        by_segment.entry(segment).or_default().push(Row {
            mail,
            place: Place {
                segment,
                offset: offset.cast_unsigned(),
                len: len.cast_unsigned(),
            },
            checksum: u32::try_from(checksum).unwrap_or(0),
        });
    }
    Ok(by_segment)
}

struct Looked {
    /// Mails whose bodies are not whole.
    lost: Vec<i64>,
    /// The segment, unless nothing in it is needed: it is deleted then.
    entry: Option<Entry>,
}

/// Checks the bodies of a segment and punches out what lies between them. Blocks.
fn look(dir: &Path, segment: u64, size: u64, rows: Vec<Row>, check: bool) -> io::Result<Looked> {
    let file = File::open(dir.join(file::name(segment)))?;
    let mut lost = Vec::new();
    let mut live = Vec::new();
    for row in rows {
        let end = row.place.offset.checked_add(row.place.len);
        if end.is_some_and(|end| end <= size) && (!check || is_whole(&file, &row)?) {
            live.push(row.place);
        } else {
            lost.push(row.mail);
        }
    }
    if live.is_empty() {
        file::delete(dir, segment)?;
        return Ok(Looked { lost, entry: None });
    }
    if check {
        file.sync_data()?;
    }
    let holes = holes(segment, size, &live);
    file::punch(dir, &holes)?;
    Ok(Looked {
        lost,
        entry: Some(Entry {
            file: None,
            tail: size,
            punched: holes.iter().map(|h| h.len).sum(),
            live: live.len() as u64,
            is_closed: true,
        }),
    })
}

fn holes(segment: u64, size: u64, live: &[Place]) -> Vec<Place> {
    let mut holes = Vec::new();
    let mut at = 0;
    let end = Place {
        segment,
        offset: size,
        len: 0,
    };
    for place in live.iter().chain(std::iter::once(&end)) {
        if place.offset > at {
            holes.push(Place {
                segment,
                offset: at,
                len: place.offset - at,
            });
        }
        at = at.max(place.offset + place.len);
    }
    holes
}

fn is_whole(file: &File, row: &Row) -> io::Result<bool> {
    let mut checksum = 0;
    let mut done = 0;
    let mut buffer = vec![0; usize::try_from(row.place.len.min(PIECE)).unwrap_or(0)];
    while done < row.place.len {
        let piece = usize::try_from((row.place.len - done).min(PIECE)).unwrap_or(0);
        match file.read_exact_at(&mut buffer[..piece], row.place.offset + done) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
        checksum = crc32c::crc32c_append(checksum, &buffer[..piece]);
        done += piece as u64;
    }
    Ok(checksum == row.checksum)
}

async fn drop_mails(conn: &mut SqliteConnection, mails: &[i64]) -> StoreResult<()> {
    for mail in mails {
        tracing::warn!(
            mail.id = %MailId(*mail),
            "dropped a mail whose body did not reach the disk before the crash; its sender was not told that it was taken"
        );
        let deliveries = sqlx::query("DELETE FROM deliveries WHERE mail = ?")
            .bind(mail)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
        let deferred = i64::try_from(deliveries.rows_affected()).unwrap_or(i64::MAX);
        totals::add(&mut *conn, ALL_NODES, -1, -deferred).await?;
        sqlx::query("DELETE FROM mails WHERE id = ?")
            .bind(mail)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    Ok(())
}
