//! Moderation of the fediverse: rules, lists of hosts, and why something was relayed or not.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_activitypub::Judged;
use tasuki_core::store::fedi::{ModerationEffect, ModerationKind, ModerationRule};

use super::Admin;
use super::auth::Caller;
use super::engines::{fediverse, shown_subscriber};
use super::problem::{Answer, Input, Params};

fn shown_rule(rule: &ModerationRule) -> Value {
    json!({
        "effect": rule.effect,
        "kind": rule.kind,
        "subject": rule.subject,
        "reason": rule.reason,
        "since": rule.at.to_string(),
    })
}

pub(super) async fn rules(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let rules = fediverse(&admin)?.rules().await?;
    let shown: Vec<Value> = rules.iter().map(shown_rule).collect();
    Ok(Json(json!({"rules": shown})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRule {
    effect: ModerationEffect,
    kind: ModerationKind,
    subject: String,
    #[serde(default)]
    reason: String,
}

pub(super) async fn add_rule(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(new): Input<NewRule>,
) -> Answer<(StatusCode, Json<Value>)> {
    let removed = fediverse(&admin)?
        .moderate(
            new.effect,
            new.kind,
            &new.subject,
            &new.reason,
            (&actor.who, &actor.from),
        )
        .await?;
    Ok((StatusCode::CREATED, Json(json!({"removed_subscribers": removed}))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OldRule {
    kind: ModerationKind,
    subject: String,
}

pub(super) async fn lift_rule(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(old): Input<OldRule>,
) -> Answer<StatusCode> {
    fediverse(&admin)?
        .lift(old.kind, &old.subject, (&actor.who, &actor.from))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlockList {
    text: String,
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn import_blocklist(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(list): Input<BlockList>,
) -> Answer<Json<Value>> {
    let report = fediverse(&admin)?
        .import_blocklist(&list.text, list.dry_run, (&actor.who, &actor.from))
        .await?;
    let added: Vec<Value> = report.added.iter().map(shown_rule).collect();
    let skipped: Vec<Value> = report
        .skipped
        .iter()
        .map(|(line, why)| json!({"line": line, "why": why}))
        .collect();
    Ok(Json(json!({
        "dry_run": list.dry_run,
        "added": added,
        "known": report.known,
        "kept": report.kept,
        "removed_subscribers": report.removed_subscribers,
        "skipped": skipped,
    })))
}

pub(super) async fn export_blocklist(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let text = fediverse(&admin)?.export_blocklist().await?;
    Ok(Json(json!({"text": text})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    about: String,
}

pub(super) async fn why(
    State(admin): State<Arc<Admin>>,
    Params(asked): Params<Asked>,
) -> Answer<Json<Value>> {
    let why = fediverse(&admin)?.why(&asked.about).await?;
    let judged: Vec<Value> = why.judged.iter().map(shown_judged).collect();
    Ok(Json(json!({
        "subscriber": why.subscriber.map(shown_subscriber),
        "filter": why.filter.as_ref().map(super::topics::shown_filter),
        "further": why.further.into_iter().map(shown_subscriber).collect::<Vec<Value>>(),
        "verdicts": why.verdicts,
        "judged": judged,
    })))
}

pub(super) fn shown_judged(one: &Judged) -> Value {
    json!({
        "at": one.at.to_string(),
        "from": one.from,
        "signer": one.signer,
        "kind": one.kind,
        "id": one.id,
        "actor": one.actor,
        "object": one.object,
        "status": one.status,
        "outcome": one.outcome,
        "reason": one.reason,
    })
}
