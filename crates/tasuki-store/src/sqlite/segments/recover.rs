//! What is left of an earlier life: bodies are checked, space is punched out, everything is sealed.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use futures_util::TryStreamExt as _;
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

const BODIES: &str = "SELECT place, body_len, checksum, id FROM mails WHERE segment = $1 ORDER BY place";
const PLACES: &str = "SELECT place, body_len FROM mails WHERE segment = $1 ORDER BY place, body_len";
/// What a start asks for each segment.
pub(in crate::sqlite) const STATEMENTS: [&str; 2] = [BODIES, PLACES];

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
    let used: Vec<i64> = sqlx::query_scalar("SELECT DISTINCT segment FROM mails WHERE segment IS NOT NULL")
        .fetch_all(&mut *conn)
        .await
        .map_err(store_error)?;
    let used: HashSet<u64> = used.into_iter().map(i64::cast_unsigned).collect();
    let mut state = State {
        next: files
            .keys()
            .chain(&used)
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
        if sealed.contains(segment)
            && let Some((entry, holes)) = known(conn, *segment, *size).await?
        {
            state.entries.insert(*segment, entry);
            // The janitor punches them: most are holes already.
            state.dead.extend(holes);
            continue;
        }
        let rows = rows(conn, *segment).await?;
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
    for segment in used.iter().filter(|segment| !files.contains_key(segment)) {
        let lost: Vec<i64> = rows(conn, *segment).await?.iter().map(|r| r.mail).collect();
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

/// The bodies of a segment, with what checking them needs.
async fn rows(conn: &mut SqliteConnection, segment: u64) -> StoreResult<Vec<Row>> {
    let rows: Vec<(i64, i64, i64, i64)> = sqlx::query_as(BODIES)
        .bind(segment.cast_signed())
        .fetch_all(conn)
        .await
        .map_err(store_error)?;
    Ok(rows
        .into_iter()
        .map(|(offset, len, checksum, mail)| Row {
            mail,
            place: Place {
                segment,
                offset: offset.cast_unsigned(),
                len: len.cast_unsigned(),
            },
            checksum: u32::try_from(checksum).unwrap_or(0),
        })
        .collect())
}

/// A sealed segment as its index entries tell, one after the other, without a look at rows or bodies; `None` if it is
/// empty or shorter than they say.
async fn known(
    conn: &mut SqliteConnection,
    segment: u64,
    size: u64,
) -> StoreResult<Option<(Entry, Vec<Place>)>> {
    let mut places = sqlx::query_as::<_, (i64, i64)>(PLACES)
        .bind(segment.cast_signed())
        .fetch(conn);
    let (mut live, mut at, mut holes) = (0, 0, Vec::new());
    while let Some((offset, len)) = places.try_next().await.map_err(store_error)? {
        let (offset, len) = (offset.cast_unsigned(), len.cast_unsigned());
        holes.extend(hole(segment, at, offset));
        at = at.max(offset.saturating_add(len));
        live += 1;
    }
    if live == 0 || at > size {
        return Ok(None);
    }
    holes.extend(hole(segment, at, size));
    let entry = Entry {
        file: None,
        tail: size,
        // Counted when they are punched.
        punched: 0,
        live,
        is_closed: true,
    };
    Ok(Some((entry, holes)))
}

fn hole(segment: u64, from: u64, to: u64) -> Option<Place> {
    (to > from).then(|| Place {
        segment,
        offset: from,
        len: to - from,
    })
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
    let (mut holes, mut at) = (Vec::new(), 0);
    for place in live {
        holes.extend(hole(segment, at, place.offset));
        at = at.max(place.offset + place.len);
    }
    holes.extend(hole(segment, at, size));
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
        let change = totals::Change {
            mails: -1,
            deferred: -deferred,
            ..totals::Change::default()
        };
        totals::add(&mut *conn, ALL_NODES, change).await?;
        sqlx::query("DELETE FROM mails WHERE id = ?")
            .bind(mail)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    Ok(())
}
