//! What is read of another server's actor document, or of the document that holds its key.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::activity::{Addressing, is_content, text_or_id, type_of};
use super::date;
use super::ids::{ActorId, InboxUrl, KeyId, ObjectId};
use super::json::{self, JsonError, Limits};
use super::multikey::Multikey;
use super::words::Words;

/// Longest PEM accepted: RSA-8192 takes less than half of it.
const MAX_PEM_BYTES: usize = 4096;

/// Keys of one kind that are read of an actor.
const MAX_KEYS: usize = 8;

/// Why a document is not usable as an actor or key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActorError {
    /// Not acceptable as JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A property is missing or not understood.
    #[error("the actor document has no usable {0:?}")]
    Missing(&'static str),
    /// Somebody else's document: ids that must agree do not.
    #[error("the actor document's {0:?} does not belong to it")]
    Mismatch(&'static str),
}

/// An actor's public key as published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Its id.
    pub id: KeyId,
    /// Who says it is theirs.
    pub owner: ActorId,
    /// SPKI or PKCS#1 in PEM, or a multibase text (FEP-521a).
    pub text: String,
}

/// An actor document. Stubs that hold only the key (GoToSocial's `/main-key`) have no inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Its id.
    pub id: ActorId,
    /// `Application`, `Person` and so on.
    pub kind: String,
    /// The name in front of the host.
    pub preferred_username: Option<String>,
    /// Where its post goes.
    pub inbox: Option<InboxUrl>,
    /// Where post for its whole server goes.
    pub shared_inbox: Option<InboxUrl>,
    /// Its keys: those of `publicKey`, and those of `assertionMethod` (FEP-521a), which are multibase texts.
    pub keys: Vec<PublicKey>,
    /// When the account was made, as it says.
    pub published: Option<SystemTime>,
    /// What it wants of relays.
    pub wishes: Wishes,
}

/// What an author wants of relays and search engines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `#NoRelay` or `#nobot` stands in the bio.
    pub no_relay: bool,
    /// `indexable` is false: posts are not for public search (Mastodon's setting).
    pub not_indexable: bool,
}

impl Wishes {
    fn of(map: &Map<String, Value>) -> Self {
        let bio = map.get("summary").and_then(Value::as_str).unwrap_or_default();
        let words = Words::of_html(bio);
        let is_tag = |word: &str| matches!(word, "#norelay" | "#nobot");
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '#' | '_');
        Self {
            no_relay: words.split(|c| !is_word(c)).any(is_tag),
            not_indexable: map.get("indexable") == Some(&Value::Bool(false)),
        }
    }
}

impl Actor {
    /// Reads an actor document. Inboxes and keys on another host than the actor's are left out.
    ///
    /// # Errors
    /// [`ActorError`] when the document is not an actor.
    pub fn read(body: &[u8], limits: &Limits) -> Result<Self, ActorError> {
        let Value::Object(map) = json::read(body, limits)? else {
            return Err(ActorError::Missing("id"));
        };
        let id = map
            .get("id")
            .and_then(Value::as_str)
            .and_then(|text| ActorId::parse(text).ok())
            .ok_or(ActorError::Missing("id"))?;
        let at_home = |inbox: &InboxUrl| inbox.authority() == id.authority();
        let inbox_at = |value: Option<&Value>| {
            value
                .and_then(Value::as_str)
                .and_then(|text| InboxUrl::parse(text).ok())
                .filter(at_home)
        };
        let rsa = each(map.get("publicKey")).filter_map(|one| key_of(one, &id));
        let multi = each(map.get("assertionMethod")).filter_map(|one| multikey_of(one, &id));
        let keys = rsa.chain(multi).collect();
        Ok(Self {
            kind: type_of(&map)
                .ok_or(ActorError::Missing("type"))?
                .chars()
                .take(64)
                .collect(),
            preferred_username: map
                .get("preferredUsername")
                .and_then(Value::as_str)
                .map(|name| name.chars().take(128).collect()),
            inbox: inbox_at(map.get("inbox")),
            shared_inbox: inbox_at(map.get("endpoints").and_then(|e| e.get("sharedInbox"))),
            keys,
            published: map
                .get("published")
                .and_then(Value::as_str)
                .and_then(date::parse_timestamp),
            wishes: Wishes::of(&map),
            id,
        })
    }

    /// The key named by a signature. The owner loops back to this actor: `key.owner == actor.id`.
    pub fn key(&self, id: &KeyId) -> Option<&PublicKey> {
        self.keys.iter().find(|key| key.id == *id)
    }

    /// Whether this is the relay actor of a LitePub server, not a person who follows the relay: by type, by the path
    /// `/relay`, or by the name `relay` (older Pleroma says `Person`).
    pub fn is_instance(&self) -> bool {
        matches!(self.kind.as_str(), "Application" | "Service")
            || self.id.as_str().ends_with("/relay")
            || self.preferred_username.as_deref() == Some("relay")
    }
}

fn key_of(value: &Value, actor: &ActorId) -> Option<PublicKey> {
    let map = value.as_object()?;
    let id = KeyId::parse(map.get("id")?.as_str()?).ok()?;
    // FEP-521a and older documents say `controller` where others say `owner`.
    let owner = text_or_id(map.get("owner").or_else(|| map.get("controller")))?;
    let owner = ActorId::parse(owner).ok()?;
    let pem = map.get("publicKeyPem")?.as_str()?;
    if owner != *actor || id.authority() != actor.authority() || pem.len() > MAX_PEM_BYTES {
        return None;
    }
    Some(PublicKey {
        id,
        owner,
        text: pem.to_owned(),
    })
}

/// One value, or the first of several.
fn each(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    let all = match value {
        Some(Value::Array(many)) => many.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    all.iter().take(MAX_KEYS)
}

/// A Multikey, embedded with its controller. One that is only named, or on another host, is of no use.
fn multikey_of(value: &Value, actor: &ActorId) -> Option<PublicKey> {
    let map = value.as_object()?;
    let id = KeyId::parse(map.get("id")?.as_str()?).ok()?;
    let owner = ActorId::parse(text_or_id(map.get("controller"))?).ok()?;
    let text = map.get("publicKeyMultibase")?.as_str()?;
    let is_multikey = type_of(map) == Some("Multikey") && Multikey::parse(text).is_some();
    if !is_multikey || owner != *actor || id.authority() != actor.authority() {
        return None;
    }
    Some(PublicKey {
        id,
        owner,
        text: text.to_owned(),
    })
}

/// A key document of its own names its owner; the owner's document must then hold the key.
///
/// # Errors
/// [`ActorError`] when the document is not a key, or not under the id asked for.
pub fn read_key_owner(body: &[u8], asked: &KeyId, limits: &Limits) -> Result<ActorId, ActorError> {
    let Value::Object(map) = json::read(body, limits)? else {
        return Err(ActorError::Missing("id"));
    };
    let owner =
        text_or_id(map.get("owner").or_else(|| map.get("controller"))).ok_or(ActorError::Missing("owner"))?;
    let owner = ActorId::parse(owner).map_err(|_| ActorError::Missing("owner"))?;
    if owner.authority() != asked.authority() {
        return Err(ActorError::Mismatch("owner"));
    }
    Ok(owner)
}

/// A fetched post, as far as it decides whether it may be announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// Its id.
    pub id: ObjectId,
    /// `Note`, `Article`, ...
    pub kind: String,
    /// Who wrote it.
    pub attributed_to: ActorId,
    /// Whom it is addressed to.
    pub addressing: Addressing,
}

impl Post {
    /// Reads a post fetched from its own host.
    ///
    /// # Errors
    /// [`ActorError`] when it is not one, or its author lives elsewhere.
    pub fn read(body: &[u8], limits: &Limits) -> Result<Self, ActorError> {
        let Value::Object(map) = json::read(body, limits)? else {
            return Err(ActorError::Missing("id"));
        };
        let id = map
            .get("id")
            .and_then(Value::as_str)
            .and_then(|text| ObjectId::parse(text).ok())
            .ok_or(ActorError::Missing("id"))?;
        let author = first_author(&map).ok_or(ActorError::Missing("attributedTo"))?;
        if author.authority() != id.authority() {
            return Err(ActorError::Mismatch("attributedTo"));
        }
        Ok(Self {
            kind: type_of(&map)
                .ok_or(ActorError::Missing("type"))?
                .chars()
                .take(64)
                .collect(),
            attributed_to: author,
            addressing: Addressing::of(&map),
            id,
        })
    }

    /// Whether the post is one that a relay announces: content, not an activity or an actor.
    pub fn is_content(&self) -> bool {
        is_content(&self.kind)
    }
}

fn first_author(map: &Map<String, Value>) -> Option<ActorId> {
    let value = map.get("attributedTo")?;
    let text = match value {
        // PeerTube names the person first, then the channel; both live on its host.
        Value::Array(many) => text_or_id(many.first()),
        other => text_or_id(Some(other)),
    };
    ActorId::parse(text?).ok()
}
