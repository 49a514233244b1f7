//! Activities that somebody else brings: another relay, or a server that forwards what concerns it.
//!
//! **Invariant:** such an activity is believed only by the signature of its own actor in it (a Linked Data signature, or an
//! integrity proof by FEP-8b32), made with the key that the actor's own host publishes; the bringer must be allowed to publish, and the author's host must not be refused.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use tasuki_proto::activitypub::activity::{Activity, Kind, LdSignature};
use tasuki_proto::activitypub::cavage::KeyKind;
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::{Authority, KeyId};
use tasuki_proto::activitypub::json::{self, Limits};
use tasuki_proto::activitypub::ld::{self, LdError, LdSigned};
use tasuki_proto::activitypub::proof::{self, Proof};

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
            _ if activity.has_proof => Ok(()),
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
        if let Some(answer) = self.prove(activity, &body, from).await? {
            return Ok(answer);
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

    /// Proves that the actor signed the document: by its Linked Data signature, or by its integrity proof; one is enough.
    /// `Some` when there is nothing to prove any more (the actor is gone).
    async fn prove(
        &self,
        activity: &Activity,
        body: &Bytes,
        from: IpAddr,
    ) -> Result<Option<Outcome>, Problem> {
        let mut kinds = Vec::with_capacity(2);
        if activity.ld_signature == LdSignature::ByActor {
            kinds.push(KeyKind::Rsa);
        }
        if activity.has_proof {
            kinds.push(KeyKind::Ed25519);
        }
        let mut refused = unproven(&LdError::Absent);
        for kind in kinds {
            match self.prove_by(kind, activity, body, from).await {
                Ok(answer) => return Ok(answer),
                // The other one may hold; our own fault is no answer about the document.
                Err(problem) if problem.status == StatusCode::FORBIDDEN => refused = problem,
                Err(problem) => return Err(problem),
            }
        }
        Err(refused)
    }

    async fn prove_by(
        &self,
        kind: KeyKind,
        activity: &Activity,
        body: &Bytes,
        from: IpAddr,
    ) -> Result<Option<Outcome>, Problem> {
        let evidence = self.evidence(kind, activity, body).await?;
        let what = evidence.what;
        if evidence.key_id.authority() != activity.actor.authority() {
            return Err(Problem::refused(format!(
                "the signer is not the actor: the key of the {what} belongs to another host"
            )));
        }
        let known = match self.keys.find(&evidence.key_id, from).await {
            Ok(known) => known,
            Err(error) => return key_answer(activity, error).map(Some),
        };
        if known.owner != activity.actor {
            return Err(Problem::refused(format!(
                "the signer is not the actor: the key of the {what} belongs to {}",
                known.owner
            )));
        }
        if self.proves(&evidence, Arc::clone(&known)).await? {
            return Ok(None);
        }
        let fresh = self.keys.find_changed(&evidence.key_id, &known, from).await;
        let proven = match fresh {
            Ok(Some(fresh)) if fresh.owner == known.owner => self.proves(&evidence, fresh).await?,
            _ => false,
        };
        match proven {
            true => Ok(None),
            false => Err(Problem::refused(format!(
                "the signer is not the actor, and the {what} does not verify with the actor's key: the document was \
                 changed, or signed with another key"
            ))),
        }
    }

    /// Canonicalizes, which costs something: on the CPU pool.
    async fn evidence(&self, kind: KeyKind, activity: &Activity, body: &Bytes) -> Result<Evidence, Problem> {
        let (activity, body) = (activity.clone(), body.clone());
        let now = system_time(self.deps.clock.wall());
        let read = move || {
            let limits = Limits {
                bytes: body.len(),
                ..Limits::default()
            };
            let document = json::read(&body, &limits).map_err(|e| unproven(&e))?;
            match kind {
                KeyKind::Rsa => ld::read(&document, &activity, now)
                    .map(Evidence::linked_data)
                    .map_err(|e| unproven(&e)),
                KeyKind::Ed25519 => proof::read(&document, &body, &activity, now)
                    .map(Evidence::integrity)
                    .map_err(|e| unproven(&e)),
            }
        };
        self.compute(read).await?
    }

    async fn proves(&self, evidence: &Evidence, known: Arc<KnownKey>) -> Result<bool, Problem> {
        if known.key.kind() != evidence.kind {
            return Ok(false);
        }
        let evidence = evidence.clone();
        self.compute(move || {
            evidence
                .messages
                .iter()
                .any(|message| known.key.verifies(message, &evidence.signature))
        })
        .await
    }
}

/// What a signature in a document says that its actor signed.
#[derive(Clone)]
struct Evidence {
    /// Its name, in words.
    what: &'static str,
    kind: KeyKind,
    key_id: KeyId,
    /// One is enough.
    messages: Vec<Vec<u8>>,
    signature: Vec<u8>,
}

impl Evidence {
    fn linked_data(signed: LdSigned) -> Self {
        Self {
            what: "Linked Data signature",
            kind: KeyKind::Rsa,
            key_id: signed.creator,
            messages: signed.messages.into_iter().map(String::into_bytes).collect(),
            signature: signed.signature,
        }
    }

    fn integrity(proof: Proof) -> Self {
        Self {
            what: "integrity proof",
            kind: KeyKind::Ed25519,
            key_id: proof.key_id,
            messages: proof.messages,
            signature: proof.signature,
        }
    }
}

fn unproven(error: &dyn std::fmt::Display) -> Problem {
    Problem::refused(format!(
        "the signer is not the actor, and nothing proves the actor: {error}"
    ))
}
