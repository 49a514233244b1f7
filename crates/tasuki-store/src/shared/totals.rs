//! How much waits, as figures that change with the rows: counting rows would read the whole queue.

use sqlx::Row as _;
use tasuki_core::store::StoreResult;

use super::Conn;
use crate::error::store_error;

/// Changes a node's part of the figures, in the transaction that changes the rows.
pub(super) async fn add(conn: &mut Conn, node: i64, mails: i64, deferred: i64) -> StoreResult<()> {
    if mails == 0 && deferred == 0 {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO queue_totals (node, mails, deferred) VALUES ($1, $2, $3)
         ON CONFLICT (node) DO UPDATE SET mails = queue_totals.mails + excluded.mails,
             deferred = queue_totals.deferred + excluded.deferred",
    )
    .bind(node)
    .bind(mails)
    .bind(deferred)
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
