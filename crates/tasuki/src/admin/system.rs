//! Health, metrics, status, reload, keys.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, header};
use serde_json::{Value, json};
use tasuki_core::EngineKind;

use super::Admin;
use super::auth::Caller;
use super::engines::switched_off;
use super::problem::{Answer, Problem};
use crate::exit::chain;

/// The process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The gateway can do its work: its store answers, and it is not about to stop.
pub(super) async fn readyz(State(admin): State<Arc<Admin>>) -> Answer<&'static str> {
    if admin.shutdown.has_begun() {
        return Err(Problem::unavailable("the gateway is stopping"));
    }
    admin.store.ping().await?;
    if !admin.health.is_ready() {
        return Err(Problem::unavailable(admin.reasons().join("; ")));
    }
    Ok("ready\n")
}

/// Prometheus metrics.
pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        admin.metrics.encode(),
    )
        .into_response()
}

pub(super) async fn status(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let reasons = admin.reasons();
    let warnings = admin.warnings().await;
    let mut engines = serde_json::Map::new();
    for engine in admin.live.load().config.engines.iter().copied() {
        engines.insert(engine.name().to_owned(), admin.figures(engine).await);
    }
    let live = admin.live.load();
    let stats = admin.store.stats();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "host": live.config.server.host,
        "public_url": live.shared.public_url,
        "started_at": admin.started_at.to_string(),
        "data": admin.data.path(),
        "listeners": admin.listeners,
        "store": {"kind": admin.store_kind, "size_bytes": stats.size_bytes, "commits": stats.commits,
            "syncs": stats.syncs, "waiting": stats.waiting},
        "memory": {"budget_used_bytes": admin.budget.used_bytes(), "budget_bytes": admin.budget.limit_bytes(),
            "refused": admin.budget.refused()},
        "tls": admin.tls.status(),
        "engines": engines,
        "warnings": warnings,
        "healthy": reasons.is_empty(),
        "reasons": reasons,
    }))
}

pub(super) async fn reload(State(admin): State<Arc<Admin>>, caller: Caller) -> Answer<Json<Value>> {
    match admin.reload().await {
        Ok(applied) => {
            let detail = format!(
                "changed: {}; needs a restart: {}",
                listed(&applied.changed),
                listed(&applied.needs_restart)
            );
            admin
                .store
                .note(caller.audit(admin.clock.wall(), "reload", "configuration", detail))
                .await?;
            Ok(Json(
                json!({"changed": applied.changed, "needs_restart": applied.needs_restart}),
            ))
        }
        Err(fail) => Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, fail.message)),
    }
}

fn listed(keys: &[String]) -> String {
    if keys.is_empty() {
        "nothing".to_owned()
    } else {
        keys.join(", ")
    }
}

pub(super) async fn export_relay_key(State(admin): State<Arc<Admin>>, caller: Caller) -> Answer<Json<Value>> {
    let key = admin
        .secrets
        .load(tasuki_activitypub::RELAY_KEY)
        .await
        .map_err(|e| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&e)))?
        .ok_or_else(|| {
            if admin.engines.fediverse.is_some() {
                Problem::missing("the relay has no key yet")
            } else {
                switched_off(EngineKind::Fediverse)
            }
        })?;
    // Noted before it leaves: an export that nobody could see in the audit must not happen.
    admin
        .store
        .note(caller.audit(admin.clock.wall(), "key.export", "relay", "private key printed"))
        .await?;
    Ok(Json(json!({"pem": super::secrets::pkcs8_pem(&key)})))
}
