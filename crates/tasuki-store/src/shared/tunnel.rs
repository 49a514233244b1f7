//! Tunnel endpoints and the tombstones of their names.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{EndpointId, PrincipalId};
use tasuki_core::store::tunnel::{Endpoint, EndpointKind};
use tasuki_core::store::{AuditEntry, StoreError, StoreResult, TunnelStore};

use super::{Conn, Db, DbRow, audit};
use crate::error::{is_duplicate, store_error};
use crate::words::{from_json, json};

/// How long a released name is kept for its former owner.
const TOMBSTONE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What only one endpoint may have. `None` for a port that is still to be chosen.
fn slot_of(kind: &EndpointKind) -> Option<String> {
    match kind {
        EndpointKind::Tcp { port: 0 } | EndpointKind::Udp { port: 0 } => None,
        EndpointKind::Tcp { port } => Some(format!("tcp:{port}")),
        EndpointKind::Udp { port } => Some(format!("udp:{port}")),
        EndpointKind::Minecraft { name: Some(name) } => Some(format!("minecraft:{name}")),
        EndpointKind::Minecraft { name: None } => Some("minecraft".into()),
    }
}

/// The same port's other half: programs that use both tell one number to their visitors.
fn pair_of(kind: &EndpointKind) -> Option<String> {
    match *kind {
        EndpointKind::Tcp { port } => slot_of(&EndpointKind::Udp { port }),
        EndpointKind::Udp { port } => slot_of(&EndpointKind::Tcp { port }),
        EndpointKind::Minecraft { .. } => None,
    }
}

fn said(kind: &EndpointKind) -> String {
    match kind {
        EndpointKind::Tcp { port } => format!("TCP port {port}"),
        EndpointKind::Udp { port } => format!("UDP port {port}"),
        EndpointKind::Minecraft { name: Some(name) } => format!("the name {name}"),
        EndpointKind::Minecraft { name: None } => "the default route".into(),
    }
}

fn endpoint_of(row: &DbRow) -> StoreResult<Endpoint> {
    let number = |column| row.try_get::<i64, _>(column).map_err(store_error);
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    Ok(Endpoint {
        id: EndpointId(number("id")?),
        agent: PrincipalId(number("agent")?),
        label: text("label")?,
        kind: from_json(text("kind")?.as_bytes())?,
        since: Timestamp(number("since")?),
    })
}

/// Keeps the name of a released endpoint. Ports and the default route are free at once.
async fn bury(conn: &mut Conn, kind: &EndpointKind, agent: PrincipalId, at: Timestamp) -> StoreResult<()> {
    let (EndpointKind::Minecraft { name: Some(_) }, Some(slot)) = (kind, slot_of(kind)) else {
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO tombstones (slot, agent, released_at) VALUES ($1, $2, $3)
         ON CONFLICT (slot) DO UPDATE SET agent = excluded.agent, released_at = excluded.released_at",
    )
    .bind(slot)
    .bind(agent.0)
    .bind(at.0)
    .execute(conn)
    .await
    .map_err(store_error)?;
    Ok(())
}

/// Releases everything of an agent; for its removal.
pub(super) async fn release_all(conn: &mut Conn, agent: PrincipalId, at: Timestamp) -> StoreResult<()> {
    let rows = sqlx::query("DELETE FROM endpoints WHERE agent = $1 RETURNING id, agent, label, kind, since")
        .bind(agent.0)
        .fetch_all(&mut *conn)
        .await
        .map_err(store_error)?;
    for row in &rows {
        bury(conn, &endpoint_of(row)?.kind, agent, at).await?;
    }
    Ok(())
}

async fn refuse_buried(conn: &mut Conn, slot: &str, agent: PrincipalId, now: Timestamp) -> StoreResult<()> {
    sqlx::query("DELETE FROM tombstones WHERE released_at <= $1 OR (slot = $2 AND agent = $3)")
        .bind(now.minus(TOMBSTONE).0)
        .bind(slot)
        .bind(agent.0)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    let buried: Option<i64> = sqlx::query_scalar("SELECT agent FROM tombstones WHERE slot = $1")
        .bind(slot)
        .fetch_optional(conn)
        .await
        .map_err(store_error)?;
    if buried.is_some() {
        return Err(StoreError::Conflict(
            "this name belonged to another agent until less than 30 days ago".into(),
        ));
    }
    Ok(())
}

async fn refuse_half(conn: &mut Conn, kind: &EndpointKind, agent: PrincipalId) -> StoreResult<()> {
    let Some(pair) = pair_of(kind) else {
        return Ok(());
    };
    let owner: Option<i64> =
        sqlx::query_scalar("SELECT agent FROM endpoints WHERE slot = $1 AND agent <> $2")
            .bind(pair)
            .bind(agent.0)
            .fetch_optional(conn)
            .await
            .map_err(store_error)?;
    match owner {
        None => Ok(()),
        Some(_) => Err(StoreError::Conflict(format!(
            "{} belongs with another agent's port of the same number",
            said(kind)
        ))),
    }
}

#[derive(Clone)]
struct Claim {
    agent: PrincipalId,
    label: String,
    kind: EndpointKind,
    now: Timestamp,
}

async fn claim(conn: &mut Conn, wanted: &Claim) -> StoreResult<Endpoint> {
    let slot = slot_of(&wanted.kind);
    if let Some(slot) = &slot {
        refuse_buried(conn, slot, wanted.agent, wanted.now).await?;
    }
    refuse_half(conn, &wanted.kind, wanted.agent).await?;
    let before =
        sqlx::query("SELECT id, agent, label, kind, since FROM endpoints WHERE agent = $1 AND label = $2")
            .bind(wanted.agent.0)
            .bind(&wanted.label)
            .fetch_optional(&mut *conn)
            .await
            .map_err(store_error)?;
    if let Some(row) = &before {
        let old = endpoint_of(row)?;
        if old.kind == wanted.kind {
            return Ok(old);
        }
        bury(conn, &old.kind, wanted.agent, wanted.now).await?;
    }
    let row = sqlx::query(
        "INSERT INTO endpoints (agent, label, kind, slot, since) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (agent, label)
         DO UPDATE SET kind = excluded.kind, slot = excluded.slot, since = excluded.since
         RETURNING id, agent, label, kind, since",
    )
    .bind(wanted.agent.0)
    .bind(&wanted.label)
    .bind(json(&wanted.kind)?)
    .bind(slot)
    .bind(wanted.now.0)
    .fetch_one(conn)
    .await
    .map_err(|error| {
        if is_duplicate(&error) {
            StoreError::Conflict(format!("{} is exposed by another endpoint", said(&wanted.kind)))
        } else {
            store_error(error)
        }
    })?;
    endpoint_of(&row)
}

#[async_trait]
impl TunnelStore for Db {
    async fn endpoints(&self) -> StoreResult<Vec<Endpoint>> {
        let rows = self
            .read(async |conn| {
                sqlx::query("SELECT id, agent, label, kind, since FROM endpoints ORDER BY agent, label")
                    .fetch_all(conn)
                    .await
                    .map_err(store_error)
            })
            .await?;
        rows.iter().map(endpoint_of).collect()
    }

    async fn claim_endpoint(
        &self,
        agent: PrincipalId,
        label: &str,
        kind: EndpointKind,
        now: Timestamp,
        entry: AuditEntry,
    ) -> StoreResult<Endpoint> {
        let wanted = Claim {
            agent,
            label: label.to_owned(),
            kind,
            now,
        };
        self.change(move |conn| {
            Box::pin(async move {
                let endpoint = claim(conn, &wanted).await?;
                audit::append(conn, &entry).await?;
                Ok(endpoint)
            })
        })
        .await
    }

    async fn release_endpoint(&self, id: EndpointId, now: Timestamp, entry: AuditEntry) -> StoreResult<()> {
        self.change(move |conn| {
            Box::pin(async move {
                let row = sqlx::query(
                    "DELETE FROM endpoints WHERE id = $1 RETURNING id, agent, label, kind, since",
                )
                .bind(id.0)
                .fetch_optional(&mut *conn)
                .await
                .map_err(store_error)?
                .ok_or_else(|| StoreError::NotFound(format!("endpoint {id}")))?;
                let endpoint = endpoint_of(&row)?;
                bury(conn, &endpoint.kind, endpoint.agent, now).await?;
                audit::append(conn, &entry).await
            })
        })
        .await
    }
}
