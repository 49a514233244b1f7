//! Which of the relay's actors a host joined. The one that it joined first stands in its row of `subscriptions`, beside what
//! is known of the host; the further ones in rows of their own.

use std::collections::HashMap;

use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::fedi::{NewSubscription, Subscription};
use tasuki_core::store::{StoreError, StoreResult};

use super::fedi::{SUBSCRIPTION_COLUMNS, VERSION, number_host, subscription_of};
use super::{Conn, DbRow, audit};
use crate::error::store_error;
use crate::words::{from_word, word};

const FURTHER_COLUMNS: &str = "host, topic, actor, inbox, style, state, follow_id, since";

/// A further subscription of a host of which `first` is the first.
fn further_of(row: &DbRow, first: &Subscription) -> StoreResult<Subscription> {
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    Ok(Subscription {
        topic: text("topic")?,
        actor: text("actor")?,
        inbox: text("inbox")?,
        style: from_word(&text("style")?)?,
        state: from_word(&text("state")?)?,
        follow_id: text("follow_id")?,
        since: Timestamp(row.try_get("since").map_err(store_error)?),
        ..first.clone()
    })
}

async fn first(conn: &mut Conn, host: &str) -> StoreResult<Option<Subscription>> {
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT {SUBSCRIPTION_COLUMNS} FROM subscriptions WHERE host = $1"
    )))
    .bind(host)
    .fetch_optional(conn)
    .await
    .map_err(store_error)?
    .as_ref()
    .map(subscription_of)
    .transpose()
}

/// All subscriptions, by host, and of each host in the order in which it joined.
pub(super) async fn all(conn: &mut Conn) -> StoreResult<Vec<Subscription>> {
    let firsts = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT {SUBSCRIPTION_COLUMNS} FROM subscriptions ORDER BY host"
    )))
    .fetch_all(&mut *conn)
    .await
    .map_err(store_error)?;
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT {FURTHER_COLUMNS} FROM further_subscriptions ORDER BY host, since, topic"
    )))
    .fetch_all(conn)
    .await
    .map_err(store_error)?;
    let mut further: HashMap<String, Vec<DbRow>> = HashMap::new();
    for row in rows {
        let host: String = row.try_get("host").map_err(store_error)?;
        further.entry(host).or_default().push(row);
    }
    let mut all = Vec::with_capacity(firsts.len());
    for row in &firsts {
        let first = subscription_of(row)?;
        let more = further.remove(&first.host).unwrap_or_default();
        let more = more
            .iter()
            .map(|row| further_of(row, &first))
            .collect::<StoreResult<Vec<_>>>()?;
        all.push(first);
        all.extend(more);
    }
    Ok(all)
}

pub(super) async fn subscribe(conn: &mut Conn, new: &NewSubscription) -> StoreResult<Subscription> {
    let no = number_host(conn, &new.host, &new.inbox).await?;
    let subscription = match first(conn, &new.host).await? {
        Some(first) if first.topic != new.topic => further(conn, new, first).await?,
        _ => put_first(conn, new, no.0).await?,
    };
    audit::bump(conn, VERSION).await?;
    Ok(subscription)
}

async fn put_first(conn: &mut Conn, new: &NewSubscription, no: u32) -> StoreResult<Subscription> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "INSERT INTO subscriptions (host, host_no, topic, actor, inbox, style, state, follow_id, software, since)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (host) DO UPDATE SET actor = excluded.actor, inbox = excluded.inbox, style = excluded.style,
             state = excluded.state, follow_id = excluded.follow_id, failing_since = NULL, suspended_at = NULL,
             software = coalesce(excluded.software, subscriptions.software)
         RETURNING {SUBSCRIPTION_COLUMNS}"
    )))
    .bind(&new.host)
    .bind(i64::from(no))
    .bind(&new.topic)
    .bind(&new.actor)
    .bind(&new.inbox)
    .bind(word(&new.style))
    .bind(word(&new.state))
    .bind(&new.follow_id)
    .bind(&new.software)
    .bind(new.at.0)
    .fetch_one(conn)
    .await
    .map_err(store_error)?;
    subscription_of(&row)
}

async fn further(conn: &mut Conn, new: &NewSubscription, first: Subscription) -> StoreResult<Subscription> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "INSERT INTO further_subscriptions (host, topic, actor, inbox, style, state, follow_id, since)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (host, topic) DO UPDATE SET actor = excluded.actor, inbox = excluded.inbox,
             style = excluded.style, state = excluded.state, follow_id = excluded.follow_id
         RETURNING {FURTHER_COLUMNS}"
    )))
    .bind(&new.host)
    .bind(&new.topic)
    .bind(&new.actor)
    .bind(&new.inbox)
    .bind(word(&new.style))
    .bind(word(&new.state))
    .bind(&new.follow_id)
    .bind(new.at.0)
    .fetch_one(&mut *conn)
    .await
    .map_err(store_error)?;
    // Whoever follows is there.
    sqlx::query("UPDATE subscriptions SET failing_since = NULL, suspended_at = NULL WHERE host = $1")
        .bind(&new.host)
        .execute(conn)
        .await
        .map_err(store_error)?;
    let alive = Subscription {
        failing_since: None,
        suspended_at: None,
        ..first
    };
    further_of(&row, &alive)
}

pub(super) async fn unsubscribe(conn: &mut Conn, host: &str, topic: &str) -> StoreResult<Subscription> {
    let missing = || StoreError::NotFound(format!("a subscription of {host}"));
    let first = first(conn, host).await?.ok_or_else(missing)?;
    let gone = if first.topic == topic {
        leave_first(conn, host).await?;
        first
    } else {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "DELETE FROM further_subscriptions WHERE host = $1 AND topic = $2 RETURNING {FURTHER_COLUMNS}"
        )))
        .bind(host)
        .bind(topic)
        .fetch_optional(&mut *conn)
        .await
        .map_err(store_error)?
        .ok_or_else(missing)?;
        further_of(&row, &first)?
    };
    audit::bump(conn, VERSION).await?;
    Ok(gone)
}

/// The second actor that a host joined becomes its first; without one the host is forgotten.
async fn leave_first(conn: &mut Conn, host: &str) -> StoreResult<()> {
    let next: Option<String> = sqlx::query_scalar(
        "SELECT topic FROM further_subscriptions WHERE host = $1 ORDER BY since, topic LIMIT 1",
    )
    .bind(host)
    .fetch_optional(&mut *conn)
    .await
    .map_err(store_error)?;
    let Some(next) = next else {
        sqlx::query("DELETE FROM subscriptions WHERE host = $1")
            .bind(host)
            .execute(conn)
            .await
            .map_err(store_error)?;
        return Ok(());
    };
    let set: Vec<String> = ["topic", "actor", "inbox", "style", "state", "follow_id", "since"]
        .iter()
        .map(|column| {
            format!("{column} = (SELECT {column} FROM further_subscriptions WHERE host = $1 AND topic = $2)")
        })
        .collect();
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "UPDATE subscriptions SET {} WHERE host = $1",
        set.join(", ")
    )))
    .bind(host)
    .bind(&next)
    .execute(&mut *conn)
    .await
    .map_err(store_error)?;
    sqlx::query("DELETE FROM further_subscriptions WHERE host = $1 AND topic = $2")
        .bind(host)
        .bind(&next)
        .execute(conn)
        .await
        .map_err(store_error)?;
    Ok(())
}
