//! Who plays now, over all agents or with one.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::EngineKind;
use tasuki_core::accounts::PrincipalKind;

use super::Admin;
use super::engines::switched_off;
use super::problem::{Answer, Problem};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    agent: Option<String>,
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, Query(asked): Query<Asked>) -> Answer<Json<Value>> {
    let tunnel = admin.engines.tunnel.clone();
    let tunnel = tunnel.ok_or_else(|| switched_off(EngineKind::Tunnel))?;
    if let Some(name) = &asked.agent {
        // A name that is mistyped must not look like a server that nobody plays on.
        admin.of_kind(name, PrincipalKind::Agent).await?;
    }
    let work = move || tunnel.visitors(asked.agent.as_deref());
    let visitors = tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Problem::unavailable("the list was not made: the gateway stops"))?;
    let players: Vec<Value> = visitors
        .iter()
        .map(|visitor| {
            let mut shown = json!(visitor);
            shown["since"] = json!(visitor.since.to_string());
            shown
        })
        .collect();
    Ok(Json(json!({"players": players})))
}
