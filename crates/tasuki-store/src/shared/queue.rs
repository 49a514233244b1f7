//! Lanes and the deliveries that wait in them; adoption; listing.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, Epoch, LaneId, MailId, NodeId};
use tasuki_core::store::mail::{
    Envelope, Held, Hold, Lane, LaneKey, Orders, QueueFilter, QueueRow, QueueState, Recipient, StoredBody,
};
use tasuki_core::store::{StoreError, StoreResult};

use super::{
    BODY_COLUMNS, Conn, DbRow, FOR_UPDATE_SKIP_LOCKED, body_of, nodes, orders, renew_lanes, settle,
    store_now, trail,
};
use crate::error::store_error;
use crate::head::{self, Head, is_gone};
use crate::words::from_json;

static DUE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT d.seq AS seq, d.attempts AS attempts, d.delay_reported AS delay_reported,
             d.last_error AS last_error, d.recipients AS recipients, d.state AS state, d.rerouted AS rerouted,
             m.id AS id, m.accepted_at AS accepted_at, m.expires_at AS expires_at, m.head AS head, {BODY_COLUMNS}
         FROM deliveries d JOIN mails m ON m.id = d.mail
         WHERE d.lane = $1 AND d.due <= $2 ORDER BY d.due, d.mail LIMIT $3"
    )
});
static ADOPTABLE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT id, gone, accepted_at, expires_at, head, {BODY_COLUMNS} FROM mails
         WHERE fresh > 0 AND node = $1 AND epoch < $2 ORDER BY epoch, id LIMIT $3{FOR_UPDATE_SKIP_LOCKED}"
    )
});
static CLAIM: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH free AS (
             SELECT id AS free_id FROM lanes
             WHERE next_due <= $1 AND (owner IS NULL OR hold_until <= $2
                 OR owner IN (SELECT id FROM nodes WHERE alive_until <= $2))
             ORDER BY next_due LIMIT $5{FOR_UPDATE_SKIP_LOCKED})
         UPDATE lanes SET owner = $3, epoch = epoch + 1, hold_until = $4 FROM free WHERE id = free_id
         RETURNING id, name, epoch, next_due"
    )
});

/// Reads one row: ids grow with time.
const OLDEST: &str = "SELECT accepted_at FROM mails WHERE id = (SELECT min(id) FROM mails)";
/// Lanes that nobody needs.
const REMOVE_IDLE: &str = "DELETE FROM lanes WHERE next_due IS NULL AND (owner IS NULL OR hold_until <= $1)";
const HELD_LANE: &str =
    "SELECT name FROM lanes WHERE id = $1 AND epoch = $2 AND owner IS NOT NULL AND hold_until > $3";
const NEXT_DUE: &str =
    "SELECT next_due FROM lanes WHERE next_due IS NOT NULL AND (owner IS NULL OR owner = $1
         OR hold_until <= $2 OR owner IN (SELECT id FROM nodes WHERE alive_until <= $2))
     ORDER BY next_due LIMIT 1";

const END_LIFE: &str = "UPDATE nodes SET epoch = epoch + 1 WHERE id = $1 AND epoch = $2 AND alive_until <= $3
     AND EXISTS (SELECT 1 FROM mails WHERE fresh > 0 AND node = $1 AND mails.epoch = $2)
     RETURNING epoch";

/// What is asked again and again, however long the queue is: none of it may read all of it.
pub(crate) fn periodic() -> Vec<&'static str> {
    vec![
        OLDEST,
        REMOVE_IDLE,
        HELD_LANE,
        NEXT_DUE,
        DUE.as_str(),
        ADOPTABLE.as_str(),
        CLAIM.as_str(),
        END_LIFE,
        settle::FIRST_DUE,
        nodes::FREE_LANES,
        trail::OLDEST,
        trail::ANNOUNCED,
    ]
}

struct Mail {
    id: MailId,
    envelope: Envelope,
    deliveries: Vec<(LaneKey, Vec<Recipient>)>,
    body: StoredBody,
    accepted_at: Timestamp,
    expires_at: Timestamp,
}

fn mail_of(row: &DbRow) -> StoreResult<Mail> {
    let number = |column| row.try_get::<i64, _>(column).map_err(store_error);
    let Head { envelope, deliveries } = head::decode(row.try_get("head").map_err(store_error)?)?;
    Ok(Mail {
        id: MailId(number("id")?),
        envelope: envelope.into_owned(),
        deliveries: deliveries
            .into_owned()
            .into_iter()
            .map(|d| (d.lane, d.recipients))
            .collect(),
        body: body_of(row)?,
        accepted_at: Timestamp(number("accepted_at")?),
        expires_at: Timestamp(number("expires_at")?),
    })
}

pub(super) fn lane_of(row: &DbRow) -> StoreResult<Lane> {
    Ok(Lane {
        id: LaneId(row.try_get("id").map_err(store_error)?),
        key: LaneKey(row.try_get("name").map_err(store_error)?),
        epoch: Epoch(row.try_get("epoch").map_err(store_error)?),
        next_due: Timestamp(
            row.try_get::<Option<i64>, _>("next_due")
                .map_err(store_error)?
                .unwrap_or(i64::MAX),
        ),
    })
}

/// A wish for lanes; see `MailStore::claim_lanes`.
#[derive(Clone)]
pub(super) struct Claim {
    pub(super) node: NodeId,
    pub(super) now: Timestamp,
    pub(super) hold: Duration,
    pub(super) n: usize,
    pub(super) renew: Vec<(LaneId, Epoch)>,
}

/// Renews, then claims; also removes lanes that nobody needs.
pub(super) async fn claim_lanes(conn: &mut Conn, claim: &Claim) -> StoreResult<Vec<Lane>> {
    let store_now = store_now(conn).await?;
    let until = store_now.saturating_add(i64::try_from(claim.hold.as_millis()).unwrap_or(i64::MAX / 4));
    let mut lanes = if claim.renew.is_empty() {
        Vec::new()
    } else {
        renew_lanes(conn, claim.node, until, &claim.renew).await?
    };
    sqlx::query(REMOVE_IDLE)
        .bind(store_now)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    let rows = sqlx::query(CLAIM.as_str())
        .bind(claim.now.0)
        .bind(store_now)
        .bind(i64::from(claim.node.0))
        .bind(until)
        .bind(i64::try_from(claim.n).unwrap_or(i64::MAX))
        .fetch_all(conn)
        .await
        .map_err(store_error)?;
    let mut claimed = rows.iter().map(lane_of).collect::<StoreResult<Vec<_>>>()?;
    claimed.sort_by_key(|lane| lane.next_due);
    lanes.extend(claimed);
    Ok(lanes)
}

/// Gives lanes back; the epoch moves on, so that late outcomes of this hold are refused.
pub(super) async fn release_lanes(conn: &mut Conn, lanes: &[(LaneId, Epoch)]) -> StoreResult<()> {
    for (lane, epoch) in lanes {
        sqlx::query("UPDATE lanes SET owner = NULL, epoch = epoch + 1 WHERE id = $1 AND epoch = $2")
            .bind(lane.0)
            .bind(epoch.0)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    Ok(())
}

/// The due deliveries of a held lane.
pub(super) async fn due(
    conn: &mut Conn,
    (lane, epoch): (LaneId, Epoch),
    now: Timestamp,
    n: usize,
    in_flight: &[(MailId, DeliverySeq)],
) -> StoreResult<Vec<Held>> {
    let store_now = store_now(conn).await?;
    let name: Option<String> = sqlx::query_scalar(HELD_LANE)
        .bind(lane.0)
        .bind(epoch.0)
        .bind(store_now)
        .fetch_optional(&mut *conn)
        .await
        .map_err(store_error)?;
    let key = LaneKey(name.ok_or(StoreError::StaleEpoch)?);
    let rows = sqlx::query(DUE.as_str())
        .bind(lane.0)
        .bind(now.0)
        .bind(i64::try_from(n.saturating_add(in_flight.len())).unwrap_or(i64::MAX))
        .fetch_all(conn)
        .await
        .map_err(store_error)?;
    let skip: HashSet<_> = in_flight.iter().collect();
    let mut held = Vec::with_capacity(rows.len().min(n));
    for row in &rows {
        let delivery = seq_of(row)?;
        let mail = mail_of(row)?;
        if held.len() == n || skip.contains(&(mail.id, delivery)) {
            continue;
        }
        held.push(Held {
            mail: mail.id,
            delivery,
            hold: Hold::Lane(lane, epoch),
            lane: key.clone(),
            envelope: mail.envelope,
            recipients: from_json(row.try_get("recipients").map_err(store_error)?)?,
            body: mail.body,
            attempts: attempts_of(row)?,
            accepted_at: mail.accepted_at,
            expires_at: mail.expires_at,
            delay_reported: row.try_get("delay_reported").map_err(store_error)?,
            last_error: Some(row.try_get("last_error").map_err(store_error)?),
            orders: orders::orders_of(row)?,
        });
    }
    Ok(held)
}

fn seq_of(row: &DbRow) -> StoreResult<DeliverySeq> {
    let seq: i64 = row.try_get("seq").map_err(store_error)?;
    u16::try_from(seq)
        .map(DeliverySeq)
        .map_err(|_| StoreError::Damaged(format!("delivery number {seq}")))
}

fn attempts_of(row: &DbRow) -> StoreResult<u32> {
    let attempts: i64 = row.try_get("attempts").map_err(store_error)?;
    Ok(u32::try_from(attempts).unwrap_or(u32::MAX))
}

/// What adoption took, and the nodes whose life it ended.
#[derive(Default)]
pub(super) struct Adopted {
    pub(super) held: Vec<Held>,
    pub(super) ended: Vec<(NodeId, Epoch)>,
}

/// Takes over fresh mail of dead nodes and of this node's earlier lives.
pub(super) async fn adopt(conn: &mut Conn, (node, epoch): (NodeId, Epoch), n: usize) -> StoreResult<Adopted> {
    nodes::require_life(conn, node, epoch).await?;
    let store_now = store_now(conn).await?;
    let holders: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT id, epoch, alive_until FROM nodes ORDER BY id")
            .fetch_all(&mut *conn)
            .await
            .map_err(store_error)?;
    let mut adopted = Adopted::default();
    for (holder, holder_epoch, alive_until) in holders {
        let own = holder == i64::from(node.0);
        if (!own && alive_until > store_now) || adopted.held.len() >= n {
            continue;
        }
        let ended_before = if own {
            epoch.0
        } else {
            match end_life(conn, holder, holder_epoch, store_now).await? {
                Some(next) => {
                    if let Ok(id) = i32::try_from(holder) {
                        adopted.ended.push((NodeId(id), Epoch(next)));
                    }
                    next
                }
                None => holder_epoch,
            }
        };
        let room = n - adopted.held.len();
        take(
            conn,
            (node, epoch),
            (holder, ended_before),
            room,
            &mut adopted.held,
        )
        .await?;
    }
    Ok(adopted)
}

/// Ends the life of a node that gave no sign and still holds mail, so that its late outcomes are refused.
async fn end_life(
    conn: &mut Conn,
    holder: i64,
    holder_epoch: i64,
    store_now: i64,
) -> StoreResult<Option<i64>> {
    sqlx::query_scalar(END_LIFE)
        .bind(holder)
        .bind(holder_epoch)
        .bind(store_now)
        .fetch_optional(conn)
        .await
        .map_err(store_error)
}

async fn take(
    conn: &mut Conn,
    (node, epoch): (NodeId, Epoch),
    (holder, ended_before): (i64, i64),
    room: usize,
    held: &mut Vec<Held>,
) -> StoreResult<()> {
    let rows = sqlx::query(ADOPTABLE.as_str())
        .bind(holder)
        .bind(ended_before)
        .bind(i64::try_from(room).unwrap_or(i64::MAX))
        .fetch_all(&mut *conn)
        .await
        .map_err(store_error)?;
    let mut taken = 0;
    for row in &rows {
        if taken >= room {
            break;
        }
        let gone: String = row.try_get("gone").map_err(store_error)?;
        let mail = mail_of(row)?;
        sqlx::query("UPDATE mails SET node = $2, epoch = $3 WHERE id = $1")
            .bind(mail.id.0)
            .bind(i64::from(node.0))
            .bind(epoch.0)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
        for (seq, (lane, recipients)) in (0_u16..).zip(mail.deliveries) {
            if is_gone(&gone, seq) {
                continue;
            }
            taken += 1;
            held.push(Held {
                mail: mail.id,
                delivery: DeliverySeq(seq),
                hold: Hold::Fresh(epoch),
                lane,
                envelope: mail.envelope.clone(),
                recipients,
                body: mail.body.clone(),
                attempts: 0,
                accepted_at: mail.accepted_at,
                expires_at: mail.expires_at,
                delay_reported: false,
                last_error: None,
                orders: Orders::default(),
            });
        }
    }
    Ok(())
}

/// When the next delivery is due in a lane that `node` may have.
pub(super) async fn next_due(conn: &mut Conn, node: NodeId) -> StoreResult<Option<Timestamp>> {
    let store_now = store_now(conn).await?;
    let due: Option<i64> = sqlx::query_scalar(NEXT_DUE)
        .bind(i64::from(node.0))
        .bind(store_now)
        .fetch_optional(conn)
        .await
        .map_err(store_error)?;
    Ok(due.map(Timestamp))
}

/// When the oldest waiting mail was taken.
pub(super) async fn oldest(conn: &mut Conn) -> StoreResult<Option<Timestamp>> {
    let at: Option<i64> = sqlx::query_scalar(OLDEST)
        .fetch_optional(conn)
        .await
        .map_err(store_error)?;
    Ok(at.map(Timestamp))
}

/// Mails read for one step of a listing.
const PAGE: usize = 256;

/// Lists; whole mails, so that paging by mail misses nothing: the answer may be longer than `limit` by one mail.
pub(super) async fn list(conn: &mut Conn, filter: &QueueFilter, limit: usize) -> StoreResult<Vec<QueueRow>> {
    let mut out = Vec::new();
    let mut after = filter.after.map_or(i64::MIN, |id| id.0);
    let is_filtered = filter.sender.is_some()
        || filter.recipient_domain.is_some()
        || filter.recipient.is_some()
        || filter.state.is_some()
        || filter.taken_before.is_some()
        || filter.principal.is_some()
        || filter.message_id.is_some()
        || !filter.mails.is_empty()
        || filter.lane.is_some();
    let page = if is_filtered { PAGE } else { limit.clamp(1, PAGE) };
    loop {
        let rows = sqlx::query(
            "SELECT id, gone, accepted_at, expires_at, body_len, head FROM mails
             WHERE id > $1 AND ($2 = 0 OR id = $3) ORDER BY id LIMIT $4",
        )
        .bind(after)
        .bind(i64::from(filter.mail.is_some()))
        .bind(filter.mail.map_or(0, |id| id.0))
        .bind(i64::try_from(page).unwrap_or(i64::MAX))
        .fetch_all(&mut *conn)
        .await
        .map_err(store_error)?;
        for row in &rows {
            if out.len() >= limit {
                return Ok(out);
            }
            after = row.try_get("id").map_err(store_error)?;
            list_mail(conn, filter, row, &mut out).await?;
        }
        if rows.len() < page || out.len() >= limit {
            return Ok(out);
        }
    }
}

async fn list_mail(
    conn: &mut Conn,
    filter: &QueueFilter,
    row: &DbRow,
    out: &mut Vec<QueueRow>,
) -> StoreResult<()> {
    let number = |column| row.try_get::<i64, _>(column).map_err(store_error);
    let Head { envelope, deliveries } = head::decode(row.try_get("head").map_err(store_error)?)?;
    let mail = MailId(number("id")?);
    let accepted_at = Timestamp(number("accepted_at")?);
    if !filter.matches_mail(mail, &envelope, accepted_at) {
        return Ok(());
    }
    let gone: String = row.try_get("gone").map_err(store_error)?;
    let fresh = |delivery: u16, lane: LaneKey, recipients: Vec<Recipient>| {
        Ok(QueueRow {
            mail,
            delivery: DeliverySeq(delivery),
            lane,
            state: QueueState::Fresh,
            rerouted: false,
            principal: envelope.principal,
            reverse_path: envelope.reverse_path.clone(),
            received: envelope.received.clone().filter(|_| filter.mail.is_some()),
            recipients: recipients.into_iter().map(|r| r.mailbox).collect(),
            size_bytes: u64::try_from(number("body_len")?).unwrap_or(0),
            accepted_at,
            expires_at: Timestamp(number("expires_at")?),
            attempts: 0,
            next_try: None,
            last_error: None,
            history: Vec::new(),
        })
    };
    let mut keep = |row: QueueRow| {
        if filter.matches_delivery(&row.lane, row.state, row.recipients.iter()) {
            out.push(row);
        }
    };
    for (seq, delivery) in (0_u16..).zip(deliveries.into_owned()) {
        if !is_gone(&gone, seq) {
            keep(fresh(seq, delivery.lane, delivery.recipients)?);
        }
    }
    if gone == "," {
        return Ok(());
    }
    let waiting = sqlx::query(
        "SELECT l.name AS name, d.seq AS seq, d.due AS due, d.attempts AS attempts, d.last_error AS last_error,
             d.recipients AS recipients, d.state AS state, d.rerouted AS rerouted, d.history AS history
         FROM deliveries d JOIN lanes l ON l.id = d.lane WHERE d.mail = $1 ORDER BY d.seq",
    )
    .bind(mail.0)
    .fetch_all(conn)
    .await
    .map_err(store_error)?;
    for row in &waiting {
        let lane = LaneKey(row.try_get("name").map_err(store_error)?);
        let recipients = from_json(row.try_get("recipients").map_err(store_error)?)?;
        let orders = orders::orders_of(row)?;
        keep(QueueRow {
            state: orders.state.into(),
            rerouted: orders.rerouted,
            attempts: attempts_of(row)?,
            next_try: Some(Timestamp(row.try_get("due").map_err(store_error)?)),
            last_error: row.try_get("last_error").map_err(store_error)?,
            history: if filter.mail.is_some() {
                orders::history_of(row)?
            } else {
                Vec::new()
            },
            ..fresh(seq_of(row)?.0, lane, recipients)?
        });
    }
    Ok(())
}
