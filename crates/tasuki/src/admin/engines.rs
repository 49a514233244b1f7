//! The engines' own listings and orders: subscribers, agents. The mail queue is in `mail`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_activitypub::{Applicant, HandleError, SubscriberStatus};
use tasuki_core::EngineKind;
use tasuki_core::accounts::{Grant, PrincipalKind};
use tasuki_core::store::accounts::Principal;
use tasuki_core::store::fedi::DeliveryForm;
use tasuki_core::store::tunnel::Endpoint;
use tasuki_tunnel::NotReleased;

use super::Admin;
use super::accounts::span;
use super::auth::Caller;
use super::problem::{Answer, Input, Params, Problem};

pub(super) async fn subscribers(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let all = fediverse(&admin)?.subscribers().await?;
    let shown: Vec<Value> = all.into_iter().map(shown_subscriber).collect();
    Ok(Json(json!({"subscribers": shown})))
}

/// Who waits for approval, and what these instances say of themselves.
pub(super) async fn applicants(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let all = fediverse(&admin)?.applicants().await?;
    let shown: Vec<Value> = all.into_iter().map(shown_applicant).collect();
    Ok(Json(json!({"subscribers": shown})))
}

fn shown_applicant(applicant: Applicant) -> Value {
    let Applicant {
        subscriber,
        facts,
        made,
    } = applicant;
    let mut shown = shown_subscriber(subscriber);
    if let Some(facts) = facts {
        shown["software"] = json!(facts.software);
        shown["users"] = json!(facts.users);
        shown["registrations"] = json!(facts.open_registrations.map(|is_open| match is_open {
            true => "open",
            false => "closed",
        }));
    }
    shown["made"] = json!(made.map(|at| at.to_string()));
    shown
}

pub(super) fn shown_subscriber(subscriber: SubscriberStatus) -> Value {
    let lane = subscriber.deliveries.as_ref();
    json!({
        "host": subscriber.host,
        "topic": subscriber.topic,
        "joined": if subscriber.topic.is_empty() { "relay" } else { &subscriber.topic },
        "actor": subscriber.actor,
        "inbox": subscriber.inbox,
        "style": subscriber.style,
        "state": subscriber.state,
        "software": subscriber.software,
        "form": subscriber.form,
        "form_reason": subscriber.form_reason,
        "signature": subscriber.signature,
        "signature_reason": subscriber.signature_reason,
        "since": subscriber.since.to_string(),
        "failing_since": subscriber.failing_since.map(|at| at.to_string()),
        "suspended_at": subscriber.suspended_at.map(|at| at.to_string()),
        "waiting": lane.map_or(0, |l| l.waiting),
        "parked": lane.map_or(0, |l| l.parked),
        "failures": lane.map_or(0, |l| l.failures),
        "next_try": lane.and_then(|l| l.next_try).map(|t| t.to_string()),
        "last_error": lane.and_then(|l| l.last_error.clone()),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WhatOfIt {
    /// A topic; without it all that the host joined. `relay` is the whole relay.
    topic: Option<String>,
}

pub(super) async fn remove_subscriber(
    State(admin): State<Arc<Admin>>,
    Path(host): Path<String>,
    Params(what): Params<WhatOfIt>,
    Caller(actor): Caller,
) -> Answer<StatusCode> {
    let topic = what
        .topic
        .as_deref()
        .map(|topic| if topic == "relay" { "" } else { topic });
    fediverse(&admin)?
        .remove(&host, topic, &actor.who, &actor.from)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn approve_subscriber(
    State(admin): State<Arc<Admin>>,
    Path(host): Path<String>,
    Caller(actor): Caller,
) -> Answer<StatusCode> {
    fediverse(&admin)?.approve(&host, &actor.who, &actor.from).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FormChoice {
    /// `forward`, `announce`, or `null` to leave it to the gateway.
    form: Option<DeliveryForm>,
}

pub(super) async fn choose_form(
    State(admin): State<Arc<Admin>>,
    Path(host): Path<String>,
    Caller(actor): Caller,
    Input(choice): Input<FormChoice>,
) -> Answer<StatusCode> {
    fediverse(&admin)?
        .choose_form(&host, choice.form, &actor.who, &actor.from)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn fediverse(admin: &Admin) -> Answer<&tasuki_activitypub::Handle> {
    admin
        .engines
        .fediverse
        .as_ref()
        .ok_or_else(|| switched_off(EngineKind::Fediverse))
}

impl From<HandleError> for Problem {
    fn from(error: HandleError) -> Self {
        match error {
            HandleError::NotAHost(_) | HandleError::NotARule(_) | HandleError::NotATopic(_) => {
                Self::bad(error.to_string())
            }
            HandleError::NotSubscribed(_)
            | HandleError::NoSuchRule(_)
            | HandleError::NoSuchList(_)
            | HandleError::NoFilter(_) => Self::missing(error.to_string()),
            HandleError::AlreadyActive(_)
            | HandleError::NoHost
            | HandleError::OurFault(_)
            | HandleError::KeyChanging(_)
            | HandleError::KeyInUse => Self::conflict(error.to_string()),
            HandleError::Key(_) => Self::unavailable(error.to_string()),
            HandleError::Store(error) => error.into(),
        }
    }
}

pub(super) async fn agents(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let live = admin
        .engines
        .tunnel
        .as_ref()
        .map(tasuki_tunnel::Handle::agents)
        .unwrap_or_default();
    let endpoints = admin.store.endpoints().await?;
    let principals = admin.store.principals().await?;
    let shown: Vec<Value> = principals
        .iter()
        .filter(|p| p.kind == PrincipalKind::Agent)
        .map(|agent| {
            let mut shown = shown_agent(agent, &endpoints);
            match live.iter().find(|line| line.agent == agent.id) {
                None => shown["connected"] = json!(false),
                Some(line) => {
                    shown["connected"] = json!(true);
                    shown["from"] = json!(line.address);
                    shown["connected_at"] = json!(line.since.to_string());
                    shown["software"] = json!(line.software);
                    shown["transport"] = json!(line.transport);
                    shown["rtt_us"] = json!(line.rtt_us);
                    shown["connections"] = json!(line.connections);
                    shown["sent_bytes"] = json!(line.sent_bytes);
                    shown["received_bytes"] = json!(line.received_bytes);
                    shown["open"] = json!(line.endpoints);
                }
            }
            shown
        })
        .collect();
    Ok(Json(json!({"agents": shown})))
}

fn shown_agent(agent: &Principal, endpoints: &[Endpoint]) -> Value {
    let owned: Vec<String> = endpoints
        .iter()
        .filter(|endpoint| endpoint.agent == agent.id)
        .map(|endpoint| endpoint.kind.to_string())
        .collect();
    json!({
        "name": agent.name,
        "grants": agent.grants,
        "disabled": agent.disabled,
        "since": agent.created_at.to_string(),
        "endpoints": owned,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Enrolment {
    name: String,
    #[serde(default)]
    grants: Vec<Grant>,
    #[serde(default)]
    valid_for: Option<String>,
}

pub(super) async fn enrol(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<Enrolment>,
) -> Answer<(StatusCode, Json<Value>)> {
    let tunnel = admin
        .engines
        .tunnel
        .as_ref()
        .ok_or_else(|| switched_off(EngineKind::Tunnel))?;
    if let Some(strange) = input.grants.iter().find(|g| !is_tunnel_grant(g)) {
        return Err(Problem::bad(format!(
            "{strange} is not for an agent; known: tunnel:name:DOMAIN, tunnel:default, tunnel:port:FROM-TO, tunnel:udp:FROM-TO, tunnel:share:GROUP, \
             tunnel:bandwidth:BYTES, tunnel:connections:N"
        )));
    }
    let valid_for = span(input.valid_for.as_deref().unwrap_or("10m"))?;
    let made = admin
        .accounts
        .create_agent_code(&input.name, input.grants, valid_for, &caller.0)
        .await?;
    let code = made.secret.expose();
    let expires_at = admin.clock.wall().plus(valid_for);
    let pin = tunnel.fingerprint().to_string();
    let gateway = admin.tunnel_address();
    let endpoints: String = made.principal.grants.iter().filter_map(endpoint_option).collect();
    let tls = admin.tls_address();
    let tls_option = tls
        .as_deref()
        .map_or_else(String::new, |tls| format!(" --tls {tls}"));
    let command =
        format!("tasuki-agent run --gateway {gateway}{tls_option} --pin {pin} --code {code}{endpoints}");
    let answer = json!({
        "name": made.principal.name,
        "code": code,
        "pin": pin,
        "gateway": gateway,
        "tls": tls,
        "command": command,
        "expires_at": expires_at.to_string(),
    });
    Ok((StatusCode::CREATED, Json(answer)))
}

pub(super) async fn revoke_agent(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    caller: Caller,
) -> Answer<StatusCode> {
    let agent = admin.of_kind(&name, PrincipalKind::Agent).await?;
    admin.accounts.delete(&name, &caller.0).await?;
    if let Some(tunnel) = &admin.engines.tunnel {
        tunnel.revoke(agent.id);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Gives up a name or port that an agent serves no longer. A name is kept for its agent for 30 days more.
pub(super) async fn release_endpoint(
    State(admin): State<Arc<Admin>>,
    Path((name, label)): Path<(String, String)>,
    Caller(actor): Caller,
) -> Answer<StatusCode> {
    let agent = admin.of_kind(&name, PrincipalKind::Agent).await?;
    let tunnel = admin.engines.tunnel.as_ref();
    let tunnel = tunnel.ok_or_else(|| switched_off(EngineKind::Tunnel))?;
    let now = admin.clock.wall();
    let entry = |endpoint: &Endpoint| {
        let object = format!("{name} {label}");
        actor.entry(now, "tunnel.release", object, endpoint.kind.to_string())
    };
    match tunnel.release(agent.id, &label, entry).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(NotReleased::Missing) => Err(Problem::missing(format!(
            "{name} has no endpoint {label:?}; `tasuki tunnel show {name}` lists them"
        ))),
        Err(NotReleased::Served) => Err(Problem::conflict(format!(
            "{label} is served now: take it out of the agent's settings and start it again first, or revoke {name}"
        ))),
        Err(NotReleased::Store(error)) => Err(error.into()),
    }
}

/// Sessions that last would go on by what was decided at their start: after each change they are looked at anew.
pub(super) async fn look_again_after_changes(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    let is_change = request.method() != Method::GET;
    let response = next.run(request).await;
    if is_change
        && response.status().is_success()
        && let Some(tunnel) = &admin.engines.tunnel
    {
        tunnel.look_again();
    }
    response
}

/// What the agent may serve, as its command line says it: a server on the agent's machine, on its usual port.
fn endpoint_option(grant: &Grant) -> Option<String> {
    match grant {
        Grant::ExposeDefault => Some(" --minecraft 127.0.0.1:25565".to_owned()),
        Grant::ExposeName(name) => Some(format!(" --minecraft {name}=127.0.0.1:25565")),
        Grant::ExposePorts(port, _) => Some(format!(" --tcp {port}=127.0.0.1:{port}")),
        Grant::ExposeUdp(port, _) => Some(format!(" --udp {port}=127.0.0.1:{port}")),
        _ => None,
    }
}

const fn is_tunnel_grant(grant: &Grant) -> bool {
    matches!(
        grant,
        Grant::ExposeName(_)
            | Grant::ExposeDefault
            | Grant::ExposePorts(..)
            | Grant::ExposeUdp(..)
            | Grant::ShareWith(_)
            | Grant::Bandwidth(_)
            | Grant::Connections(_)
    )
}

/// The engine was not chosen.
pub(super) fn switched_off(engine: EngineKind) -> Problem {
    Problem::conflict(format!(
        "the {engine} engine is switched off here: add \"{engine}\" to `engines` in the configuration and restart"
    ))
}
