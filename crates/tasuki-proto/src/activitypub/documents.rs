//! Every document that the relay serves or sends.
//!
//! **Invariant:** nothing here names a follower, an inbox or a Follow id, except to the one peer whom it concerns.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::subscription::Follow;
use super::topic::Topic;
use super::{CONTEXT, date};

/// The names of one of the relay's actors: the whole relay's, or a topic's. Everything is under one origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// `https://HOST`, without a slash at the end.
    origin: String,
    /// `HOST`, with the port when it is not the scheme's own.
    host: String,
    topic: Topic,
}

impl Relay {
    /// The whole relay at `host` (canonical, see [`super::ids::Authority`]); `http` only for tests on one machine.
    pub fn new(scheme: &str, host: &str) -> Self {
        Self {
            origin: format!("{scheme}://{host}"),
            host: host.to_owned(),
            topic: Topic::All,
        }
    }

    /// The actor of a topic.
    pub fn at(&self, topic: &Topic) -> Self {
        Self {
            topic: topic.clone(),
            ..self.clone()
        }
    }

    /// Which actor this is.
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The value of `Host` under which the relay is reached.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `https://HOST`, without a slash at the end.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The actor's id.
    pub fn actor_id(&self) -> String {
        format!("{}{}", self.origin, self.topic.path())
    }

    /// The topic whose actor has this id.
    pub fn topic_of_id(&self, id: &str) -> Option<Topic> {
        Topic::of_path(id.strip_prefix(self.origin.as_str())?)
    }

    /// The key's id: `#main-key` and nothing else (Pleroma compares it with the actor's). All actors have the same key.
    pub fn key_id(&self) -> String {
        format!("{}#main-key", self.actor_id())
    }

    /// What is under an actor; of the whole relay it is at the root.
    fn below(&self, name: &str) -> String {
        match self.topic {
            Topic::All => format!("{}/{name}", self.origin),
            _ => format!("{}/{name}", self.actor_id()),
        }
    }

    /// What an instance's admin pastes; also the shared inbox, byte for byte.
    pub fn inbox(&self) -> String {
        self.below("inbox")
    }

    /// The collection to which Announces are addressed.
    pub fn followers(&self) -> String {
        self.below("followers")
    }

    /// The account name, as WebFinger asks for it.
    pub fn account(&self) -> String {
        format!("acct:{}@{}", self.topic.account_name(), self.host)
    }

    /// The id of something that the relay does; `unique` is a UUID or as good.
    pub fn activity_id(&self, unique: &str) -> String {
        self.below(&format!("activities/{unique}"))
    }

    /// The actor document. `public_key_pem` is SPKI.
    pub fn actor(&self, name: &str, summary: &str, public_key_pem: &str) -> Value {
        json!({
            "@context": [CONTEXT, "https://w3id.org/security/v1"],
            "id": self.actor_id(),
            "type": "Application",
            "preferredUsername": self.topic.account_name(),
            "name": name,
            "summary": summary,
            "url": format!("{}/", self.origin),
            "inbox": self.inbox(),
            "outbox": self.below("outbox"),
            "followers": self.followers(),
            "following": self.below("following"),
            "endpoints": { "sharedInbox": self.inbox() },
            "manuallyApprovesFollowers": false,
            "publicKey": {
                "id": self.key_id(),
                "owner": self.actor_id(),
                "publicKeyPem": public_key_pem,
            },
        })
    }

    /// The news that the actor's document changed, with the whole of it: who knows the old key learns the new one from it.
    pub fn update_of_actor(&self, unique: &str, mut actor: Value) -> Value {
        let context = actor
            .as_object_mut()
            .and_then(|actor| actor.remove("@context"))
            .unwrap_or_else(|| json!(CONTEXT));
        json!({
            "@context": context,
            "id": self.activity_id(unique),
            "type": "Update",
            "actor": self.actor_id(),
            "to": [super::PUBLIC],
            "object": actor,
        })
    }

    /// A collection that exists and shows nothing: who follows the relay is the operator's to tell.
    pub fn empty_collection(&self, name: &str) -> Value {
        json!({
            "@context": CONTEXT,
            "id": self.below(name),
            "type": "OrderedCollection",
            "totalItems": 0,
            "orderedItems": [],
        })
    }

    /// Which of the relay's actors a WebFinger `resource` names.
    pub fn topic_of_resource(&self, resource: &str) -> Option<Topic> {
        let account = resource.strip_prefix("acct:").unwrap_or(resource);
        let account = account.strip_prefix('@').unwrap_or(account);
        if resource.strip_suffix('/').unwrap_or(resource) == self.origin {
            return Some(Topic::All);
        }
        match account.rsplit_once('@') {
            Some((user, host)) if host.eq_ignore_ascii_case(&self.host) => Topic::of_account_name(user),
            Some(_) => None,
            None => self.topic_of_id(resource),
        }
    }

    /// The WebFinger answer (RFC 7033): `subject` with `acct:`, and the link that Mastodon compares with the actor's id.
    pub fn webfinger(&self) -> Value {
        json!({
            "subject": self.account(),
            "aliases": [self.actor_id()],
            "links": [
                { "rel": "self", "type": "application/activity+json", "href": self.actor_id() },
                { "rel": "http://webfinger.net/rel/profile-page", "type": "text/html", "href": format!("{}/", self.origin) },
            ],
        })
    }

    /// `/.well-known/nodeinfo`.
    pub fn nodeinfo_links(&self) -> Value {
        let link = |version: &str| {
            json!({
                "rel": format!("http://nodeinfo.diaspora.software/ns/schema/{version}"),
                "href": format!("{}/nodeinfo/{version}", self.origin),
            })
        };
        json!({ "links": [link("2.0"), link("2.1")] })
    }

    /// NodeInfo; `peers` are hosts only, and only if the operator shows them.
    pub fn nodeinfo(&self, version: NodeInfoVersion, facts: &Facts<'_>) -> Value {
        let mut software = json!({ "name": "tasuki", "version": facts.software_version });
        if let (NodeInfoVersion::V2_1, Some(home)) = (version, facts.repository) {
            software["repository"] = json!(home);
        }
        json!({
            "version": version.as_str(),
            "software": software,
            "protocols": ["activitypub"],
            "services": { "inbound": [], "outbound": [] },
            "openRegistrations": facts.open,
            "usage": { "users": { "total": 1, "activeHalfyear": 1, "activeMonth": 1 }, "localPosts": 0, "localComments": 0 },
            "metadata": { "nodeName": facts.name, "nodeDescription": facts.summary, "peers": facts.peers,
                "topicRelays": facts.topic_mode, "topics": facts.topics },
        })
    }

    /// `/api/v1/instance` as far as relay directories and aode-relay read it.
    pub fn instance(&self, facts: &Facts<'_>) -> Value {
        json!({
            "uri": self.host,
            "title": facts.name,
            "short_description": facts.summary,
            "description": facts.summary,
            "email": facts.contact,
            "version": format!("tasuki {}", facts.software_version),
            "urls": {},
            "stats": { "user_count": 1, "status_count": 0, "domain_count": facts.peer_count },
            "thumbnail": null,
            "languages": [],
            "registrations": facts.open,
            "approval_required": !facts.open,
            "contact_account": null,
            "rules": [],
        })
    }

    /// The answer yes. The Follow is embedded with its own id and actor: Misskey and Iceshrimp.NET need it so.
    pub fn accept(&self, unique: &str, follow: &Follow) -> Value {
        self.answer("Accept", unique, follow)
    }

    /// The answer no, or the end of a subscription.
    pub fn reject(&self, unique: &str, follow: &Follow) -> Value {
        self.answer("Reject", unique, follow)
    }

    fn answer(&self, kind: &str, unique: &str, follow: &Follow) -> Value {
        json!({
            "@context": CONTEXT,
            "id": self.activity_id(unique),
            "type": kind,
            "actor": self.actor_id(),
            "to": [follow.actor.as_str()],
            "object": {
                "id": follow.id,
                "type": "Follow",
                "actor": follow.actor.as_str(),
                "object": follow.object,
            },
        })
    }

    /// The relay's own Follow of a LitePub relay actor, under a whole id.
    pub fn follow(&self, id: &str, actor: &str) -> Value {
        json!({
            "@context": CONTEXT,
            "id": id,
            "type": "Follow",
            "actor": self.actor_id(),
            "to": [actor],
            "object": actor,
        })
    }

    /// Taking that Follow back.
    pub fn undo_follow(&self, unique: &str, id: &str, actor: &str) -> Value {
        json!({
            "@context": CONTEXT,
            "id": self.activity_id(unique),
            "type": "Undo",
            "actor": self.actor_id(),
            "to": [actor],
            "object": {
                "id": id,
                "type": "Follow",
                "actor": self.actor_id(),
                "object": actor,
            },
        })
    }

    /// The Announce of a post. Addressed to followers only, so that Misskey before 2026.5 does not show a public renote;
    /// `published` is there because some relays drop Announces without it.
    pub fn announce(&self, unique: &str, object: &str, at: SystemTime) -> Value {
        json!({
            "@context": CONTEXT,
            "id": self.activity_id(unique),
            "type": "Announce",
            "actor": self.actor_id(),
            "to": [self.followers()],
            "object": object,
            "published": date::timestamp(at),
        })
    }

    /// The same Announce by this actor, when `announce` was written by another of the relay's. `None` for what is none.
    pub fn announce_as(&self, announce: &Value) -> Option<Value> {
        let unique = announce.get("id")?.as_str()?.rsplit('/').next()?;
        let mut own = announce.clone();
        own["id"] = json!(self.activity_id(unique));
        own["actor"] = json!(self.actor_id());
        own["to"] = json!([self.followers()]);
        Some(own)
    }
}

/// Which NodeInfo schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeInfoVersion {
    /// 2.0
    V2_0,
    /// 2.1
    V2_1,
}

impl NodeInfoVersion {
    fn as_str(self) -> &'static str {
        match self {
            Self::V2_0 => "2.0",
            Self::V2_1 => "2.1",
        }
    }
}

/// What NodeInfo and the instance stub tell.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Of Tasuki.
    pub software_version: &'a str,
    /// Where its source is.
    pub repository: Option<&'a str>,
    /// The relay's name.
    pub name: &'a str,
    /// What it is for.
    pub summary: &'a str,
    /// How to reach the operator.
    pub contact: &'a str,
    /// Anybody may subscribe.
    pub open: bool,
    /// Which topic relays may be joined: `off`, `listed` or `any`.
    pub topic_mode: &'a str,
    /// Topic relays by name: those that the operator lists.
    pub topics: &'a [String],
    /// Subscribed hosts, if they are shown.
    pub peers: &'a [String],
    /// How many there are.
    pub peer_count: usize,
}
