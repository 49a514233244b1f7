//! What a proven activity is: somebody joins or leaves one of the relay's actors, or it is for everybody.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use tasuki_proto::activitypub::activity::{Activity, Kind, Object};
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::subscription::{
    Admission, Command, handle_follow, handle_self_delete, handle_undo,
};
use tasuki_proto::activitypub::topic::Topic;

use crate::engine::Inner;
use crate::inbox::{Answer, key_answer, store_problem};
use crate::metrics::Outcome;
use crate::policy::{Verdict, Wish, decide};
use crate::publication::publishes_by_announce;
use crate::subscribe::Asker;
use crate::subscribers::{Joined, follow_back_id};

impl Inner {
    /// The activity is proven to come from its actor.
    pub(crate) async fn act(&self, relay: &Relay, activity: &Activity, body: Bytes, from: IpAddr) -> Answer {
        let host = activity.actor.authority();
        let table = self.subscribers.table();
        let subscriber = table.host(host).map(Arc::as_ref);
        let all = subscriber.map_or(&[][..], |known| known.joined.as_slice());
        let ends: Vec<(Topic, Vec<Command>)> = match activity.kind {
            Kind::Follow => return self.follow(relay, activity, from).await,
            Kind::Undo if is_undo_of_follow(activity, all) => {
                let ended = ended_by(activity, all, relay);
                let commands = handle_undo(ended.map(|one| &one.subscription), activity);
                let topic = ended.map_or_else(|| relay.topic().clone(), |one| one.topic.clone());
                vec![(topic, commands)]
            }
            // What a LitePub server says to our Follow changes nothing that is stored.
            Kind::Accept | Kind::Reject => return Ok(Outcome::Subscription),
            Kind::Delete
                if activity.is_self_delete()
                    && all.iter().any(|one| one.subscription.actor == activity.actor) =>
            {
                let own = all.iter().filter(|one| one.subscription.actor == activity.actor);
                let end = |one: &Joined| {
                    let commands = handle_self_delete(Some(&one.subscription), activity);
                    (one.topic.clone(), commands)
                };
                own.map(end).collect()
            }
            Kind::Announce if publishes_by_announce(activity, subscriber) => {
                return self.litepub_announce(relay, activity, from).await;
            }
            _ if relay.topic_of_id(activity.actor.as_str()).is_some() => return Ok(Outcome::Dropped("own")),
            _ => return self.publication(relay, activity, body, from).await,
        };
        let asker = Asker {
            who: activity.actor.to_string(),
            from: from.to_string(),
        };
        for (topic, commands) in ends {
            self.obey(&relay.at(&topic), host, commands, asker.clone())
                .await
                .map_err(store_problem)?;
        }
        Ok(Outcome::Subscription)
    }

    async fn follow(&self, relay: &Relay, activity: &Activity, from: IpAddr) -> Answer {
        let host = activity.actor.authority();
        // Of the Public collection: the actor whose inbox it came to. Of an actor: that one, by whichever inbox.
        let topic = match &activity.object {
            Some(Object::Public(_)) => Some(relay.topic().clone()),
            Some(object) => object.id().and_then(|id| relay.topic_of_id(id.as_str())),
            None => None,
        };
        let Some(topic) = topic else {
            return Ok(Outcome::Dropped("kind"));
        };
        let relay = &relay.at(&topic);
        let actor = match self.keys.actor(&activity.actor).await {
            Ok(actor) => actor,
            Err(error) => return key_answer(activity, error),
        };
        let table = self.subscribers.table();
        let moderation = self.subscribers.moderation();
        let software = table.host(host).and_then(|known| known.software.as_deref());
        let rules = self.rules(&moderation);
        let verdict = match decide(rules, host, software, Some(from), Wish::Subscribe) {
            Verdict::No(why) => Verdict::No(why),
            verdict => match self.admits(&topic, host) {
                Err(why) => Verdict::No(why),
                // Whom an operator let in once need not be asked about again.
                Ok(()) if table.is_active(host) => Verdict::Yes,
                Ok(()) => verdict,
            },
        };
        if let Verdict::No(why) = &verdict {
            self.trail.explain(activity.id.as_str(), why.clone());
        }
        let stored = table.host(host).and_then(|known| known.joined(&topic));
        let stored = stored.map(|one| &one.subscription);
        let commands = handle_follow(
            stored,
            activity,
            &actor,
            &relay.actor_id(),
            verdict.admission(),
            follow_back_id(relay, host, &activity.actor),
        );
        let asker = Asker {
            who: activity.actor.to_string(),
            from: from.to_string(),
        };
        self.obey(relay, host, commands, asker)
            .await
            .map_err(store_problem)?;
        if verdict.admission() == Admission::Refused {
            tracing::info!(actor.host = %host, "a host was refused as a subscriber");
        }
        Ok(Outcome::Subscription)
    }
}

/// An Undo of a Follow, embedded or by an id that is stored; any other Undo is a publication.
fn is_undo_of_follow(activity: &Activity, all: &[Joined]) -> bool {
    match &activity.object {
        Some(Object::Embedded(object)) => object.kind.as_deref() == Some("Follow"),
        Some(Object::Id(id)) => all.iter().any(|one| one.subscription.follow_id == id.as_str()),
        _ => false,
    }
}

/// Which of a host's subscriptions an Undo is about: by the Follow's id, else by the actor that was followed, else by the
/// inbox that it came to.
fn ended_by<'a>(activity: &Activity, all: &'a [Joined], relay: &Relay) -> Option<&'a Joined> {
    let object = activity.object.as_ref()?;
    let by_id = all.iter().find(|one| {
        object
            .id()
            .is_some_and(|id| one.subscription.follow_id == id.as_str())
    });
    by_id.or_else(|| {
        let followed = object.embedded().and_then(|follow| follow.object.as_deref());
        let topic = followed.and_then(|id| relay.topic_of_id(id));
        let topic = topic.as_ref().unwrap_or(relay.topic());
        all.iter().find(|one| one.topic == *topic)
    })
}
