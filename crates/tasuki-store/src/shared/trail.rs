//! Stories of mail that is gone, and what gateways tell each other about the queue.
//!
//! The stories of one commit are one row, and their fingerprints another one: telling them costs a commit two small
//! writes, whatever number of mails it settles, and no index with a place of its own for each mail. Who looks for a mail
//! pays instead: all fingerprints are read, newest first, a page at a time.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{MailId, NodeId};
use tasuki_core::store::StoreResult;
use tasuki_core::store::mail::Attempt;
use tasuki_core::store::trail::{
    Announced, Announcement, Answers, Fingerprint, Story, ToldStory, Traced, TrailStore,
};

use super::{Conn, Db, store_now, totals};
use crate::error::store_error;
use crate::words::{from_json, json, no_nul};

/// A row takes no more stories when it has this many bytes, or as many stories as the engine settles at once.
const ROW_BYTES: usize = 64 << 10;
const ROW_STORIES: usize = 256;
/// Rows of fingerprints read at once.
const PAGE: i64 = 512;
/// How long announcements are there to be read.
const ANNOUNCED_FOR_MS: i64 = 90_000;

/// The oldest batches; a look at the first few rows of the table.
pub(super) const OLDEST: &str = "SELECT id, written_at, size_bytes FROM trail ORDER BY id LIMIT $1";
/// What other gateways announced lately.
pub(super) const ANNOUNCED: &str = "SELECT id, made_at, words FROM mail_announcements
     WHERE made_at > $1 AND node <> $2 ORDER BY made_at, id LIMIT 256";

/// A story that rides in a transaction.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) story: Arc<Story>,
    pub(super) history: Vec<Attempt>,
    pub(super) ordered_by: String,
}

/// [`ToldStory`] as it is written.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "s")]
    story: &'a Story,
    #[serde(rename = "h", skip_serializing_if = "<[Attempt]>::is_empty")]
    history: &'a [Attempt],
    #[serde(rename = "b", skip_serializing_if = "str::is_empty")]
    ordered_by: &'a str,
}

/// Stories as they go into one row, and their fingerprints into another.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) written_at: i64,
    pub(super) size_bytes: i64,
    pub(super) stories: Vec<u8>,
    pub(super) keys: Vec<u8>,
}

/// Stories in rows.
pub(super) fn batches(mut rest: &[Kept]) -> StoreResult<Vec<Batch>> {
    let mut batches = Vec::new();
    while !rest.is_empty() {
        let (mut lines, mut keys) = (Vec::with_capacity(rest.len().min(ROW_STORIES) * 512), Vec::new());
        let (mut count, mut written_at) = (0, i64::MIN);
        for kept in rest.iter().take(ROW_STORIES) {
            let line = Line {
                story: &kept.story,
                history: &kept.history,
                ordered_by: &kept.ordered_by,
            };
            serde_json::to_writer(&mut lines, &line)
                .map_err(|error| tasuki_core::store::StoreError::Damaged(error.to_string()))?;
            lines.push(b'\n');
            keys.extend(kept.story.fingerprints().flatten());
            written_at = written_at.max(kept.story.at.0);
            count += 1;
            if lines.len() >= ROW_BYTES {
                break;
            }
        }
        batches.push(Batch {
            written_at,
            size_bytes: i64::try_from(lines.len() + keys.len()).unwrap_or(i64::MAX),
            stories: lines,
            keys,
        });
        rest = &rest[count..];
    }
    Ok(batches)
}

/// By how many bytes they make the trail grow.
pub(super) fn size_of(batches: &[Batch]) -> i64 {
    batches.iter().map(|batch| batch.size_bytes).sum()
}

/// Writes them.
pub(super) async fn append(conn: &mut Conn, batches: Vec<Batch>) -> StoreResult<()> {
    for batch in batches {
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO trail (written_at, size_bytes, stories) VALUES ($1, $2, $3) RETURNING id",
        )
        .bind(batch.written_at)
        .bind(batch.size_bytes)
        .bind(batch.stories)
        .fetch_one(&mut *conn)
        .await
        .map_err(store_error)?;
        sqlx::query("INSERT INTO trail_keys (batch, keys) VALUES ($1, $2)")
            .bind(id)
            .bind(batch.keys)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    Ok(())
}

/// The stories of some batches, in their order.
async fn stories(conn: &mut Conn, batches: &[i64]) -> StoreResult<Vec<ToldStory>> {
    let mut all = Vec::new();
    for batch in batches {
        let found: Option<Vec<u8>> = sqlx::query_scalar("SELECT stories FROM trail WHERE id = $1")
            .bind(batch)
            .fetch_optional(&mut *conn)
            .await
            .map_err(store_error)?;
        // It may have been forgotten meanwhile.
        for line in found.unwrap_or_default().split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                all.push(from_json(line)?);
            }
        }
    }
    Ok(all)
}

/// Batches before `before` that have one of these fingerprints, newest first, and where to go on.
async fn page(
    conn: &mut Conn,
    wanted: &HashSet<Fingerprint>,
    before: i64,
) -> StoreResult<(Vec<i64>, Option<i64>)> {
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT batch, keys FROM trail_keys WHERE batch < $1 ORDER BY batch DESC LIMIT $2")
            .bind(before)
            .bind(PAGE)
            .fetch_all(conn)
            .await
            .map_err(store_error)?;
    let is_full = i64::try_from(rows.len()).unwrap_or(0) == PAGE;
    let next = rows.last().map(|(batch, _)| *batch).filter(|_| is_full);
    let has = |keys: &[u8]| keys.as_chunks::<4>().0.iter().any(|key| wanted.contains(key));
    let found = rows.iter().filter(|(_, keys)| has(keys)).map(|(batch, _)| *batch);
    Ok((found.collect(), next))
}

impl Db {
    /// Stories with one of these fingerprints for which `keep` is true, newest batch first, until `enough`.
    async fn search(
        &self,
        wanted: &HashSet<Fingerprint>,
        keep: impl Fn(&Story) -> bool,
        enough: impl Fn(&[ToldStory]) -> bool,
    ) -> StoreResult<Vec<ToldStory>> {
        let mut found = Vec::new();
        let mut before = Some(i64::MAX);
        while let Some(place) = before.filter(|_| !enough(&found)) {
            let (batches, next) = self.read(async |conn| page(conn, wanted, place).await).await?;
            before = next;
            for batch in batches {
                let told = self.read(async |conn| stories(conn, &[batch]).await).await?;
                found.extend(told.into_iter().filter(|told| keep(&told.story)));
                if enough(&found) {
                    break;
                }
            }
        }
        Ok(found)
    }
}

fn mails_of(told: &[ToldStory]) -> BTreeSet<MailId> {
    told.iter().map(|told| told.story.mail).collect()
}

#[async_trait]
impl TrailStore for Db {
    async fn trail(&self, traced: &Traced, mails: usize) -> StoreResult<Vec<ToldStory>> {
        self.land().await?;
        let ids = match traced {
            Traced::Mail(id) => BTreeSet::from([*id]),
            _ => {
                let wanted = HashSet::from([traced.fingerprint()]);
                let enough = |found: &[ToldStory]| mails_of(found).len() >= mails;
                let found = self
                    .search(&wanted, |story| traced.is_told_by(story), enough)
                    .await?;
                mails_of(&found).into_iter().rev().take(mails).collect()
            }
        };
        let wanted = ids.iter().map(|id| Traced::Mail(*id).fingerprint()).collect();
        let mut told = self
            .search(&wanted, |story| ids.contains(&story.mail), |_| ids.is_empty())
            .await?;
        told.sort_by_key(|told| (told.story.mail, told.story.at, told.story.delivery));
        Ok(told)
    }

    async fn prune_trail(&self, before: Timestamp, max_bytes: u64, n: usize) -> StoreResult<usize> {
        let limit = i64::try_from(n).unwrap_or(i64::MAX);
        let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let (oldest, total) = self
            .read(async |conn| {
                let rows: Vec<(i64, i64, i64)> = sqlx::query_as(OLDEST)
                    .bind(limit)
                    .fetch_all(&mut *conn)
                    .await
                    .map_err(store_error)?;
                Ok((rows, totals::trail_bytes(conn).await?))
            })
            .await?;
        let mut total = total;
        let is_over = |(_, written_at, size): &&(i64, i64, i64)| {
            let over = *written_at < before.0 || total > max_bytes;
            total -= size;
            over
        };
        let over: Vec<i64> = oldest.iter().take_while(is_over).map(|(id, ..)| *id).collect();
        let (Some(first), Some(last)) = (over.first().copied(), over.last().copied()) else {
            return Ok(0);
        };
        self.change(move |conn| Box::pin(async move { forget(conn, first, last).await }))
            .await?;
        Ok(over.len())
    }

    async fn announce(&self, node: NodeId, announcement: &Announcement) -> StoreResult<i64> {
        let words = no_nul(&json(announcement)?).into_owned();
        self.change(move |conn| {
            Box::pin(async move {
                let now = store_now(conn).await?;
                sqlx::query("DELETE FROM mail_announcements WHERE made_at < $1")
                    .bind(now - 10 * ANNOUNCED_FOR_MS)
                    .execute(&mut *conn)
                    .await
                    .map_err(store_error)?;
                sqlx::query_scalar(
                    "INSERT INTO mail_announcements (node, made_at, words) VALUES ($1, $2, $3) RETURNING id",
                )
                .bind(i64::from(node.0))
                .bind(now)
                .bind(words)
                .fetch_one(conn)
                .await
                .map_err(store_error)
            })
        })
        .await
    }

    async fn announced(&self, node: NodeId) -> StoreResult<Vec<Announced>> {
        let rows: Vec<(i64, i64, String)> = self
            .read(async |conn| {
                let now = store_now(conn).await?;
                sqlx::query_as(ANNOUNCED)
                    .bind(now - ANNOUNCED_FOR_MS)
                    .bind(i64::from(node.0))
                    .fetch_all(conn)
                    .await
                    .map_err(store_error)
            })
            .await?;
        let announced = rows.into_iter().map(|(id, at, words)| {
            Ok(Announced {
                id,
                at: Timestamp(at),
                announcement: from_json(words.as_bytes())?,
            })
        });
        announced.collect()
    }

    async fn answer(&self, announcement: i64, deliveries: u64) -> StoreResult<()> {
        let deliveries = i64::try_from(deliveries).unwrap_or(i64::MAX);
        self.change(move |conn| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE mail_announcements SET answered = answered + 1, deliveries = deliveries + $2
                     WHERE id = $1",
                )
                .bind(announcement)
                .bind(deliveries)
                .execute(conn)
                .await
                .map_err(store_error)?;
                Ok(())
            })
        })
        .await
    }

    async fn answers(&self, node: NodeId, announcement: i64) -> StoreResult<Answers> {
        self.read(async |conn| {
            let now = store_now(conn).await?;
            let expected: i64 =
                sqlx::query_scalar("SELECT count(*) FROM nodes WHERE id <> $1 AND alive_until > $2")
                    .bind(i64::from(node.0))
                    .bind(now)
                    .fetch_one(&mut *conn)
                    .await
                    .map_err(store_error)?;
            let row = sqlx::query("SELECT answered, deliveries FROM mail_announcements WHERE id = $1")
                .bind(announcement)
                .fetch_optional(conn)
                .await
                .map_err(store_error)?;
            let number = |column| match &row {
                Some(row) => row.try_get::<i64, _>(column).map_err(store_error),
                None => Ok(0),
            };
            Ok(Answers {
                expected: u64::try_from(expected).unwrap_or(0),
                answered: u64::try_from(number("answered")?).unwrap_or(0),
                deliveries: u64::try_from(number("deliveries")?).unwrap_or(0),
            })
        })
        .await
    }
}

/// Forgets the batches from `first` to `last`.
async fn forget(conn: &mut Conn, first: i64, last: i64) -> StoreResult<()> {
    let sizes: Vec<i64> =
        sqlx::query_scalar("DELETE FROM trail WHERE id >= $1 AND id <= $2 RETURNING size_bytes")
            .bind(first)
            .bind(last)
            .fetch_all(&mut *conn)
            .await
            .map_err(store_error)?;
    sqlx::query("DELETE FROM trail_keys WHERE batch >= $1 AND batch <= $2")
        .bind(first)
        .bind(last)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    let change = totals::Change {
        trail_bytes: -sizes.iter().sum::<i64>(),
        ..totals::Change::default()
    };
    totals::add(conn, totals::NOBODYS, change).await
}
