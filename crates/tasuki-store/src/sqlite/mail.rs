//! The mail verbs on SQLite.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row as _, SqliteConnection};
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, Epoch, LaneId, MailId, NodeId, PrincipalId};
use tasuki_core::store::mail::{
    BodyPlace, BodySink, BodySource, Changed, Held, Hold, Lane, LaneKey, NewMail, Order, Outcome, Paused,
    QueueCounts, QueueFilter, QueueMatch, QueueRow, Settled, Settlement, StoredBody,
};
use tasuki_core::store::{AuditEntry, MailStore, StoreError, StoreResult};
use tasuki_proto::names::{Domain, Mailbox};

use super::segments::Place;
use super::settle::{self, Applied};
use super::writer::ALL_NODES;
use super::{Db, FREED_COLUMNS, audit, orders, place_of, queue, recipients, sent, totals};
use crate::bodies::Inline;
use crate::error::{is_duplicate, store_error};
use crate::head;

/// A mail as it goes into its row.
#[derive(Debug)]
pub(super) struct MailRow {
    id: i64,
    node: i64,
    epoch: i64,
    lanes: i64,
    accepted_at: i64,
    expires_at: i64,
    body_len: i64,
    segment: Option<(Place, u32)>,
    head: Vec<u8>,
    body: Option<Bytes>,
}

impl MailRow {
    fn new(node: NodeId, epoch: Epoch, mail: &NewMail) -> StoreResult<Self> {
        let head = head::encode(mail)?;
        let (segment, body) = match &mail.body.place {
            BodyPlace::Inline(bytes) => (None, Some(bytes.clone())),
            BodyPlace::Segment {
                segment,
                offset,
                checksum,
            } => {
                let place = Place {
                    segment: *segment,
                    offset: *offset,
                    len: mail.body.len,
                };
                (Some((place, *checksum)), None)
            }
            BodyPlace::Chunks { body } => {
                return Err(StoreError::Damaged(format!("body {body} is not in this store")));
            }
        };
        Ok(Self {
            id: mail.id.0,
            node: i64::from(node.0),
            epoch: epoch.0,
            lanes: i64::try_from(mail.deliveries.len()).unwrap_or(i64::MAX),
            accepted_at: mail.accepted_at.0,
            expires_at: mail.expires_at.0,
            body_len: i64::try_from(mail.body.len).unwrap_or(i64::MAX),
            segment,
            head,
            body,
        })
    }

    /// Bytes that its row takes, about.
    pub(super) fn size(&self) -> usize {
        self.head.len() + self.body.as_ref().map_or(0, Bytes::len) + 100
    }
}

/// Rows in one statement at most. Each number of rows has a text of its own, so that it stays prepared and a batch takes
/// one statement.
const ROWS: usize = 64;

fn texts(text: impl Fn(usize) -> String) -> [String; ROWS] {
    std::array::from_fn(|index| text(index + 1))
}

fn marks(n: usize) -> String {
    vec!["?"; n].join(", ")
}

static INSERT: LazyLock<[String; ROWS]> = LazyLock::new(|| {
    texts(|n| {
        let row = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        format!(
            "INSERT INTO mails (id, node, epoch, lanes, open, fresh, accepted_at, expires_at, body_len,
                 segment, place, checksum, head, body) VALUES {}",
            vec![row; n].join(", ")
        )
    })
});

/// Begins a transaction with the end of mails that have one lane, which is fresh, and their body beside them. Which of
/// the ids these are comes as one row: a row for each would wake the reader again and again.
static BEGIN_FINISHED: LazyLock<[String; ROWS]> = LazyLock::new(|| {
    texts(|n| {
        let ids: Vec<String> = (1..=n).map(|at| format!("?{at}")).collect();
        let which = format!(
            "id IN ({}) AND lanes = 1 AND fresh = 1 AND segment IS NULL",
            ids.join(", ")
        );
        format!(
            "BEGIN IMMEDIATE; SELECT group_concat(id) AS gone FROM mails WHERE {which}; DELETE FROM mails WHERE {which}"
        )
    })
});

static FINISH: LazyLock<[String; ROWS]> = LazyLock::new(|| {
    texts(|n| {
        format!(
            "DELETE FROM mails WHERE id IN ({}) AND lanes = 1 AND fresh = 1 RETURNING id, {FREED_COLUMNS}",
            marks(n)
        )
    })
});

/// Inserts rows in as few statements as the size allows.
pub(super) async fn insert(conn: &mut SqliteConnection, rows: &[&MailRow]) -> StoreResult<()> {
    for now in rows.chunks(ROWS) {
        let mut query = sqlx::query(INSERT[now.len() - 1].as_str());
        for row in now {
            let place = row.segment.map(|(p, _)| p);
            query = query
                .bind(row.id)
                .bind(row.node)
                .bind(row.epoch)
                .bind(row.lanes)
                .bind(row.lanes)
                .bind(row.lanes)
                .bind(row.accepted_at)
                .bind(row.expires_at)
                .bind(row.body_len)
                .bind(place.map(|p| p.segment.cast_signed()))
                .bind(place.map(|p| p.offset.cast_signed()))
                .bind(row.segment.map(|(_, checksum)| i64::from(checksum)))
                .bind(row.head.as_slice())
                .bind(row.body.as_deref());
        }
        query.execute(&mut *conn).await.map_err(|error| {
            if is_duplicate(&error) {
                StoreError::Conflict("a mail of this id is stored already".into())
            } else {
                store_error(error)
            }
        })?;
    }
    Ok(())
}

/// Begins a transaction and applies outcomes without follow-ups: the mails with one lane together, the rest one at a
/// time.
pub(super) async fn begin_with_riders<'a>(
    conn: &mut SqliteConnection,
    riders: impl Iterator<Item = (NodeId, &'a [Outcome])> + Clone,
    applied: &mut Applied,
) -> StoreResult<()> {
    let is_plain = |o: &Outcome| matches!((o.hold, &o.settlement), (Hold::Fresh(_), Settlement::Finished));
    let mut finished: Vec<i64> = riders
        .clone()
        .flat_map(|(_, outcomes)| outcomes)
        .filter(|o| is_plain(o))
        .map(|o| o.mail.0)
        .collect();
    finished.sort_unstable();
    finished.dedup();
    let gone = begin_with_finished(conn, &finished, applied).await?;
    for (node, outcomes) in riders {
        for outcome in outcomes {
            if is_plain(outcome) && gone.binary_search(&outcome.mail.0).is_ok() {
                applied.tell(outcome, settle::Past::default());
                continue;
            }
            if settle::settle_one(conn, node, outcome, applied).await? == Settled::LaneLost {
                tracing::debug!(mail.id = %outcome.mail, "an outcome came after its hold was over");
            }
        }
    }
    Ok(())
}

/// Begins a transaction and deletes those of `ids` that have one lane, which is fresh; returns them in order.
async fn begin_with_finished(
    conn: &mut SqliteConnection,
    ids: &[i64],
    applied: &mut Applied,
) -> StoreResult<Vec<i64>> {
    let (first, later) = ids.split_at(ids.len().min(ROWS));
    if first.is_empty() {
        sqlx::query("BEGIN IMMEDIATE")
            .execute(conn)
            .await
            .map_err(store_error)?;
        return Ok(Vec::new());
    }
    let mut query = sqlx::query_scalar::<_, Option<String>>(BEGIN_FINISHED[first.len() - 1].as_str());
    for id in first {
        query = query.bind(*id);
    }
    // All rows, so that the text runs to its end.
    let found = query.fetch_all(&mut *conn).await.map_err(store_error)?;
    let mut gone: Vec<i64> = Vec::with_capacity(ids.len());
    for id in found.iter().flatten().flat_map(|list| list.split(',')) {
        gone.push(
            id.parse()
                .map_err(|_| StoreError::Damaged(format!("mail {id}")))?,
        );
    }
    gone.sort_unstable();
    // What is left of them has its body in a segment, or several lanes, or is lost.
    let left = first.iter().filter(|id| gone.binary_search(id).is_err());
    let left: Vec<i64> = left.chain(later).copied().collect();
    for now in left.chunks(ROWS) {
        let mut query = sqlx::query(FINISH[now.len() - 1].as_str());
        for id in now {
            query = query.bind(*id);
        }
        let rows = query.fetch_all(&mut *conn).await.map_err(store_error)?;
        for row in &rows {
            gone.push(row.try_get::<i64, _>("id").map_err(store_error)?);
            applied.freed.extend(place_of(row)?);
        }
    }
    applied.mails -= i64::try_from(gone.len()).unwrap_or(i64::MAX);
    gone.sort_unstable();
    Ok(gone)
}

/// Removes the mails with these bodies; returns how many.
async fn remove_at(conn: &mut SqliteConnection, places: &[Place]) -> StoreResult<i64> {
    let mut removed = 0;
    for place in places {
        let done = sqlx::query("DELETE FROM mails WHERE segment = $1 AND place = $2")
            .bind(place.segment.cast_signed())
            .bind(place.offset.cast_signed())
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
        removed += i64::try_from(done.rows_affected()).unwrap_or(i64::MAX);
    }
    let change = totals::Change {
        mails: -removed,
        ..totals::Change::default()
    };
    totals::add(conn, ALL_NODES, change).await?;
    Ok(removed)
}

impl Db {
    /// The rows of new mails, and the segments that must be synced with them.
    fn rows(&self, node: NodeId, epoch: Epoch, mails: &[NewMail]) -> StoreResult<Vec<MailRow>> {
        mails.iter().map(|mail| MailRow::new(node, epoch, mail)).collect()
    }

    /// Commits with the bodies' sync beside it; keeps the space of bodies exactly when their rows are stored.
    async fn commit_with_bodies<T>(
        &self,
        places: Vec<Place>,
        commit: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        if places.is_empty() {
            return commit.await;
        }
        self.segments.claim(&places);
        let (committed, synced) = futures_util::join!(commit, self.segments.sync(&places));
        match (committed, synced) {
            (Ok(done), Ok(())) => Ok(done),
            (Err(error), _) => {
                self.segments.free(&places);
                Err(error)
            }
            (Ok(_), Err(error)) => {
                self.take_back(places).await;
                Err(error)
            }
        }
    }

    /// Removes mails whose rows were committed but whose bodies are not safe: their senders are told to try again.
    async fn take_back(&self, places: Vec<Place>) {
        let counters = Arc::clone(&self.counters);
        let undone = self
            .writer
            .change(
                move |conn| Box::pin(async move { remove_at(conn, &places).await }),
                move |removed| counters.removed(*removed),
            )
            .await;
        if let Err(error) = undone {
            tracing::error!(error = %error, "a mail that was refused to its sender is still stored and may be delivered");
        }
    }

    async fn settle_with_follow_ups(
        &self,
        node: NodeId,
        mut outcomes: Vec<Outcome>,
    ) -> StoreResult<Vec<Settled>> {
        let life = self.holds.life(node).ok_or(StoreError::StaleEpoch)?;
        let mut follow_ups = Vec::with_capacity(outcomes.len());
        let mut places = Vec::new();
        for outcome in &mut outcomes {
            let mails = std::mem::take(&mut outcome.follow_up);
            let rows = self.rows(node, life, &mails)?;
            places.extend(rows.iter().filter_map(|r| r.segment.map(|(p, _)| p)));
            follow_ups.push(rows);
        }
        let commit = self.writer.settle_now(node, outcomes, follow_ups);
        self.commit_with_bodies(places, commit).await
    }
}

#[async_trait]
impl MailStore for Db {
    async fn open_body(&self, size_hint: Option<u64>) -> StoreResult<Box<dyn BodySink>> {
        self.space.require()?;
        Ok(Box::new(self.segments.sink(size_hint)))
    }

    async fn enqueue(&self, node: NodeId, epoch: Epoch, batch: Vec<NewMail>) -> StoreResult<Vec<MailId>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.space.require()?;
        if !self.holds.is_alive(node, epoch) {
            return Err(StoreError::StaleEpoch);
        }
        let rows = self.rows(node, epoch, &batch)?;
        let places = rows.iter().filter_map(|r| r.segment.map(|(p, _)| p)).collect();
        self.commit_with_bodies(places, self.writer.enqueue(rows)).await?;
        Ok(batch.iter().map(|mail| mail.id).collect())
    }

    async fn body(&self, body: &StoredBody) -> StoreResult<Box<dyn BodySource>> {
        match &body.place {
            BodyPlace::Inline(bytes) => Ok(Box::new(Inline::new(bytes.clone()))),
            BodyPlace::Segment {
                segment,
                offset,
                checksum,
            } => {
                let place = Place {
                    segment: *segment,
                    offset: *offset,
                    len: body.len,
                };
                Ok(Box::new(self.segments.source(place, *checksum).await?))
            }
            BodyPlace::Chunks { body } => Err(StoreError::NotFound(format!("body {body}"))),
        }
    }

    async fn adopt(&self, node: NodeId, epoch: Epoch, n: usize) -> StoreResult<Vec<Held>> {
        let holds = Arc::clone(&self.holds);
        let adopted = self
            .writer
            .change(
                move |conn| Box::pin(async move { queue::adopt(conn, (node, epoch), n).await }),
                move |adopted| {
                    for (node, epoch) in &adopted.ended {
                        holds.end_life(*node, *epoch);
                    }
                },
            )
            .await?;
        Ok(adopted.held)
    }

    async fn claim_lanes(
        &self,
        node: NodeId,
        now: Timestamp,
        hold: Duration,
        n: usize,
        renew: &[(LaneId, Epoch)],
    ) -> StoreResult<Vec<Lane>> {
        let holds = Arc::clone(&self.holds);
        let asked = renew.to_vec();
        let claim = queue::Claim {
            node,
            now,
            hold,
            n,
            renew: renew.to_vec(),
        };
        self.writer
            .change(
                move |conn| Box::pin(async move { queue::claim_lanes(conn, &claim).await }),
                move |lanes| holds.claimed(node, lanes, &asked),
            )
            .await
    }

    async fn release_lanes(&self, lanes: &[(LaneId, Epoch)]) -> StoreResult<()> {
        let holds = Arc::clone(&self.holds);
        let lanes = lanes.to_vec();
        let released = lanes.clone();
        self.writer
            .change(
                move |conn| Box::pin(async move { queue::release_lanes(conn, &lanes).await }),
                move |()| holds.released(&released),
            )
            .await
    }

    async fn due(
        &self,
        lane: LaneId,
        epoch: Epoch,
        now: Timestamp,
        n: usize,
        in_flight: &[(MailId, DeliverySeq)],
    ) -> StoreResult<Vec<Held>> {
        self.writer.land().await?;
        self.read(async |conn| queue::due(conn, (lane, epoch), now, n, in_flight).await)
            .await
    }

    async fn settle(&self, node: NodeId, mut outcomes: Vec<Outcome>) -> StoreResult<Vec<Settled>> {
        if outcomes.iter().any(|o| !o.follow_up.is_empty()) {
            return self.settle_with_follow_ups(node, outcomes).await;
        }
        let results: Vec<Settled> = outcomes
            .iter()
            .map(|o| {
                if self.holds.holds(node, o.hold) {
                    Settled::Done
                } else {
                    Settled::LaneLost
                }
            })
            .collect();
        let mut keep = results.iter().map(|r| *r == Settled::Done);
        outcomes.retain(|_| keep.next().unwrap_or(false));
        if !outcomes.is_empty() {
            self.writer.settle(node, outcomes).await?;
        }
        Ok(results)
    }

    async fn next_due(&self, node: NodeId) -> StoreResult<Option<Timestamp>> {
        self.writer.land().await?;
        self.read(async |conn| queue::next_due(conn, node).await).await
    }

    async fn queue(&self, filter: &QueueFilter, limit: usize) -> StoreResult<Vec<QueueRow>> {
        // People may look while nothing can be written; what is listed is what is stored.
        let _ = self.writer.land().await;
        self.read(async |conn| queue::list(conn, filter, limit).await)
            .await
    }

    async fn is_recipient(&self, mailbox: &Mailbox) -> StoreResult<bool> {
        self.read(async |conn| recipients::has(conn, mailbox).await).await
    }

    async fn change_recipients(
        &self,
        add: Vec<Mailbox>,
        remove: Vec<Mailbox>,
        audit: AuditEntry,
    ) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move { recipients::change(conn, &add, &remove, &audit).await })
        })
        .await
    }

    async fn recipients(&self, domain: &Domain, after: &str, limit: usize) -> StoreResult<Vec<String>> {
        self.read(async |conn| recipients::list(conn, domain, after, limit).await)
            .await
    }

    async fn add_sent(&self, day: i64, sent: Vec<(PrincipalId, u64)>) -> StoreResult<Vec<u64>> {
        self.change(move |conn| Box::pin(async move { sent::add(conn, day, &sent).await }))
            .await
    }

    async fn queue_counts(&self) -> StoreResult<QueueCounts> {
        Ok(QueueCounts {
            mails: self.counters.mails(),
            deferred: self.counters.deferred(),
            oldest: self.read(async |conn| queue::oldest(conn).await).await?,
        })
    }

    async fn queue_match(&self, filter: &QueueFilter) -> StoreResult<QueueMatch> {
        self.writer.land().await?;
        self.read(async |conn| orders::count(conn, filter).await).await
    }

    async fn order(
        &self,
        filter: &QueueFilter,
        order: &Order,
        now: Timestamp,
        limit: usize,
        entry: AuditEntry,
    ) -> StoreResult<Changed> {
        self.writer.land().await?;
        let (filter, order) = (filter.clone(), order.clone());
        self.change(move |conn| {
            Box::pin(async move { orders::order(conn, &filter, &order, now, limit, entry).await })
        })
        .await
    }

    async fn pause_lane(&self, paused: Paused, entry: AuditEntry) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move {
                orders::pause(conn, &paused).await?;
                audit::append(conn, &entry).await
            })
        })
        .await
    }

    async fn resume_lane(&self, lane: &LaneKey, entry: AuditEntry) -> StoreResult<()> {
        let lane = lane.clone();
        self.change(move |conn| {
            Box::pin(async move {
                orders::resume(conn, &lane).await?;
                audit::append(conn, &entry).await
            })
        })
        .await
    }

    async fn paused_lanes(&self) -> StoreResult<Vec<Paused>> {
        self.read(async |conn| orders::paused(conn).await).await
    }
}
