//! What would become of a mail, without sending it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tasuki_proto::names::ReversePath;
use tasuki_smtp::{Explanation, Whom};

use super::Admin;
use super::accounts::quoted;
use super::mail::engine;
use super::problem::{Answer, Params, Problem};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// A mailbox; `<>` for the null reverse-path.
    from: String,
    to: String,
    /// An address, or a principal's name.
    client: String,
}

pub(super) async fn mail(
    State(admin): State<Arc<Admin>>,
    Params(asked): Params<Asked>,
) -> Answer<Json<Explanation>> {
    let bad = |key: &str, text: &str| {
        Problem::bad(format!(
            "{key}: {} is not a mail address like user@example.com",
            quoted(text)
        ))
    };
    let bare = asked.from.trim_start_matches('<').trim_end_matches('>');
    let from = if bare.is_empty() {
        ReversePath::Null
    } else {
        let parsed = engine(&admin)?.mailbox(bare);
        ReversePath::Mailbox(parsed.ok_or_else(|| bad("from", &asked.from))?)
    };
    let bare = asked.to.trim_start_matches('<').trim_end_matches('>');
    let to = engine(&admin)?
        .mailbox(bare)
        .ok_or_else(|| bad("to", &asked.to))?;
    let whom = match asked.client.parse() {
        Ok(ip) => Whom::Address(ip),
        Err(_) => Whom::Named(asked.client),
    };
    Ok(Json(engine(&admin)?.explain(&from, &to, &whom).await?))
}
