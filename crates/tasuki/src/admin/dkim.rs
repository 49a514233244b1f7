//! DKIM keys: making, rotating, listing.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::EngineKind;
use tasuki_proto::names::Domain;
use tasuki_proto::smtp::dkim::Algorithm;
use tasuki_smtp::{DkimError, DkimKey};

use super::Admin;
use super::auth::Caller;
use super::engines::switched_off;
use super::problem::{Answer, Input, Problem};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKeys {
    domain: Domain,
    /// `rsa`, `ed25519`; both if absent.
    #[serde(default)]
    algorithms: Vec<String>,
    #[serde(default)]
    selector: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    #[serde(default)]
    force: bool,
}

pub(super) async fn list(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let keys = mail(&admin)?.dkim_list().await?;
    let shown: Vec<Value> = keys
        .iter()
        .map(|(key, published)| {
            let mut shown = shown(key);
            shown["published"] = json!(published);
            shown
        })
        .collect();
    Ok(Json(json!({"keys": shown})))
}

pub(super) async fn add(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(input): Input<NewKeys>,
) -> Answer<(StatusCode, Json<Value>)> {
    let mut algorithms = Vec::new();
    for name in &input.algorithms {
        let algorithm = match name.as_str() {
            "rsa" => Algorithm::RsaSha256,
            "ed25519" => Algorithm::Ed25519Sha256,
            other => {
                return Err(Problem::bad(format!(
                    "{other:?} is no algorithm; known: rsa, ed25519"
                )));
            }
        };
        if !algorithms.contains(&algorithm) {
            algorithms.push(algorithm);
        }
    }
    if algorithms.is_empty() {
        algorithms = vec![Algorithm::RsaSha256, Algorithm::Ed25519Sha256];
    }
    let made = mail(&admin)?
        .dkim_add(input.domain, &algorithms, input.selector.as_deref(), &actor)
        .await?;
    Ok((StatusCode::CREATED, Json(answer(&made))))
}

pub(super) async fn rotate(
    State(admin): State<Arc<Admin>>,
    Path(domain): Path<String>,
    Caller(actor): Caller,
    Input(input): Input<Rotation>,
) -> Answer<Json<Value>> {
    let made = mail(&admin)?
        .dkim_rotate(parsed(&domain)?, input.force, &actor)
        .await?;
    Ok(Json(answer(&made)))
}

pub(super) async fn remove(
    State(admin): State<Arc<Admin>>,
    Path(domain): Path<String>,
    Caller(actor): Caller,
) -> Answer<StatusCode> {
    mail(&admin)?.dkim_remove(&parsed(&domain)?, &actor).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn parsed(domain: &str) -> Answer<Domain> {
    Domain::parse(domain).map_err(|error| Problem::bad(format!("{domain:?}: {error}")))
}

fn answer(keys: &[DkimKey]) -> Value {
    json!({"keys": keys.iter().map(shown).collect::<Vec<_>>()})
}

fn shown(key: &DkimKey) -> Value {
    json!({
        "domain": key.domain,
        "selector": key.selector,
        "algorithm": key.algorithm,
        "state": key.state,
        "made_at": key.made_at.to_string(),
        "name": key.name,
        "record": key.record,
    })
}

fn mail(admin: &Admin) -> Answer<&tasuki_smtp::Handle> {
    admin
        .engines
        .mail
        .as_ref()
        .ok_or_else(|| switched_off(EngineKind::Mail))
}

impl From<DkimError> for Problem {
    fn from(error: DkimError) -> Self {
        match error {
            DkimError::NoKey(_) => Self::missing(error.to_string()),
            DkimError::Exists(_) | DkimError::SelectorTaken(_) | DkimError::NotPublished { .. } => {
                Self::conflict(error.to_string())
            }
            DkimError::BadSelector(_) => Self::bad(error.to_string()),
            DkimError::Unreadable(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}
