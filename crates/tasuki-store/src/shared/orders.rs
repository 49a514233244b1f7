//! What operators order: for deferred deliveries, and for lanes.

use std::collections::BTreeSet;

use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::MailId;
use tasuki_core::store::mail::{
    Attempt, Changed, DeliveryState, LaneKey, Order, Orders, Paused, QueueFilter, QueueMatch, Recipient,
};
use tasuki_core::store::{AuditEntry, StoreError, StoreResult};

use super::{Conn, DbRow, audit, queue, settle};
use crate::error::store_error;
use crate::head::{self, Head};
use crate::words::{from_json, from_word, json, no_nul, word};

/// Deliveries read at once.
const PAGE: i64 = 256;
/// An attempt's line is kept while the lines before it have fewer bytes: days of retries, and then no more.
pub(super) const HISTORY_MAX_BYTES: i64 = 16 << 10;

/// The orders in a row of `deliveries`.
pub(super) fn orders_of(row: &DbRow) -> StoreResult<Orders> {
    Ok(Orders {
        state: from_word(&row.try_get::<String, _>("state").map_err(store_error)?)?,
        rerouted: row.try_get("rerouted").map_err(store_error)?,
    })
}

/// An attempt as a line of the history.
pub(super) fn history_line(attempt: &Attempt) -> StoreResult<String> {
    Ok(json(attempt)? + "\n")
}

/// The attempts in a row of `deliveries`.
pub(super) fn history_of(row: &DbRow) -> StoreResult<Vec<Attempt>> {
    let text: String = row.try_get("history").map_err(store_error)?;
    text.lines().map(|line| from_json(line.as_bytes())).collect()
}

struct Row {
    mail: i64,
    seq: i64,
    lane: i64,
    orders: Orders,
    due: i64,
    expires_at: i64,
    is_chosen: bool,
}

fn row_of(row: &DbRow, filter: &QueueFilter, order: &Order) -> StoreResult<Row> {
    let number = |column| row.try_get::<i64, _>(column).map_err(store_error);
    let Head { envelope, .. } = head::decode(row.try_get("head").map_err(store_error)?)?;
    let recipients: Vec<Recipient> = from_json(row.try_get("recipients").map_err(store_error)?)?;
    let lane = LaneKey(row.try_get("name").map_err(store_error)?);
    let (mail, orders) = (number("mail")?, orders_of(row)?);
    let is_chosen = order.applies_to(orders.state)
        && filter.matches_mail(MailId(mail), &envelope, Timestamp(number("accepted_at")?))
        && filter.matches_delivery(&lane, orders.state.into(), recipients.iter().map(|r| &r.mailbox));
    Ok(Row {
        mail,
        seq: number("seq")?,
        lane: number("lane")?,
        orders,
        due: number("due")?,
        expires_at: number("expires_at")?,
        is_chosen,
    })
}

/// Gives an order; see `MailStore::order`.
pub(super) async fn order(
    conn: &mut Conn,
    filter: &QueueFilter,
    order: &Order,
    now: Timestamp,
    limit: usize,
    mut entry: AuditEntry,
) -> StoreResult<Changed> {
    let mut place = (filter.after.map_or(i64::MIN, |id| id.0), i64::MAX);
    let (mut changed, mut looked_at) = (Changed::default(), 0);
    let mut touched = BTreeSet::new();
    'all: loop {
        let rows = sqlx::query(
            "SELECT d.mail AS mail, d.seq AS seq, d.lane AS lane, d.due AS due, d.state AS state,
                 d.rerouted AS rerouted, d.recipients AS recipients, l.name AS name,
                 m.accepted_at AS accepted_at, m.expires_at AS expires_at, m.head AS head
             FROM deliveries d JOIN mails m ON m.id = d.mail JOIN lanes l ON l.id = d.lane
             WHERE (d.mail, d.seq) > ($1, $2) AND ($3 = 0 OR d.mail = $4) ORDER BY d.mail, d.seq LIMIT $5",
        )
        .bind(place.0)
        .bind(place.1)
        .bind(i64::from(filter.mail.is_some()))
        .bind(filter.mail.map_or(0, |id| id.0))
        .bind(PAGE)
        .fetch_all(&mut *conn)
        .await
        .map_err(store_error)?;
        for row in &rows {
            let row = row_of(row, filter, order)?;
            if looked_at >= limit && row.mail != place.0 {
                changed.after = Some(MailId(place.0));
                break 'all;
            }
            looked_at += 1;
            place = (row.mail, row.seq);
            if row.is_chosen && obey(conn, &row, order, (now, &entry.who), &mut touched).await? {
                changed.deliveries += 1;
            }
        }
        if i64::try_from(rows.len()).unwrap_or(0) < PAGE {
            break;
        }
    }
    settle::refresh_due(conn, touched).await?;
    if changed.deliveries > 0 {
        let plural = if changed.deliveries == 1 { "y" } else { "ies" };
        entry.detail = format!("{} deliver{plural}: {}", changed.deliveries, entry.detail);
        audit::append(conn, &entry).await?;
    }
    Ok(changed)
}

async fn obey(
    conn: &mut Conn,
    row: &Row,
    order: &Order,
    (now, who): (Timestamp, &str),
    touched: &mut BTreeSet<i64>,
) -> StoreResult<bool> {
    let (mut lane, mut orders, mut due) = (row.lane, row.orders, now.0);
    match order {
        // It is looked at again when it expires.
        Order::Hold => (orders.state, due) = (DeliveryState::Held, row.expires_at),
        Order::Release => orders.state = DeliveryState::Waiting,
        Order::Retry => {}
        Order::Reroute(key) => {
            orders.rerouted = true;
            if orders.state == DeliveryState::Held {
                due = row.due;
            }
            lane = settle::lane_due(conn, key, Timestamp(due)).await?;
        }
        Order::Bounce => orders.state = DeliveryState::Bounce,
        Order::Delete => orders.state = DeliveryState::Delete,
    }
    let done = sqlx::query(
        "UPDATE deliveries SET state = $4, rerouted = $5, due = $6, lane = $7, ordered_by = $8
         WHERE mail = $1 AND seq = $2 AND lane = $3",
    )
    .bind(row.mail)
    .bind(row.seq)
    .bind(row.lane)
    .bind(word(&orders.state))
    .bind(orders.rerouted)
    .bind(due)
    .bind(lane)
    .bind(no_nul(who))
    .execute(&mut *conn)
    .await
    .map_err(store_error)?;
    touched.extend([row.lane, lane]);
    Ok(done.rows_affected() > 0)
}

/// How much matches; see `MailStore::queue_match`.
pub(super) async fn count(conn: &mut Conn, filter: &QueueFilter) -> StoreResult<QueueMatch> {
    const STEP: usize = 1024;
    let mut filter = filter.clone();
    let mut all = QueueMatch::default();
    loop {
        let rows = queue::list(conn, &filter, STEP).await?;
        let mut last = None;
        for row in &rows {
            if last.replace(row.mail) != Some(row.mail) {
                all.mails += 1;
                all.size_bytes += row.size_bytes;
            }
            all.deliveries += 1;
            all.fresh += u64::from(row.state == tasuki_core::store::mail::QueueState::Fresh);
        }
        if rows.len() < STEP {
            return Ok(all);
        }
        filter.after = last;
    }
}

/// Nothing is sent to a lane from now on.
pub(super) async fn pause(conn: &mut Conn, paused: &Paused) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO paused_lanes (name, since, made_by, reason) VALUES ($1, $2, $3, $4)
         ON CONFLICT (name) DO UPDATE SET since = excluded.since, made_by = excluded.made_by,
             reason = excluded.reason",
    )
    .bind(&paused.lane.0)
    .bind(paused.since.0)
    .bind(&paused.by)
    .bind(no_nul(&paused.reason))
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(())
}

/// Ends a pause.
pub(super) async fn resume(conn: &mut Conn, lane: &LaneKey) -> StoreResult<()> {
    let done = sqlx::query("DELETE FROM paused_lanes WHERE name = $1")
        .bind(&lane.0)
        .execute(conn)
        .await
        .map_err(store_error)?;
    if done.rows_affected() == 0 {
        return Err(StoreError::NotFound(format!("a pause of {}", lane.0)));
    }
    Ok(())
}

/// All pauses.
pub(super) async fn paused(conn: &mut Conn) -> StoreResult<Vec<Paused>> {
    let rows: Vec<(String, i64, String, String)> =
        sqlx::query_as("SELECT name, since, made_by, reason FROM paused_lanes ORDER BY name")
            .fetch_all(conn)
            .await
            .map_err(store_error)?;
    let paused = rows.into_iter().map(|(name, since, by, reason)| Paused {
        lane: LaneKey(name),
        since: Timestamp(since),
        by,
        reason,
    });
    Ok(paused.collect())
}
