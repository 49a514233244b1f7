//! Outcomes of deliveries, one at a time: for mails with several lanes, for deferrals and deferred deliveries.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{DeliverySeq, Epoch, LaneId, MailId, NodeId};
use tasuki_core::store::StoreResult;
use tasuki_core::store::mail::{Attempt, Hold, LaneKey, Outcome, Settled, Settlement};

use super::trail::Kept;
use super::{Conn, FOR_UPDATE, FREED_COLUMNS, Freed, freed_of, orders, store_now};
use crate::error::store_error;
use crate::head::gone_mark;
use crate::words::{json, no_nul};

/// What a transaction's outcomes did beside their rows.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Change of the number of mails.
    pub(super) mails: i64,
    /// Change of the number of deferred deliveries.
    pub(super) deferred: i64,
    /// Bodies that nobody needs when the transaction has committed.
    pub(super) freed: Vec<Freed>,
    /// For the trail.
    pub(super) stories: Vec<Kept>,
    /// Lanes whose first due time may have changed.
    touched: BTreeSet<i64>,
}

impl Applied {
    /// An outcome was stored: its story is to be told.
    pub(super) fn tell(&mut self, outcome: &Outcome, past: Past) {
        if let Some(story) = &outcome.story {
            self.stories.push(Kept {
                story: Arc::clone(story),
                history: past.history,
                ordered_by: past.ordered_by,
            });
        }
    }
}

/// What the queue knew of a delivery that is gone.
#[derive(Default)]
pub(super) struct Past {
    history: Vec<Attempt>,
    ordered_by: String,
}

/// Brings a lane's first due time up to date.
pub(super) const FIRST_DUE: &str =
    "UPDATE lanes SET next_due = (SELECT min(due) FROM deliveries WHERE lane = $1) WHERE id = $1";
static DELETE_MAIL: LazyLock<String> =
    LazyLock::new(|| format!("DELETE FROM mails WHERE id = $1 RETURNING {FREED_COLUMNS}"));
static REQUIRE_LANE: LazyLock<String> =
    LazyLock::new(|| format!("SELECT id FROM lanes WHERE id = $1 AND epoch = $2 AND owner = $3{FOR_UPDATE}"));

/// Applies one outcome. Call [`finish`] once after all of a transaction.
pub(super) async fn settle_one(
    conn: &mut Conn,
    node: NodeId,
    outcome: &Outcome,
    applied: &mut Applied,
) -> StoreResult<Settled> {
    let mut past = Past::default();
    let settled = settle_row(conn, node, outcome, applied, &mut past).await?;
    if settled == Settled::Done {
        applied.tell(outcome, past);
    }
    Ok(settled)
}

async fn settle_row(
    conn: &mut Conn,
    node: NodeId,
    outcome: &Outcome,
    applied: &mut Applied,
    past: &mut Past,
) -> StoreResult<Settled> {
    match (&outcome.hold, &outcome.settlement) {
        (Hold::Fresh(epoch), Settlement::Finished) => {
            finish_fresh(conn, node, *epoch, (outcome.mail, outcome.delivery), applied).await
        }
        (Hold::Fresh(epoch), Settlement::Deferred { .. }) => {
            defer_fresh(conn, node, *epoch, outcome, applied).await
        }
        (Hold::Lane(lane, epoch), settlement) => {
            if !holds_lane(conn, node, *lane, *epoch).await? {
                return Ok(Settled::LaneLost);
            }
            applied.touched.insert(lane.0);
            match settlement {
                Settlement::Finished => {
                    let delivery = (outcome.mail, outcome.delivery);
                    finish_deferred(conn, *lane, delivery, applied, past).await
                }
                Settlement::Deferred { .. } => defer_again(conn, *lane, outcome, applied, past).await,
            }
        }
    }
}

/// Brings the first due times of the touched lanes up to date.
pub(super) async fn finish(conn: &mut Conn, applied: &mut Applied) -> StoreResult<()> {
    refresh_due(conn, std::mem::take(&mut applied.touched)).await
}

/// Brings the first due times of these lanes up to date.
pub(super) async fn refresh_due(conn: &mut Conn, lanes: BTreeSet<i64>) -> StoreResult<()> {
    for lane in lanes {
        sqlx::query(FIRST_DUE)
            .bind(lane)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    Ok(())
}

async fn holds_lane(conn: &mut Conn, node: NodeId, lane: LaneId, epoch: Epoch) -> StoreResult<bool> {
    let held: Option<i64> = sqlx::query_scalar(REQUIRE_LANE.as_str())
        .bind(lane.0)
        .bind(epoch.0)
        .bind(i64::from(node.0))
        .fetch_optional(conn)
        .await
        .map_err(store_error)?;
    Ok(held.is_some())
}

async fn finish_fresh(
    conn: &mut Conn,
    node: NodeId,
    epoch: Epoch,
    (mail, seq): (MailId, DeliverySeq),
    applied: &mut Applied,
) -> StoreResult<Settled> {
    let open: Option<i64> = sqlx::query_scalar(
        "UPDATE mails SET open = open - 1, fresh = fresh - 1, gone = gone || $4
         WHERE id = $1 AND node = $2 AND epoch = $3 AND gone NOT LIKE $5 RETURNING open",
    )
    .bind(mail.0)
    .bind(i64::from(node.0))
    .bind(epoch.0)
    .bind(gone_mark(seq))
    .bind(format!("%,{seq},%"))
    .fetch_optional(&mut *conn)
    .await
    .map_err(store_error)?;
    let Some(open) = open else {
        return Ok(Settled::LaneLost);
    };
    if open == 0 {
        delete_mail(conn, mail, applied).await?;
    }
    Ok(Settled::Done)
}

async fn delete_mail(conn: &mut Conn, mail: MailId, applied: &mut Applied) -> StoreResult<()> {
    let row = sqlx::query(DELETE_MAIL.as_str())
        .bind(mail.0)
        .fetch_one(conn)
        .await
        .map_err(store_error)?;
    applied.mails -= 1;
    applied.freed.extend(freed_of(&row)?);
    Ok(())
}

/// The lane of this name, made if new, due at `due` at the latest.
pub(super) async fn lane_due(conn: &mut Conn, lane: &LaneKey, due: Timestamp) -> StoreResult<i64> {
    sqlx::query_scalar(
        "INSERT INTO lanes (name, next_due) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET next_due =
             CASE WHEN lanes.next_due < excluded.next_due THEN lanes.next_due ELSE excluded.next_due END
         RETURNING id",
    )
    .bind(&lane.0)
    .bind(due.0)
    .fetch_one(conn)
    .await
    .map_err(store_error)
}

async fn defer_fresh(
    conn: &mut Conn,
    node: NodeId,
    epoch: Epoch,
    outcome: &Outcome,
    applied: &mut Applied,
) -> StoreResult<Settled> {
    let Settlement::Deferred {
        lane,
        recipients,
        attempts,
        due,
        last_error,
        delay_reported,
    } = &outcome.settlement
    else {
        return finish_fresh(conn, node, epoch, (outcome.mail, outcome.delivery), applied).await;
    };
    let seq = outcome.delivery;
    let done = sqlx::query(
        "UPDATE mails SET fresh = fresh - 1, gone = gone || $4
         WHERE id = $1 AND node = $2 AND epoch = $3 AND gone NOT LIKE $5",
    )
    .bind(outcome.mail.0)
    .bind(i64::from(node.0))
    .bind(epoch.0)
    .bind(gone_mark(seq))
    .bind(format!("%,{seq},%"))
    .execute(&mut *conn)
    .await
    .map_err(store_error)?;
    if done.rows_affected() == 0 {
        return Ok(Settled::LaneLost);
    }
    let line = if *attempts > 0 {
        history_line(conn, lane, *attempts, last_error).await?
    } else {
        String::new()
    };
    let lane = lane_due(conn, lane, *due).await?;
    sqlx::query(
        "INSERT INTO deliveries (mail, seq, lane, due, attempts, delay_reported, last_error, recipients, history)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(outcome.mail.0)
    .bind(i64::from(seq.0))
    .bind(lane)
    .bind(due.0)
    .bind(i64::from(*attempts))
    .bind(*delay_reported)
    .bind(no_nul(last_error))
    .bind(json(recipients)?.into_bytes())
    .bind(line)
    .execute(conn)
    .await
    .map_err(store_error)?;
    applied.deferred += 1;
    Ok(Settled::Done)
}

async fn finish_deferred(
    conn: &mut Conn,
    lane: LaneId,
    (mail, seq): (MailId, DeliverySeq),
    applied: &mut Applied,
    past: &mut Past,
) -> StoreResult<Settled> {
    let row = sqlx::query(
        "DELETE FROM deliveries WHERE mail = $1 AND seq = $2 AND lane = $3 RETURNING history, ordered_by",
    )
    .bind(mail.0)
    .bind(i64::from(seq.0))
    .bind(lane.0)
    .fetch_optional(&mut *conn)
    .await
    .map_err(store_error)?;
    let Some(row) = row else {
        return Ok(Settled::LaneLost);
    };
    past.history = orders::history_of(&row)?;
    past.ordered_by = row.try_get("ordered_by").map_err(store_error)?;
    applied.deferred -= 1;
    let open: Option<i64> =
        sqlx::query_scalar("UPDATE mails SET open = open - 1 WHERE id = $1 RETURNING open")
            .bind(mail.0)
            .fetch_optional(&mut *conn)
            .await
            .map_err(store_error)?;
    if open == Some(0) {
        delete_mail(conn, mail, applied).await?;
    }
    Ok(Settled::Done)
}

async fn defer_again(
    conn: &mut Conn,
    held: LaneId,
    outcome: &Outcome,
    applied: &mut Applied,
    past: &mut Past,
) -> StoreResult<Settled> {
    let Settlement::Deferred {
        lane,
        recipients,
        attempts,
        due,
        last_error,
        delay_reported,
    } = &outcome.settlement
    else {
        return finish_deferred(conn, held, (outcome.mail, outcome.delivery), applied, past).await;
    };
    let line = history_line(conn, lane, *attempts, last_error).await?;
    let lane = lane_due(conn, lane, *due).await?;
    // An order that was given during the attempt stands: it has set when the delivery is looked at again.
    let done = sqlx::query(
        "UPDATE deliveries SET lane = $4, due = CASE WHEN state = 'waiting' THEN $5 ELSE due END, attempts = $6,
             delay_reported = $7, last_error = $8, recipients = $9,
             history = CASE WHEN attempts < $6 AND length(history) < $11 THEN history || $10 ELSE history END
         WHERE mail = $1 AND seq = $2 AND lane = $3",
    )
    .bind(outcome.mail.0)
    .bind(i64::from(outcome.delivery.0))
    .bind(held.0)
    .bind(lane)
    .bind(due.0)
    .bind(i64::from(*attempts))
    .bind(*delay_reported)
    .bind(no_nul(last_error))
    .bind(json(recipients)?.into_bytes())
    .bind(line)
    .bind(orders::HISTORY_MAX_BYTES)
    .execute(conn)
    .await
    .map_err(store_error)?;
    applied.touched.insert(lane);
    if done.rows_affected() == 0 {
        return Ok(Settled::LaneLost);
    }
    Ok(Settled::Done)
}

/// The attempt that just failed, for the delivery's history.
async fn history_line(conn: &mut Conn, lane: &LaneKey, attempt: u32, words: &str) -> StoreResult<String> {
    orders::history_line(&Attempt {
        at: Timestamp(store_now(conn).await?),
        attempt,
        lane: lane.clone(),
        words: no_nul(words).into_owned(),
    })
}
