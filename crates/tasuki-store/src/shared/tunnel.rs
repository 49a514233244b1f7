//! Tunnel endpoints and the tombstones of their names.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::{EndpointId, PrincipalId};
use tasuki_core::net::single;
use tasuki_core::store::tunnel::{Endpoint, EndpointKind};
use tasuki_core::store::{AuditEntry, StoreError, StoreResult, TunnelStore};

use super::{Conn, Db, DbRow, audit};
use crate::error::store_error;
use crate::words::{from_json, json};

/// How long a released name is kept for its former owner.
const TOMBSTONE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What has one owner. `None` for a port that is still to be chosen.
fn slot_of(kind: &EndpointKind) -> Option<String> {
    match kind {
        EndpointKind::Tcp { port: 0 } | EndpointKind::Udp { port: 0 } => None,
        EndpointKind::Tcp { port } => Some(format!("tcp:{port}")),
        EndpointKind::Udp { port } => Some(format!("udp:{port}")),
        EndpointKind::Minecraft { name: Some(name) } => Some(format!("minecraft:{name}")),
        EndpointKind::Minecraft { name: None } => Some("minecraft".into()),
        EndpointKind::Https { name } | EndpointKind::Http { name } => Some(format!("web:{name}")),
    }
}

/// What belongs to the same owner: a port's TCP and UDP, since programs that use both tell one number to their visitors;
/// a name's games and web pages, since people trust the name.
fn pair_of(kind: &EndpointKind) -> Option<String> {
    match kind {
        EndpointKind::Tcp { port } => slot_of(&EndpointKind::Udp { port: *port }),
        EndpointKind::Udp { port } => slot_of(&EndpointKind::Tcp { port: *port }),
        EndpointKind::Minecraft { name } => name.as_ref().map(|name| format!("web:{name}")),
        EndpointKind::Https { name } | EndpointKind::Http { name } => Some(format!("minecraft:{name}")),
    }
}

fn said(kind: &EndpointKind) -> String {
    match kind {
        EndpointKind::Tcp { port } => format!("TCP port {port}"),
        EndpointKind::Udp { port } => format!("UDP port {port}"),
        EndpointKind::Minecraft { name: None } => "the default route".into(),
        EndpointKind::Minecraft { name: Some(name) }
        | EndpointKind::Https { name }
        | EndpointKind::Http { name } => format!("the name {name}"),
    }
}

fn endpoint_of(row: &DbRow, group: Option<String>) -> StoreResult<Endpoint> {
    let number = |column| row.try_get::<i64, _>(column).map_err(store_error);
    let text = |column| row.try_get::<String, _>(column).map_err(store_error);
    Ok(Endpoint {
        id: EndpointId(number("id")?),
        agent: PrincipalId(number("agent")?),
        label: text("label")?,
        kind: from_json(text("kind")?.as_bytes())?,
        since: Timestamp(number("since")?),
        group,
    })
}

/// The group in the text of an owner.
fn group_of(owner: &str) -> Option<String> {
    owner.strip_prefix("group:").map(str::to_owned)
}

/// The claim on a slot, made or found; the row stays locked until the transaction ends.
async fn owner_of(conn: &mut Conn, slot: &str, wanted: &str) -> StoreResult<String> {
    sqlx::query_scalar(
        "INSERT INTO slots (slot, owner) VALUES ($1, $2)
         ON CONFLICT (slot) DO UPDATE SET owner = slots.owner RETURNING owner",
    )
    .bind(slot)
    .bind(wanted)
    .fetch_one(conn)
    .await
    .map_err(store_error)
}

/// Whether an agent other than this one has the slot.
async fn has_others(conn: &mut Conn, slot: &str, agent: PrincipalId) -> StoreResult<bool> {
    let others: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM endpoints WHERE slot = $1 AND agent <> $2")
        .bind(slot)
        .bind(agent.0)
        .fetch_one(conn)
        .await
        .map_err(store_error)?;
    Ok(others > 0)
}

/// Gives up what an endpoint had, unless others still share it. A name is kept for its former owner; ports and the
/// default route are free at once.
async fn give_up(conn: &mut Conn, kind: &EndpointKind, agent: PrincipalId, at: Timestamp) -> StoreResult<()> {
    let Some(slot) = slot_of(kind) else { return Ok(()) };
    let owner: Option<String> = sqlx::query_scalar(
        "DELETE FROM slots WHERE slot = $1 AND NOT EXISTS (SELECT 1 FROM endpoints WHERE slot = $1)
         RETURNING owner",
    )
    .bind(&slot)
    .fetch_optional(&mut *conn)
    .await
    .map_err(store_error)?;
    let (Some(owner), Some(_)) = (owner, kind.name()) else {
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO tombstones (slot, agent, owner, released_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (slot) DO UPDATE
         SET agent = excluded.agent, owner = excluded.owner, released_at = excluded.released_at",
    )
    .bind(slot)
    .bind(agent.0)
    .bind(owner)
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
        give_up(conn, &endpoint_of(row, None)?.kind, agent, at).await?;
    }
    Ok(())
}

/// Refuses a slot, or the other half of one, that another gave up not long ago.
async fn refuse_buried(conn: &mut Conn, slot: &str, wanted: &Claim) -> StoreResult<()> {
    sqlx::query("DELETE FROM tombstones WHERE released_at <= $1")
        .bind(wanted.now.minus(TOMBSTONE).0)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    let buried: Option<i64> = sqlx::query_scalar(
        "SELECT agent FROM tombstones WHERE slot IN ($1, $2) AND agent <> $3 AND owner <> $4",
    )
    .bind(slot)
    .bind(pair_of(&wanted.kind))
    .bind(wanted.agent.0)
    .bind(wanted.owner())
    .fetch_optional(conn)
    .await
    .map_err(store_error)?;
    if buried.is_some() {
        return Err(StoreError::Conflict(format!(
            "{} belonged to another agent until less than 30 days ago",
            said(&wanted.kind)
        )));
    }
    Ok(())
}

async fn refuse_half(conn: &mut Conn, wanted: &Claim) -> StoreResult<()> {
    let Some(pair) = pair_of(&wanted.kind) else {
        return Ok(());
    };
    let owner: Option<String> = sqlx::query_scalar("SELECT owner FROM slots WHERE slot = $1")
        .bind(&pair)
        .fetch_optional(&mut *conn)
        .await
        .map_err(store_error)?;
    if owner.is_none_or(|owner| owner == wanted.owner()) || !has_others(conn, &pair, wanted.agent).await? {
        return Ok(());
    }
    Err(StoreError::Conflict(match wanted.kind.name() {
        None => format!(
            "{} belongs with another agent's port of the same number",
            said(&wanted.kind)
        ),
        Some(name) => format!("the name {name} belongs to another agent"),
    }))
}

#[derive(Clone)]
struct Claim {
    agent: PrincipalId,
    group: Option<String>,
    label: String,
    kind: EndpointKind,
    now: Timestamp,
}

impl Claim {
    fn owner(&self) -> String {
        match &self.group {
            Some(group) => format!("group:{group}"),
            None => format!("agent:{}", self.agent),
        }
    }
}

async fn claim(conn: &mut Conn, wanted: &Claim) -> StoreResult<Endpoint> {
    let slot = slot_of(&wanted.kind);
    if let Some(slot) = &slot {
        take_slot(conn, slot, wanted).await?;
    }
    let before =
        sqlx::query("SELECT id, agent, label, kind, since FROM endpoints WHERE agent = $1 AND label = $2")
            .bind(wanted.agent.0)
            .bind(&wanted.label)
            .fetch_optional(&mut *conn)
            .await
            .map_err(store_error)?;
    let group = || wanted.group.clone();
    let before = before.as_ref().map(|row| endpoint_of(row, group())).transpose()?;
    if let Some(same) = before.as_ref().filter(|old| old.kind == wanted.kind) {
        return Ok(same.clone());
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
    .fetch_one(&mut *conn)
    .await
    .map_err(store_error)?;
    if let Some(old) = before {
        give_up(conn, &old.kind, wanted.agent, wanted.now).await?;
    }
    endpoint_of(&row, group())
}

/// Makes the slot the claim's owner's, or says whose it is.
async fn take_slot(conn: &mut Conn, slot: &str, wanted: &Claim) -> StoreResult<()> {
    let owner = owner_of(conn, slot, &wanted.owner()).await?;
    let taken = || StoreError::Conflict(format!("{} is exposed by another endpoint", said(&wanted.kind)));
    if owner != wanted.owner() {
        if has_others(conn, slot, wanted.agent).await? {
            return Err(taken());
        }
        // The agent has joined a group, or left it.
        sqlx::query("UPDATE slots SET owner = $2 WHERE slot = $1")
            .bind(slot)
            .bind(wanted.owner())
            .execute(&mut *conn)
            .await
            .map_err(store_error)?;
    }
    // Two labels of one agent are two servers, of which visitors would reach one or the other.
    let twice: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM endpoints WHERE slot = $1 AND agent = $2 AND label <> $3")
            .bind(slot)
            .bind(wanted.agent.0)
            .bind(&wanted.label)
            .fetch_one(&mut *conn)
            .await
            .map_err(store_error)?;
    if twice > 0 {
        return Err(taken());
    }
    refuse_buried(conn, slot, wanted).await?;
    sqlx::query("DELETE FROM tombstones WHERE slot = $1")
        .bind(slot)
        .execute(&mut *conn)
        .await
        .map_err(store_error)?;
    refuse_half(conn, wanted).await
}

#[async_trait]
impl TunnelStore for Db {
    async fn endpoints(&self) -> StoreResult<Vec<Endpoint>> {
        let rows = self
            .read(async |conn| {
                sqlx::query(
                    "SELECT e.id, e.agent, e.label, e.kind, e.since, COALESCE(s.owner, '') AS owner
                     FROM endpoints e LEFT JOIN slots s ON s.slot = e.slot ORDER BY e.agent, e.label",
                )
                .fetch_all(conn)
                .await
                .map_err(store_error)
            })
            .await?;
        rows.iter()
            .map(|row| {
                let owner: String = row.try_get("owner").map_err(store_error)?;
                endpoint_of(row, group_of(&owner))
            })
            .collect()
    }

    async fn claim_endpoint(
        &self,
        agent: PrincipalId,
        group: Option<&str>,
        label: &str,
        kind: EndpointKind,
        now: Timestamp,
        entry: AuditEntry,
    ) -> StoreResult<Endpoint> {
        let wanted = Claim {
            agent,
            group: group.map(str::to_owned),
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
                let endpoint = endpoint_of(&row, None)?;
                give_up(conn, &endpoint.kind, endpoint.agent, now).await?;
                audit::append(conn, &entry).await
            })
        })
        .await
    }

    async fn note_regulars(&self, addresses: &[IpAddr], at: Timestamp, forget: Timestamp) -> StoreResult<()> {
        let addresses: Vec<String> = addresses
            .iter()
            .map(|ip| single(*ip).addr().to_string())
            .collect();
        self.change(move |conn| {
            Box::pin(async move {
                for address in &addresses {
                    sqlx::query(
                        "INSERT INTO regulars (address, at) VALUES ($1, $2)
                         ON CONFLICT (address) DO UPDATE SET at = excluded.at WHERE excluded.at > regulars.at",
                    )
                    .bind(address)
                    .bind(at.0)
                    .execute(&mut *conn)
                    .await
                    .map_err(store_error)?;
                }
                sqlx::query("DELETE FROM regulars WHERE at < $1")
                    .bind(forget.0)
                    .execute(&mut *conn)
                    .await
                    .map_err(store_error)?;
                Ok(())
            })
        })
        .await
    }

    async fn regulars(&self, since: Timestamp, most: u32) -> StoreResult<Vec<(IpAddr, Timestamp)>> {
        let rows = self
            .read(async |conn| {
                sqlx::query("SELECT address, at FROM regulars WHERE at >= $1 ORDER BY at DESC LIMIT $2")
                    .bind(since.0)
                    .bind(i64::from(most))
                    .fetch_all(conn)
                    .await
                    .map_err(store_error)
            })
            .await?;
        rows.iter()
            .map(|row| {
                let address: String = row.try_get("address").map_err(store_error)?;
                let at: i64 = row.try_get("at").map_err(store_error)?;
                let address = address
                    .parse()
                    .map_err(|_| StoreError::Damaged(format!("{address:?} is not an address")))?;
                Ok((address, Timestamp(at)))
            })
            .collect()
    }
}
