//! From a proven activity to one row in the log: the table, the audience, the commit.
//!
//! **Invariant:** nothing goes back to the host it came from, a host gets one copy whatever it joined, and `202` is said after
//! the commit.

use std::sync::PoisonError;

use bytes::Bytes;
use roaring::RoaringBitmap;
use sha2::{Digest as _, Sha256};
use tasuki_core::events::What;
use tasuki_core::store::StoreError;
use tasuki_core::store::fedi::{Appended, EntryKind, NewEntry, Via};
use tasuki_proto::activitypub::activity::{Activity, Kind, Object};
use tasuki_proto::activitypub::decision::{Action, Decision, Options, decide};
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::{ActorId, Authority, ObjectId};
use tasuki_proto::activitypub::topic::Topic;
use tasuki_proto::activitypub::traits::Traits;
use tasuki_proto::activitypub::words::Words;

use crate::engine::Inner;
use crate::filters::LeftOut;
use crate::metrics::Outcome;
use crate::receivers::{Reach, Receivers};
use crate::time::system_time;
use crate::unique;

/// Hosts named for each reason why something was left out.
const MAX_NAMED: usize = 3;

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
    traits: &'a Traits,
}

impl News<'_> {
    /// Whether it changes or takes away what somebody may have: it goes to them whatever it is about now.
    fn is_change(&self) -> bool {
        self.kind == EntryKind::Delete || (self.activity.kind == Kind::Update && self.traits.is_post)
    }

    /// Whether it is new to whoever gets it: filters and limits are for that.
    fn is_new(&self) -> bool {
        self.is_relay_announce || matches!(self.activity.kind, Kind::Create | Kind::Announce)
    }
}

/// Who gets what.
#[derive(Debug, Default)]
struct Audience {
    all: RoaringBitmap,
    announce_to: RoaringBitmap,
    if_known: RoaringBitmap,
    via: Vec<(Topic, RoaringBitmap)>,
    forwarded: bool,
    left_out: LeftOut,
}

impl Audience {
    fn of(decision: Decision, receivers: &Receivers, reach: Reach) -> Self {
        let mut audience = Self {
            via: reach.via,
            ..Self::default()
        };
        for (action, hosts) in [
            (decision.to_forward, &receivers.forward),
            (decision.to_announce, &receivers.announce),
        ] {
            match action {
                Action::Forward => {
                    audience.all |= hosts & &reach.hosts;
                    audience.forwarded = true;
                }
                Action::Announce => {
                    audience.all |= hosts & &reach.hosts;
                    audience.announce_to |= hosts & &reach.hosts;
                }
                Action::Drop(_) => {}
            }
        }
        audience
    }

    /// The store adds all hosts that got the object to a Delete. Of these, the ones that only take announces get nothing:
    /// they are marked for an Announce that there is none of.
    fn widen_for_delete(&mut self, receivers: &Receivers, reach: &RoaringBitmap) {
        if self.forwarded {
            self.all |= &receivers.deletes & reach;
        }
        self.announce_to |= &receivers.announce - &receivers.deletes;
    }

    fn leave_out(&mut self, host: u32) {
        self.all.remove(host);
        self.announce_to.remove(host);
        self.if_known.remove(host);
    }

    fn via(&self) -> Via {
        self.via
            .iter()
            .map(|(topic, hosts)| (topic.to_string(), hosts & &self.all))
            .filter(|(_, hosts)| !hosts.is_empty())
            .collect()
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
        let document = self.read_again(activity, &body, bringer);
        if let Some(document) = &document
            && let Some(rule) = self.subscribers.moderation().silences(&Words::of(document))
        {
            let rule = format!("{:?} {:?}", rule.kind, rule.subject).to_lowercase();
            self.trail
                .explain(activity.id.as_str(), format!("silenced is {rule}"));
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
        let traits = document.as_ref().map(Traits::of).unwrap_or_default();
        let news = News {
            activity,
            kind,
            object: &object,
            author: &activity.actor,
            decision,
            body,
            bringer,
            is_relay_announce: false,
            traits: &traits,
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

    /// The document of a post, if anything asks what it says. A Delete is never silenced: some have the post from before.
    fn read_again(&self, activity: &Activity, body: &[u8], bringer: &Authority) -> Option<serde_json::Value> {
        let feeds_topics = || {
            let table = self.subscribers.table();
            table
                .host(bringer)
                .is_some_and(|one| one.is_active() && !one.feeds_all())
        };
        let receivers = self.subscribers.receivers(&self.config.load_full());
        let is_asked = self.subscribers.moderation().has_filters()
            || receivers.has_topics()
            || !receivers.sieve.is_empty()
            || feeds_topics();
        let is_read = matches!(activity.kind, Kind::Create | Kind::Update);
        (is_asked && is_read).then(|| serde_json::from_slice(body).unwrap_or_default())
    }

    /// Announces a post that a LitePub server told of; it was fetched and is public.
    pub(crate) async fn announce(
        &self,
        relay: &Relay,
        activity: &Activity,
        (object, author): (&ObjectId, &ActorId),
        traits: &Traits,
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
            traits,
        };
        self.append(relay, news).await
    }

    async fn append(&self, relay: &Relay, news: News<'_>) -> Result<Outcome, StoreError> {
        let key = hashed(&news.activity.news_key(news.is_relay_announce));
        if self.recent_news.contains_key(&key) {
            return Ok(Outcome::Duplicate);
        }
        let audience = match self.audience_of(&news) {
            Ok(audience) => audience,
            Err(why) => return Ok(Outcome::Dropped(why)),
        };
        let News {
            activity,
            kind,
            object,
            author,
            body,
            ..
        } = news;
        let at = self.deps.clock.wall();
        let announce = (kind != EntryKind::Delete && !audience.announce_to.is_empty()).then(|| {
            // Topics' actors write the same under their own names when it is sent.
            let relay = relay.at(&Topic::All);
            let document = relay.announce(&unique(), object.as_str(), system_time(at));
            Bytes::from(document.to_string())
        });
        let hosts = audience.all.len();
        let via = audience.via();
        self.explain(activity, &audience, &via);
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
                via,
                if_known: audience.if_known,
                at,
            })
            .await?;
        self.recent_news.insert(key, ());
        match appended {
            Appended::Duplicate => Ok(Outcome::Duplicate),
            Appended::Nobody => Ok(Outcome::Dropped("no_receivers")),
            Appended::Stored(_) => {
                self.deps.events.emit(What::ActivityRelayed {
                    id: activity.id.to_string(),
                    hosts,
                });
                Ok(Outcome::Relayed)
            }
        }
    }

    /// Who gets it, or why nobody does.
    fn audience_of(&self, news: &News<'_>) -> Result<Audience, &'static str> {
        let receivers = self.subscribers.receivers(&self.config.load_full());
        let table = self.subscribers.table();
        let topics = receivers.topics_of(news.traits, news.object.authority());
        // What a host sends that joined topics only is for everybody if it is of one of these.
        let is_for_all = match table
            .host(news.bringer)
            .filter(|one| one.is_active() && !one.feeds_all())
        {
            None => true,
            Some(one) => one
                .joined
                .iter()
                .any(|one| one.is_active() && topics.contains(&one.topic)),
        };
        if !is_for_all && !news.is_change() {
            return Err("off_topic");
        }
        let reach = if is_for_all {
            receivers.reach(&topics)
        } else {
            Reach::default()
        };
        let reached = reach.hosts.clone();
        let mut audience = Audience::of(news.decision, &receivers, reach);
        if news.kind == EntryKind::Delete {
            audience.widen_for_delete(&receivers, &reached);
        } else if news.is_change() && audience.forwarded {
            audience.if_known = receivers.forward.clone();
        }
        for host in [
            news.bringer,
            news.activity.actor.authority(),
            news.object.authority(),
        ] {
            if let Some(origin) = table.host(host) {
                audience.leave_out(origin.host_no.0);
            }
        }
        if !receivers.sieve.is_empty() {
            self.sift(news, &receivers, &mut audience);
        }
        // The store adds the hosts that once got the object.
        if audience.all.is_empty() && !audience.left_out.by_reason.is_empty() && audience.if_known.is_empty()
        {
            self.explain(news.activity, &audience, &Via::new());
            return Err("filtered");
        }
        if audience.all.is_empty() && audience.if_known.is_empty() && news.kind != EntryKind::Delete {
            return Err("no_receivers");
        }
        Ok(audience)
    }

    /// Takes out who wants to leave it out. An edit goes to no filtered host that has not got the post.
    fn sift(&self, news: &News<'_>, receivers: &Receivers, audience: &mut Audience) {
        let is_edit = news.activity.kind == Kind::Update && news.traits.is_post;
        if !news.is_new() && !is_edit {
            return;
        }
        let is_bot = self.keys.is_bot(news.author);
        let mut out = receivers.sieve.leave_out(&mut audience.all, news.traits, is_bot);
        if is_edit {
            audience.all -= receivers.sieve.limited();
        } else {
            let mut samplers = self.samplers.lock().unwrap_or_else(PoisonError::into_inner);
            let at = self.deps.clock.wall();
            let full = receivers
                .sieve
                .sample(&mut audience.all, &mut samplers, news.author, at);
            out.add("rate", full);
        }
        audience.announce_to &= &audience.all;
        audience.left_out = out;
    }

    /// For `fedi why`.
    fn explain(&self, activity: &Activity, audience: &Audience, via: &Via) {
        let left_out = self.left_out_in_words(audience);
        if via.is_empty() {
            if !left_out.is_empty() {
                self.trail.explain(activity.id.as_str(), left_out);
            }
            return;
        }
        let whole = via
            .iter()
            .fold(audience.all.clone(), |rest, (_, hosts)| rest - hosts)
            .len();
        let parts = via
            .iter()
            .map(|(topic, hosts)| format!("{topic} {}", hosts.len()));
        let parts: Vec<String> = [format!("the whole relay {whole}")]
            .into_iter()
            .chain(parts)
            .collect();
        let mut text = format!("hosts by what they joined: {}", parts.join(", "));
        if !left_out.is_empty() {
            text.push_str("; ");
            text.push_str(&left_out);
        }
        self.trail.explain(activity.id.as_str(), text);
    }

    /// Which filters took whom out; the first few by name.
    fn left_out_in_words(&self, audience: &Audience) -> String {
        if audience.left_out.by_reason.is_empty() {
            return String::new();
        }
        let table = self.subscribers.table();
        let name = |number: u32| {
            let known = table.by_host.values().find(|one| one.host_no.0 == number);
            known.map_or_else(|| number.to_string(), |one| one.authority.to_string())
        };
        let parts = audience.left_out.by_reason.iter().map(|(reason, hosts)| {
            let names: Vec<String> = hosts.iter().take(MAX_NAMED).map(name).collect();
            let more = if hosts.len() > MAX_NAMED as u64 {
                ", …"
            } else {
                ""
            };
            format!("{reason} {} ({}{more})", hosts.len(), names.join(", "))
        });
        let parts: Vec<String> = parts.collect();
        format!("left out by filters: {}", parts.join(", "))
    }
}

/// Keys have one length in the index, whatever peers call their objects.
fn hashed(key: &str) -> String {
    Sha256::digest(key)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
