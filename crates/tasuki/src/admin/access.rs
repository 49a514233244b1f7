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
use tasuki_core::acl::{self, Action, Effect, Explanation, Origin, Question, RuleSpec};
use tasuki_core::bans::BanError;
use tasuki_core::config::duration;
use tasuki_core::ids::{BanId, RuleId};
use tasuki_core::store::accounts::Principal;
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
            shown["origin"] = json!(origin.to_string());
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
    /// An address, the name of a principal, or a domain.
    #[serde(default)]
    who: Option<String>,
    /// Without it: every engine that asks about the action.
    #[serde(default)]
    engine: Option<EngineKind>,
    /// Without it: every action.
    #[serde(default)]
    action: Option<Action>,
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    principal: Option<String>,
    #[serde(default)]
    domain: Option<String>,
}

/// Whom a question is about.
#[derive(Default)]
struct About {
    from: Option<IpAddr>,
    principal: Option<Principal>,
    domain: Option<Domain>,
}

pub(super) async fn explain(
    State(admin): State<Arc<Admin>>,
    Input(input): Input<Explain>,
) -> Answer<Json<Value>> {
    let about = admin.about(&input).await?;
    let answers: Vec<Value> = asked(input.engine, input.action)?
        .into_iter()
        .map(|(engine, action)| {
            let question = Question {
                engine,
                action,
                from: about.from,
                principal: about.principal.as_ref(),
                domain: about.domain.as_ref(),
            };
            shown_explanation(&admin.acl.explain(&question, &admin.bans))
        })
        .collect();
    Ok(Json(json!({
        "from": about.from,
        "principal": about.principal.map(|p| p.name),
        "domain": about.domain,
        "answers": answers,
    })))
}

/// The questions that an engine and an action, each of them perhaps left out, stand for.
fn asked(engine: Option<EngineKind>, action: Option<Action>) -> Answer<Vec<(EngineKind, Action)>> {
    let actions = Action::ALL
        .into_iter()
        .filter(|a| action.is_none_or(|wanted| wanted == *a));
    let mut questions = Vec::new();
    for action in actions {
        match (action, engine) {
            // It belongs to no engine, so any will do.
            (Action::Admin, None) => questions.push((EngineKind::Mail, action)),
            (_, Some(engine)) => {
                questions.extend(action.engines().contains(&engine).then_some((engine, action)))
            }
            (_, None) => questions.extend(action.engines().iter().map(|engine| (*engine, action))),
        }
    }
    if questions.is_empty() {
        let (engine, action) = (
            engine.map_or("no", EngineKind::name),
            action.map_or("no action", Action::name),
        );
        return Err(Problem::bad(format!(
            "the {engine} engine never asks about {action}"
        )));
    }
    Ok(questions)
}

fn shown_explanation(explained: &Explanation) -> Value {
    let (effect, origin, reason) = match &explained.answer {
        acl::Answer::Rule {
            effect,
            origin,
            reason,
        } => (json!(effect), json!(origin.to_string()), json!(reason)),
        acl::Answer::Default => (Value::Null, json!("default"), Value::Null),
    };
    json!({"engine": explained.engine, "action": explained.action, "effect": effect, "origin": origin, "reason": reason,
        "banned": explained.is_banned(), "text": explained.to_string()})
}

impl Admin {
    async fn about(&self, input: &Explain) -> Answer<About> {
        let mut about = match &input.who {
            Some(who) => self.whoever(who).await?,
            None => About::default(),
        };
        if let Some(text) = &input.from {
            let from = text.parse();
            about.from = Some(from.map_err(|_| Problem::bad(format!("{} is not an address", quoted(text))))?);
        }
        if let Some(name) = &input.principal {
            about.principal = Some(self.named(name).await?);
        }
        if let Some(text) = &input.domain {
            about.domain = Some(domain(text)?);
        }
        Ok(about)
    }

    /// An address, a principal or a domain, in this order.
    async fn whoever(&self, who: &str) -> Answer<About> {
        let mut about = About::default();
        if let Ok(ip) = who.parse::<IpAddr>() {
            about.from = Some(ip);
        } else if let Some(principal) = self.store.principal_by_name(who).await? {
            about.principal = Some(principal);
        } else if let Some(domain) = who.parse::<Domain>().ok().filter(|_| who.contains('.')) {
            about.domain = Some(domain);
        } else {
            return Err(Problem::missing(format!(
                "{} is no address, nobody's name here, and no domain",
                quoted(who)
            )));
        }
        Ok(about)
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
