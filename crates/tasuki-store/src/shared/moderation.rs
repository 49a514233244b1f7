//! What an operator ordered: rules of moderation, the brake, and that waiting entries were taken out.

use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::fedi::{Brake, HostLife, ModerationKind, ModerationRule, Orders, Pruned, Standstill};
use tasuki_core::store::{StoreError, StoreResult};

use super::fedi::VERSION;
use super::{Conn, DbRow, audit};
use crate::error::store_error;
use crate::words::{from_json, from_word, json, word};

const BRAKE: &str = "brake";
const PURGES: &str = "purges";
const PRUNED: &str = "pruned";
const STANDSTILL: &str = "standstill";

pub(super) fn rule_of(row: &DbRow) -> StoreResult<ModerationRule> {
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    Ok(ModerationRule {
        effect: from_word(&text("effect")?)?,
        kind: from_word(&text("kind")?)?,
        subject: text("subject")?,
        reason: text("reason")?,
        at: Timestamp(row.try_get("at").map_err(store_error)?),
    })
}

pub(super) async fn moderate(conn: &mut Conn, rules: &[ModerationRule]) -> StoreResult<()> {
    for rule in rules {
        sqlx::query(
            "INSERT INTO fedi_rules (kind, subject, effect, reason, at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (kind, subject) DO UPDATE SET effect = excluded.effect, reason = excluded.reason,
                 at = excluded.at",
        )
        .bind(word(&rule.kind))
        .bind(&rule.subject)
        .bind(word(&rule.effect))
        .bind(&rule.reason)
        .bind(rule.at.0)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    }
    audit::bump(conn, VERSION).await
}

pub(super) async fn unmoderate(conn: &mut Conn, kind: ModerationKind, subject: &str) -> StoreResult<()> {
    let gone = sqlx::query("DELETE FROM fedi_rules WHERE kind = $1 AND subject = $2")
        .bind(word(&kind))
        .bind(subject)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    if gone.rows_affected() == 0 {
        return Err(StoreError::NotFound(format!("a rule about {subject}")));
    }
    audit::bump(conn, VERSION).await
}

async fn order(conn: &mut Conn, name: &'static str) -> StoreResult<Option<String>> {
    sqlx::query_scalar("SELECT value FROM fedi_orders WHERE name = $1")
        .bind(name)
        .fetch_optional(conn)
        .await
        .map_err(store_error)
}

async fn set_order(conn: &mut Conn, name: &'static str, value: Option<String>) -> StoreResult<()> {
    let query = match value {
        None => sqlx::query("DELETE FROM fedi_orders WHERE name = $1").bind(name),
        Some(value) => sqlx::query(
            "INSERT INTO fedi_orders (name, value) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name)
        .bind(value),
    };
    query.execute(&mut *conn).await.map_err(store_error)?;
    audit::bump(conn, VERSION).await
}

pub(super) async fn orders(conn: &mut Conn) -> StoreResult<Orders> {
    let brake = order(conn, BRAKE).await?;
    Ok(Orders {
        brake: brake
            .map(|text| from_json::<Brake>(text.as_bytes()))
            .transpose()?,
        purges: purges(conn).await?,
        pruned: match order(conn, PRUNED).await? {
            Some(text) => from_json(text.as_bytes())?,
            None => Pruned::default(),
        },
        standstill: match order(conn, STANDSTILL).await? {
            Some(text) => from_json(text.as_bytes())?,
            None => Standstill::default(),
        },
    })
}

pub(super) async fn set_brake(conn: &mut Conn, brake: Option<&Brake>) -> StoreResult<()> {
    set_order(conn, BRAKE, brake.map(json).transpose()?).await
}

async fn purges(conn: &mut Conn) -> StoreResult<u64> {
    let known = order(conn, PURGES).await?;
    Ok(known.and_then(|text| text.parse().ok()).unwrap_or_default())
}

pub(super) async fn note_purge(conn: &mut Conn) -> StoreResult<()> {
    let next = purges(conn).await?.wrapping_add(1);
    set_order(conn, PURGES, Some(next.to_string())).await
}

pub(super) async fn note_pruned(conn: &mut Conn, pruned: Pruned) -> StoreResult<()> {
    set_order(conn, PRUNED, Some(json(&pruned)?)).await
}

pub(super) async fn note_standstill(conn: &mut Conn, standstill: Standstill) -> StoreResult<()> {
    set_order(conn, STANDSTILL, Some(json(&standstill)?)).await
}

pub(super) async fn note_lives(conn: &mut Conn, lives: &[HostLife]) -> StoreResult<()> {
    for life in lives {
        sqlx::query("UPDATE subscriptions SET failing_since = $2, suspended_at = $3 WHERE host_no = $1")
            .bind(i64::from(life.host.0))
            .bind(life.failing_since.map(|at| at.0))
            .bind(life.suspended_at.map(|at| at.0))
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    audit::bump(conn, VERSION).await
}
