//! TLS of outgoing mail: policies that hold.

use async_trait::async_trait;
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::tls::{StsPolicy, TlsStore};
use tasuki_core::store::{StoreError, StoreResult};
use tasuki_proto::names::Domain;

use super::Db;
use crate::error::store_error;

fn damaged(error: &serde_json::Error) -> StoreError {
    StoreError::Damaged(format!("an MTA-STS policy: {error}"))
}

#[async_trait]
impl TlsStore for Db {
    async fn sts_policy(&self, domain: &Domain) -> StoreResult<Option<StsPolicy>> {
        self.read(async |conn| {
            let row = sqlx::query("SELECT id, policy, expires FROM sts_policies WHERE domain = $1")
                .bind(domain.as_str())
                .fetch_optional(conn)
                .await
                .map_err(store_error)?;
            let Some(row) = row else { return Ok(None) };
            let policy: String = row.try_get("policy").map_err(store_error)?;
            Ok(Some(StsPolicy {
                id: row.try_get("id").map_err(store_error)?,
                policy: serde_json::from_str(&policy).map_err(|error| damaged(&error))?,
                expires: Timestamp(row.try_get("expires").map_err(store_error)?),
            }))
        })
        .await
    }

    async fn keep_sts_policy(&self, domain: &Domain, policy: StsPolicy, now: Timestamp) -> StoreResult<()> {
        let domain = domain.as_str().to_owned();
        let text = serde_json::to_string(&policy.policy).map_err(|error| damaged(&error))?;
        self.change(move |conn| {
            Box::pin(async move {
                sqlx::query("DELETE FROM sts_policies WHERE expires <= $1")
                    .bind(now.0)
                    .execute(&mut *conn)
                    .await
                    .map_err(store_error)?;
                sqlx::query(
                    "INSERT INTO sts_policies (domain, id, policy, expires) VALUES ($1, $2, $3, $4)
                     ON CONFLICT (domain) DO UPDATE
                     SET id = excluded.id, policy = excluded.policy, expires = excluded.expires",
                )
                .bind(domain)
                .bind(policy.id)
                .bind(text)
                .bind(policy.expires.0)
                .execute(conn)
                .await
                .map_err(store_error)?;
                Ok(())
            })
        })
        .await
    }
}
