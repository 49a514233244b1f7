//! Access rules, bans and the audit.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::EngineKind;
use tasuki_core::acl::{self, Action, Effect, Origin, Question, RuleSpec};
use tasuki_core::bans::{BanError, Standing};
use tasuki_core::config::duration;
use tasuki_core::ids::{BanId, RuleId};
use tasuki_core::store::bans::Ban;
use tasuki_proto::names::Domain;

use super::Admin;
use super::accounts::quoted;
use super::auth::Caller;
use super::problem::{Answer, Input, Params, Problem};

pub(super) async fn rules(State(admin): State<Arc<Admin>>) -> Json<Value> {
    let rules: Vec<Value> = admin
        .acl
        .rules()
        .iter()
        .map(|(origin, rule)| {
            let mut shown = json!(rule);
            shown["origin"] = json!(origin_text(origin));
            shown["id"] = match origin {
                Origin::Store(id) => json!(id),
                Origin::File(_) => Value::Null,
            };
            shown
        })
        .collect();
    Json(json!({"rules": rules}))
}

pub(super) async fn add_rule(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(rule): Input<LooseRule>,
) -> Answer<(StatusCode, Json<Value>)> {
    let rule = rule.into_rule()?;
    let detail = json!(rule).to_string();
    let audit = caller.audit(admin.clock.wall(), "acl.add", "rule", detail);
    let id = admin.store.add_rule(rule, audit).await?;
    admin.compile_rules().await?;
    Ok((StatusCode::CREATED, Json(json!({"id": id}))))
}

pub(super) async fn remove_rule(
    State(admin): State<Arc<Admin>>,
    Path(id): Path<i64>,
    caller: Caller,
) -> Answer<StatusCode> {
    let audit = caller.audit(admin.clock.wall(), "acl.remove", id.to_string(), "");
    admin.store.remove_rule(RuleId(id), audit).await?;
    admin.compile_rules().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A rule as a person writes it: `from` also takes single addresses, absent values may be null.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LooseRule {
    effect: Effect,
    #[serde(default)]
    engine: Option<EngineKind>,
    #[serde(default)]
    action: Option<Action>,
    #[serde(default)]
    from: Vec<String>,
    #[serde(default)]
    principal: Option<String>,
    #[serde(default)]
    domain: Option<String>,
    #[serde(default)]
    reason: String,
}

impl LooseRule {
    fn into_rule(self) -> Answer<RuleSpec> {
        Ok(RuleSpec {
            effect: self.effect,
            engine: self.engine,
            action: self.action,
            from: self.from.iter().map(|net| network(net)).collect::<Answer<_>>()?,
            principal: self.principal,
            domain: self.domain.as_deref().map(domain).transpose()?,
            reason: self
                .reason
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect(),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Explain {
    engine: EngineKind,
    action: Action,
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    principal: Option<String>,
    #[serde(default)]
    domain: Option<String>,
}

pub(super) async fn explain(
    State(admin): State<Arc<Admin>>,
    Input(input): Input<Explain>,
) -> Answer<Json<Value>> {
    let from: Option<IpAddr> = input
        .from
        .as_deref()
        .map(|text| {
            text.parse()
                .map_err(|_| Problem::bad(format!("{} is not an address", quoted(text))))
        })
        .transpose()?;
    let principal = match &input.principal {
        Some(name) => Some(
            admin
                .store
                .principal_by_name(name)
                .await?
                .ok_or_else(|| Problem::missing(format!("there is nobody called {}", quoted(name))))?,
        ),
        None => None,
    };
    let domain = input.domain.as_deref().map(domain).transpose()?;
    let answer = admin.acl.decide(&Question {
        engine: input.engine,
        action: input.action,
        from,
        principal: principal.as_ref(),
        domain: domain.as_ref(),
    });
    let standing = from.map(|ip| admin.bans.standing(input.engine, ip));
    let mut text = match &answer {
        acl::Answer::Rule {
            effect,
            origin,
            reason,
        } => {
            let done = match effect {
                Effect::Allow => "allowed",
                Effect::Deny => "denied",
            };
            let why = if reason.is_empty() {
                "no reason given"
            } else {
                reason
            };
            format!("{done} by {} ({why})", origin_text(origin))
        }
        acl::Answer::Default => format!("no rule matches; {}", default_text(input.action)),
    };
    if let Some(Standing::Banned(reason)) = &standing {
        text.push_str(&format!(
            ". But the address is banned there: {reason} (see `tasuki ban list`)"
        ));
    }
    let (effect, origin, reason) = match &answer {
        acl::Answer::Rule {
            effect,
            origin,
            reason,
        } => (json!(effect), json!(origin_text(origin)), json!(reason)),
        acl::Answer::Default => (Value::Null, json!("default"), Value::Null),
    };
    let banned = matches!(standing, Some(Standing::Banned(_)));
    Ok(Json(
        json!({"effect": effect, "origin": origin, "reason": reason, "banned": banned, "text": text}),
    ))
}

/// Where a rule stands, in words.
pub(super) fn origin_text(origin: &Origin) -> String {
    match origin {
        Origin::File(n) => format!("rule {n} of the configuration file"),
        Origin::Store(id) => format!("added rule {id}"),
    }
}

/// What holds for an action without a rule, in words; the same as the documentation of [`Action`].
const fn default_text(action: Action) -> &'static str {
    match action {
        Action::Connect => "by default everybody may connect",
        Action::Relay => "by default only what the sender's grants say (mail:send:...)",
        Action::Subscribe => "by default what fediverse.mode says",
        Action::Publish => "by default only subscribed instances, and those with the grant fedi:publish",
        Action::Expose => "by default only what the agent's grants say (tunnel:...)",
        Action::Visit => "by default everybody may visit",
        Action::Admin => "by default what the caller's role says",
    }
}

pub(super) async fn bans(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let bans = admin.bans.list().await?;
    let shown: Vec<Value> = bans.iter().map(shown_ban).collect();
    Ok(Json(json!({"bans": shown})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BanOrder {
    net: String,
    #[serde(default)]
    engine: Option<EngineKind>,
    #[serde(default)]
    lasting: Option<String>,
    #[serde(default)]
    reason: String,
}

pub(super) async fn add_ban(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<BanOrder>,
) -> Answer<(StatusCode, Json<Value>)> {
    let net = network(&input.net)?;
    let lasting = input
        .lasting
        .as_deref()
        .map(|text| duration::parse(text).map_err(Problem::bad))
        .transpose()?;
    let mut reason: String = input
        .reason
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    if reason.is_empty() {
        "by command".clone_into(&mut reason);
    }
    let made = admin
        .bans
        .add(net, input.engine, &reason, lasting, &caller.0)
        .await
        .map_err(|error| match error {
            BanError::Exempt { .. } => Problem::conflict(error.to_string()),
            BanError::Store(error) => error.into(),
        })?;
    Ok((StatusCode::CREATED, Json(shown_ban(&made))))
}

pub(super) async fn remove_ban(
    State(admin): State<Arc<Admin>>,
    Path(which): Path<String>,
    caller: Caller,
) -> Answer<StatusCode> {
    let chosen: Vec<Ban> = {
        let all = admin.bans.list().await?;
        match which.parse::<i64>() {
            Ok(id) => all.into_iter().filter(|ban| ban.id == BanId(id)).collect(),
            Err(_) => {
                let net = network(&which)?;
                all.into_iter().filter(|ban| ban.net == net).collect()
            }
        }
    };
    if chosen.is_empty() {
        return Err(Problem::missing(format!(
            "no ban {} holds; see `tasuki ban list`",
            quoted(&which)
        )));
    }
    for ban in chosen {
        admin.bans.remove(ban.id, &caller.0).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

fn shown_ban(ban: &Ban) -> Value {
    json!({
        "id": ban.id,
        "net": ban.net,
        "engine": ban.engine,
        "reason": ban.reason,
        "by": ban.by,
        "since": ban.since.to_string(),
        "until": ban.until.map(|t| t.to_string()),
        "repeats": ban.repeats,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditPage {
    #[serde(default)]
    limit: Option<usize>,
    /// Milliseconds since 1970: only older entries.
    #[serde(default)]
    before: Option<i64>,
}

pub(super) async fn audit(
    State(admin): State<Arc<Admin>>,
    Params(page): Params<AuditPage>,
) -> Answer<Json<Value>> {
    let limit = page.limit.unwrap_or(50).clamp(1, 10_000);
    let before = page.before.map(tasuki_core::clock::Timestamp);
    let entries: Vec<Value> = admin
        .store
        .audit(before, limit)
        .await?
        .into_iter()
        .map(|entry| {
            json!({"at": entry.at.to_string(), "who": entry.who, "from": entry.from, "action": entry.action,
                "object": entry.object, "detail": entry.detail})
        })
        .collect();
    Ok(Json(json!({"entries": entries})))
}

/// A network, or a single address as one.
fn network(text: &str) -> Answer<IpNet> {
    let text = text.trim();
    text.parse::<IpNet>()
        .map(|net| net.trunc())
        .or_else(|_| {
            text.parse::<IpAddr>()
                .map(|ip| IpNet::from(tasuki_core::net::unmapped(ip)))
        })
        .map_err(|_| {
            Problem::bad(format!(
                "{} is not an address or network; write for example 192.0.2.7 or 2001:db8::/48",
                quoted(text)
            ))
        })
}

fn domain(text: &str) -> Answer<Domain> {
    text.parse()
        .map_err(|e| Problem::bad(format!("{} is not a domain: {e}", quoted(text))))
}
