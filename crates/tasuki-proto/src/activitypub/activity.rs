//! The typed view of a received activity, read from the same bytes that are verified and forwarded.
//!
//! The view is small: what decides about trust, audience and duplicates. The body itself is never written again; what is
//! forwarded are the received bytes.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::ids::{ActorId, IdError, ObjectId};
use super::json::{self, JsonError, Limits};
use super::{date, is_public};

/// Why a document is not an activity that can be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActivityError {
    /// Not acceptable as JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// An array or a scalar at the top.
    #[error("the document is not a JSON object")]
    NotAnObject,
    /// A property that every activity has is missing or of a form that is not understood.
    #[error("the activity has no usable {0:?}")]
    Missing(&'static str),
    /// A property that must be a URL is not.
    #[error("the activity's {property:?} is not usable: {reason}")]
    Id {
        /// Which one.
        property: &'static str,
        /// What is wrong.
        reason: IdError,
    },
    /// Host rule (Mastodon `non_matching_uri_hosts?`, Misskey): nobody speaks about things on another host.
    #[error("the host of {property:?} is not the host of the actor")]
    ForeignHost {
        /// `id` or `object`.
        property: &'static str,
    },
}

/// The type of an activity, as far as the relay tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A new post.
    Create,
    /// A changed post or profile.
    Update,
    /// A deleted post or account.
    Delete,
    /// Taking back a Follow or an Announce.
    Undo,
    /// A boost, or a LitePub relay's way of publishing.
    Announce,
    /// A subscription.
    Follow,
    /// The answer yes.
    Accept,
    /// The answer no.
    Reject,
    /// An account that moved.
    Move,
    /// A pin.
    Add,
    /// An unpin.
    Remove,
    /// Anything else: likes, flags, blocks, unknown types.
    Other,
}

impl Kind {
    fn of(name: &str) -> Self {
        match name {
            "Create" => Self::Create,
            "Update" => Self::Update,
            "Delete" => Self::Delete,
            "Undo" => Self::Undo,
            "Announce" => Self::Announce,
            "Follow" => Self::Follow,
            "Accept" => Self::Accept,
            "Reject" => Self::Reject,
            "Move" => Self::Move,
            "Add" => Self::Add,
            "Remove" => Self::Remove,
            _ => Self::Other,
        }
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "Create",
            Self::Update => "Update",
            Self::Delete => "Delete",
            Self::Undo => "Undo",
            Self::Announce => "Announce",
            Self::Follow => "Follow",
            Self::Accept => "Accept",
            Self::Reject => "Reject",
            Self::Move => "Move",
            Self::Add => "Add",
            Self::Remove => "Remove",
            Self::Other => "Other",
        }
    }
}

/// Whom a thing is addressed to, as far as the relay cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Addressing {
    /// Public is in `to`: everybody, listed.
    pub public_in_to: bool,
    /// Public is in `cc`: everybody, unlisted.
    pub public_in_cc: bool,
    /// Neither `to` nor `cc` (nor `bto`, `bcc`, `audience`) is present.
    pub absent: bool,
}

impl Addressing {
    /// Whether everybody is addressed: in `to`, or with `unlisted` in `cc` too.
    pub fn is_public(self, unlisted: bool) -> bool {
        self.public_in_to || (unlisted && self.public_in_cc)
    }

    pub(crate) fn of(map: &Map<String, Value>) -> Self {
        let names_public = |key: &str| match map.get(key) {
            Some(Value::String(one)) => is_public(one),
            Some(Value::Array(many)) => many.iter().any(|item| item.as_str().is_some_and(is_public)),
            _ => false,
        };
        Self {
            public_in_to: names_public("to"),
            public_in_cc: names_public("cc"),
            absent: ["to", "cc", "bto", "bcc", "audience"]
                .iter()
                .all(|key| map.get(*key).is_none_or(Value::is_null)),
        }
    }
}

/// The `object` of an activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// The Public collection, in any spelling: Mastodon-style subscription. Holds the spelling.
    Public(String),
    /// An id alone.
    Id(ObjectId),
    /// An embedded object.
    Embedded(Box<Embedded>),
}

/// What is read of an embedded object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// Its id, when it has one.
    pub id: Option<ObjectId>,
    /// Its type.
    pub kind: Option<String>,
    /// Who did it, for an embedded activity.
    pub actor: Option<ActorId>,
    /// What it is about, for an embedded activity (an Undo of a Follow, an Accept of a Follow).
    pub object: Option<String>,
    /// Who wrote it, for a post.
    pub attributed_to: Option<ActorId>,
    /// Whom it is addressed to.
    pub addressing: Addressing,
    /// When it was changed, as written.
    pub updated: Option<String>,
}

/// Whether a type is one of what people publish: content, not an activity or an actor.
pub(crate) fn is_content(kind: &str) -> bool {
    matches!(
        kind,
        "Note" | "Article" | "Page" | "Question" | "Image" | "Video" | "Audio" | "Event" | "Document"
    )
}

impl Embedded {
    /// Whether it is a post, not an activity or an actor.
    pub fn is_content(&self) -> bool {
        self.kind.as_deref().is_some_and(is_content)
    }
}

impl Object {
    /// The id, when there is one.
    pub fn id(&self) -> Option<&ObjectId> {
        match self {
            Self::Public(_) => None,
            Self::Id(id) => Some(id),
            Self::Embedded(embedded) => embedded.id.as_ref(),
        }
    }

    /// The embedded object, when it is one.
    pub fn embedded(&self) -> Option<&Embedded> {
        match self {
            Self::Embedded(embedded) => Some(embedded),
            Self::Public(_) | Self::Id(_) => None,
        }
    }
}

/// Whether the activity carries a Linked Data signature, which lets it be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LdSignature {
    /// None.
    Absent,
    /// `RsaSignature2017` by a key of the activity's actor.
    ByActor,
    /// One that receivers will not believe: another creator, another type, or a document with `@graph`, `@included`
    /// or `@reverse`, which Mastodon and Misskey treat as unsigned.
    Unusable,
}

/// A received activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// Its id.
    pub id: ObjectId,
    /// What it is.
    pub kind: Kind,
    /// Who did it.
    pub actor: ActorId,
    /// What it is about.
    pub object: Option<Object>,
    /// Whom it is addressed to.
    pub addressing: Addressing,
    /// When it was made.
    pub published: Option<SystemTime>,
    /// When it or its object was changed, as written.
    pub updated: Option<String>,
    /// Its Linked Data signature.
    pub ld_signature: LdSignature,
    /// Whether it carries an integrity proof (FEP-8b32) by a key on its actor's host.
    pub has_proof: bool,
}

impl Activity {
    /// Reads an activity and applies the host rules.
    ///
    /// # Errors
    /// [`ActivityError`]: not JSON that everybody reads alike, not an activity, or about something on another host.
    pub fn read(body: &[u8], limits: &Limits) -> Result<Self, ActivityError> {
        let value = json::read(body, limits)?;
        let Value::Object(map) = &value else {
            return Err(ActivityError::NotAnObject);
        };
        let kind = Kind::of(type_of(map).ok_or(ActivityError::Missing("type"))?);
        let id = text_or_id(map.get("id")).ok_or(ActivityError::Missing("id"))?;
        let id = ObjectId::parse(id).map_err(|reason| ActivityError::Id {
            property: "id",
            reason,
        })?;
        let actor = text_or_id(map.get("actor")).ok_or(ActivityError::Missing("actor"))?;
        let actor = ActorId::parse(actor).map_err(|reason| ActivityError::Id {
            property: "actor",
            reason,
        })?;
        let object = read_object(map.get("object"))?;
        let ld_signature = ld_signature(map, &actor);
        let has_proof = super::proof::is_offered(map, actor.authority());
        let activity = Self {
            published: map
                .get("published")
                .and_then(Value::as_str)
                .and_then(date::parse_timestamp),
            updated: map.get("updated").and_then(short_text),
            addressing: Addressing::of(map),
            id,
            kind,
            actor,
            object,
            ld_signature,
            has_proof,
        };
        activity.check_hosts()?;
        Ok(activity)
    }

    /// host(id) = host(actor) always; host(object.id) = host(actor) where the actor speaks of their own things.
    fn check_hosts(&self) -> Result<(), ActivityError> {
        let home = self.actor.authority();
        if self.id.authority() != home {
            return Err(ActivityError::ForeignHost { property: "id" });
        }
        if !matches!(self.kind, Kind::Create | Kind::Update | Kind::Delete | Kind::Undo) {
            return Ok(());
        }
        let Some(object) = &self.object else {
            return Err(ActivityError::Missing("object"));
        };
        let author = object.embedded().and_then(|o| o.attributed_to.as_ref());
        if object.id().is_some_and(|id| id.authority() != home)
            || (self.kind != Kind::Undo && author.is_some_and(|a| a.authority() != home))
        {
            return Err(ActivityError::ForeignHost { property: "object" });
        }
        if self.kind != Kind::Undo && object.id().is_none() {
            return Err(ActivityError::Missing("object"));
        }
        Ok(())
    }

    /// The author deletes the account itself.
    pub fn is_self_delete(&self) -> bool {
        self.kind == Kind::Delete
            && self
                .object
                .as_ref()
                .and_then(Object::id)
                .is_some_and(|id| id.as_str() == self.actor.as_str())
    }

    /// Whether the activity may be published: Public in `to` of the activity, and of the object where it says so; with
    /// `unlisted` also in `cc`.
    ///
    /// Activities that carry no content (Delete, Undo, Move, Add, Remove) may come without any addressing: Mastodon's Move
    /// and Misskey's pins do.
    pub fn is_public(&self, unlisted: bool) -> bool {
        let content = matches!(self.kind, Kind::Create | Kind::Update | Kind::Announce);
        let outer = self.addressing.is_public(unlisted) || (!content && self.addressing.absent);
        let inner = match self.object.as_ref().and_then(Object::embedded) {
            Some(object) if content => object.addressing.is_public(unlisted) || object.addressing.absent,
            _ => true,
        };
        outer && inner
    }

    /// Whether one signature of the relay may serve several hosts for a forward of this: a public activity by somebody else,
    /// never one that speaks of a subscription, and no Undo, since an Undo of a Follow looks like any other.
    pub fn may_share_signature(&self) -> bool {
        let is_plain = matches!(
            self.kind,
            Kind::Create
                | Kind::Update
                | Kind::Delete
                | Kind::Announce
                | Kind::Move
                | Kind::Add
                | Kind::Remove
        );
        is_plain && self.addressing.is_public(true)
    }

    /// The name under which a second copy of the same news is recognised: type, object and version.
    ///
    /// A LitePub relay's Announce of a post and its author's Create are the same news; a person's boost is told apart by
    /// its own id.
    pub fn news_key(&self, is_relay_announce: bool) -> String {
        let object = self.object.as_ref().and_then(Object::id);
        let updated = self
            .updated
            .as_deref()
            .or_else(|| self.object.as_ref()?.embedded()?.updated.as_deref());
        match (self.kind, object) {
            (Kind::Announce, Some(object)) if is_relay_announce => format!("Create {object}"),
            (Kind::Create | Kind::Delete, Some(object)) => format!("{} {object}", self.kind.as_str()),
            (Kind::Update, Some(object)) => match updated {
                Some(updated) => format!("Update {object} {updated}"),
                None => format!("Update {object} {}", self.id),
            },
            (kind, _) => format!("{} {}", kind.as_str(), self.id),
        }
    }
}

/// The one type of a JSON-LD node; several types at once are not judged.
pub(crate) fn type_of(map: &Map<String, Value>) -> Option<&str> {
    match map.get("type")? {
        Value::String(one) => Some(one),
        Value::Array(many) => match many.as_slice() {
            [Value::String(one)] => Some(one),
            _ => None,
        },
        _ => None,
    }
}

/// An id given as a string, as an object with an id, or as an array of one of these.
pub(crate) fn text_or_id(value: Option<&Value>) -> Option<&str> {
    match value? {
        Value::String(text) => Some(text),
        Value::Object(map) => map.get("id")?.as_str(),
        Value::Array(many) => match many.as_slice() {
            [one @ (Value::String(_) | Value::Object(_))] => text_or_id(Some(one)),
            _ => None,
        },
        _ => None,
    }
}

fn short_text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| text.len() <= 64).map(str::to_owned)
}

fn read_object(value: Option<&Value>) -> Result<Option<Object>, ActivityError> {
    let bad = |reason| ActivityError::Id {
        property: "object",
        reason,
    };
    let value = match value {
        Some(Value::Array(many)) => match many.as_slice() {
            [one] => Some(one),
            _ => return Err(ActivityError::Missing("object")),
        },
        other => other,
    };
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if is_public(text) => Ok(Some(Object::Public(text.clone()))),
        Some(Value::String(text)) => ObjectId::parse(text).map(Object::Id).map(Some).map_err(bad),
        Some(Value::Object(map)) => embedded(map).map(Box::new).map(Object::Embedded).map(Some),
        Some(_) => Err(ActivityError::Missing("object")),
    }
}

fn embedded(map: &Map<String, Value>) -> Result<Embedded, ActivityError> {
    let id = match map.get("id") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(ObjectId::parse(text).map_err(|reason| ActivityError::Id {
            property: "object",
            reason,
        })?),
        Some(_) => return Err(ActivityError::Missing("object")),
    };
    let actor_at = |key| text_or_id(map.get(key)).and_then(|text| ActorId::parse(text).ok());
    Ok(Embedded {
        id,
        kind: type_of(map).map(|kind| kind.chars().take(64).collect()),
        actor: actor_at("actor"),
        object: text_or_id(map.get("object"))
            .filter(|text| text.len() <= super::ids::MAX_ID_BYTES)
            .map(str::to_owned),
        attributed_to: actor_at("attributedTo"),
        addressing: Addressing::of(map),
        updated: map.get("updated").and_then(short_text),
    })
}

/// RsaSignature2017 as Mastodon and Misskey make it: `{type, creator, created, signatureValue}`.
fn ld_signature(map: &Map<String, Value>, actor: &ActorId) -> LdSignature {
    let Some(signature) = map.get("signature").filter(|v| !v.is_null()) else {
        return LdSignature::Absent;
    };
    if map_has_graph_marks(map) {
        return LdSignature::Unusable;
    }
    let Some(signature) = signature.as_object() else {
        return LdSignature::Unusable;
    };
    let by_actor = signature
        .get("creator")
        .and_then(Value::as_str)
        .and_then(|creator| super::ids::KeyId::parse(creator).ok())
        .and_then(|key| key.likely_actor())
        .is_some_and(|owner| owner == *actor);
    let is_rsa = type_of(signature) == Some("RsaSignature2017");
    let has_value = signature
        .get("signatureValue")
        .and_then(Value::as_str)
        .is_some_and(|value| !value.is_empty());
    if by_actor && is_rsa && has_value {
        LdSignature::ByActor
    } else {
        LdSignature::Unusable
    }
}

/// `@graph`, `@included` or `@reverse` anywhere as a key: the JSON view and the linked-data view could differ
/// (GHSA-2vxv-pv3m-3wvj).
fn map_has_graph_marks(map: &Map<String, Value>) -> bool {
    map.iter().any(|(key, inner)| {
        matches!(key.as_str(), "@graph" | "@included" | "@reverse") || has_graph_marks(inner)
    })
}

pub(crate) fn has_graph_marks(value: &Value) -> bool {
    match value {
        Value::Object(map) => map_has_graph_marks(map),
        Value::Array(items) => items.iter().any(has_graph_marks),
        _ => false,
    }
}
