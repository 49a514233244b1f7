//! What principals sent on a day, for their caps.

use tasuki_core::ids::PrincipalId;
use tasuki_core::store::StoreResult;

use super::Conn;
use crate::error::store_error;

/// Adds to the day's sums, forgets earlier days, and returns the sums as they are then.
pub(super) async fn add(conn: &mut Conn, day: i64, sent: &[(PrincipalId, u64)]) -> StoreResult<Vec<u64>> {
    sqlx::query("DELETE FROM sent WHERE day < $1")
        .bind(day - 1)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    let mut sums = Vec::with_capacity(sent.len());
    for (principal, recipients) in sent {
        let sum: i64 = sqlx::query_scalar(
            "INSERT INTO sent (principal, day, recipients) VALUES ($1, $2, $3)
             ON CONFLICT (principal, day) DO UPDATE SET recipients = sent.recipients + excluded.recipients
             RETURNING recipients",
        )
        .bind(principal.0)
        .bind(day)
        .bind(i64::try_from(*recipients).unwrap_or(i64::MAX))
        .fetch_one(&mut *conn)
        .await
        .map_err(store_error)?;
        sums.push(u64::try_from(sum).unwrap_or(0));
    }
    Ok(sums)
}
