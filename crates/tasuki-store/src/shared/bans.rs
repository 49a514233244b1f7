//! Bans, and the addresses that proved themselves.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::BanId;
use tasuki_core::store::bans::{Ban, NewBan};
use tasuki_core::store::{AuditEntry, BanStore, StoreError, StoreResult};

use super::{Conn, Db, DbRow, audit};
use crate::error::store_error;
use crate::words::{from_word, word};

/// How long ended bans count as repeats, and how long a proof of an address counts.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(format!("{what:?} is not an address"))
}

fn ban_of(row: &DbRow) -> StoreResult<Ban> {
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    let number = |column| row.try_get::<i64, _>(column).map_err(store_error);
    let net = text("net")?;
    Ok(Ban {
        id: BanId(number("id")?),
        net: net.parse().map_err(|_| damaged(&net))?,
        engine: row
            .try_get::<Option<String>, _>("engine")
            .map_err(store_error)?
            .map(|e| from_word(&e))
            .transpose()?,
        reason: text("reason")?,
        by: text("made_by")?,
        since: Timestamp(number("since")?),
        until: row
            .try_get::<Option<i64>, _>("until")
            .map_err(store_error)?
            .map(Timestamp),
        repeats: u32::try_from(number("repeats")?).unwrap_or(u32::MAX),
    })
}

async fn count_repeats(conn: &mut Conn, net: IpNet, now: Timestamp) -> StoreResult<u32> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM bans WHERE net = $1 AND since > $2")
        .bind(net.to_string())
        .bind(now.minus(REMEMBERED).0)
        .fetch_one(conn)
        .await
        .map_err(store_error)?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

async fn add(conn: &mut Conn, new: &NewBan) -> StoreResult<Ban> {
    sqlx::query("DELETE FROM bans WHERE until < $1")
        .bind(new.since.minus(REMEMBERED).0)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    let repeats = count_repeats(conn, new.net, new.since).await?;
    let engine = new.engine.map(|e| word(&e));
    // The replaced ban ends here, and stays as a row that counts.
    sqlx::query(
        "UPDATE bans SET until = $3 WHERE net = $1 AND coalesce(engine, '') = $2
         AND (until IS NULL OR until > $3)",
    )
    .bind(new.net.to_string())
    .bind(engine.clone().unwrap_or_default())
    .bind(new.since.0)
    .execute(&mut *conn)
    .await
    .map_err(store_error)?;
    let row = sqlx::query(
        "INSERT INTO bans (net, engine, reason, made_by, since, until, repeats)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         RETURNING id, net, engine, reason, made_by, since, until, repeats",
    )
    .bind(new.net.to_string())
    .bind(engine)
    .bind(&new.reason)
    .bind(&new.by)
    .bind(new.since.0)
    .bind(new.until.map(|t| t.0))
    .bind(i64::from(repeats))
    .fetch_one(conn)
    .await
    .map_err(store_error)?;
    ban_of(&row)
}

async fn note(conn: &mut Conn, addresses: &[(IpAddr, Timestamp)]) -> StoreResult<()> {
    let mut newest = i64::MIN;
    for (address, at) in addresses {
        newest = newest.max(at.0);
        sqlx::query(
            "INSERT INTO proved (address, at) VALUES ($1, $2)
             ON CONFLICT (address) DO UPDATE SET at = excluded.at WHERE excluded.at > proved.at",
        )
        .bind(address.to_string())
        .bind(at.0)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    }
    sqlx::query("DELETE FROM proved WHERE at < $1")
        .bind(Timestamp(newest).minus(REMEMBERED).0)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}

#[async_trait]
impl BanStore for Db {
    async fn bans(&self, now: Timestamp) -> StoreResult<Vec<Ban>> {
        let rows = self
            .read(async |conn| {
                sqlx::query(
                    "SELECT id, net, engine, reason, made_by, since, until, repeats FROM bans
             WHERE until IS NULL OR until > $1 ORDER BY id",
                )
                .bind(now.0)
                .fetch_all(conn)
                .await
                .map_err(store_error)
            })
            .await?;
        rows.iter().map(ban_of).collect()
    }

    async fn add_ban(&self, new: NewBan, entry: AuditEntry) -> StoreResult<Ban> {
        self.change(move |conn| {
            Box::pin(async move {
                let ban = add(conn, &new).await?;
                audit::append(conn, &entry).await?;
                Ok(ban)
            })
        })
        .await
    }

    async fn remove_ban(&self, id: BanId, entry: AuditEntry) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move {
                let done =
                    sqlx::query("UPDATE bans SET until = $2 WHERE id = $1 AND (until IS NULL OR until > $2)")
                        .bind(id.0)
                        .bind(entry.at.0)
                        .execute(&mut *conn)
                        .await
                        .map_err(store_error)?;
                if done.rows_affected() == 0 {
                    return Err(StoreError::NotFound(format!("ban {id}")));
                }
                audit::append(conn, &entry).await
            })
        })
        .await
    }

    async fn ban_repeats(&self, net: IpNet, now: Timestamp) -> StoreResult<u32> {
        self.read(async |conn| count_repeats(conn, net, now).await).await
    }

    async fn note_proved(&self, addresses: &[(IpAddr, Timestamp)]) -> StoreResult<()> {
        if addresses.is_empty() {
            return Ok(());
        }
        let addresses = addresses.to_vec();
        self.ride(move |conn| Box::pin(async move { note(conn, &addresses).await }))
            .await
    }

    async fn proved(&self, since: Timestamp) -> StoreResult<Vec<IpAddr>> {
        let rows: Vec<String> = self
            .read(async |conn| {
                sqlx::query_scalar("SELECT address FROM proved WHERE at >= $1")
                    .bind(since.0)
                    .fetch_all(conn)
                    .await
                    .map_err(store_error)
            })
            .await?;
        rows.iter().map(|a| a.parse().map_err(|_| damaged(a))).collect()
    }
}
