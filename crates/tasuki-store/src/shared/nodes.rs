//! Gateways: names, lives (epochs), heartbeats.

use std::time::Duration;

use tasuki_core::ids::{Epoch, NodeId};
use tasuki_core::store::{StoreError, StoreResult};

use super::{Conn, store_now};
use crate::error::store_error;

/// How long a node that has just joined counts as alive before its first heartbeat.
const FIRST_BREATH: Duration = Duration::from_secs(30);

/// Frees the lanes of a node.
pub(super) const FREE_LANES: &str = "UPDATE lanes SET owner = NULL, epoch = epoch + 1 WHERE owner = $1";

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

/// Begins a new life of the node of this name; what the earlier one held is free.
pub(super) async fn join(conn: &mut Conn, name: &str) -> StoreResult<(NodeId, Epoch)> {
    let alive_until = store_now(conn).await?.saturating_add(millis(FIRST_BREATH));
    let known: Option<(i64, i64)> = sqlx::query_as(
        "UPDATE nodes SET epoch = epoch + 1, alive_until = $2 WHERE name = $1 RETURNING id, epoch",
    )
    .bind(name)
    .bind(alive_until)
    .fetch_optional(&mut *conn)
    .await
    .map_err(store_error)?;
    let (id, epoch) = match known {
        Some(known) => known,
        // Numbers stay dense: a mail id has room for 1,023 nodes.
        None => sqlx::query_as(
            "INSERT INTO nodes (id, name, epoch, alive_until)
             SELECT coalesce(max(id), 0) + 1, $1, 1, $2 FROM nodes RETURNING id, epoch",
        )
        .bind(name)
        .bind(alive_until)
        .fetch_one(&mut *conn)
        .await
        .map_err(store_error)?,
    };
    free_lanes(conn, id).await?;
    let id = i32::try_from(id).map_err(|_| StoreError::Damaged(format!("node number {id}")))?;
    Ok((NodeId(id), Epoch(epoch)))
}

/// Frees lanes and the fan-out of a node whose life is over.
pub(super) async fn free_lanes(conn: &mut Conn, node: i64) -> StoreResult<()> {
    sqlx::query(FREE_LANES)
        .bind(node)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    sqlx::query("UPDATE fanout SET owner = NULL, epoch = epoch + 1 WHERE owner = $1")
        .bind(node)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Prolongs a life.
pub(super) async fn heartbeat(
    conn: &mut Conn,
    node: NodeId,
    epoch: Epoch,
    dead_after: Duration,
) -> StoreResult<()> {
    let alive_until = store_now(conn).await?.saturating_add(millis(dead_after));
    let done = sqlx::query("UPDATE nodes SET alive_until = $3 WHERE id = $1 AND epoch = $2")
        .bind(i64::from(node.0))
        .bind(epoch.0)
        .bind(alive_until)
        .execute(conn)
        .await
        .map_err(store_error)?;
    if done.rows_affected() == 0 {
        return Err(StoreError::StaleEpoch);
    }
    Ok(())
}

/// Whether this life of the node is its present one.
pub(super) async fn require_life(conn: &mut Conn, node: NodeId, epoch: Epoch) -> StoreResult<()> {
    let current: Option<i64> = sqlx::query_scalar("SELECT epoch FROM nodes WHERE id = $1")
        .bind(i64::from(node.0))
        .fetch_optional(conn)
        .await
        .map_err(store_error)?;
    if current == Some(epoch.0) {
        Ok(())
    } else {
        Err(StoreError::StaleEpoch)
    }
}
