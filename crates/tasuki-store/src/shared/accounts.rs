//! Principals, credentials, grants, rules.

use async_trait::async_trait;
use sqlx::Row as _;
use tasuki_core::accounts::{Grant, PrincipalKind, Scope};
use tasuki_core::acl::RuleSpec;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{CredentialId, PrincipalId, RuleId};
use tasuki_core::store::accounts::{
    Credential, CredentialKind, Locked, NewCredential, NewPrincipal, Principal, StoredRule,
};
use tasuki_core::store::{AccountStore, AuditEntry, StoreError, StoreResult};

use super::{Conn, Db, DbRow, audit, suppress, tunnel};
use crate::error::{is_duplicate, store_error};
use crate::words::{from_json, from_word, json, word};

const VERSION: &str = "accounts";

fn principal_of(row: &DbRow) -> StoreResult<Principal> {
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    Ok(Principal {
        id: PrincipalId(row.try_get("id").map_err(store_error)?),
        name: text("name")?,
        kind: from_word(&text("kind")?)?,
        role: from_word(&text("role")?)?,
        grants: from_json::<Vec<Grant>>(text("grants")?.as_bytes())?,
        disabled: row.try_get("disabled").map_err(store_error)?,
        created_at: Timestamp(row.try_get("created_at").map_err(store_error)?),
    })
}

fn credential_of(row: &DbRow) -> StoreResult<Credential> {
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    Ok(Credential {
        id: CredentialId(row.try_get("id").map_err(store_error)?),
        principal: PrincipalId(row.try_get("principal").map_err(store_error)?),
        kind: from_word(&text("kind")?)?,
        hash: text("hash")?,
        label: text("label")?,
        scope: from_word(&text("scope")?)?,
        created_at: Timestamp(row.try_get("created_at").map_err(store_error)?),
        expires_at: row
            .try_get::<Option<i64>, _>("expires_at")
            .map_err(store_error)?
            .map(Timestamp),
    })
}

async fn principal_by_id(conn: &mut Conn, id: PrincipalId) -> StoreResult<Option<Principal>> {
    sqlx::query("SELECT id, name, kind, role, grants, disabled, created_at FROM principals WHERE id = $1")
        .bind(id.0)
        .fetch_optional(conn)
        .await
        .map_err(store_error)?
        .as_ref()
        .map(principal_of)
        .transpose()
}

fn no_principal(id: PrincipalId) -> StoreError {
    StoreError::NotFound(format!("principal {id}"))
}

async fn insert_credential(conn: &mut Conn, of: PrincipalId, new: &NewCredential) -> StoreResult<Credential> {
    if new.kind == CredentialKind::Password {
        sqlx::query("DELETE FROM credentials WHERE principal = $1 AND kind = $2")
            .bind(of.0)
            .bind(word(&new.kind))
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    let row = sqlx::query(
        "INSERT INTO credentials (principal, kind, hash, label, scope, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         RETURNING id, principal, kind, hash, label, scope, created_at, expires_at",
    )
    .bind(of.0)
    .bind(word(&new.kind))
    .bind(&new.hash)
    .bind(&new.label)
    .bind(word(&new.scope))
    .bind(new.created_at.0)
    .bind(new.expires_at.map(|t| t.0))
    .fetch_one(conn)
    .await
    .map_err(|error| {
        if is_duplicate(&error) {
            StoreError::Conflict("this certificate's key is listed already".into())
        } else {
            store_error(error)
        }
    })?;
    credential_of(&row)
}

async fn create(conn: &mut Conn, new: &NewPrincipal) -> StoreResult<Principal> {
    let row = sqlx::query(
        "INSERT INTO principals (name, kind, role, grants, disabled, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         RETURNING id, name, kind, role, grants, disabled, created_at",
    )
    .bind(&new.name)
    .bind(word(&new.kind))
    .bind(word(&new.role))
    .bind(json(&new.grants)?)
    .bind(false)
    .bind(new.created_at.0)
    .fetch_one(&mut *conn)
    .await
    .map_err(|error| {
        if is_duplicate(&error) {
            StoreError::Conflict(format!("the name {} is taken", new.name))
        } else {
            store_error(error)
        }
    })?;
    let principal = principal_of(&row)?;
    for credential in &new.credentials {
        insert_credential(conn, principal.id, credential).await?;
    }
    Ok(principal)
}

async fn update(conn: &mut Conn, principal: &Principal) -> StoreResult<()> {
    let done = sqlx::query("UPDATE principals SET role = $2, grants = $3, disabled = $4 WHERE id = $1")
        .bind(principal.id.0)
        .bind(word(&principal.role))
        .bind(json(&principal.grants)?)
        .bind(principal.disabled)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    if done.rows_affected() == 0 {
        return Err(no_principal(principal.id));
    }
    if !principal.disabled {
        unlock(conn, principal.id).await?;
    }
    Ok(())
}

/// False if it is switched off already, whoever did that.
async fn lock(conn: &mut Conn, id: PrincipalId, reason: &str, at: Timestamp) -> StoreResult<bool> {
    let done = sqlx::query("UPDATE principals SET disabled = $2 WHERE id = $1 AND disabled = $3")
        .bind(id.0)
        .bind(true)
        .bind(false)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO locks (principal, reason, since) VALUES ($1, $2, $3)
         ON CONFLICT (principal) DO UPDATE SET reason = excluded.reason, since = excluded.since",
    )
    .bind(id.0)
    .bind(reason)
    .bind(at.0)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(true)
}

async fn unlock(conn: &mut Conn, id: PrincipalId) -> StoreResult<()> {
    sqlx::query("DELETE FROM locks WHERE principal = $1")
        .bind(id.0)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}

async fn delete(conn: &mut Conn, id: PrincipalId, at: Timestamp) -> StoreResult<()> {
    let done = sqlx::query("DELETE FROM principals WHERE id = $1")
        .bind(id.0)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    if done.rows_affected() == 0 {
        return Err(no_principal(id));
    }
    sqlx::query("DELETE FROM credentials WHERE principal = $1")
        .bind(id.0)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    suppress::forget_principal(conn, id).await?;
    unlock(conn, id).await?;
    tunnel::release_all(conn, id, at).await
}

async fn redeem(conn: &mut Conn, code: &str, fingerprint: &str, now: Timestamp) -> StoreResult<Principal> {
    let unknown = || StoreError::NotFound("this code".into());
    // Deleting and reading in one statement: of two who come at once, one gets the row.
    let owner: Option<(i64, Option<i64>)> = sqlx::query_as(
        "DELETE FROM credentials WHERE kind = $1 AND hash = $2 RETURNING principal, expires_at",
    )
    .bind(word(&CredentialKind::EnrolCode))
    .bind(code)
    .fetch_optional(&mut *conn)
    .await
    .map_err(store_error)?;
    let (owner, expires_at) = owner.ok_or_else(unknown)?;
    if expires_at.is_some_and(|at| at <= now.0) {
        return Err(unknown());
    }
    let principal = principal_by_id(conn, PrincipalId(owner))
        .await?
        .filter(|p| p.kind == PrincipalKind::Agent && !p.disabled)
        .ok_or_else(unknown)?;
    sqlx::query("DELETE FROM credentials WHERE principal = $1 AND kind = $2")
        .bind(owner)
        .bind(word(&CredentialKind::AgentKey))
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    let key = NewCredential {
        kind: CredentialKind::AgentKey,
        hash: fingerprint.into(),
        label: "agent key".into(),
        scope: Scope::FULL,
        created_at: now,
        expires_at: None,
    };
    insert_credential(conn, principal.id, &key).await?;
    Ok(principal)
}

#[async_trait]
impl AccountStore for Db {
    async fn create_principal(&self, new: NewPrincipal, entry: AuditEntry) -> StoreResult<Principal> {
        self.change(move |conn| {
            Box::pin(async move {
                let principal = create(conn, &new).await?;
                audit::bump(conn, VERSION).await?;
                audit::append(conn, &entry).await?;
                Ok(principal)
            })
        })
        .await
    }

    async fn principals(&self) -> StoreResult<Vec<Principal>> {
        let rows = self
            .read(async |conn| {
                sqlx::query(
                    "SELECT id, name, kind, role, grants, disabled, created_at FROM principals ORDER BY name",
                )
                .fetch_all(conn)
                .await
                .map_err(store_error)
            })
            .await?;
        rows.iter().map(principal_of).collect()
    }

    async fn principal_by_name(&self, name: &str) -> StoreResult<Option<Principal>> {
        self.read(async |conn| {
            sqlx::query(
                "SELECT id, name, kind, role, grants, disabled, created_at FROM principals WHERE name = $1",
            )
            .bind(name)
            .fetch_optional(conn)
            .await
            .map_err(store_error)
        })
        .await?
        .as_ref()
        .map(principal_of)
        .transpose()
    }

    async fn principal(&self, id: PrincipalId) -> StoreResult<Option<Principal>> {
        self.read(async |conn| principal_by_id(conn, id).await).await
    }

    async fn update_principal(&self, principal: Principal, entry: AuditEntry) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move {
                update(conn, &principal).await?;
                audit::bump(conn, VERSION).await?;
                audit::append(conn, &entry).await
            })
        })
        .await
    }

    async fn lock_principal(&self, id: PrincipalId, reason: &str, entry: AuditEntry) -> StoreResult<bool> {
        let reason = reason.to_owned();
        self.change(move |conn| {
            Box::pin(async move {
                if !lock(conn, id, &reason, entry.at).await? {
                    return Ok(false);
                }
                audit::bump(conn, VERSION).await?;
                audit::append(conn, &entry).await?;
                Ok(true)
            })
        })
        .await
    }

    async fn locks(&self) -> StoreResult<Vec<Locked>> {
        let rows: Vec<(String, String, i64)> = self
            .read(async |conn| {
                sqlx::query_as(
                    "SELECT p.name, l.reason, l.since FROM locks l JOIN principals p ON p.id = l.principal
                     ORDER BY l.since, p.name",
                )
                .fetch_all(conn)
                .await
                .map_err(store_error)
            })
            .await?;
        let locked = rows.into_iter().map(|(name, reason, since)| Locked {
            name,
            reason,
            since: Timestamp(since),
        });
        Ok(locked.collect())
    }

    async fn delete_principal(&self, id: PrincipalId, entry: AuditEntry) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move {
                delete(conn, id, entry.at).await?;
                audit::bump(conn, VERSION).await?;
                audit::append(conn, &entry).await
            })
        })
        .await
    }

    async fn add_credential(
        &self,
        of: PrincipalId,
        new: NewCredential,
        entry: AuditEntry,
    ) -> StoreResult<Credential> {
        self.change(move |conn| {
            Box::pin(async move {
                principal_by_id(conn, of).await?.ok_or_else(|| no_principal(of))?;
                let credential = insert_credential(conn, of, &new).await?;
                audit::bump(conn, VERSION).await?;
                audit::append(conn, &entry).await?;
                Ok(credential)
            })
        })
        .await
    }

    async fn credentials(&self, of: PrincipalId) -> StoreResult<Vec<Credential>> {
        let rows = self
            .read(async |conn| {
                sqlx::query(
                    "SELECT id, principal, kind, hash, label, scope, created_at, expires_at FROM credentials
             WHERE principal = $1 ORDER BY id",
                )
                .bind(of.0)
                .fetch_all(conn)
                .await
                .map_err(store_error)
            })
            .await?;
        rows.iter().map(credential_of).collect()
    }

    async fn remove_credential(&self, id: CredentialId, entry: AuditEntry) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move {
                // What SCRAM needs of an app password goes with it; its hash begins with the app password's.
                sqlx::query(
                    "DELETE FROM credentials WHERE kind = $2 AND principal = (SELECT principal FROM credentials WHERE id = $1)
                     AND hash LIKE (SELECT hash FROM credentials WHERE id = $1) || ':%'",
                )
                .bind(id.0)
                .bind(word(&CredentialKind::ScramSha256))
                .execute(&mut *conn)
                .await
                .map_err(store_error)?;
                let done = sqlx::query("DELETE FROM credentials WHERE id = $1")
                    .bind(id.0)
                    .execute(&mut *conn)
                    .await
                    .map_err(store_error)?;
                if done.rows_affected() == 0 {
                    return Err(StoreError::NotFound(format!("credential {id}")));
                }
                audit::bump(conn, VERSION).await?;
                audit::append(conn, &entry).await
            })
        })
        .await
    }

    async fn credential_by_hash(
        &self,
        kind: CredentialKind,
        hash: &str,
    ) -> StoreResult<Option<(Credential, Principal)>> {
        self.read(async |conn| {
            let row = sqlx::query(
                "SELECT id, principal, kind, hash, label, scope, created_at, expires_at FROM credentials
                 WHERE kind = $1 AND hash = $2 ORDER BY id LIMIT 1",
            )
            .bind(word(&kind))
            .bind(hash)
            .fetch_optional(&mut *conn)
            .await
            .map_err(store_error)?;
            let Some(row) = row else { return Ok(None) };
            let credential = credential_of(&row)?;
            let principal = principal_by_id(conn, credential.principal).await?;
            Ok(principal.map(|p| (credential, p)))
        })
        .await
    }

    async fn redeem_code(
        &self,
        code_hash: &str,
        key_fingerprint: &str,
        now: Timestamp,
        entry: AuditEntry,
    ) -> StoreResult<Principal> {
        let (code, fingerprint) = (code_hash.to_owned(), key_fingerprint.to_owned());
        self.change(move |conn| {
            Box::pin(async move {
                let principal = redeem(conn, &code, &fingerprint, now).await?;
                audit::bump(conn, VERSION).await?;
                audit::append(conn, &entry).await?;
                Ok(principal)
            })
        })
        .await
    }

    async fn accounts_version(&self) -> StoreResult<i64> {
        audit::version(self, VERSION).await
    }

    async fn rules(&self) -> StoreResult<Vec<StoredRule>> {
        let rows: Vec<(i64, String)> = self
            .read(async |conn| {
                sqlx::query_as("SELECT id, rule FROM rules ORDER BY id")
                    .fetch_all(conn)
                    .await
                    .map_err(store_error)
            })
            .await?;
        rows.into_iter()
            .map(|(id, rule)| {
                Ok(StoredRule {
                    id: RuleId(id),
                    rule: from_json(rule.as_bytes())?,
                })
            })
            .collect()
    }

    async fn add_rule(&self, rule: RuleSpec, entry: AuditEntry) -> StoreResult<RuleId> {
        let rule = json(&rule)?;
        self.change(move |conn| {
            Box::pin(async move {
                let id: i64 = sqlx::query_scalar("INSERT INTO rules (rule) VALUES ($1) RETURNING id")
                    .bind(rule)
                    .fetch_one(&mut *conn)
                    .await
                    .map_err(store_error)?;
                audit::bump(conn, VERSION).await?;
                audit::append(conn, &entry).await?;
                Ok(RuleId(id))
            })
        })
        .await
    }

    async fn remove_rule(&self, id: RuleId, entry: AuditEntry) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move {
                let done = sqlx::query("DELETE FROM rules WHERE id = $1")
                    .bind(id.0)
                    .execute(&mut *conn)
                    .await
                    .map_err(store_error)?;
                if done.rows_affected() == 0 {
                    return Err(StoreError::NotFound(format!("access rule {id}")));
                }
                audit::bump(conn, VERSION).await?;
                audit::append(conn, &entry).await
            })
        })
        .await
    }
}
