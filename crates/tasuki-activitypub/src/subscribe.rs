//! What the subscription machine commands, done in the store.
//!
//! The relay's answers are log entries with an audience of one host, committed together with the subscription: an Accept
//! that was promised survives a crash and is repeated until it arrives.

use bytes::Bytes;
use roaring::RoaringBitmap;
use serde_json::Value;
use tasuki_core::clock::Timestamp;
use tasuki_core::events::What;
use tasuki_core::ids::HostNo;
use tasuki_core::store::fedi::{
    EntryKind, NewEntry, NewSubscription, SubscriptionState, SubscriptionStyle, Via,
};
use tasuki_core::store::{AuditEntry, StoreError};
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::{ActorId, Authority, InboxUrl};
use tasuki_proto::activitypub::subscription::{Command, Ignored, State, Style, Subscription};

use crate::engine::Inner;
use crate::unique;

/// Who asked for a change, for the audit.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) who: String,
    pub(crate) from: String,
}

/// A document for one host.
struct Letter {
    body: Value,
    /// Whose actor writes it.
    topic: String,
    actor: ActorId,
    inbox: InboxUrl,
}

/// Commands sorted by what the store does with them.
#[derive(Default)]
struct Plan {
    store: Option<Subscription>,
    remove: bool,
    letters: Vec<Letter>,
    ignored: Option<Ignored>,
}

impl Plan {
    fn of(commands: Vec<Command>, relay: &Relay) -> Self {
        let mut plan = Self::default();
        let topic = relay.topic().to_string();
        let letter = |body, actor, inbox| Letter {
            body,
            topic: topic.clone(),
            actor,
            inbox,
        };
        for command in commands {
            match command {
                Command::Store(subscription) => plan.store = Some(subscription),
                Command::Remove => plan.remove = true,
                Command::SendAccept(follow) => {
                    let body = relay.accept(&unique(), &follow);
                    plan.letters.push(letter(body, follow.actor, follow.inbox));
                }
                Command::SendReject(follow) => {
                    let body = relay.reject(&unique(), &follow);
                    plan.letters.push(letter(body, follow.actor, follow.inbox));
                }
                Command::SendFollowBack { id, actor, inbox } => {
                    let body = relay.follow(&id, actor.as_str());
                    plan.letters.push(letter(body, actor, inbox));
                }
                Command::SendUndoFollowBack { id, actor, inbox } => {
                    let body = relay.undo_follow(&unique(), &id, actor.as_str());
                    plan.letters.push(letter(body, actor, inbox));
                }
                Command::Ignore(why) => plan.ignored = Some(why),
            }
        }
        plan
    }
}

impl Letter {
    fn entry(&self, at: Timestamp, host: Option<HostNo>) -> NewEntry {
        let audience = host
            .map(|host| RoaringBitmap::from_iter([host.0]))
            .unwrap_or_default();
        NewEntry {
            kind: EntryKind::Control,
            // One object for all that is said to one actor: it arrives in the order in which it was said.
            object: self.actor.as_str().to_owned(),
            actor: String::new(),
            dedupe: format!("control {}", unique()),
            body: Bytes::from(self.body.to_string()),
            announce: None,
            via: match self.topic.is_empty() {
                true => Via::new(),
                false => vec![(self.topic.clone(), audience.clone())],
            },
            audience,
            announce_to: RoaringBitmap::new(),
            if_known: RoaringBitmap::new(),
            at,
        }
    }
}

/// What a change of subscriptions came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Done,
    Ignored(Ignored),
}

impl Inner {
    /// Does what the machine says for `host` and the actor `relay`, and wakes the lanes.
    pub(crate) async fn obey(
        &self,
        relay: &Relay,
        host: &Authority,
        commands: Vec<Command>,
        asker: Asker,
    ) -> Result<Settled, StoreError> {
        let at = self.deps.clock.wall();
        let plan = Plan::of(commands, relay);
        let topic = relay.topic().to_string();
        let in_words = |detail: &str| match topic.is_empty() {
            true => detail.to_owned(),
            false => format!("{topic} {detail}").trim_end().to_owned(),
        };
        let audit = |action: &str, detail: &str| {
            Some(AuditEntry {
                at,
                who: asker.who.clone(),
                from: asker.from.clone(),
                action: action.to_owned(),
                object: host.to_string(),
                detail: in_words(detail),
            })
        };
        if let Some(subscription) = plan.store {
            let (action, detail) = match subscription.state {
                State::Active => ("fedi.subscribe", style_name(subscription.style)),
                State::Pending => ("fedi.ask", style_name(subscription.style)),
            };
            let answers = plan.letters.iter().map(|letter| letter.entry(at, None)).collect();
            let new = new_subscription(host, topic.clone(), &subscription, at);
            self.store.subscribe(new, answers, audit(action, detail)).await?;
            self.suspects.wake();
            if subscription.state == State::Active {
                self.deps.events.emit(What::HostSubscribed {
                    host: host.to_string(),
                });
            }
        } else if plan.remove {
            let mut letters = plan.letters.iter();
            let farewell = letters.next().map(|letter| letter.entry(at, None));
            let gone = self
                .store
                .unsubscribe(host.as_str(), &topic, farewell, audit("fedi.unsubscribe", ""))
                .await?;
            for letter in letters {
                self.store.append(letter.entry(at, Some(gone.host_no))).await?;
            }
            self.deps.events.emit(What::HostUnsubscribed {
                host: host.to_string(),
            });
        } else {
            for letter in &plan.letters {
                let number = self.store.host_no(host.as_str(), letter.inbox.as_str()).await?;
                self.store.append(letter.entry(at, Some(number))).await?;
            }
        }
        self.subscribers.refresh().await?;
        Ok(plan.ignored.map_or(Settled::Done, Settled::Ignored))
    }
}

fn style_name(style: Style) -> &'static str {
    match style {
        Style::Mastodon => "mastodon",
        Style::LitePub => "litepub",
    }
}

fn new_subscription(
    host: &Authority,
    topic: String,
    subscription: &Subscription,
    at: Timestamp,
) -> NewSubscription {
    NewSubscription {
        host: host.to_string(),
        topic,
        actor: subscription.actor.as_str().to_owned(),
        inbox: subscription.inbox.as_str().to_owned(),
        style: match subscription.style {
            Style::Mastodon => SubscriptionStyle::Mastodon,
            Style::LitePub => SubscriptionStyle::LitePub,
        },
        state: match subscription.state {
            State::Pending => SubscriptionState::Pending,
            State::Active => SubscriptionState::Active,
        },
        follow_id: subscription.follow_id.clone(),
        software: None,
        at,
    }
}
