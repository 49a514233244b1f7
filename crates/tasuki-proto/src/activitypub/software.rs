//! What a server runs (NodeInfo 1.0 to 2.2), and what that says about the forms it takes.

use serde_json::Value;

use super::decision::Delivery;
use super::json::{self, JsonError, Limits};
use super::subscription::Style;

/// Longest name and version kept, in characters each.
const MAX_CHARS: usize = 60;

/// Why there is no software to read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeInfoError {
    /// Not acceptable as JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// No link to a schema that is known.
    #[error("the document names no NodeInfo")]
    NoLink,
    /// Nameless.
    #[error("the NodeInfo has no software name")]
    NoName,
}

/// The newest NodeInfo that `/.well-known/nodeinfo` links to.
///
/// # Errors
/// [`NodeInfoError`].
pub fn read_links(body: &[u8], limits: &Limits) -> Result<String, NodeInfoError> {
    let value = json::read(body, limits)?;
    let links = value
        .get("links")
        .and_then(Value::as_array)
        .ok_or(NodeInfoError::NoLink)?;
    let version = |link: &Value| {
        let rel = link.get("rel")?.as_str()?;
        rel.strip_prefix("http://nodeinfo.diaspora.software/ns/schema/")
            .or_else(|| rel.strip_prefix("https://nodeinfo.diaspora.software/ns/schema/"))
            .map(str::to_owned)
    };
    links
        .iter()
        .take(16)
        .filter_map(|link| Some((version(link)?, link.get("href")?.as_str()?)))
        .max_by(|a, b| a.0.cmp(&b.0))
        .map(|(_, href)| href.to_owned())
        .ok_or(NodeInfoError::NoLink)
}

/// Name and version, `mastodon 4.5.4`; the name in lower case as the schema wants it.
///
/// # Errors
/// [`NodeInfoError`].
pub fn read_software(body: &[u8], limits: &Limits) -> Result<String, NodeInfoError> {
    let value = json::read(body, limits)?;
    let software = value.get("software").ok_or(NodeInfoError::NoName)?;
    let text = |key: &str| -> String {
        let text = software.get(key).and_then(Value::as_str).unwrap_or_default();
        text.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect()
    };
    let name = text("name").trim().to_lowercase();
    if name.is_empty() {
        return Err(NodeInfoError::NoName);
    }
    Ok(format!("{name} {}", text("version").trim()).trim_end().to_owned())
}

/// Programs that believe a forward by the Linked Data signature in it: Mastodon, Misskey, and what was made of them.
const TAKE_FORWARDS: [&str; 24] = [
    "mastodon",
    "hometown",
    "glitchcafe",
    "glitch",
    "ecko",
    "fedibird",
    "kmyblue",
    "decodon",
    "misskey",
    "sharkey",
    "cherrypick",
    "iceshrimp",
    "firefish",
    "calckey",
    "foundkey",
    "catodon",
    "magnetar",
    "meisskey",
    "groundpolis",
    "nekomiya",
    "yojo-art",
    "tanukey",
    "rumisskey",
    "noratta",
];

/// Whether servers that run `software` ("name version") are known to take forwards.
pub fn takes_forwards(software: &str) -> bool {
    software
        .split(' ')
        .next()
        .is_some_and(|name| TAKE_FORWARDS.contains(&name))
}

/// The form for a subscriber, before anything was learnt from its answers.
///
/// | style | software | form |
/// |---|---|---|
/// | LitePub | any | Announce |
/// | Mastodon | a known taker of forwards, or not known yet | forward |
/// | Mastodon | any other (Iceshrimp.NET refuses forwards as shipped, GoToSocial, Friendica, ...) | Announce |
pub fn usual_form(style: Style, software: Option<&str>) -> Delivery {
    match (style, software) {
        (Style::LitePub, _) => Delivery::Announce,
        (Style::Mastodon, Some(software)) if !takes_forwards(software) => Delivery::Announce,
        (Style::Mastodon, _) => Delivery::Forward,
    }
}

/// Whether this answer to a forward says that the host takes none. `400` and `403` do; `401` speaks of the HTTP signature
/// where forwards are known to be taken (a Mastodon that cannot fetch the relay's actor says it for five minutes), and of the
/// foreign actor elsewhere.
pub fn refuses_forwards(software: Option<&str>, status: u16) -> bool {
    match status {
        400 | 403 => true,
        401 => !software.is_some_and(takes_forwards),
        _ => false,
    }
}
