//! How far the fediverse's hosts are, and which gateway sends to them.

use std::time::Duration;

use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{Epoch, HostNo, LogSeq, NodeId};
use tasuki_core::store::fedi::{HostProgress, Progress};
use tasuki_core::store::{StoreError, StoreResult};

use super::{Conn, DbRow, FOR_UPDATE, store_now};
use crate::error::store_error;
use crate::words::{from_json, json, no_nul};

fn behind_of(row: &DbRow) -> StoreResult<HostProgress> {
    let number = |column| row.try_get::<i64, _>(column).map_err(store_error);
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    let small = |value: i64| {
        u32::try_from(value).map_err(|_| StoreError::Damaged(format!("{value} in a host's progress")))
    };
    let next_try: Option<i64> = row.try_get("next_try").map_err(store_error)?;
    Ok(HostProgress {
        host: HostNo(small(number("host_no")?)?),
        up_to: LogSeq(number("up_to")?),
        also: from_json(text("also")?.as_bytes())?,
        parked: from_json(text("parked")?.as_bytes())?,
        failures: small(number("failures")?)?,
        next_try: next_try.map(Timestamp),
        last_error: row.try_get("last_error").map_err(store_error)?,
    })
}

/// All hosts that are behind.
pub(super) async fn behind(conn: &mut Conn) -> StoreResult<Vec<HostProgress>> {
    sqlx::query(
        "SELECT host_no, up_to, also, parked, failures, next_try, last_error FROM behind ORDER BY host_no",
    )
    .fetch_all(conn)
    .await
    .map_err(store_error)?
    .iter()
    .map(behind_of)
    .collect()
}

/// Up to where every host without a row of its own has everything.
pub(super) async fn all_up_to(conn: &mut Conn) -> StoreResult<Option<LogSeq>> {
    let seq: Option<i64> = sqlx::query_scalar("SELECT all_up_to FROM fanout WHERE id = 1")
        .fetch_one(conn)
        .await
        .map_err(store_error)?;
    Ok(seq.map(LogSeq))
}

pub(super) async fn load(conn: &mut Conn) -> StoreResult<Progress> {
    let newest: Option<i64> = sqlx::query_scalar("SELECT max(seq) FROM log")
        .fetch_one(&mut *conn)
        .await
        .map_err(store_error)?;
    let all_up_to = all_up_to(conn).await?;
    Ok(Progress {
        all_up_to,
        behind: behind(conn).await?,
        // A log that was cut to nothing ends where everybody is.
        newest: newest.map(LogSeq).max(all_up_to),
    })
}

/// Moves the common mark, if this node owns the fan-out.
pub(super) async fn require_owner(
    conn: &mut Conn,
    node: NodeId,
    epoch: Epoch,
    all_up_to: Option<LogSeq>,
) -> StoreResult<()> {
    let done = sqlx::query(
        "UPDATE fanout SET all_up_to = coalesce($3, all_up_to) WHERE id = 1 AND owner = $1 AND epoch = $2",
    )
    .bind(i64::from(node.0))
    .bind(epoch.0)
    .bind(all_up_to.map(|seq| seq.0))
    .execute(conn)
    .await
    .map_err(store_error)?;
    if done.rows_affected() == 0 {
        return Err(StoreError::StaleEpoch);
    }
    Ok(())
}

pub(super) async fn store(conn: &mut Conn, behind: &[HostProgress], caught_up: &[HostNo]) -> StoreResult<()> {
    for host in behind {
        sqlx::query(
            "INSERT INTO behind (host_no, up_to, also, parked, failures, next_try, last_error)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (host_no) DO UPDATE SET up_to = excluded.up_to, also = excluded.also,
                 parked = excluded.parked, failures = excluded.failures, next_try = excluded.next_try,
                 last_error = excluded.last_error",
        )
        .bind(i64::from(host.host.0))
        .bind(host.up_to.0)
        .bind(json(&host.also)?)
        .bind(json(&host.parked)?)
        .bind(i64::from(host.failures))
        .bind(host.next_try.map(|t| t.0))
        .bind(host.last_error.as_deref().map(no_nul))
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    }
    for host in caught_up {
        sqlx::query("DELETE FROM behind WHERE host_no = $1")
            .bind(i64::from(host.0))
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    Ok(())
}

/// Owns the fan-out, or goes on owning it with the same epoch.
pub(super) async fn claim(conn: &mut Conn, node: NodeId, hold: Duration) -> StoreResult<Option<Epoch>> {
    let now = store_now(conn).await?;
    let until = Timestamp(now).plus(hold).0;
    let (owner, epoch, hold_until): (Option<i64>, i64, i64) = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT owner, epoch, hold_until FROM fanout WHERE id = 1{FOR_UPDATE}"
    )))
    .fetch_one(&mut *conn)
    .await
    .map_err(store_error)?;
    let me = i64::from(node.0);
    let epoch = match owner {
        Some(owner) if owner == me => epoch,
        Some(_) if hold_until > now => return Ok(None),
        _ => epoch + 1,
    };
    sqlx::query("UPDATE fanout SET owner = $1, epoch = $2, hold_until = $3 WHERE id = 1")
        .bind(me)
        .bind(epoch)
        .bind(until)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(Some(Epoch(epoch)))
}

pub(super) async fn release(conn: &mut Conn, node: NodeId, epoch: Epoch) -> StoreResult<()> {
    sqlx::query(
        "UPDATE fanout SET owner = NULL, epoch = epoch + 1 WHERE id = 1 AND owner = $1 AND epoch = $2",
    )
    .bind(i64::from(node.0))
    .bind(epoch.0)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(())
}
