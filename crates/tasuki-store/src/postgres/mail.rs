//! The mail verbs on PostgreSQL.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, Epoch, LaneId, MailId, NodeId, PrincipalId};
use tasuki_core::store::mail::{
    BodyPlace, BodySink, BodySource, Changed, Held, Hold, Lane, LaneKey, NewMail, Order, Outcome, Paused,
    QueueCounts, QueueFilter, QueueMatch, QueueRow, Settled, Settlement, StoredBody,
};
use tasuki_core::store::{AuditEntry, MailStore, StoreError, StoreResult};
use tasuki_proto::names::{Domain, Mailbox};

use super::settle::{self, Applied};
use super::writer::{Enqueue, Settle};
use super::{Conn, Db, audit, bodies, orders, queue, recipients, sent, totals, trail};
use crate::bodies::Inline;
use crate::error::{is_duplicate, store_error};
use crate::head;

/// A mail as it goes into its row.
#[derive(Debug)]
pub(super) struct MailRow {
    id: i64,
    lanes: i64,
    accepted_at: i64,
    expires_at: i64,
    body_len: i64,
    chunks: Option<i64>,
    head: Vec<u8>,
    body: Option<Bytes>,
}

impl MailRow {
    fn new(mail: &NewMail) -> StoreResult<Self> {
        let (chunks, body) = match &mail.body.place {
            BodyPlace::Inline(bytes) => (None, Some(bytes.clone())),
            BodyPlace::Chunks { body } => (Some(*body), None),
            BodyPlace::Segment { segment, .. } => {
                return Err(StoreError::Damaged(format!(
                    "a body in segment {segment} is not in this store"
                )));
            }
        };
        Ok(Self {
            id: mail.id.0,
            lanes: i64::try_from(mail.deliveries.len()).unwrap_or(i64::MAX),
            accepted_at: mail.accepted_at.0,
            expires_at: mail.expires_at.0,
            body_len: i64::try_from(mail.body.len).unwrap_or(i64::MAX),
            chunks,
            head: head::encode(mail)?,
            body,
        })
    }

    fn all(mails: &[NewMail]) -> StoreResult<Vec<Self>> {
        mails.iter().map(Self::new).collect()
    }

    /// Bytes that its row takes, about.
    pub(super) fn size(&self) -> usize {
        self.head.len() + self.body.as_ref().map_or(0, Bytes::len) + 100
    }
}

/// A mail and the life of the node that holds it.
type Taken<'a> = ((NodeId, Epoch), &'a MailRow);

/// New mails, column by column.
#[derive(Default)]
struct Columns<'a> {
    nodes: Vec<i64>,
    epochs: Vec<i64>,
    ids: Vec<i64>,
    lanes: Vec<i64>,
    accepted_at: Vec<i64>,
    expires_at: Vec<i64>,
    body_len: Vec<i64>,
    chunks: Vec<Option<i64>>,
    heads: Vec<&'a [u8]>,
    bodies: Vec<Option<&'a [u8]>>,
}

impl<'a> Columns<'a> {
    fn new(mails: &[Taken<'a>]) -> Self {
        let mut columns = Self::default();
        for ((node, epoch), row) in mails {
            columns.nodes.push(i64::from(node.0));
            columns.epochs.push(epoch.0);
            columns.ids.push(row.id);
            columns.lanes.push(row.lanes);
            columns.accepted_at.push(row.accepted_at);
            columns.expires_at.push(row.expires_at);
            columns.body_len.push(row.body_len);
            columns.chunks.push(row.chunks);
            columns.heads.push(&row.head);
            columns.bodies.push(row.body.as_deref());
        }
        columns
    }
}

async fn insert(conn: &mut Conn, mails: &[Taken<'_>]) -> StoreResult<()> {
    if mails.is_empty() {
        return Ok(());
    }
    let columns = Columns::new(mails);
    sqlx::query(
        "INSERT INTO mails (node, epoch, id, lanes, open, fresh, accepted_at, expires_at, body_len, chunks, head, body)
         SELECT node, epoch, id, lanes, lanes, lanes, accepted_at, expires_at, body_len, chunks, head, body
         FROM unnest($1::BIGINT[], $2::BIGINT[], $3::BIGINT[], $4::BIGINT[], $5::BIGINT[], $6::BIGINT[],
             $7::BIGINT[], $8::BIGINT[], $9::BYTEA[], $10::BYTEA[])
             AS new (node, epoch, id, lanes, accepted_at, expires_at, body_len, chunks, head, body)",
    )
    .bind(columns.nodes)
    .bind(columns.epochs)
    .bind(columns.ids)
    .bind(columns.lanes)
    .bind(columns.accepted_at)
    .bind(columns.expires_at)
    .bind(columns.body_len)
    .bind(columns.chunks)
    .bind(columns.heads)
    .bind(columns.bodies)
    .execute(conn)
    .await
    .map_err(|error| {
        if is_duplicate(&error) {
            StoreError::Conflict("a mail of this id is stored already".into())
        } else {
            store_error(error)
        }
    })?;
    Ok(())
}

fn bodies_of(rows: &[MailRow]) -> Vec<i64> {
    rows.iter().filter_map(|row| row.chunks).collect()
}

/// The present life of each node.
async fn present_lives(conn: &mut Conn) -> StoreResult<HashMap<i64, i64>> {
    let lives: Vec<(i64, i64)> = sqlx::query_as("SELECT id, epoch FROM nodes")
        .fetch_all(conn)
        .await
        .map_err(store_error)?;
    Ok(lives.into_iter().collect())
}

/// Stores the mails of several callers. Whose life is over, or whose body is gone, is refused alone.
pub(super) async fn enqueue_all(conn: &mut Conn, enqueues: &[Enqueue]) -> StoreResult<Vec<StoreResult<()>>> {
    if enqueues.is_empty() {
        return Ok(Vec::new());
    }
    let lives = present_lives(conn).await?;
    let wanted: Vec<i64> = enqueues.iter().flat_map(|e| bodies_of(&e.rows)).collect();
    let live: HashSet<i64> = bodies::make_live(conn, &wanted).await?;
    let mut mails = Vec::new();
    let mut results = Vec::with_capacity(enqueues.len());
    for enqueue in enqueues {
        let result = if lives.get(&i64::from(enqueue.node.0)) != Some(&enqueue.epoch.0) {
            Err(StoreError::StaleEpoch)
        } else if bodies_of(&enqueue.rows).iter().any(|body| !live.contains(body)) {
            Err(StoreError::NotFound("a mail's body".into()))
        } else {
            mails.extend(
                enqueue
                    .rows
                    .iter()
                    .map(|row| ((enqueue.node, enqueue.epoch), row)),
            );
            Ok(())
        };
        results.push(result);
    }
    insert(conn, &mails).await?;
    Ok(results)
}

/// Deletes the mails with one lane among these outcomes; returns which.
async fn finish_single(conn: &mut Conn, settle: &Settle, applied: &mut Applied) -> StoreResult<HashSet<i64>> {
    let (ids, epochs): (Vec<i64>, Vec<i64>) = settle
        .outcomes
        .iter()
        .zip(&settle.follow_ups)
        .filter(|(outcome, follow_up)| follow_up.is_empty() && outcome.settlement == Settlement::Finished)
        .filter_map(|(outcome, _)| match outcome.hold {
            Hold::Fresh(epoch) => Some((outcome.mail.0, epoch.0)),
            Hold::Lane(..) => None,
        })
        .unzip();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<(i64, Option<i64>)> = sqlx::query_as(
        "DELETE FROM mails USING unnest($1::BIGINT[], $2::BIGINT[]) AS held (held_id, held_epoch)
         WHERE id = held_id AND epoch = held_epoch AND node = $3 AND lanes = 1 AND fresh = 1
         RETURNING id, chunks",
    )
    .bind(ids)
    .bind(epochs)
    .bind(i64::from(settle.node.0))
    .fetch_all(conn)
    .await
    .map_err(store_error)?;
    applied.mails -= i64::try_from(rows.len()).unwrap_or(i64::MAX);
    applied
        .freed
        .extend(rows.iter().filter_map(|(_, chunks)| *chunks));
    Ok(rows.into_iter().map(|(id, _)| id).collect())
}

/// What the outcomes of one caller did.
pub(super) struct SettledAll {
    pub(super) results: Vec<Settled>,
    pub(super) change: totals::Change,
}

/// Applies one caller's outcomes and what they cause; their stories too, if there is room for the trail.
pub(super) async fn settle_all(
    conn: &mut Conn,
    settle: &Settle,
    keeps_trail: bool,
) -> StoreResult<SettledAll> {
    let mut applied = Applied::default();
    let single = finish_single(conn, settle, &mut applied).await?;
    let mut results = Vec::with_capacity(settle.outcomes.len());
    for (outcome, follow_up) in settle.outcomes.iter().zip(&settle.follow_ups) {
        if follow_up.is_empty() && single.contains(&outcome.mail.0) {
            applied.tell(outcome, settle::Past::default());
            results.push(Settled::Done);
            continue;
        }
        let result = settle::settle_one(conn, settle.node, outcome, &mut applied).await?;
        if result == Settled::Done && !follow_up.is_empty() {
            follow(conn, settle.node, follow_up).await?;
            applied.mails += i64::try_from(follow_up.len()).unwrap_or(i64::MAX);
        }
        results.push(result);
    }
    settle::finish(conn, &mut applied).await?;
    bodies::remove(conn, &applied.freed).await?;
    let stories = match keeps_trail {
        true => trail::batches(&applied.stories)?,
        false => Vec::new(),
    };
    let change = totals::Change {
        mails: applied.mails,
        deferred: applied.deferred,
        trail_bytes: trail::size_of(&stories),
    };
    trail::append(conn, stories).await?;
    Ok(SettledAll { results, change })
}

/// Stores mails that an outcome causes; they are held by the node's present life.
async fn follow(conn: &mut Conn, node: NodeId, rows: &[MailRow]) -> StoreResult<()> {
    let lives = present_lives(conn).await?;
    let epoch = lives.get(&i64::from(node.0)).ok_or(StoreError::StaleEpoch)?;
    let wanted = bodies_of(rows);
    if bodies::make_live(conn, &wanted).await?.len() < wanted.len() {
        return Err(StoreError::NotFound("a mail's body".into()));
    }
    let mails: Vec<Taken<'_>> = rows.iter().map(|row| ((node, Epoch(*epoch)), row)).collect();
    insert(conn, &mails).await
}

#[async_trait]
impl MailStore for Db {
    async fn open_body(&self, _size_hint: Option<u64>) -> StoreResult<Box<dyn BodySink>> {
        Ok(Box::new(bodies::Sink::new(self.pool.clone())))
    }

    async fn enqueue(&self, node: NodeId, epoch: Epoch, batch: Vec<NewMail>) -> StoreResult<Vec<MailId>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.writer.enqueue(node, epoch, MailRow::all(&batch)?).await?;
        Ok(batch.iter().map(|mail| mail.id).collect())
    }

    async fn body(&self, body: &StoredBody) -> StoreResult<Box<dyn BodySource>> {
        match &body.place {
            BodyPlace::Inline(bytes) => Ok(Box::new(Inline::new(bytes.clone()))),
            BodyPlace::Chunks { body: id } => Ok(Box::new(bodies::Source {
                pool: self.pool.clone(),
                body: *id,
                n: 0,
                left: body.len,
            })),
            BodyPlace::Segment { segment, .. } => Err(StoreError::NotFound(format!("segment {segment}"))),
        }
    }

    async fn adopt(&self, node: NodeId, epoch: Epoch, n: usize) -> StoreResult<Vec<Held>> {
        self.change(move |conn| Box::pin(async move { Ok(queue::adopt(conn, (node, epoch), n).await?.held) }))
            .await
    }

    async fn claim_lanes(
        &self,
        node: NodeId,
        now: Timestamp,
        hold: Duration,
        n: usize,
        renew: &[(LaneId, Epoch)],
    ) -> StoreResult<Vec<Lane>> {
        let claim = queue::Claim {
            node,
            now,
            hold,
            n,
            renew: renew.to_vec(),
        };
        self.change(move |conn| Box::pin(async move { queue::claim_lanes(conn, &claim).await }))
            .await
    }

    async fn release_lanes(&self, lanes: &[(LaneId, Epoch)]) -> StoreResult<()> {
        let lanes = lanes.to_vec();
        self.change(move |conn| Box::pin(async move { queue::release_lanes(conn, &lanes).await }))
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
        self.read(async |conn| queue::due(conn, (lane, epoch), now, n, in_flight).await)
            .await
    }

    async fn settle(&self, node: NodeId, mut outcomes: Vec<Outcome>) -> StoreResult<Vec<Settled>> {
        if outcomes.is_empty() {
            return Ok(Vec::new());
        }
        let follow_ups = outcomes
            .iter_mut()
            .map(|outcome| MailRow::all(&std::mem::take(&mut outcome.follow_up)))
            .collect::<StoreResult<_>>()?;
        self.writer.settle(node, outcomes, follow_ups).await
    }

    async fn next_due(&self, node: NodeId) -> StoreResult<Option<Timestamp>> {
        self.read(async |conn| queue::next_due(conn, node).await).await
    }

    async fn queue(&self, filter: &QueueFilter, limit: usize) -> StoreResult<Vec<QueueRow>> {
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
        self.read(async |conn| {
            let (mails, deferred) = totals::sum(conn).await?;
            Ok(QueueCounts {
                mails: u64::try_from(mails).unwrap_or(0),
                deferred: u64::try_from(deferred).unwrap_or(0),
                oldest: queue::oldest(conn).await?,
            })
        })
        .await
    }

    async fn queue_match(&self, filter: &QueueFilter) -> StoreResult<QueueMatch> {
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
