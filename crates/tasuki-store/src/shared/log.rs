//! The log of activities: one row each with its audience, appended once, cut when everybody has it or too late.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use roaring::RoaringBitmap;
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{HostNo, LogSeq};
use tasuki_core::store::fedi::{Appended, CutReport, Entry, EntryKind, HostProgress, NewEntry, Via};
use tasuki_core::store::{StoreError, StoreResult};

use super::{Conn, DbRow, lock_log, progress, store_now, topics};
use crate::error::store_error;
use crate::words::{from_word, no_nul, word};

/// How long it is known which hosts got an object.
const OBJECTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Remembered keys above this number are forgotten, oldest first.
const MAX_KEYS: i64 = 200_000;
/// Entries that one cut looks at beyond those that everybody has.
const CUT_AT_ONCE: i64 = 2_000;

/// The sizes are in an index of their own, which is read in place of the bodies.
pub(super) const TOTAL_BYTES: &str = "SELECT CAST(coalesce(sum(size), 0) AS BIGINT) FROM log";

fn hash(text: &str) -> Vec<u8> {
    digest(&SHA256, text.as_bytes()).as_ref().to_vec()
}

fn bitmap_bytes(bitmap: &RoaringBitmap) -> StoreResult<Vec<u8>> {
    let mut bytes = Vec::with_capacity(bitmap.serialized_size());
    bitmap
        .serialize_into(&mut bytes)
        .map_err(|error| StoreError::Damaged(error.to_string()))?;
    Ok(bytes)
}

fn bitmap_of(bytes: &[u8]) -> StoreResult<RoaringBitmap> {
    RoaringBitmap::deserialize_from(bytes)
        .map_err(|error| StoreError::Damaged(format!("an audience: {error}")))
}

/// Appends an entry unless the same was appended before.
pub(super) async fn append(conn: &mut Conn, entry: &NewEntry) -> StoreResult<Appended> {
    lock_log(conn).await?;
    let fresh =
        sqlx::query("INSERT INTO appended (dedupe, at) VALUES ($1, $2) ON CONFLICT (dedupe) DO NOTHING")
            .bind(hash(&entry.dedupe))
            .bind(entry.at.0)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    if fresh.rows_affected() == 0 {
        return Ok(Appended::Duplicate);
    }
    let object = hash(&entry.object);
    let (mut audience, mut via) = (entry.audience.clone(), entry.via.clone());
    if entry.kind != EntryKind::Control {
        let got = who_got(conn, &object, entry.at).await?;
        let again = match entry.kind {
            EntryKind::Delete => &got.hosts - &entry.audience,
            _ => (&got.hosts & &entry.if_known) - &entry.audience,
        };
        audience |= &again;
        topics::add_via(&mut via, &got.via, &again);
        if entry.kind == EntryKind::Delete {
            blank(conn, &object).await?;
        } else if audience.is_empty() {
            return Ok(Appended::Nobody);
        }
        note_who_got(conn, &object, got.and(&audience, &via), entry.at).await?;
    }
    let size = entry.body.len() + entry.announce.as_ref().map_or(0, Bytes::len);
    let seq: i64 = sqlx::query_scalar(
        "INSERT INTO log (at, size, kind, object, object_hash, audience, announce_to, body, announce, actor, via)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING seq",
    )
    .bind(entry.at.0)
    .bind(i64::try_from(size).unwrap_or(i64::MAX))
    .bind(word(&entry.kind))
    .bind(no_nul(&entry.object))
    .bind(object)
    .bind(bitmap_bytes(&audience)?)
    .bind(bitmap_bytes(&entry.announce_to)?)
    .bind(entry.body.as_ref())
    .bind(entry.announce.as_deref())
    .bind(no_nul(&entry.actor))
    .bind(topics::via_bytes(&via)?)
    .fetch_one(conn)
    .await
    .map_err(store_error)?;
    Ok(Appended::Stored(LogSeq(seq)))
}

/// Who got an object, and from which actor.
#[derive(Default)]
struct Got {
    hosts: RoaringBitmap,
    via: Via,
}

impl Got {
    /// Whoever had it before goes on having it from the same actor.
    fn and(mut self, hosts: &RoaringBitmap, via: &Via) -> Self {
        topics::add_via(&mut self.via, via, &(hosts - &self.hosts));
        self.hosts |= hosts;
        self
    }
}

async fn who_got(conn: &mut Conn, object: &[u8], now: Timestamp) -> StoreResult<Got> {
    let row = sqlx::query("SELECT audience, via FROM objects WHERE object_hash = $1 AND at >= $2")
        .bind(object)
        .bind(now.minus(OBJECTS_KEPT).0)
        .fetch_optional(conn)
        .await
        .map_err(store_error)?;
    let Some(row) = row else { return Ok(Got::default()) };
    let via: Option<Vec<u8>> = row.try_get("via").map_err(store_error)?;
    Ok(Got {
        hosts: bitmap_of(&row.try_get::<Vec<u8>, _>("audience").map_err(store_error)?)?,
        via: topics::via_of(via.as_deref())?,
    })
}

async fn note_who_got(conn: &mut Conn, object: &[u8], got: Got, at: Timestamp) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO objects (object_hash, at, audience, via) VALUES ($1, $2, $3, $4)
         ON CONFLICT (object_hash) DO UPDATE SET at = excluded.at, audience = excluded.audience, via = excluded.via",
    )
    .bind(object)
    .bind(at.0)
    .bind(bitmap_bytes(&got.hosts)?)
    .bind(topics::via_bytes(&got.via)?)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(())
}

/// Empties what waits of a deleted object: nobody gets its text any more.
async fn blank(conn: &mut Conn, object: &[u8]) -> StoreResult<()> {
    sqlx::query(
        "UPDATE log SET body = $2, announce = NULL, size = 0 WHERE object_hash = $1 AND kind IN ($3, $4)",
    )
    .bind(object)
    .bind(Vec::<u8>::new())
    .bind(word(&EntryKind::Activity))
    .bind(word(&EntryKind::Change))
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(())
}

/// Empties entries that an operator takes out of the queue.
pub(super) async fn purge(conn: &mut Conn, places: &[LogSeq]) -> StoreResult<u64> {
    let mut emptied = 0;
    for place in places {
        emptied += sqlx::query(
            "UPDATE log SET body = $2, announce = NULL, size = 0 WHERE seq = $1 AND kind IN ($3, $4)",
        )
        .bind(place.0)
        .bind(Vec::<u8>::new())
        .bind(word(&EntryKind::Activity))
        .bind(word(&EntryKind::Change))
        .execute(&mut *conn)
        .await
        .map_err(store_error)?
        .rows_affected();
    }
    Ok(emptied)
}

fn entry_of(row: &DbRow) -> StoreResult<Entry> {
    let bytes = |column| row.try_get::<Vec<u8>, _>(column).map_err(store_error);
    let announce: Option<Vec<u8>> = row.try_get("announce").map_err(store_error)?;
    let via: Option<Vec<u8>> = row.try_get("via").map_err(store_error)?;
    Ok(Entry {
        seq: LogSeq(row.try_get("seq").map_err(store_error)?),
        kind: from_word(&row.try_get::<String, _>("kind").map_err(store_error)?)?,
        object: row.try_get("object").map_err(store_error)?,
        actor: row.try_get("actor").map_err(store_error)?,
        body: bytes("body")?.into(),
        announce: announce.map(Bytes::from),
        audience: bitmap_of(&bytes("audience")?)?,
        announce_to: bitmap_of(&bytes("announce_to")?)?,
        via: topics::via_of(via.as_deref())?,
        at: Timestamp(row.try_get("at").map_err(store_error)?),
    })
}

/// Entries after a place, until `n` or the bytes are full.
pub(super) async fn entries(
    conn: &mut Conn,
    after: Option<LogSeq>,
    n: usize,
    max_bytes: u64,
) -> StoreResult<Vec<Entry>> {
    let mut rows = sqlx::query(
        "SELECT seq, at, kind, object, actor, audience, announce_to, via, body, announce FROM log
         WHERE seq > $1 ORDER BY seq LIMIT $2",
    )
    .bind(after.map_or(0, |seq| seq.0))
    .bind(i64::try_from(n).unwrap_or(i64::MAX))
    .fetch(conn);
    let (mut found, mut bytes) = (Vec::new(), 0_u64);
    while let Some(row) = rows.try_next().await.map_err(store_error)? {
        let entry = entry_of(&row)?;
        bytes += (entry.body.len() + entry.announce.as_ref().map_or(0, Bytes::len)) as u64;
        if !found.is_empty() && bytes > max_bytes {
            break;
        }
        found.push(entry);
    }
    Ok(found)
}

/// The entries of these places that are still there.
pub(super) async fn entries_at(conn: &mut Conn, places: &[LogSeq]) -> StoreResult<Vec<Entry>> {
    let mut found = Vec::with_capacity(places.len());
    for place in places {
        let row = sqlx::query(
            "SELECT seq, at, kind, object, actor, audience, announce_to, via, body, announce FROM log WHERE seq = $1",
        )
        .bind(place.0)
        .fetch_optional(&mut *conn)
        .await
        .map_err(store_error)?;
        found.extend(row.as_ref().map(entry_of).transpose()?);
    }
    Ok(found)
}

/// Removes what every host has, what is too old and what is too much; counts what hosts lose by it.
pub(super) async fn cut(conn: &mut Conn, before: Timestamp, max_bytes: u64) -> StoreResult<CutReport> {
    let common = progress::all_up_to(conn).await?.map_or(0, |seq| seq.0);
    let mut behind = progress::behind(conn).await?;
    let everybody_has = behind.iter().map(|host| host.up_to.0).fold(common, i64::min);
    let mut report = CutReport {
        removed: remove_settled(conn, everybody_has, &behind).await?,
        lost: Vec::new(),
    };
    let mut lost: BTreeMap<HostNo, u64> = BTreeMap::new();
    let mut excess = total_bytes(conn).await? - i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let oldest: Vec<(i64, i64, i64, Vec<u8>)> =
        sqlx::query_as("SELECT seq, at, size, audience FROM log ORDER BY seq LIMIT $1")
            .bind(CUT_AT_ONCE)
            .fetch_all(&mut *conn)
            .await
            .map_err(store_error)?;
    let mut gone = Vec::new();
    for (seq, at, size, audience) in oldest {
        if at >= before.0 && excess <= 0 {
            break;
        }
        excess -= size;
        for host in losers(&bitmap_of(&audience)?, LogSeq(seq), common, &behind) {
            *lost.entry(host).or_default() += 1;
        }
        gone.push(LogSeq(seq));
        remove(conn, seq).await?;
        report.removed += 1;
    }
    forget_parked(conn, &mut behind, &gone).await?;
    forget_old(conn, before).await?;
    report.lost = lost.into_iter().collect();
    Ok(report)
}

/// Removes entries up to `seq`, but for those that some host has parked.
async fn remove_settled(conn: &mut Conn, seq: i64, behind: &[HostProgress]) -> StoreResult<u64> {
    let mut parked: Vec<i64> = behind
        .iter()
        .flat_map(|host| host.parked.iter().map(|(place, _)| place.0))
        .filter(|place| *place <= seq)
        .collect();
    parked.sort_unstable();
    parked.dedup();
    parked.push(seq + 1);
    let (mut removed, mut from) = (0, 0);
    for place in parked {
        removed += sqlx::query("DELETE FROM log WHERE seq >= $1 AND seq < $2")
            .bind(from)
            .bind(place)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?
            .rows_affected();
        from = place + 1;
    }
    Ok(removed)
}

async fn total_bytes(conn: &mut Conn) -> StoreResult<i64> {
    sqlx::query_scalar(TOTAL_BYTES)
        .fetch_one(conn)
        .await
        .map_err(store_error)
}

/// The hosts of an audience that do not have the entry.
fn losers(audience: &RoaringBitmap, seq: LogSeq, common: i64, behind: &[HostProgress]) -> Vec<HostNo> {
    let known: HashMap<u32, &HostProgress> = behind.iter().map(|host| (host.host.0, host)).collect();
    audience
        .iter()
        .filter(|host| match known.get(host) {
            None => seq.0 > common,
            Some(host) => host.parked.iter().any(|(place, _)| *place == seq) || !host.has(seq),
        })
        .map(HostNo)
        .collect()
}

async fn remove(conn: &mut Conn, seq: i64) -> StoreResult<()> {
    sqlx::query("DELETE FROM log WHERE seq = $1")
        .bind(seq)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Takes removed entries off the lists of parked ones.
async fn forget_parked(conn: &mut Conn, behind: &mut [HostProgress], gone: &[LogSeq]) -> StoreResult<()> {
    for host in behind {
        let before = host.parked.len();
        host.parked.retain(|(place, _)| !gone.contains(place));
        if host.parked.len() < before {
            progress::store(conn, std::slice::from_ref(host), &[]).await?;
        }
    }
    Ok(())
}

/// Forgets what was appended before `before`, who got objects 30 days ago, and the oldest keys above the limit.
async fn forget_old(conn: &mut Conn, before: Timestamp) -> StoreResult<()> {
    sqlx::query("DELETE FROM appended WHERE at < $1")
        .bind(before.0)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    let long_ago = Timestamp(store_now(conn).await?).minus(OBJECTS_KEPT);
    sqlx::query("DELETE FROM objects WHERE at < $1")
        .bind(long_ago.0)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    sqlx::query(
        "DELETE FROM actor_keys WHERE fetched_at < (
             SELECT fetched_at FROM actor_keys ORDER BY fetched_at DESC LIMIT 1 OFFSET $1)",
    )
    .bind(MAX_KEYS)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(())
}
