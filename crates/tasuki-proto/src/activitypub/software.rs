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

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Name and version, `mastodon 4.5.4`; the name in lower case as the schema wants it.
    pub software: String,
    /// How many people have an account, if it tells.
    pub users: Option<u64>,
    /// Whether anybody may make one, if it tells.
    pub open_registrations: Option<bool>,
}

/// What a NodeInfo document says.
///
/// # Errors
/// [`NodeInfoError`].
pub fn read_facts(body: &[u8], limits: &Limits) -> Result<ServerFacts, NodeInfoError> {
    let value = json::read(body, limits)?;
    Ok(ServerFacts {
        software: software_of(&value)?,
        users: value.pointer("/usage/users/total").and_then(Value::as_u64),
        open_registrations: value.get("openRegistrations").and_then(Value::as_bool),
    })
}

fn software_of(value: &Value) -> Result<String, NodeInfoError> {
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

/// Mastodon and what was made of it: it believes a forward by the Linked Data signature in it.
const MASTODON_FAMILY: [&str; 8] = [
    "mastodon",
    "hometown",
    "glitchcafe",
    "glitch",
    "ecko",
    "fedibird",
    "kmyblue",
    "decodon",
];

/// Misskey and what was made of it: it believes forwards too.
const MISSKEY_FAMILY: [&str; 16] = [
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

/// The most that an inbox of the Misskey family takes (`ActivityPubServerService`, `bodyLimit`).
const MISSKEY_INBOX_BYTES: usize = 64 * 1024;

/// The name without the version.
fn name_of(software: &str) -> &str {
    software.split(' ').next().unwrap_or_default()
}

/// Whether `software` ("name version") is Mastodon or was made of it.
pub fn is_mastodon_family(software: &str) -> bool {
    MASTODON_FAMILY.contains(&name_of(software))
}

/// Whether `software` ("name version") is Misskey or was made of it.
pub fn is_misskey_family(software: &str) -> bool {
    MISSKEY_FAMILY.contains(&name_of(software))
}

/// Whether servers that run `software` ("name version") are known to take forwards.
pub fn takes_forwards(software: &str) -> bool {
    is_mastodon_family(software) || is_misskey_family(software)
}

/// Whether servers that run `software` take a forwarded Delete although they take no other forward: Iceshrimp.NET as shipped
/// (`AcceptLdSignatures = false`) does.
pub fn takes_forwarded_deletes(software: &str) -> bool {
    name_of(software) == "iceshrimp.net"
}

/// Relays, by their names in NodeInfo.
const RELAYS: [&str; 9] = [
    "activityrelay",
    "activity-relay",
    "activity_relay",
    "aoderelay",
    "buzzrelay",
    "feditools-relay",
    "pub-relay",
    "selective-relay",
    "tasuki",
];

/// Whether `software` ("name version") is a relay: what it announces was told by somebody else.
pub fn is_relay(software: &str) -> bool {
    RELAYS.contains(&name_of(software))
}

/// Whether servers that run `software` take a POST whose signature covers `date` and `digest` alone, so that one signature
/// serves many of them. Mastodon does since 3.2.1 (`SignedRequest#verify_signature_strength!` wants the digest and a time; the
/// host only on GET), and so does what was made of it. Misskey wants `(request-target)` and `host` too, Iceshrimp.NET likewise.
pub fn takes_shared_signatures(software: &str) -> bool {
    is_mastodon_family(software)
}

/// Whether servers that run `software` are known to read signatures of the older draft only: nothing else is tried there.
pub fn knows_only_the_draft(software: &str) -> bool {
    is_mastodon_family(software) || is_misskey_family(software)
}

/// The largest body that servers running `software` take, where it is smaller than the relay's own limit.
pub fn inbox_limit_bytes(software: &str) -> Option<usize> {
    is_misskey_family(software).then_some(MISSKEY_INBOX_BYTES)
}

/// How many activities of a backlog servers running `software` are sent in a second, where they cannot take as many as others:
/// a stock Misskey works through 32 jobs a second, and most of them are its own users'.
pub fn backlog_limit(software: &str) -> Option<u32> {
    is_misskey_family(software).then_some(10)
}

/// What is known of the software of a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known<'a> {
    /// Nobody has asked yet: it subscribed a moment ago.
    NotYet,
    /// It was asked, and gave no NodeInfo that can be read.
    Nothing,
    /// Name and version.
    Software(&'a str),
}

/// The form for a subscriber, before anything was learnt from its answers.
///
/// | style | software | form |
/// |---|---|---|
/// | LitePub | any | Announce |
/// | Mastodon | a known taker of forwards, or not asked yet | forward |
/// | Mastodon | unknown, or any other (Iceshrimp.NET refuses forwards as shipped, GoToSocial, Friendica, ...) | Announce |
///
/// Many programs answer 202 to a forward that they drop: what is not known to take forwards is not sent any.
pub fn usual_form(style: Style, software: Known<'_>) -> Delivery {
    match (style, software) {
        (Style::Mastodon, Known::NotYet) => Delivery::Forward,
        (Style::Mastodon, Known::Software(software)) if takes_forwards(software) => Delivery::Forward,
        (Style::Mastodon | Style::LitePub, _) => Delivery::Announce,
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
