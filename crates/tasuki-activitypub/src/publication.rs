//! Something for everybody: who may say it, and what a LitePub server's Announce is about.

use std::net::IpAddr;

use bytes::Bytes;
use http::StatusCode;
use tasuki_proto::activitypub::activity::{Activity, Kind, Object};
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::{ActorId, Authority};
use tasuki_proto::activitypub::software::is_relay;

use crate::engine::Inner;
use crate::inbox::{Answer, store_problem};
use crate::keys::KeyError;
use crate::metrics::Outcome;
use crate::policy::{Verdict, Wish, decide};
use crate::problem::Problem;
use crate::subscribers::Subscriber;

impl Inner {
    /// Something for everybody.
    pub(crate) async fn publication(
        &self,
        relay: &Relay,
        activity: &Activity,
        body: Bytes,
        from: IpAddr,
    ) -> Answer {
        self.account_may_publish(&activity.actor)?;
        match self.may_publish(activity.actor.authority(), from).await {
            Ok(()) => {
                if let Some(dropped) = self.author_may(activity, &activity.actor, from).await? {
                    return Ok(dropped);
                }
                self.publish(relay, activity, body, activity.actor.authority())
                    .await
                    .map_err(store_problem)
            }
            // 202, or its server tries again for days.
            Err(problem) if activity.kind == Kind::Delete && problem.status == StatusCode::FORBIDDEN => {
                Ok(Outcome::Dropped("not_subscribed"))
            }
            Err(problem) => Err(problem),
        }
    }

    pub(crate) async fn may_publish(&self, host: &Authority, from: IpAddr) -> Result<(), Problem> {
        let table = self.subscribers.table();
        let subscribed = table.is_active(host);
        // Only who is not subscribed needs to be somebody.
        let principal = match subscribed {
            true => None,
            false => self
                .deps
                .accounts
                .by_name(host.host())
                .await
                .map_err(store_problem)?,
        };
        let wish = Wish::Publish {
            subscribed,
            principal: principal.as_deref(),
        };
        let moderation = self.subscribers.moderation();
        let software = table.host(host).and_then(|known| known.software.as_deref());
        match decide(self.rules(&moderation), host, software, Some(from), wish) {
            Verdict::Yes => Ok(()),
            Verdict::No(_) if table.host(host).is_some_and(|s| !s.is_active()) => Err(Problem::refused(
                "the subscription waits for the operator of this relay",
            )),
            Verdict::No(why) => Err(Problem::refused(why)),
            Verdict::Ask => Err(Problem::refused(
                "publishing here needs the operator's permission",
            )),
        }
    }

    /// Whether a rule of moderation stops one account.
    pub(crate) fn account_may_publish(&self, actor: &ActorId) -> Result<(), Problem> {
        match self.subscribers.moderation().actor(actor) {
            None => Ok(()),
            Some(_) => Err(Problem::refused(format!(
                "the account {actor} may not publish through this relay"
            ))),
        }
    }

    /// A LitePub server publishes by announcing; the relay looks at the post itself before it tells anybody.
    pub(crate) async fn litepub_announce(&self, relay: &Relay, activity: &Activity, from: IpAddr) -> Answer {
        self.may_publish(activity.actor.authority(), from).await?;
        let Some(object) = activity.object.as_ref().and_then(Object::id) else {
            return Err(Problem::malformed("the Announce names no object"));
        };
        let table = self.subscribers.table();
        let software = table
            .host(activity.actor.authority())
            .and_then(|one| one.software.clone());
        if software.as_deref().is_some_and(is_relay) {
            return Ok(Outcome::Dropped("from_relay"));
        }
        // Only its own posts: what another server wrote comes from that server, and relays do not feed relays in a circle.
        if object.authority() != activity.actor.authority() {
            return Ok(Outcome::Dropped("foreign_object"));
        }
        let (post, words, traits) = match self.keys.post(object).await {
            Ok(found) => found,
            Err(KeyError::Gone) => return Ok(Outcome::Dropped("gone")),
            Err(KeyError::Unreachable(_)) => {
                return Err(Problem::unavailable("the announced object cannot be fetched now"));
            }
            Err(error) => {
                return Err(Problem::refused(format!(
                    "the announced object is not usable: {error}"
                )));
            }
        };
        if !post.addressing.is_public(self.options().unlisted) || !post.is_content() {
            return Ok(Outcome::Dropped("not_public"));
        }
        self.account_may_publish(&post.attributed_to)?;
        if self.subscribers.moderation().silences(&words).is_some() {
            return Ok(Outcome::Dropped("silenced"));
        }
        if let Some(dropped) = self.author_may(activity, &post.attributed_to, from).await? {
            return Ok(dropped);
        }
        self.announce(relay, activity, (object, &post.attributed_to), &traits)
            .await
            .map_err(store_problem)
    }
}

/// Whether an Announce tells of a post of its own server: by the relay actor of a LitePub server, or with the post embedded,
/// as the categories of NodeBB do. A person's boost names the post by its id.
pub(crate) fn publishes_by_announce(activity: &Activity, stored: Option<&Subscriber>) -> bool {
    let by_relay_actor = stored.is_some_and(|known| known.is_litepub_actor(&activity.actor));
    let embedded = activity.object.as_ref().and_then(Object::embedded);
    by_relay_actor
        || embedded.is_some_and(|object| {
            let id = object.id.as_ref();
            id.is_some_and(|id| id.authority() == activity.actor.authority()) && object.is_content()
        })
}
