//! How much waits, as figures that change with the rows: counting rows would read the whole queue.

use sqlx::Row as _;
use tasuki_core::store::StoreResult;

use super::Conn;
use crate::error::store_error;

/// The part of the figures that is of no node.
pub(super) const NOBODYS: i64 = 0;

/// By how much the figures change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) mails: i64,
    pub(super) deferred: i64,
    pub(super) trail_bytes: i64,
}

/// Changes a node's part of the figures, in the transaction that changes the rows.
pub(super) async fn add(conn: &mut Conn, node: i64, change: Change) -> StoreResult<()> {
    if change == Change::default() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO queue_totals (node, mails, deferred, trail_bytes) VALUES ($1, $2, $3, $4)
         ON CONFLICT (node) DO UPDATE SET mails = queue_totals.mails + excluded.mails,
             deferred = queue_totals.deferred + excluded.deferred,
             trail_bytes = queue_totals.trail_bytes + excluded.trail_bytes",
    )
    .bind(node)
    .bind(change.mails)
    .bind(change.deferred)
    .bind(change.trail_bytes)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(())
}

/// Mails, and deferred deliveries, of all nodes together.
pub(super) async fn sum(conn: &mut Conn) -> StoreResult<(i64, i64)> {
    let row = sqlx::query(
        "SELECT CAST(coalesce(sum(mails), 0) AS BIGINT) AS mails,
             CAST(coalesce(sum(deferred), 0) AS BIGINT) AS deferred FROM queue_totals",
    )
    .fetch_one(conn)
    .await
    .map_err(store_error)?;
    Ok((
        row.try_get("mails").map_err(store_error)?,
        row.try_get("deferred").map_err(store_error)?,
    ))
}

/// Bytes of the trail.
pub(super) async fn trail_bytes(conn: &mut Conn) -> StoreResult<i64> {
    sqlx::query_scalar("SELECT CAST(coalesce(sum(trail_bytes), 0) AS BIGINT) FROM queue_totals")
        .fetch_one(conn)
        .await
        .map_err(store_error)
}
