//! Activities that somebody else brings: another relay, or a server that forwards what concerns it.
//!
//! **Invariant:** such an activity is believed only by the Linked Data signature of its own actor, made with the key that the
//! actor's own host publishes; the bringer must be allowed to publish, and the author's host must not be refused.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use tasuki_proto::activitypub::activity::{Activity, Kind, LdSignature};
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::Authority;
use tasuki_proto::activitypub::json::{self, Limits};
use tasuki_proto::activitypub::ld::{self, LdError, LdSigned};

use crate::engine::Inner;
use crate::inbox::{Answer, key_answer, store_problem};
use crate::keys::KnownKey;
use crate::metrics::Outcome;
use crate::policy::{Verdict, Wish, decide};
use crate::problem::Problem;
use crate::time::system_time;

impl Inner {
    /// Before any key is fetched: whether `bringer` may bring this at all, and whether there is a signature to look at.
    pub(crate) async fn may_bring(
        &self,
        relay: &Relay,
        activity: &Activity,
        bringer: &Authority,
        from: IpAddr,
    ) -> Result<(), Problem> {
        if bringer.as_str() == relay.host() {
            return Err(Problem::refused(
                "this relay signs nothing that it sends to itself",
            ));
        }
        let is_publication = matches!(
            activity.kind,
            Kind::Create
                | Kind::Update
                | Kind::Delete
                | Kind::Undo
                | Kind::Move
                | Kind::Add
                | Kind::Remove
                | Kind::Announce
        );
        if !is_publication {
            return Err(Problem::refused(
                "the signer is not the actor: only the actor's own server may send this",
            ));
        }
        self.may_publish(bringer, from).await?;
        match activity.ld_signature {
            LdSignature::ByActor => Ok(()),
            LdSignature::Absent => Err(unproven(&LdError::Absent)),
            LdSignature::Unusable => Err(Problem::refused(
                "the signer is not the actor, and the Linked Data signature is not one by the actor that could be verified",
            )),
        }
    }

    /// Takes what `bringer` brought and signed, if its actor signed it too.
    pub(crate) async fn take_carried(
        &self,
        relay: &Relay,
        activity: &Activity,
        body: Bytes,
        bringer: &Authority,
        from: IpAddr,
    ) -> Answer {
        // The HTTP signature is good, the actor's is not known yet; a rule against the author's host saves the work.
        let author = activity.actor.authority();
        let wish = Wish::Publish {
            subscribed: true,
            principal: None,
        };
        let moderation = self.subscribers.moderation();
        if let Verdict::No(why) = decide(self.rules(&moderation), author, None, None, wish) {
            return Err(Problem::refused(why));
        }
        self.account_may_publish(&activity.actor)?;
        let signed = self.canonicalized(activity, &body).await?;
        if signed.creator.authority() != author {
            return Err(Problem::refused(
                "the signer is not the actor: the key of the Linked Data signature belongs to another host",
            ));
        }
        let known = match self.keys.find(&signed.creator, from).await {
            Ok(known) => known,
            Err(error) => return key_answer(activity, error),
        };
        if known.owner != activity.actor {
            return Err(Problem::refused(format!(
                "the signer is not the actor: the key of the Linked Data signature belongs to {}",
                known.owner
            )));
        }
        if !self.proves(&signed, Arc::clone(&known)).await? {
            let fresh = self.keys.find_changed(&signed.creator, &known, from).await;
            let proven = match fresh {
                Ok(Some(fresh)) if fresh.owner == known.owner => self.proves(&signed, fresh).await?,
                _ => false,
            };
            if !proven {
                return Err(Problem::refused(
                    "the signer is not the actor, and the Linked Data signature does not verify with the actor's key: \
                     the document was changed, or signed with another key",
                ));
            }
        }
        if activity.actor.as_str() == relay.actor_id() {
            return Ok(Outcome::Dropped("own"));
        }
        if let Some(dropped) = self.author_may(activity, &activity.actor, from).await? {
            return Ok(dropped);
        }
        self.publish(relay, activity, body, bringer)
            .await
            .map_err(store_problem)
    }

    async fn canonicalized(&self, activity: &Activity, body: &Bytes) -> Result<LdSigned, Problem> {
        let (activity, body) = (activity.clone(), body.clone());
        let now = system_time(self.deps.clock.wall());
        let read = move || {
            let limits = Limits {
                bytes: body.len(),
                ..Limits::default()
            };
            let document = json::read(&body, &limits).map_err(|e| LdError::Syntax(e.to_string()))?;
            ld::read(&document, &activity, now)
        };
        self.compute(read).await?.map_err(|error| unproven(&error))
    }

    async fn proves(&self, signed: &LdSigned, known: Arc<KnownKey>) -> Result<bool, Problem> {
        let signed = signed.clone();
        self.compute(move || {
            signed
                .messages
                .iter()
                .any(|message| known.key.verifies(message.as_bytes(), &signed.signature))
        })
        .await
    }
}

fn unproven(error: &LdError) -> Problem {
    Problem::refused(format!(
        "the signer is not the actor, and nothing proves the actor: {error}"
    ))
}
