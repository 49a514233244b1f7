//! The operator's lists: topic relays of several hashtags, instances and languages. And what hosts leave out.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_activitypub::{FilterStatus, ListStatus};
use tasuki_core::store::fedi::{HostFilter, TopicList};

use super::Admin;
use super::auth::Caller;
use super::engines::fediverse;
use super::problem::{Answer, Input, Params};

fn shown_list(one: ListStatus) -> Value {
    json!({
        "name": one.list.name,
        "title": one.list.title,
        "tags": one.list.tags,
        "instances": one.list.instances,
        "languages": one.list.languages,
        "inbox": one.inbox,
        "subscribers": one.subscribers,
    })
}

pub(super) async fn lists(State(admin): State<Arc<Admin>>) -> Answer<Json<Value>> {
    let lists = fediverse(&admin)?.lists().await?;
    let shown: Vec<Value> = lists.into_iter().map(shown_list).collect();
    Ok(Json(json!({"lists": shown})))
}

pub(super) async fn put_list(
    State(admin): State<Arc<Admin>>,
    Caller(actor): Caller,
    Input(list): Input<TopicList>,
) -> Answer<Json<Value>> {
    let made = fediverse(&admin)?
        .put_list(list, (&actor.who, &actor.from))
        .await?;
    Ok(Json(shown_list(made)))
}

pub(super) async fn remove_list(
    State(admin): State<Arc<Admin>>,
    Path(name): Path<String>,
    Caller(actor): Caller,
) -> Answer<Json<Value>> {
    let removed = fediverse(&admin)?
        .remove_list(&name, (&actor.who, &actor.from))
        .await?;
    Ok(Json(json!({"removed_subscribers": removed})))
}

pub(super) fn shown_filter(one: &FilterStatus) -> Value {
    json!({
        "host": one.host,
        "filter": one.filter,
        "in_words": one.in_words,
        "by": one.by,
        "since": one.at.to_string(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    host: Option<String>,
}

pub(super) async fn filters(
    State(admin): State<Arc<Admin>>,
    Params(whose): Params<Whose>,
) -> Answer<Json<Value>> {
    let all = fediverse(&admin)?.filters(whose.host.as_deref()).await?;
    let shown: Vec<Value> = all.iter().map(shown_filter).collect();
    Ok(Json(json!({"filters": shown})))
}

pub(super) async fn set_filter(
    State(admin): State<Arc<Admin>>,
    Path(host): Path<String>,
    Caller(actor): Caller,
    Input(filter): Input<HostFilter>,
) -> Answer<Json<Value>> {
    let set = fediverse(&admin)?
        .set_filter(&host, Some(filter), (&actor.who, &actor.from))
        .await?;
    let shown: Vec<Value> = set.iter().map(shown_filter).collect();
    Ok(Json(json!({"filters": shown})))
}

pub(super) async fn clear_filter(
    State(admin): State<Arc<Admin>>,
    Path(host): Path<String>,
    Caller(actor): Caller,
) -> Answer<StatusCode> {
    fediverse(&admin)?
        .set_filter(&host, None, (&actor.who, &actor.from))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
