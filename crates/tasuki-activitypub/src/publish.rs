//! From a proven activity to one row in the log: the table, the audience, the commit.
//!
//! **Invariant:** nothing goes back to the host it came from, and `202` is said after the commit.

use bytes::Bytes;
use roaring::RoaringBitmap;
use sha2::{Digest as _, Sha256};
use tasuki_core::events::What;
use tasuki_core::store::StoreError;
use tasuki_core::store::fedi::{Appended, EntryKind, NewEntry};
use tasuki_proto::activitypub::activity::{Activity, Kind, Object};
use tasuki_proto::activitypub::decision::{Action, Decision, Options, decide};
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::{ActorId, Authority, ObjectId};
use tasuki_proto::activitypub::words::Words;

use crate::engine::Inner;
use crate::metrics::Outcome;
use crate::subscribers::Receivers;
use crate::time::system_time;
use crate::unique;

/// What is to be told.
struct News<'a> {
    activity: &'a Activity,
    kind: EntryKind,
    object: &'a ObjectId,
    /// Who wrote it; a LitePub server's Announce is about somebody else's post.
    author: &'a ActorId,
    decision: Decision,
    body: Bytes,
    /// The host that brought it.
    bringer: &'a Authority,
    is_relay_announce: bool,
}

/// Who gets what.
#[derive(Debug, Default, PartialEq)]
struct Audience {
    all: RoaringBitmap,
    announce_to: RoaringBitmap,
    forwarded: bool,
}

impl Audience {
    fn of(decision: Decision, receivers: &Receivers) -> Self {
        let mut audience = Self::default();
        for (action, hosts) in [
            (decision.to_forward, &receivers.forward),
            (decision.to_announce, &receivers.announce),
        ] {
            match action {
                Action::Forward => {
                    audience.all |= hosts;
                    audience.forwarded = true;
                }
                Action::Announce => {
                    audience.all |= hosts;
                    audience.announce_to |= hosts;
                }
                Action::Drop(_) => {}
            }
        }
        audience
    }

    /// The store adds all hosts that got the object to a Delete. Of these, the ones that only take announces get nothing:
    /// they are marked for an Announce that there is none of.
    fn widen_for_delete(&mut self, receivers: &Receivers) {
        if self.forwarded {
            self.all |= &receivers.deletes;
        }
        self.announce_to |= &receivers.announce - &receivers.deletes;
    }
}

impl Inner {
    /// Relays a proven activity, brought by the host `bringer`, by the table.
    pub(crate) async fn publish(
        &self,
        relay: &Relay,
        activity: &Activity,
        body: Bytes,
        bringer: &Authority,
    ) -> Result<Outcome, StoreError> {
        if self.is_silenced(activity, &body) {
            return Ok(Outcome::Dropped("silenced"));
        }
        let decision = decide(activity, self.options());
        if let (Action::Drop(why), Action::Drop(_)) = (decision.to_forward, decision.to_announce) {
            return Ok(Outcome::Dropped(why.as_str()));
        }
        let object = activity.object.as_ref().and_then(Object::id);
        let object = object.cloned().unwrap_or_else(|| activity.id.clone());
        let kind = match activity.kind {
            Kind::Delete => EntryKind::Delete,
            Kind::Create => EntryKind::Activity,
            _ => EntryKind::Change,
        };
        let news = News {
            activity,
            kind,
            object: &object,
            author: &activity.actor,
            decision,
            body,
            bringer,
            is_relay_announce: false,
        };
        self.append(relay, news).await
    }

    /// What the operator wants beyond the table.
    pub(crate) fn options(&self) -> Options {
        let config = self.config.load();
        Options {
            unlisted: config.unlisted,
            boosts: config.boosts,
        }
    }

    /// Whether a filter keeps a post from being relayed. Its Delete is relayed: some have it from before the filter.
    fn is_silenced(&self, activity: &Activity, body: &[u8]) -> bool {
        let moderation = self.subscribers.moderation();
        if !moderation.has_filters() || !matches!(activity.kind, Kind::Create | Kind::Update) {
            return false;
        }
        let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        moderation.silences(&Words::of(&document)).is_some()
    }

    /// Announces a post that a LitePub server told of; it was fetched and is public.
    pub(crate) async fn announce(
        &self,
        relay: &Relay,
        activity: &Activity,
        (object, author): (&ObjectId, &ActorId),
    ) -> Result<Outcome, StoreError> {
        let decision = Decision {
            to_forward: Action::Announce,
            to_announce: Action::Announce,
        };
        let news = News {
            activity,
            kind: EntryKind::Activity,
            object,
            author,
            decision,
            body: Bytes::new(),
            bringer: activity.actor.authority(),
            is_relay_announce: true,
        };
        self.append(relay, news).await
    }

    async fn append(&self, relay: &Relay, news: News<'_>) -> Result<Outcome, StoreError> {
        let News {
            activity,
            kind,
            object,
            author,
            decision,
            body,
            bringer,
            is_relay_announce,
        } = news;
        let key = hashed(&activity.news_key(is_relay_announce));
        if self.recent_news.contains_key(&key) {
            return Ok(Outcome::Duplicate);
        }
        let receivers = self.subscribers.receivers(self.config.load().mode);
        let mut audience = Audience::of(decision, &receivers);
        if kind == EntryKind::Delete {
            audience.widen_for_delete(&receivers);
        }
        let origins = [bringer, activity.actor.authority(), object.authority()];
        self.leave_out(&mut audience, origins);
        // The store adds to a Delete all hosts that once got the object.
        if audience.all.is_empty() && kind != EntryKind::Delete {
            return Ok(Outcome::Dropped("no_receivers"));
        }
        let at = self.deps.clock.wall();
        let announce = (kind != EntryKind::Delete && !audience.announce_to.is_empty()).then(|| {
            let document = relay.announce(&unique(), object.as_str(), system_time(at));
            Bytes::from(document.to_string())
        });
        let hosts = audience.all.len();
        let appended = self
            .store
            .append(NewEntry {
                kind,
                object: object.as_str().to_owned(),
                actor: author.as_str().to_owned(),
                dedupe: key.clone(),
                body: if audience.forwarded { body } else { Bytes::new() },
                announce,
                audience: audience.all,
                announce_to: audience.announce_to,
                at,
            })
            .await?;
        self.recent_news.insert(key, ());
        match appended {
            Appended::Duplicate => Ok(Outcome::Duplicate),
            Appended::Stored(_) => {
                self.deps.events.emit(What::ActivityRelayed {
                    id: activity.id.to_string(),
                    hosts,
                });
                Ok(Outcome::Relayed)
            }
        }
    }

    fn leave_out(&self, audience: &mut Audience, origins: [&Authority; 3]) {
        let table = self.subscribers.table();
        for host in origins {
            if let Some(origin) = table.host(host) {
                audience.all.remove(origin.host_no.0);
                audience.announce_to.remove(origin.host_no.0);
            }
        }
    }
}

/// Keys have one length in the index, whatever peers call their objects.
fn hashed(key: &str) -> String {
    Sha256::digest(key)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
