//! The fediverse in an emergency: the brake, taking out what waits, and watching one host.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_activitypub::{Line, PruneReport, Purge};
use tasuki_core::store::fedi::{Brake, BrakeMode};

use super::Admin;
use super::auth::Caller;
use super::engines::fediverse;
use super::moderation::shown_judged;
use super::problem::{Answer, Input, Params, Problem};

fn shown(brake: Option<&Brake>) -> Json<Value> {
    Json(json!({
        "mode": brake.map(|brake| brake.mode),
        "reason": brake.map(|brake| &brake.reason),
        "since": brake.map(|brake| brake.at.to_string()),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBrake {
    mode: BrakeMode,
    #[serde(default)]
    reason: String,
}

pub(super) async fn pause(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(new): Input<NewBrake>,
) -> Answer<Json<Value>> {
    let brake = fediverse(&admin)?
        .pause(new.mode, &new.reason, (&actor.who, &actor.from))
        .await?;
    Ok(shown(Some(&brake)))
}

pub(super) async fn resume(State(admin): State<Arc<Admin>>, Caller(actor): Caller) -> Answer<Json<Value>> {
    let was_pulled = fediverse(&admin)?.resume((&actor.who, &actor.from)).await?;
    Ok(Json(json!({"mode": null, "was_paused": was_pulled})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    actor: Option<String>,
    host: Option<String>,
    matching: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn purge(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(order): Input<Order>,
) -> Answer<Json<Value>> {
    let what = match (&order.actor, &order.host, &order.matching) {
        (Some(actor), None, None) => Purge::actor(actor)?,
        (None, Some(host), None) => Purge::host(host)?,
        (None, None, Some(pattern)) => Purge::matching(pattern)?,
        _ => return Err(Problem::bad("say one of actor, host and matching")),
    };
    let report = fediverse(&admin)?
        .purge(&what, order.dry_run, (&actor.who, &actor.from))
        .await?;
    Ok(Json(json!({
        "dry_run": order.dry_run,
        "activities": report.activities,
        "deliveries": report.deliveries,
        "objects": report.objects,
    })))
}

fn shown_prune(report: &PruneReport, dry_run: bool) -> Json<Value> {
    let dead = report.dead.iter().map(|one| {
        json!({
            "host": one.host,
            "failing_since": one.failing_since.to_string(),
            "last_error": one.last_error,
            "removed": report.removed.contains(&one.host),
        })
    });
    Json(json!({
        "dry_run": dry_run,
        "dead": dead.collect::<Vec<Value>>(),
        "removed": report.removed,
        "allowance": report.allowance,
    }))
}

pub(super) async fn dead_hosts(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    Ok(shown_prune(&fediverse(&admin)?.dead_hosts(), true))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pruning {
    #[serde(default)]
    confirm: bool,
}

pub(super) async fn prune(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(order): Input<Pruning>,
) -> Answer<Json<Value>> {
    let report = fediverse(&admin)?
        .prune(order.confirm, (&actor.who, &actor.from))
        .await?;
    Ok(shown_prune(&report, false))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Watched {
    host: String,
    after: Option<u64>,
}

pub(super) async fn follow(
    State(admin): State<Arc<Admin>>,
    Params(watched): Params<Watched>,
) -> Answer<Json<Value>> {
    let (lines, next) = fediverse(&admin)?.follow(&watched.host, watched.after)?;
    let shown: Vec<Value> = lines.iter().map(shown_line).collect();
    Ok(Json(json!({"lines": shown, "next": next})))
}

fn shown_line(line: &Line) -> Value {
    match line {
        Line::Received(judged) => {
            let mut shown = shown_judged(judged);
            shown["what"] = json!("received");
            shown
        }
        Line::Sent(sent) => json!({
            "what": "sent",
            "at": sent.at.to_string(),
            "host": sent.host,
            "object": sent.object,
            "outcome": sent.outcome,
            "reason": sent.reason,
        }),
    }
}
