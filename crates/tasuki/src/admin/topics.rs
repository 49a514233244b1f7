//! The operator's lists: topic relays of several hashtags, instances and languages.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use tasuki_activitypub::ListStatus;
use tasuki_core::store::fedi::TopicList;

use super::Admin;
use super::auth::Caller;
use super::engines::fediverse;
use super::problem::{Answer, Input};

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
