//! Known recipients of domains.

use sqlx::Row as _;
use tasuki_core::store::{AuditEntry, StoreResult};
use tasuki_proto::names::{Domain, Mailbox};

use super::{Conn, audit};
use crate::error::store_error;

/// Domain and local part as they are compared; an address literal has no domain and is in no table.
fn key(mailbox: &Mailbox) -> Option<(String, String)> {
    Some((mailbox.domain()?.to_string(), mailbox.local().to_lowercase()))
}

/// Whether it is there.
pub(super) async fn has(conn: &mut Conn, mailbox: &Mailbox) -> StoreResult<bool> {
    let Some((domain, local)) = key(mailbox) else {
        return Ok(false);
    };
    let found: Option<i64> =
        sqlx::query_scalar("SELECT CAST(1 AS BIGINT) FROM recipients WHERE domain = $1 AND local = $2")
            .bind(domain)
            .bind(local)
            .fetch_optional(conn)
            .await
            .map_err(store_error)?;
    Ok(found.is_some())
}

/// Adds and removes some.
pub(super) async fn change(
    conn: &mut Conn,
    add: &[Mailbox],
    remove: &[Mailbox],
    entry: &AuditEntry,
) -> StoreResult<()> {
    for (domain, local) in remove.iter().filter_map(key) {
        sqlx::query("DELETE FROM recipients WHERE domain = $1 AND local = $2")
            .bind(domain)
            .bind(local)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    for (domain, local) in add.iter().filter_map(key) {
        sqlx::query("INSERT INTO recipients (domain, local) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(domain)
            .bind(local)
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    audit::append(conn, entry).await
}

/// Those of a domain in order, after this local part.
pub(super) async fn list(
    conn: &mut Conn,
    domain: &Domain,
    after: &str,
    limit: usize,
) -> StoreResult<Vec<String>> {
    let rows =
        sqlx::query("SELECT local FROM recipients WHERE domain = $1 AND local > $2 ORDER BY local LIMIT $3")
            .bind(domain.as_str())
            .bind(after)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(conn)
            .await
            .map_err(store_error)?;
    rows.iter()
        .map(|row| row.try_get("local").map_err(store_error))
        .collect()
}
