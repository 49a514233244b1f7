//! Sealed secrets and plain facts.

use async_trait::async_trait;
use tasuki_core::store::{AuditEntry, SecretStore, StoreResult};

use super::{Db, audit};
use crate::error::store_error;

#[async_trait]
impl SecretStore for Db {
    async fn secret(&self, name: &str) -> StoreResult<Option<Vec<u8>>> {
        self.read(async |conn| {
            sqlx::query_scalar("SELECT sealed FROM secrets WHERE name = $1")
                .bind(name)
                .fetch_optional(conn)
                .await
                .map_err(store_error)
        })
        .await
    }

    async fn put_secret_if_absent(&self, name: &str, sealed: Vec<u8>) -> StoreResult<Vec<u8>> {
        let name = name.to_owned();
        self.change(move |conn| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO secrets (name, sealed) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
                )
                .bind(&name)
                .bind(sealed)
                .execute(&mut *conn)
                .await
                .map_err(store_error)?;
                sqlx::query_scalar("SELECT sealed FROM secrets WHERE name = $1")
                    .bind(&name)
                    .fetch_one(conn)
                    .await
                    .map_err(store_error)
            })
        })
        .await
    }

    async fn replace_secret(&self, name: &str, sealed: Vec<u8>, entry: AuditEntry) -> StoreResult<()> {
        let name = name.to_owned();
        self.change(move |conn| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO secrets (name, sealed) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed",
                )
                .bind(&name)
                .bind(sealed)
                .execute(&mut *conn)
                .await
                .map_err(store_error)?;
                audit::append(conn, &entry).await
            })
        })
        .await
    }

    async fn remove_secret(&self, name: &str, sealed: &[u8], entry: AuditEntry) -> StoreResult<bool> {
        let (name, sealed) = (name.to_owned(), sealed.to_vec());
        self.change(move |conn| {
            Box::pin(async move {
                let removed = sqlx::query("DELETE FROM secrets WHERE name = $1 AND sealed = $2")
                    .bind(&name)
                    .bind(sealed)
                    .execute(&mut *conn)
                    .await
                    .map_err(store_error)?;
                if removed.rows_affected() == 0 {
                    return Ok(false);
                }
                audit::append(conn, &entry).await?;
                Ok(true)
            })
        })
        .await
    }

    async fn fact(&self, name: &str) -> StoreResult<Option<String>> {
        self.read(async |conn| {
            sqlx::query_scalar("SELECT value FROM facts WHERE name = $1")
                .bind(name)
                .fetch_optional(conn)
                .await
                .map_err(store_error)
        })
        .await
    }

    async fn put_fact(&self, name: &str, value: &str) -> StoreResult<()> {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.change(move |conn| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO facts (name, value) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                )
                .bind(name)
                .bind(value)
                .execute(conn)
                .await
                .map_err(store_error)?;
                Ok(())
            })
        })
        .await
    }
}
