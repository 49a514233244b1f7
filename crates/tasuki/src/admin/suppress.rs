//! Suppressed addresses.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_core::clock::Timestamp;
use tasuki_core::config::duration;
use tasuki_core::ids::PrincipalId;
use tasuki_core::store::suppress::{Subject, Suppressed, SuppressedFilter};
use tasuki_proto::names::Domain;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::Admin;
use super::accounts::quoted;
use super::auth::Caller;
use super::mail::engine;
use super::problem::{Answer, Input, Params, Problem};

/// Most entries on one page.
const PAGE: usize = 10_000;
/// Most in one change: it is one transaction, and all mail that comes in meanwhile waits for it.
const MOST: usize = 500;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    #[serde(default)]
    domain: Option<Domain>,
    #[serde(default)]
    principal: Option<String>,
    /// The `next` of the page before.
    #[serde(default)]
    after: i64,
    #[serde(default)]
    limit: Option<usize>,
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, Params(page): Params<Page>) -> Answer<Json<Value>> {
    let limit = page.limit.unwrap_or(1000).clamp(1, PAGE);
    let principal = match &page.principal {
        Some(name) => Some(admin.named(name).await?.id),
        None => None,
    };
    let filter = SuppressedFilter {
        domain: page.domain,
        local: None,
        principal,
        after: page.after,
    };
    let found = admin.store.suppressed(&filter, limit).await?;
    let next = found
        .last()
        .filter(|_| found.len() == limit)
        .map(|(number, _)| *number);
    let shown = admin
        .shown_suppressed(found.iter().map(|(_, entry)| entry))
        .await?;
    Ok(Json(json!({"suppressed": shown, "next": next})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default)]
    add: Vec<New>,
    #[serde(default)]
    remove: Vec<Gone>,
    /// Leave out what has ended in place of refusing it: a list that is kept elsewhere has such entries.
    #[serde(default)]
    skip_ended: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    /// An address, or `*@example.org`.
    address: String,
    /// By whom it is not written to; absent means by nobody.
    #[serde(default)]
    principal: Option<String>,
    /// A duration, a day or an RFC 3339 time; absent means for ever.
    #[serde(default)]
    until: Option<String>,
    #[serde(default)]
    reason: String,
    /// The line of the file that it stands in, for what is said about it.
    #[serde(default)]
    line: Option<u64>,
}

impl New {
    fn about(&self, problem: Problem) -> Problem {
        match self.line {
            Some(line) => problem.of(&format!("line {line}")),
            None => problem,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gone {
    address: String,
    /// Only the entry of this principal.
    #[serde(default)]
    principal: Option<String>,
}

pub(super) async fn change(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<Change>,
) -> Answer<Json<Value>> {
    if input.add.len() + input.remove.len() > MOST {
        return Err(Problem::bad(format!("at most {MOST} addresses at a time")));
    }
    let now = admin.clock.wall();
    let first = input.add.first().map(|new| new.address.clone());
    let first = first.or_else(|| input.remove.first().map(|gone| gone.address.clone()));
    let names = admin.names().await?;
    let id_of = |name: &Option<String>| -> Answer<Option<PrincipalId>> {
        let Some(name) = name else { return Ok(None) };
        let found = names.iter().find(|(_, known)| *known == name);
        let unknown = || Problem::missing(format!("there is nobody called {}", quoted(name)));
        found.map(|(id, _)| Some(PrincipalId(*id))).ok_or_else(unknown)
    };
    let (mut add, mut ended) = (Vec::with_capacity(input.add.len()), 0);
    for new in &input.add {
        let about = |problem| new.about(problem);
        let entry = Suppressed {
            subject: subject(&new.address).map_err(about)?,
            principal: id_of(&new.principal).map_err(about)?,
            reason: new.reason.chars().filter(|c| !c.is_control()).take(200).collect(),
            by: Some(caller.0.who.clone()),
            since: now,
            until: new
                .until
                .as_deref()
                .map(|text| end(text, now))
                .transpose()
                .map_err(about)?,
        };
        match (&new.until, entry.until) {
            (Some(text), Some(until)) if until <= now => {
                if !input.skip_ended {
                    return Err(about(Problem::bad(format!("until: {} is over", quoted(text)))));
                }
                ended += 1;
            }
            _ => add.push(entry),
        }
    }
    let mut remove = Vec::with_capacity(input.remove.len());
    for gone in &input.remove {
        remove.push((subject(&gone.address)?, id_of(&gone.principal)?));
    }
    let detail = format!(
        "{} added, {} to be removed; the first is named",
        add.len(),
        remove.len()
    );
    let entry = caller.audit(now, "mail.suppress", first.unwrap_or_default(), detail);
    let (added, removed) = engine(&admin)?.change_suppressed(add, remove, entry).await?;
    Ok(Json(json!({"added": added, "removed": removed, "ended": ended})))
}

fn subject(text: &str) -> Answer<Subject> {
    Subject::parse(text).ok_or_else(|| {
        Problem::bad(format!(
            "{} cannot be suppressed: an address with a domain name, not postmaster, or *@example.org is expected",
            quoted(text)
        ))
    })
}

/// The time that a text means: from now on for so long, the beginning of a day (UTC), or that moment.
fn end(text: &str, now: Timestamp) -> Answer<Timestamp> {
    if let Ok(lasting) = duration::parse(text) {
        return Ok(now.plus(lasting));
    }
    let day = time::Date::parse(text, format_description!("[year]-[month]-[day]"));
    let at = match day {
        Ok(day) => day.midnight().assume_utc(),
        Err(_) => time::OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
            Problem::bad(format!(
                "until: {} is neither a time like 30d nor one like 2027-01-31 or 2027-01-31T12:00:00Z",
                quoted(text)
            ))
        })?,
    };
    Ok(Timestamp(at.unix_timestamp().saturating_mul(1000)))
}

impl Admin {
    async fn shown_suppressed(&self, entries: impl Iterator<Item = &Suppressed>) -> Answer<Vec<Value>> {
        let names = self.names().await?;
        let name = |id: PrincipalId| names.get(&id.0).cloned().unwrap_or_else(|| id.to_string());
        let shown = entries.map(|entry| {
            json!({
                "address": entry.subject.to_string(),
                "principal": entry.principal.map(name),
                "reason": entry.reason,
                "origin": entry.by.as_deref().unwrap_or("automatic"),
                "since": entry.since.to_string(),
                "until": entry.until.map(|until| until.to_string()),
            })
        });
        Ok(shown.collect())
    }

    /// The entries that hold for an address now.
    pub(super) async fn suppressed_of(&self, text: &str) -> Answer<Vec<Value>> {
        let Some(subject) = Subject::parse(text) else {
            return Ok(Vec::new());
        };
        let filter = SuppressedFilter {
            domain: Some(subject.domain().clone()),
            local: Some(subject.local().to_owned()),
            ..SuppressedFilter::default()
        };
        let found = self.store.suppressed(&filter, PAGE).await?;
        let now = self.clock.wall();
        let hold = found.iter().map(|(_, entry)| entry);
        let hold = hold.filter(|entry| entry.until.is_none_or(|until| until > now));
        self.shown_suppressed(hold).await
    }
}
