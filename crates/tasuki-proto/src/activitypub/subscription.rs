//! Subscribing and leaving, in both styles, as pure functions: what is stored and what is heard become commands.
//!
//! - Mastodon, Misskey: `Follow` of the Public collection; the relay answers `Accept` with the Follow embedded.
//! - LitePub (Pleroma, Akkoma): `Follow` of the relay actor; the relay accepts, follows back, and waits for the Accept of
//!   that: without it they never publish to the relay.
//!
//! **Invariant:** only the actor that the stored Follow names can end a subscription, and only by naming that Follow: a
//! stale Undo after a new Follow changes nothing.

use super::activity::{Activity, Embedded, Kind, Object};
use super::actor::Actor;
use super::ids::{ActorId, InboxUrl};

/// How a host subscribed, and so how it is answered and served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Style {
    /// Follow of the Public collection.
    Mastodon,
    /// Follow of the relay actor.
    LitePub,
}

/// Where a subscription stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// An operator has to say yes.
    Pending,
    /// Served.
    Active,
}

/// Our own Follow of a LitePub relay actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowBack {
    /// Its id.
    pub id: String,
    /// They said yes: they publish to us.
    pub accepted: bool,
}

/// One subscribed host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Who subscribed, for the host.
    pub actor: ActorId,
    /// Where its post goes.
    pub inbox: InboxUrl,
    /// In which style.
    pub style: Style,
    /// The id of the last Follow: what the Accept must name. A secret of the two: whoever knows it can speak for the relay.
    pub follow_id: String,
    /// The object of that Follow in its own spelling, for the embedded copy.
    pub follow_object: String,
    /// Where it stands.
    pub state: State,
    /// LitePub only.
    pub follow_back: Option<FollowBack>,
}

/// What the relay's policy says about a host that wants to subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Let it in.
    Open,
    /// Let an operator decide.
    Approval,
    /// Keep it out.
    Refused,
}

/// What has to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Write this subscription, in place of what is stored for the host.
    Store(Subscription),
    /// Delete the host's subscription.
    Remove,
    /// Send an Accept with the Follow embedded.
    SendAccept(Follow),
    /// Send a Reject with the Follow embedded.
    SendReject(Follow),
    /// Send our own Follow, under this id.
    SendFollowBack {
        /// The id of our Follow.
        id: String,
        /// Whom we follow.
        actor: ActorId,
        /// Their inbox.
        inbox: InboxUrl,
    },
    /// Take our own Follow back.
    SendUndoFollowBack {
        /// The id of our Follow.
        id: String,
        /// Whom we followed.
        actor: ActorId,
        /// Their inbox.
        inbox: InboxUrl,
    },
    /// Nothing; why, for the log.
    Ignore(Ignored),
}

/// A peer's Follow with what an answer needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follow {
    /// Its id.
    pub id: String,
    /// Who followed.
    pub actor: ActorId,
    /// What, in its own spelling.
    pub object: String,
    /// Where the answer goes.
    pub inbox: InboxUrl,
}

/// Why nothing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ignored {
    /// Neither Public nor the relay actor.
    NotForUs,
    /// Undo, Accept or Reject from somebody who is not the subscriber.
    NotTheSubscriber,
    /// Undo of a Follow that is not the last one.
    StaleUndo,
    /// Accept or Reject of a Follow that is not ours.
    UnknownFollow,
    /// The host is not subscribed.
    NotSubscribed,
}

impl Subscription {
    /// The Follow that created it.
    pub fn follow(&self) -> Follow {
        Follow {
            id: self.follow_id.clone(),
            actor: self.actor.clone(),
            object: self.follow_object.clone(),
            inbox: self.inbox.clone(),
        }
    }

    /// An operator says yes.
    pub fn approve(&self, follow_back_id: String) -> Vec<Command> {
        admit(self.clone(), follow_back_id)
    }

    /// An operator, or a new rule, says no, at any later time: a Reject turns the relay off at the subscriber.
    pub fn reject(&self) -> Vec<Command> {
        let mut commands = vec![Command::Remove, Command::SendReject(self.follow())];
        commands.extend(undo_follow_back(self));
        commands
    }
}

/// Whether a Follow is meant for the relay, and in which style.
pub fn style_of_follow(activity: &Activity, relay_actor: &str) -> Option<Style> {
    match activity.object.as_ref()? {
        Object::Public(_) => Some(Style::Mastodon),
        other => (other.id()?.as_str() == relay_actor).then_some(Style::LitePub),
    }
}

/// A Follow by `actor`, whose document was fetched for the signature.
///
/// `fresh_id` is an unused id of the relay's host, for a Follow back.
pub fn handle_follow(
    stored: Option<&Subscription>,
    activity: &Activity,
    actor: &Actor,
    relay_actor: &str,
    admission: Admission,
    fresh_id: String,
) -> Vec<Command> {
    let Some(style) = style_of_follow(activity, relay_actor) else {
        return vec![Command::Ignore(Ignored::NotForUs)];
    };
    let object = match &activity.object {
        Some(Object::Public(spelling)) => spelling.clone(),
        _ => relay_actor.to_owned(),
    };
    // Only servers subscribe: an inbox is needed, and post for the whole server prefers none but the actor's own, which
    // is what Mastodon and Misskey expect of relays.
    let Some(inbox) = actor.inbox.clone().or_else(|| actor.shared_inbox.clone()) else {
        return vec![Command::Ignore(Ignored::NotForUs)];
    };
    let follow = Follow {
        id: activity.id.as_str().to_owned(),
        actor: activity.actor.clone(),
        object,
        inbox,
    };
    // A person who follows the relay's account must not turn their server's subscription around.
    let person = style == Style::LitePub && !actor.is_instance();
    if admission == Admission::Refused || person {
        let mut commands = Vec::new();
        if !person && stored.is_some() {
            commands.push(Command::Remove);
        }
        commands.push(Command::SendReject(follow));
        return commands;
    }
    let known = stored.filter(|s| s.actor == follow.actor && s.style == style);
    let subscription = Subscription {
        actor: follow.actor,
        inbox: follow.inbox,
        style,
        follow_id: follow.id,
        follow_object: follow.object,
        state: State::Pending,
        follow_back: known.and_then(|s| s.follow_back.clone()),
    };
    // Whom an operator let in once stays in: a repeated Follow is how a lost Accept heals.
    let was_active = known.is_some_and(|s| s.state == State::Active);
    if admission == Admission::Approval && !was_active {
        return vec![Command::Store(subscription)];
    }
    admit(subscription, fresh_id)
}

fn admit(mut subscription: Subscription, fresh_id: String) -> Vec<Command> {
    subscription.state = State::Active;
    let accept = Command::SendAccept(subscription.follow());
    if subscription.style == Style::Mastodon {
        return vec![Command::Store(subscription), accept];
    }
    // An unanswered Follow back goes out again under its old id, so that a late Accept of the first still fits.
    let id = match &subscription.follow_back {
        Some(back) if back.accepted => return vec![Command::Store(subscription), accept],
        Some(back) => back.id.clone(),
        None => fresh_id,
    };
    subscription.follow_back = Some(FollowBack {
        id: id.clone(),
        accepted: false,
    });
    let (actor, inbox) = (subscription.actor.clone(), subscription.inbox.clone());
    vec![
        Command::Store(subscription),
        accept,
        Command::SendFollowBack { id, actor, inbox },
    ]
}

/// An Undo that is not of an Announce.
pub fn handle_undo(stored: Option<&Subscription>, activity: &Activity) -> Vec<Command> {
    let Some(stored) = stored else {
        return vec![Command::Ignore(Ignored::NotSubscribed)];
    };
    if activity.actor != stored.actor {
        return vec![Command::Ignore(Ignored::NotTheSubscriber)];
    }
    let matches = match &activity.object {
        Some(Object::Id(id)) => id.as_str() == stored.follow_id,
        Some(Object::Embedded(follow)) => is_stored_follow(follow, stored),
        Some(Object::Public(_)) | None => false,
    };
    if !matches {
        return vec![Command::Ignore(Ignored::StaleUndo)];
    }
    let mut commands = vec![Command::Remove];
    commands.extend(undo_follow_back(stored));
    commands
}

/// An embedded Follow is the stored one by its id; without an id, by its actor and object.
fn is_stored_follow(follow: &Embedded, stored: &Subscription) -> bool {
    if follow.kind.as_deref() != Some("Follow") {
        return false;
    }
    if follow.actor.as_ref().is_some_and(|actor| *actor != stored.actor) {
        return false;
    }
    match &follow.id {
        // Taken over from a relay that did not note it.
        Some(_) if stored.follow_id.is_empty() => true,
        Some(id) => id.as_str() == stored.follow_id,
        None => follow.object.as_deref().is_some_and(|object| {
            object == stored.follow_object
                || (super::is_public(object) && super::is_public(&stored.follow_object))
        }),
    }
}

fn undo_follow_back(subscription: &Subscription) -> Option<Command> {
    subscription
        .follow_back
        .as_ref()
        .map(|back| Command::SendUndoFollowBack {
            id: back.id.clone(),
            actor: subscription.actor.clone(),
            inbox: subscription.inbox.clone(),
        })
}

/// An Accept or Reject of our own Follow by a LitePub relay actor.
pub fn handle_answer(stored: Option<&Subscription>, activity: &Activity) -> Vec<Command> {
    let Some(stored) = stored else {
        return vec![Command::Ignore(Ignored::NotSubscribed)];
    };
    if activity.actor != stored.actor {
        return vec![Command::Ignore(Ignored::NotTheSubscriber)];
    }
    let named = activity.object.as_ref().and_then(Object::id);
    let Some(back) = stored
        .follow_back
        .as_ref()
        .filter(|back| named.is_some_and(|id| id.as_str() == back.id))
    else {
        return vec![Command::Ignore(Ignored::UnknownFollow)];
    };
    let accepted = activity.kind == Kind::Accept;
    let mut changed = stored.clone();
    changed.follow_back = Some(FollowBack {
        id: back.id.clone(),
        accepted,
    });
    vec![Command::Store(changed)]
}

/// The subscribing actor deleted itself: its server is gone.
pub fn handle_self_delete(stored: Option<&Subscription>, activity: &Activity) -> Vec<Command> {
    match stored {
        Some(stored) if stored.actor == activity.actor => vec![Command::Remove],
        _ => vec![Command::Ignore(Ignored::NotTheSubscriber)],
    }
}
