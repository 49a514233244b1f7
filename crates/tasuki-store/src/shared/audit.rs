//! The audit, and the version numbers that tell gateways to look again.

use async_trait::async_trait;
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::{AuditEntry, AuditStore, StoreResult};

use super::{Conn, Db, DbRow};
use crate::error::store_error;

/// Appends a line in the caller's transaction.
pub(super) async fn append(conn: &mut Conn, entry: &AuditEntry) -> StoreResult<()> {
    sqlx::query(
        "INSERT INTO audit (at, who, origin, action, object, detail) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(entry.at.0)
    .bind(&entry.who)
    .bind(&entry.from)
    .bind(&entry.action)
    .bind(&entry.object)
    .bind(&entry.detail)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(())
}

/// Says that something other gateways may have cached has changed.
pub(super) async fn bump(conn: &mut Conn, name: &'static str) -> StoreResult<()> {
    sqlx::query("UPDATE versions SET value = value + 1 WHERE name = $1")
        .bind(name)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// The number that [`bump`] raises.
pub(super) async fn version(db: &Db, name: &'static str) -> StoreResult<i64> {
    db.read(async |conn| {
        sqlx::query_scalar("SELECT value FROM versions WHERE name = $1")
            .bind(name)
            .fetch_one(conn)
            .await
            .map_err(store_error)
    })
    .await
}

fn entry_of(row: &DbRow) -> Result<AuditEntry, sqlx::Error> {
    Ok(AuditEntry {
        at: Timestamp(row.try_get("at")?),
        who: row.try_get("who")?,
        from: row.try_get("origin")?,
        action: row.try_get("action")?,
        object: row.try_get("object")?,
        detail: row.try_get("detail")?,
    })
}

#[async_trait]
impl AuditStore for Db {
    async fn audit(&self, before: Option<Timestamp>, limit: usize) -> StoreResult<Vec<AuditEntry>> {
        let rows = self
            .read(async |conn| {
                sqlx::query(
                    "SELECT at, who, origin, action, object, detail FROM audit WHERE at < $1
             ORDER BY at DESC, id DESC LIMIT $2",
                )
                .bind(before.map_or(i64::MAX, |t| t.0))
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(conn)
                .await
                .map_err(store_error)
            })
            .await?;
        rows.iter()
            .map(|row| entry_of(row).map_err(store_error))
            .collect()
    }

    async fn note(&self, entry: AuditEntry) -> StoreResult<()> {
        self.change(move |conn| Box::pin(async move { append(conn, &entry).await }))
            .await
    }
}
