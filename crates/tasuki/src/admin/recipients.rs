//! Known recipients of domains with `table = true`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_proto::names::{Domain, Mailbox};

use super::Admin;
use super::auth::Caller;
use super::problem::{Answer, Input, Params, Problem};

/// Most addresses in one change.
const MOST: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    domain: Domain,
    #[serde(default)]
    after: String,
    #[serde(default)]
    limit: Option<usize>,
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, Params(page): Params<Page>) -> Answer<Json<Value>> {
    let limit = page.limit.unwrap_or(1000).clamp(1, MOST);
    let locals = admin.store.recipients(&page.domain, &page.after, limit).await?;
    let shown: Vec<Value> = locals
        .into_iter()
        .map(|local| json!({"local": local, "domain": page.domain}))
        .collect();
    Ok(Json(json!({"recipients": shown})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default)]
    add: Vec<Mailbox>,
    #[serde(default)]
    remove: Vec<Mailbox>,
}

pub(super) async fn change(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Input(input): Input<Change>,
) -> Answer<Json<Value>> {
    let (added, removed) = (input.add.len(), input.remove.len());
    if added + removed > MOST {
        return Err(Problem::bad(format!("at most {MOST} addresses at a time")));
    }
    if let Some(literal) = input.add.iter().find(|mailbox| mailbox.domain().is_none()) {
        return Err(Problem::bad(format!(
            "{literal}: an address with a domain name is expected"
        )));
    }
    let object = input.add.iter().chain(&input.remove).next();
    let object = object.map(ToString::to_string).unwrap_or_default();
    let detail = format!("{added} added, {removed} removed, the first named");
    let entry = caller
        .0
        .entry(admin.clock.wall(), "mail.recipients", object, detail);
    admin
        .store
        .change_recipients(input.add, input.remove, entry)
        .await?;
    Ok(Json(json!({"added": added, "removed": removed})))
}
