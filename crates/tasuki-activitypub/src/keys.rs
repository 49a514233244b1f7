//! Other servers' actors and keys: a bounded cache, the store behind it, and fetches that cannot be used to make the
//! gateway ask around without end.
//!
//! **Invariant:** a key counts only if the actor's own document, fetched from the actor's own host under its own id, holds
//! it: `key.owner == actor.id`. A file that a user uploaded somewhere on the host is not enough.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use moka::sync::Cache;
use prometheus_client::metrics::counter::Counter;
use tasuki_core::clock::Clock;
use tasuki_core::engine::EngineKind;
use tasuki_core::limits::{Limits, Rate, Who};
use tasuki_core::store::fedi::ActorKey;
use tasuki_core::store::{FediStore, StoreError};
use tasuki_proto::activitypub::actor::{self, Actor, ActorError, PublicKey, Wishes};
use tasuki_proto::activitypub::ids::{ActorId, KeyId, ObjectId};
use tasuki_proto::activitypub::json;
use tasuki_proto::activitypub::traits::Traits;
use tasuki_proto::activitypub::words::Words;

use crate::fetch::{Document, FetchError, Fetcher};
use crate::verify::{BadKey, VerifyKey};

/// Keys kept in memory; the store remembers more.
const MAX_KEYS: u64 = 50_000;
/// How long a key is believed without asking again; a failed verification asks earlier.
const KEY_TTL: Duration = Duration::from_secs(2 * 86_400);
/// How long a failed fetch is not repeated, and the shortest time between two refetches for one actor.
const COOLDOWN: Duration = Duration::from_secs(300);
/// How long an author's wishes are believed without asking again.
const AUTHOR_TTL: Duration = Duration::from_secs(86_400);
/// How long a fetched actor document is used for what follows right after (the Follow that it signed).
const ACTOR_TTL: Duration = Duration::from_secs(60);
/// Fetches that one address can cause.
const FETCHES_BY_ADDRESS: Rate = Rate {
    burst: 300,
    per_period: 20,
    period: Duration::from_secs(1),
};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    /// The actor or its key is gone (404, 410).
    #[error("the actor of the key is gone")]
    Gone,
    /// A document without that key, of another actor, or none.
    #[error("the document of the actor does not hold the key: {0}")]
    NotInDocument(String),
    /// The published key is of no use.
    #[error(transparent)]
    Bad(#[from] BadKey),
    /// The fetch failed for good.
    #[error("the key cannot be fetched")]
    Refused(#[source] Box<FetchError>),
    /// The fetch failed for now.
    #[error("the key cannot be fetched now")]
    Unreachable(#[source] Option<Box<FetchError>>),
    /// The address caused too many fetches.
    #[error("too many keys to fetch")]
    Limited(Duration),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is remembered of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Missing {
    Gone,
    NotInDocument(String),
    Unreachable,
}

impl From<Missing> for KeyError {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Gone => Self::Gone,
            Missing::NotInDocument(why) => Self::NotInDocument(why),
            Missing::Unreachable => Self::Unreachable(None),
        }
    }
}

/// A key with its owner.
#[derive(Debug)]
pub(crate) struct KnownKey {
    pub(crate) owner: ActorId,
    pub(crate) key: VerifyKey,
    text: String,
}

/// All known keys.
pub(crate) struct Keys {
    store: Arc<dyn FediStore>,
    fetcher: Fetcher,
    limits: Limits,
    clock: Clock,
    fetched: Counter,
    known: Cache<String, Arc<KnownKey>>,
    missing: Cache<String, Missing>,
    refetched: Cache<String, ()>,
    actors: Cache<String, Arc<Actor>>,
    authors: Cache<String, AuthorFacts>,
    /// Authors whose document could not be read lately.
    unread: Cache<String, ()>,
}

/// What is known of an author beside the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuthorFacts {
    /// When the account was made, as its server says.
    pub(crate) born: Option<SystemTime>,
    pub(crate) wishes: Wishes,
    /// The account says that no person writes.
    pub(crate) is_bot: bool,
}

impl AuthorFacts {
    /// Whether the author does not want to be relayed.
    pub(crate) fn wants_no_relay(self, honor_indexable: bool) -> bool {
        self.wishes.no_relay || (honor_indexable && self.wishes.not_indexable)
    }

    fn of(actor: &Actor) -> Self {
        Self {
            born: actor.published,
            wishes: actor.wishes,
            // Mastodon, Misskey, Pleroma: an account marked as a bot.
            is_bot: matches!(actor.kind.as_str(), "Service" | "Application"),
        }
    }
}

impl Keys {
    pub(crate) fn new(
        store: Arc<dyn FediStore>,
        fetcher: Fetcher,
        limits: Limits,
        clock: Clock,
        fetched: Counter,
    ) -> Self {
        let cache = |max, ttl| Cache::builder().max_capacity(max).time_to_live(ttl);
        Self {
            store,
            fetcher,
            limits,
            clock,
            fetched,
            known: cache(MAX_KEYS, KEY_TTL).build(),
            missing: Cache::builder()
                .max_capacity(20_000)
                .time_to_live(COOLDOWN)
                .build(),
            refetched: Cache::builder()
                .max_capacity(20_000)
                .time_to_live(COOLDOWN)
                .build(),
            actors: Cache::builder()
                .max_capacity(1_000)
                .time_to_live(ACTOR_TTL)
                .build(),
            authors: Cache::builder()
                .max_capacity(MAX_KEYS)
                .time_to_live(AUTHOR_TTL)
                .build(),
            unread: Cache::builder()
                .max_capacity(20_000)
                .time_to_live(COOLDOWN)
                .build(),
        }
    }

    /// The key of this id if it is known without asking its host.
    pub(crate) async fn known(&self, id: &KeyId) -> Result<Option<Arc<KnownKey>>, StoreError> {
        if let Some(known) = self.known.get(id.as_str()) {
            return Ok(Some(known));
        }
        let Some(stored) = self.store.key(id.as_str()).await? else {
            return Ok(None);
        };
        // What does not parse any more is fetched anew.
        let (Ok(owner), Ok(key)) = (ActorId::parse(&stored.owner), VerifyKey::parse(&stored.pem)) else {
            return Ok(None);
        };
        let known = Arc::new(KnownKey {
            owner,
            key,
            text: stored.pem,
        });
        self.known.insert(id.as_str().to_owned(), Arc::clone(&known));
        Ok(Some(known))
    }

    /// The key of this id, fetched if it has to be; `from` is who makes us fetch.
    pub(crate) async fn find(&self, id: &KeyId, from: IpAddr) -> Result<Arc<KnownKey>, KeyError> {
        if let Some(known) = self.known(id).await? {
            return Ok(known);
        }
        if let Some(missing) = self.missing.get(id.as_str()) {
            return Err(missing.into());
        }
        self.fetch(id, from).await
    }

    /// The key again, after a signature did not verify: at most once in five minutes for one actor. `None` when it was
    /// asked lately or has not changed.
    pub(crate) async fn find_changed(
        &self,
        id: &KeyId,
        old: &KnownKey,
        from: IpAddr,
    ) -> Result<Option<Arc<KnownKey>>, KeyError> {
        let actor = old.owner.as_str();
        if self.refetched.contains_key(actor) {
            return Ok(None);
        }
        self.refetched.insert(actor.to_owned(), ());
        let fresh = self.fetch(id, from).await?;
        Ok((fresh.text != old.text).then_some(fresh))
    }

    async fn fetch(&self, id: &KeyId, from: IpAddr) -> Result<Arc<KnownKey>, KeyError> {
        self.limits
            .take(
                EngineKind::Fediverse,
                "key_fetch",
                Who::Address(from),
                FETCHES_BY_ADDRESS,
            )
            .map_err(KeyError::Limited)?;
        self.fetched.inc();
        match self.fetch_now(id).await {
            Ok(known) => Ok(known),
            Err(error) => {
                let missing = match &error {
                    KeyError::Gone => Some(Missing::Gone),
                    KeyError::NotInDocument(_) | KeyError::Bad(_) | KeyError::Refused(_) => {
                        Some(Missing::NotInDocument(error.to_string()))
                    }
                    KeyError::Unreachable(_) => Some(Missing::Unreachable),
                    KeyError::Limited(_) | KeyError::Store(_) => None,
                };
                if let Some(missing) = missing {
                    self.missing.insert(id.as_str().to_owned(), missing);
                }
                Err(error)
            }
        }
    }

    async fn fetch_now(&self, id: &KeyId) -> Result<Arc<KnownKey>, KeyError> {
        let document = self.fetch_document(id.url()).await?;
        let named = match Actor::read(&document.body, &limits()) {
            Ok(actor) if is_under_own_id(&actor.id, &document) => return self.accept(id, actor).await,
            // A stub with only the key (GoToSocial), or a key on its own: the actor itself must confirm it.
            Ok(stub) => stub.id,
            Err(_) => actor::read_key_owner(&document.body, id, &limits()).map_err(not_in_document)?,
        };
        if named.authority() != id.authority() {
            return Err(KeyError::NotInDocument(
                "it belongs to an actor on another host".into(),
            ));
        }
        let actor = self.fetch_actor_now(&named).await?;
        self.accept(id, actor).await
    }

    async fn accept(&self, id: &KeyId, actor: Actor) -> Result<Arc<KnownKey>, KeyError> {
        let PublicKey { owner, text, .. } = actor
            .key(id)
            .cloned()
            .ok_or_else(|| KeyError::NotInDocument(format!("{} lists no such key", actor.id)))?;
        let known = Arc::new(KnownKey {
            key: VerifyKey::parse(&text)?,
            owner,
            text: text.clone(),
        });
        let inbox = actor.shared_inbox.as_ref().or(actor.inbox.as_ref());
        self.store
            .remember_key(ActorKey {
                key_id: id.as_str().to_owned(),
                owner: known.owner.as_str().to_owned(),
                pem: text,
                inbox: inbox.map(|inbox| inbox.as_str().to_owned()),
                fetched_at: self.clock.wall(),
            })
            .await?;
        self.known.insert(id.as_str().to_owned(), Arc::clone(&known));
        self.missing.invalidate(id.as_str());
        let facts = AuthorFacts::of(&actor);
        self.authors.insert(actor.id.as_str().to_owned(), facts);
        self.actors.insert(actor.id.as_str().to_owned(), Arc::new(actor));
        Ok(known)
    }

    /// An actor's document, from its own host under its own id.
    pub(crate) async fn actor(&self, id: &ActorId) -> Result<Arc<Actor>, KeyError> {
        if let Some(actor) = self.actors.get(id.as_str()) {
            return Ok(actor);
        }
        self.actor_now(id).await
    }

    /// What an author wants and since when there is the account; `None` when their server does not say now.
    pub(crate) async fn author(&self, id: &ActorId, from: IpAddr) -> Option<AuthorFacts> {
        if let Some(known) = self.authors.get(id.as_str()) {
            return Some(known);
        }
        if self.unread.contains_key(id.as_str()) {
            return None;
        }
        let who = Who::Address(from);
        self.limits
            .take(EngineKind::Fediverse, "key_fetch", who, FETCHES_BY_ADDRESS)
            .ok()?;
        match self.actor(id).await {
            Ok(actor) => {
                let facts = AuthorFacts::of(&actor);
                self.authors.insert(id.as_str().to_owned(), facts);
                Some(facts)
            }
            Err(error) => {
                tracing::debug!(actor = %id, error = %error, "an author's document was not read");
                self.unread.insert(id.as_str().to_owned(), ());
                None
            }
        }
    }

    /// Whether an author is known to be a bot; nobody is asked.
    pub(crate) fn is_bot(&self, id: &ActorId) -> bool {
        self.authors.get(id.as_str()).is_some_and(|known| known.is_bot)
    }

    /// Whether an author is known not to want to be relayed; nobody is asked.
    pub(crate) fn wants_no_relay(&self, id: &ActorId, honor_indexable: bool) -> bool {
        let known = self.authors.get(id.as_str());
        known.is_some_and(|known| known.wants_no_relay(honor_indexable))
    }

    /// The author changed something: it is asked again.
    pub(crate) fn forget_author(&self, id: &ActorId) {
        self.authors.invalidate(id.as_str());
        self.actors.invalidate(id.as_str());
    }

    async fn fetch_actor_now(&self, id: &ActorId) -> Result<Actor, KeyError> {
        let document = self.fetch_document(id.url()).await?;
        let actor = Actor::read(&document.body, &limits()).map_err(not_in_document)?;
        if actor.id != *id || !is_under_own_id(&actor.id, &document) {
            return Err(KeyError::NotInDocument(format!(
                "{} is not the document of {id}",
                document.url
            )));
        }
        Ok(actor)
    }

    async fn fetch_document(&self, url: url::Url) -> Result<Document, KeyError> {
        self.fetcher.fetch(url).await.map_err(|error| match error {
            FetchError::Gone { .. } => KeyError::Gone,
            error if error.is_temporary() => KeyError::Unreachable(Some(Box::new(error))),
            error => KeyError::Refused(Box::new(error)),
        })
    }

    /// An actor's document, asked for now.
    pub(crate) async fn actor_now(&self, id: &ActorId) -> Result<Arc<Actor>, KeyError> {
        let actor = Arc::new(self.fetch_actor_now(id).await?);
        self.actors.insert(id.as_str().to_owned(), Arc::clone(&actor));
        Ok(actor)
    }

    /// A document that is no activity: NodeInfo.
    pub(crate) async fn plain_document(&self, url: url::Url) -> Result<bytes::Bytes, FetchError> {
        self.fetcher.fetch_json(url).await.map(|document| document.body)
    }

    /// A post with its words and traits, from its own host under its own id.
    pub(crate) async fn post(&self, id: &ObjectId) -> Result<(actor::Post, Words, Traits), KeyError> {
        let document = self.fetch_document(id.url()).await?;
        let post = actor::Post::read(&document.body, &limits()).map_err(not_in_document)?;
        if post.id != *id || post.id.url() != document.url {
            return Err(KeyError::NotInDocument(format!(
                "{} is not the document of {id}",
                document.url
            )));
        }
        let document = json::read(&document.body, &limits()).unwrap_or_default();
        Ok((post, Words::of(&document), Traits::of(&document)))
    }

    /// The post that an address shows: people paste the one in their browser's bar, and the post has an id of its own.
    pub(crate) async fn post_at(&self, address: &ObjectId) -> Result<(actor::Post, Words), KeyError> {
        let document = self.fetch_document(address.url()).await?;
        let id = actor::Post::read(&document.body, &limits())
            .map_err(not_in_document)?
            .id;
        self.post(&id).await.map(|(post, words, _)| (post, words))
    }
}

fn is_under_own_id(id: &ActorId, document: &Document) -> bool {
    id.url() == document.url
}

fn not_in_document(error: ActorError) -> KeyError {
    KeyError::NotInDocument(error.to_string())
}

fn limits() -> json::Limits {
    json::Limits {
        bytes: crate::fetch::MAX_DOCUMENT_BYTES,
        ..json::Limits::default()
    }
}
