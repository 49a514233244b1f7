//! The mail queue in an operator's hands: listings, orders, destinations.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::EngineKind;
use tasuki_core::store::mail::{LaneKey, Order, Paused, QueueFilter, QueueMatch, QueueRow, QueueState};
use tasuki_smtp::LaneStatus;

use super::Admin;
use super::accounts::{quoted, span};
use super::auth::Caller;
use super::engines::switched_off;
use super::problem::{Answer, Input, Params, Problem};

/// Rows that are looked at for the commonest errors of a destination.
const SAMPLE: usize = 500;

/// Which part of the queue, as a person says it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Filters {
    sender: Option<String>,
    to: Option<String>,
    recipient: Option<String>,
    mail: Option<String>,
    state: Option<QueueState>,
    older_than: Option<String>,
    principal: Option<String>,
    destination: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

impl Filters {
    async fn understood(&self, admin: &Admin) -> Answer<QueueFilter> {
        let id = |text: &Option<String>| {
            let parsed = text.as_deref().map(str::parse).transpose();
            parsed.map_err(|e: tasuki_core::ids::BadMailId| Problem::bad(e.to_string()))
        };
        let age = self.older_than.as_deref().map(span).transpose()?;
        let principal = match &self.principal {
            Some(name) => Some(admin.named(name).await?.id),
            None => None,
        };
        Ok(QueueFilter {
            sender: self.sender.clone(),
            recipient_domain: self.to.clone(),
            recipient: self.recipient.clone(),
            message_id: None,
            mail: id(&self.mail)?,
            mails: std::collections::BTreeSet::new(),
            state: self.state,
            taken_before: age.map(|age| admin.clock.wall().minus(age)),
            principal,
            lane: self.destination.as_deref().map(lane_named),
            after: id(&self.after)?,
        })
    }

    /// For the audit: what was asked for, in the words of the command line.
    fn in_words(&self) -> String {
        let state = self.state.map(|state| state.name().to_owned());
        let parts = [
            ("sender", &self.sender),
            ("to", &self.to),
            ("recipient", &self.recipient),
            ("mail", &self.mail),
            ("state", &state),
            ("older than", &self.older_than),
            ("principal", &self.principal),
            ("destination", &self.destination),
        ];
        let named = parts
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let all: Vec<String> = named
            .map(|(name, value)| format!("{name} {}", quoted(value)))
            .collect();
        if all.is_empty() {
            "all".to_owned()
        } else {
            all.join(", ")
        }
    }
}

/// `via:NAME` and `mx:DOMAIN` as they are, anything else as a domain.
fn lane_named(text: &str) -> LaneKey {
    if text.starts_with("via:") || text.starts_with("mx:") || text == LaneKey::ALL {
        LaneKey(text.to_owned())
    } else {
        LaneKey(format!("mx:{}", text.to_ascii_lowercase()))
    }
}

pub(super) fn engine(admin: &Admin) -> Answer<&tasuki_smtp::Handle> {
    let mail = admin.engines.mail.as_ref();
    mail.ok_or_else(|| switched_off(EngineKind::Mail))
}

pub(super) async fn queue(
    State(admin): State<Arc<Admin>>,
    Params(page): Params<Filters>,
) -> Answer<Json<Value>> {
    let filter = page.understood(&admin).await?;
    let limit = page.limit.unwrap_or(100).clamp(1, 10_000);
    let rows = admin.store.queue(&filter, limit).await?;
    let counts = admin.store.queue_counts().await?;
    let names = admin.names().await?;
    let shown: Vec<Value> = rows.iter().map(|row| shown_row(row, &names)).collect();
    Ok(Json(json!({
        "queue": shown,
        "mails": counts.mails,
        "deferred": counts.deferred,
        "oldest": counts.oldest.map(|t| t.to_string()),
    })))
}

pub(super) fn shown_row(row: &QueueRow, names: &BTreeMap<i64, String>) -> Value {
    let mut shown = json!({
        "mail": row.mail,
        "delivery": row.delivery,
        "lane": row.lane,
        "state": row.state,
        "rerouted": row.rerouted,
        "principal": row.principal.map(|id| names.get(&id.0).cloned().unwrap_or_else(|| format!("number {id}"))),
        // The null reverse-path of reports is written as on the wire (RFC 5321 4.5.5).
        "reverse_path": Some(row.reverse_path.to_string()).filter(|path| !path.is_empty()).unwrap_or_else(|| "<>".to_owned()),
        "recipients": row.recipients,
        "size_bytes": row.size_bytes,
        "accepted_at": row.accepted_at.to_string(),
        "expires_at": row.expires_at.to_string(),
        "attempts": row.attempts,
        "next_try": row.next_try.map(|t| t.to_string()),
        "last_error": row.last_error,
    });
    if !row.history.is_empty() {
        let history = row
            .history
            .iter()
            .map(|a| json!({"at": a.at.to_string(), "attempt": a.attempt, "lane": a.lane, "words": a.words}));
        shown["history"] = history.collect();
    }
    shown
}

pub(super) async fn count(
    State(admin): State<Arc<Admin>>,
    Params(filters): Params<Filters>,
) -> Answer<Json<QueueMatch>> {
    let filter = filters.understood(&admin).await?;
    Ok(Json(admin.store.queue_match(&filter).await?))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verb {
    Hold,
    Release,
    Retry,
    Reroute,
    Bounce,
    Delete,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderInput {
    order: Verb,
    filter: Filters,
    /// For `reroute`.
    #[serde(default)]
    via: Option<String>,
}

pub(super) async fn order(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<OrderInput>,
) -> Answer<Json<Value>> {
    let mail = engine(&admin)?;
    if input.filter.state == Some(QueueState::Fresh) {
        return Err(Problem::bad(
            "fresh mail is being tried; leave the state out, and what nobody tries at this moment is ordered too",
        ));
    }
    let filter = input.filter.understood(&admin).await?;
    let (order, action) = match (input.order, input.via.as_deref()) {
        (Verb::Hold, _) => (Order::Hold, "mail.hold"),
        (Verb::Release, _) => (Order::Release, "mail.release"),
        (Verb::Retry, _) => (Order::Retry, "mail.retry"),
        (Verb::Bounce, _) => (Order::Bounce, "mail.bounce"),
        (Verb::Delete, _) => (Order::Delete, "mail.delete"),
        (Verb::Reroute, Some(via)) => (Order::Reroute(admin.known_way(via)?), "mail.reroute"),
        (Verb::Reroute, None) => {
            return Err(Problem::bad(
                "say through what: the name of a smarthost, or a domain",
            ));
        }
    };
    let detail = input.via.map_or_else(String::new, |via| format!("via {via}"));
    let audit = caller.audit(admin.clock.wall(), action, input.filter.in_words(), detail);
    let deliveries = mail.order(&filter, &order, &audit).await?;
    Ok(Json(json!({"deliveries": deliveries})))
}

pub(super) async fn lanes(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let mail = engine(&admin)?;
    let paused = admin.store.paused_lanes().await?;
    let in_memory = mail.status().lanes;
    let mut all: Vec<Value> = in_memory
        .iter()
        .map(|lane| {
            let mut shown = json!(lane);
            shown["paused"] = json!(paused.iter().any(|p| p.lane.0 == lane.lane));
            shown
        })
        .collect();
    for rest in paused
        .iter()
        .filter(|p| !in_memory.iter().any(|l| l.lane == p.lane.0))
    {
        all.push(json!({"lane": rest.lane, "paused": true}));
    }
    Ok(Json(json!({"lanes": all})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseInput {
    #[serde(default)]
    reason: String,
}

pub(super) async fn pause(
    State(admin): State<Arc<Admin>>,
    Path(destination): Path<String>,
    caller: Caller,
    Input(input): Input<PauseInput>,
) -> Answer<Json<Value>> {
    let mail = engine(&admin)?;
    let lane = admin.destination(&destination)?;
    let now = admin.clock.wall();
    let reason: String = input
        .reason
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    let audit = caller.audit(now, "mail.pause", lane.0.clone(), reason.clone());
    let paused = Paused {
        lane: lane.clone(),
        since: now,
        by: caller.0.who.clone(),
        reason,
    };
    mail.pause(paused, audit).await?;
    Ok(Json(json!({"lane": lane})))
}

pub(super) async fn resume(
    State(admin): State<Arc<Admin>>,
    Path(destination): Path<String>,
    caller: Caller,
) -> Answer<Json<Value>> {
    let lane = lane_named(&destination);
    let audit = caller.audit(admin.clock.wall(), "mail.resume", lane.0.clone(), "");
    let deliveries = engine(&admin)?.resume(&lane, &audit).await?;
    Ok(Json(json!({"lane": lane, "deliveries": deliveries})))
}

/// Why mail for a destination is slow.
pub(super) async fn why(
    State(admin): State<Arc<Admin>>,
    Path(destination): Path<String>,
) -> Answer<Json<Value>> {
    let mail = engine(&admin)?;
    let (lane, through) = match admin.destination(&destination) {
        Ok(lane) => (lane, None),
        Err(_) => {
            let lane = mail
                .lane_to_domain(&destination)
                .unwrap_or_else(|| lane_named(&destination));
            (lane.clone(), Some(lane))
        }
    };
    let filter = QueueFilter {
        lane: Some(lane.clone()),
        ..QueueFilter::default()
    };
    let waiting = admin.store.queue_match(&filter).await?;
    let rows = admin.store.queue(&filter, SAMPLE).await?;
    let paused = admin
        .store
        .paused_lanes()
        .await?
        .into_iter()
        .find(|p| p.lane == lane || p.lane.0 == LaneKey::ALL);
    let memory = mail.lanes_of(&lane);
    let mut times_by_error: BTreeMap<&str, usize> = BTreeMap::new();
    for error in rows.iter().filter_map(|row| row.last_error.as_deref()) {
        *times_by_error.entry(error).or_default() += 1;
    }
    let mut errors: Vec<(&str, usize)> = times_by_error.into_iter().collect();
    errors.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    errors.truncate(5);
    let mut text = Vec::new();
    if let Some(way) = &through {
        text.push(format!("mail for {destination} goes through {}", way.0));
    }
    text.extend(reasons(paused.as_ref(), &memory));
    text.extend(waiting_words(&waiting, &rows));
    for (words, times) in &errors {
        text.push(format!("{times} of them failed last with: {words}"));
    }
    Ok(Json(json!({
        "lane": lane,
        "paused": paused.as_ref().map(|p| json!({"since": p.since.to_string(), "by": p.by, "reason": p.reason})),
        "waiting": waiting,
        "memory": memory,
        "errors": errors.iter().map(|(words, times)| json!({"words": words, "times": times})).collect::<Vec<_>>(),
        "text": text,
    })))
}

/// That nothing is sent at all.
pub(super) async fn paused_all(admin: &Admin) -> Option<String> {
    let paused = admin.store.paused_lanes().await.unwrap_or_default();
    let all = paused.into_iter().find(|p| p.lane.0 == LaneKey::ALL)?;
    let why = match all.reason.as_str() {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    Some(format!(
        "no mail is sent since {}: paused by {}{why}. `tasuki mail resume '*'` sends what waits",
        all.since, all.by
    ))
}

fn reasons(paused: Option<&Paused>, memory: &[LaneStatus]) -> Vec<String> {
    let mut text = Vec::new();
    if let Some(pause) = paused {
        let reason = if pause.reason.is_empty() {
            "no reason given"
        } else {
            &pause.reason
        };
        text.push(format!(
            "it is paused since {} by {} ({reason})",
            pause.since, pause.by
        ));
    }
    for lane in memory {
        text.extend(pace(lane));
        if let Some(rest) = lane.rests_s {
            let error = lane.last_error.as_deref().unwrap_or("nothing was said");
            text.push(format!(
                "{} failed {} times in a row and rests for another {rest} s: {error}",
                lane.lane, lane.failures
            ));
        } else if lane.workers > 0 {
            text.push(format!(
                "{} is being delivered to over {} connections, {} deliveries wait for one",
                lane.lane, lane.workers, lane.queued
            ));
        }
    }
    text
}

/// How fast mail may go there, where that is not the usual.
fn pace(lane: &LaneStatus) -> Option<String> {
    let rule = lane.provider.as_ref();
    if rule.is_none() && !lane.slowed {
        return None;
    }
    let rule = rule.map_or_else(String::new, |name| format!(" (rule {name})"));
    let why = if lane.slowed {
        ", because the receiver said that mail came too fast"
    } else {
        ""
    };
    let pause = lane
        .pause_ms
        .map_or_else(String::new, |pause| format!(", one mail every {pause} ms"));
    Some(format!(
        "{}{rule} may have {} connections{pause}{why}",
        lane.lane, lane.allowed
    ))
}

fn waiting_words(waiting: &QueueMatch, rows: &[QueueRow]) -> Vec<String> {
    let Some(oldest) = rows.first() else {
        return vec!["nothing waits for it".to_owned()];
    };
    let mut text = vec![format!(
        "{} deliveries wait ({} of them fresh), the oldest since {}",
        waiting.deliveries, waiting.fresh, oldest.accepted_at
    )];
    let next = rows
        .iter()
        .filter(|r| r.state == QueueState::Deferred)
        .filter_map(|r| r.next_try)
        .min();
    text.extend(next.map(|at| format!("the next attempt is at {at}")));
    let held = rows.iter().filter(|row| row.state == QueueState::Held).count();
    if held > 0 {
        text.push(format!(
            "{held} of them are held: `tasuki mail queue release` lets them go"
        ));
    }
    text
}

impl Admin {
    /// Principals' names by number.
    pub(super) async fn names(&self) -> Answer<BTreeMap<i64, String>> {
        let all = self.store.principals().await?;
        Ok(all.into_iter().map(|p| (p.id.0, p.name)).collect())
    }

    /// The lane of a destination that has one of its own.
    fn destination(&self, text: &str) -> Answer<LaneKey> {
        let lane = lane_named(text);
        if lane.0 == LaneKey::ALL {
            return Ok(lane);
        }
        match engine(self)?.lane_to_domain(text) {
            Some(real) if real != lane => Err(Problem::conflict(format!(
                "mail for {text} goes through {}, as that of other destinations: name {} if you mean it",
                real.0, real.0
            ))),
            _ => Ok(lane),
        }
    }

    /// A smarthost that is configured, or the mail servers of a domain.
    fn known_way(&self, text: &str) -> Answer<LaneKey> {
        let live = self.live.load();
        let name = text.strip_prefix("via:").unwrap_or(text);
        let mail = &live.config.mail;
        let mut names = mail
            .smarthosts
            .iter()
            .map(|s| &s.name)
            .chain(mail.smarthost_groups.iter().map(|g| &g.name));
        if names.any(|known| known == name) {
            return Ok(LaneKey(format!("via:{name}")));
        }
        let domain = text.strip_prefix("mx:").unwrap_or(text);
        match domain.parse::<tasuki_proto::names::Domain>() {
            Ok(domain) if domain.as_str().contains('.') && !text.starts_with("via:") => {
                Ok(LaneKey(format!("mx:{domain}")))
            }
            _ => Err(Problem::bad(format!(
                "{} is no smarthost in mail.smarthosts, and no domain whose mail servers could take it",
                quoted(text)
            ))),
        }
    }
}
