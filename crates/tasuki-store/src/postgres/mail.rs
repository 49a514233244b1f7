//! The mail verbs on PostgreSQL.

use std::time::Duration;

use async_trait::async_trait;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, Epoch, LaneId, MailId, NodeId, PrincipalId};
use tasuki_core::store::mail::{
    BodyPlace, BodySink, BodySource, Held, Hold, Lane, NewMail, Outcome, QueueCounts, QueueFilter, QueueRow,
    Settled, Settlement, StoredBody,
};
use tasuki_core::store::{MailStore, StoreError, StoreResult};

use super::settle::{self, Applied};
use super::{Conn, Db, bodies, nodes, queue, sent, without_sync};
use crate::bodies::Inline;
use crate::error::{is_duplicate, store_error};
use crate::head;

/// New mails, column by column.
#[derive(Default)]
struct Columns {
    ids: Vec<i64>,
    lanes: Vec<i64>,
    accepted_at: Vec<i64>,
    expires_at: Vec<i64>,
    body_len: Vec<i64>,
    chunks: Vec<Option<i64>>,
    heads: Vec<Vec<u8>>,
    bodies: Vec<Option<Vec<u8>>>,
}

impl Columns {
    fn new(mails: &[NewMail]) -> StoreResult<Self> {
        let mut columns = Self::default();
        for mail in mails {
            columns.heads.push(head::encode(mail)?);
            let (chunks, body) = match &mail.body.place {
                BodyPlace::Inline(bytes) => (None, Some(bytes.to_vec())),
                BodyPlace::Chunks { body } => (Some(*body), None),
                BodyPlace::Segment { segment, .. } => {
                    return Err(StoreError::Damaged(format!(
                        "a body in segment {segment} is not in this store"
                    )));
                }
            };
            columns.chunks.push(chunks);
            columns.bodies.push(body);
            columns.ids.push(mail.id.0);
            columns
                .lanes
                .push(i64::try_from(mail.deliveries.len()).unwrap_or(i64::MAX));
            columns.accepted_at.push(mail.accepted_at.0);
            columns.expires_at.push(mail.expires_at.0);
            columns
                .body_len
                .push(i64::try_from(mail.body.len).unwrap_or(i64::MAX));
        }
        Ok(columns)
    }
}

async fn insert(conn: &mut Conn, (node, epoch): (NodeId, Epoch), columns: Columns) -> StoreResult<()> {
    let live: Vec<i64> = columns.chunks.iter().flatten().copied().collect();
    bodies::make_live(conn, &live).await?;
    sqlx::query(
        "INSERT INTO mails (id, node, epoch, lanes, open, fresh, accepted_at, expires_at, body_len, chunks, head, body)
         SELECT id, $1, $2, lanes, lanes, lanes, accepted_at, expires_at, body_len, chunks, head, body
         FROM unnest($3::BIGINT[], $4::BIGINT[], $5::BIGINT[], $6::BIGINT[], $7::BIGINT[], $8::BIGINT[],
             $9::BYTEA[], $10::BYTEA[])
             AS new (id, lanes, accepted_at, expires_at, body_len, chunks, head, body)",
    )
    .bind(i64::from(node.0))
    .bind(epoch.0)
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

/// Deletes the mails with one lane among these outcomes; returns which.
async fn finish_single(
    conn: &mut Conn,
    node: NodeId,
    outcomes: &[Outcome],
    applied: &mut Applied,
) -> StoreResult<Vec<i64>> {
    let (ids, epochs): (Vec<i64>, Vec<i64>) = outcomes
        .iter()
        .filter(|o| o.follow_up.is_empty() && o.settlement == Settlement::Finished)
        .filter_map(|o| match o.hold {
            Hold::Fresh(epoch) => Some((o.mail.0, epoch.0)),
            Hold::Lane(..) => None,
        })
        .unzip();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<(i64, Option<i64>)> = sqlx::query_as(
        "DELETE FROM mails USING unnest($1::BIGINT[], $2::BIGINT[]) AS held (held_id, held_epoch)
         WHERE id = held_id AND epoch = held_epoch AND node = $3 AND lanes = 1 AND fresh = 1
         RETURNING id, chunks",
    )
    .bind(ids)
    .bind(epochs)
    .bind(i64::from(node.0))
    .fetch_all(conn)
    .await
    .map_err(store_error)?;
    applied
        .freed
        .extend(rows.iter().filter_map(|(_, chunks)| *chunks));
    Ok(rows.into_iter().map(|(id, _)| id).collect())
}

async fn present_life(conn: &mut Conn, node: NodeId) -> StoreResult<Epoch> {
    let epoch: Option<i64> = sqlx::query_scalar("SELECT epoch FROM nodes WHERE id = $1")
        .bind(i64::from(node.0))
        .fetch_optional(conn)
        .await
        .map_err(store_error)?;
    epoch.map(Epoch).ok_or(StoreError::StaleEpoch)
}

async fn settle_all(conn: &mut Conn, node: NodeId, outcomes: Vec<Outcome>) -> StoreResult<Vec<Settled>> {
    let mut applied = Applied::default();
    let single = finish_single(conn, node, &outcomes, &mut applied).await?;
    let mut results = Vec::with_capacity(outcomes.len());
    for mut outcome in outcomes {
        if outcome.follow_up.is_empty() && single.contains(&outcome.mail.0) {
            results.push(Settled::Done);
            continue;
        }
        let follow_up = std::mem::take(&mut outcome.follow_up);
        let result = settle::settle_one(conn, node, &outcome, &mut applied).await?;
        if result == Settled::Done && !follow_up.is_empty() {
            let epoch = present_life(conn, node).await?;
            insert(conn, (node, epoch), Columns::new(&follow_up)?).await?;
        }
        results.push(result);
    }
    settle::finish(conn, &mut applied).await?;
    bodies::remove(conn, &applied.freed).await?;
    Ok(results)
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
        let ids = batch.iter().map(|mail| mail.id).collect();
        let columns = Columns::new(&batch)?;
        self.change(move |conn| {
            Box::pin(async move {
                nodes::require_life(conn, node, epoch).await?;
                insert(conn, (node, epoch), columns).await
            })
        })
        .await?;
        Ok(ids)
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
        let mut conn = self.read().await?;
        queue::due(&mut conn, (lane, epoch), now, n, in_flight).await
    }

    async fn settle(&self, node: NodeId, outcomes: Vec<Outcome>) -> StoreResult<Vec<Settled>> {
        let rides = outcomes.iter().all(|o| o.follow_up.is_empty());
        self.change(move |conn| {
            Box::pin(async move {
                if rides {
                    without_sync(conn).await?;
                }
                settle_all(conn, node, outcomes).await
            })
        })
        .await
    }

    async fn next_due(&self, node: NodeId) -> StoreResult<Option<Timestamp>> {
        let mut conn = self.read().await?;
        queue::next_due(&mut conn, node).await
    }

    async fn queue(&self, filter: &QueueFilter, limit: usize) -> StoreResult<Vec<QueueRow>> {
        let mut conn = self.read().await?;
        queue::list(&mut conn, filter, limit).await
    }

    async fn add_sent(&self, day: i64, sent: Vec<(PrincipalId, u64)>) -> StoreResult<Vec<u64>> {
        self.change(move |conn| Box::pin(async move { sent::add(conn, day, &sent).await }))
            .await
    }

    async fn queue_counts(&self) -> StoreResult<QueueCounts> {
        let (mails, deferred, oldest): (i64, i64, Option<i64>) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM mails), (SELECT count(*) FROM deliveries),
                 (SELECT accepted_at FROM mails ORDER BY id LIMIT 1)",
        )
        .fetch_one(&mut *self.read().await?)
        .await
        .map_err(store_error)?;
        Ok(QueueCounts {
            mails: u64::try_from(mails).unwrap_or(0),
            deferred: u64::try_from(deferred).unwrap_or(0),
            oldest: oldest.map(Timestamp),
        })
    }
}
