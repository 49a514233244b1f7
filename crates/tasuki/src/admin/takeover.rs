//! Taking over another relay, and a new key for this one.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::store::fedi::ForeignRelay;

use super::Admin;
use super::auth::Caller;
use super::engines::fediverse;
use super::problem::{Answer, Input};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Takeover {
    relay: ForeignRelay,
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn take_over(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(order): Input<Takeover>,
) -> Answer<Json<Value>> {
    let report = fediverse(&admin)?
        .take_over(&order.relay, order.dry_run, (&actor.who, &actor.from))
        .await?;
    let skipped = report
        .skipped
        .iter()
        .map(|(what, why)| json!({"what": what, "why": why}));
    Ok(Json(json!({
        "dry_run": order.dry_run,
        "actor": report.actor,
        "key": report.key,
        "key_bits": report.key_bits,
        "added": report.added,
        "known": report.known,
        "skipped": skipped.collect::<Vec<Value>>(),
        "rules": report.rules,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    #[serde(default)]
    compromised: bool,
}

pub(super) async fn rotate_key(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(order): Input<Rotation>,
) -> Answer<Json<Value>> {
    let rotation = fediverse(&admin)?
        .rotate_key(order.compromised, (&actor.who, &actor.from))
        .await?;
    Ok(Json(json!({
        "key_id": rotation.key_id,
        "key_bits": rotation.key_bits,
        "old_key_until": rotation.old_key_until.map(|at| at.to_string()),
        "told": rotation.told,
    })))
}
