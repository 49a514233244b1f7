//! Who waits for the operator's approval, with what these instances say of themselves when they are asked.
//!
//! It is asked when somebody looks, and not kept: by the time of a decision it should be of today.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::{self, StreamExt as _};
use tasuki_core::clock::Timestamp;
use tasuki_core::store::fedi::SubscriptionState;
use tasuki_proto::activitypub::ids::ActorId;
use tasuki_proto::activitypub::software::ServerFacts;

use crate::handle::{Handle, HandleError, SubscriberStatus};

/// Instances asked in one listing; of the others only what is stored is told.
const MAX_ASKED: usize = 50;
/// Asked at once.
const AT_ONCE: usize = 10;
/// How long one may take for all its documents.
const PATIENCE: Duration = Duration::from_secs(10);

/// An instance that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applicant {
    /// What is stored of it.
    pub subscriber: SubscriberStatus,
    /// What its NodeInfo says now; `None` when it gives none.
    pub facts: Option<ServerFacts>,
    /// When its actor was made, as that says: mostly the age of the instance.
    pub made: Option<Timestamp>,
}

impl Handle {
    /// Instances that wait for approval, the longest first.
    ///
    /// # Errors
    /// [`HandleError::Store`].
    pub async fn applicants(&self) -> Result<Vec<Applicant>, HandleError> {
        let mut waiting = self.subscribers().await?;
        waiting.retain(|one| one.state == SubscriptionState::Pending);
        waiting.sort_by_key(|one| one.since);
        let asked = stream::iter(waiting.into_iter().enumerate())
            .map(|(number, subscriber)| self.applicant(subscriber, number < MAX_ASKED));
        Ok(asked.buffered(AT_ONCE).collect().await)
    }

    async fn applicant(&self, subscriber: SubscriberStatus, is_asked: bool) -> Applicant {
        let mut applicant = Applicant {
            subscriber,
            facts: None,
            made: None,
        };
        let Ok(actor) = ActorId::parse(&applicant.subscriber.actor) else {
            return applicant;
        };
        if is_asked {
            let facts = tokio::time::timeout(PATIENCE, self.inner.facts_of(actor.as_str()));
            let made = tokio::time::timeout(PATIENCE, self.inner.keys.actor_now(&actor));
            let (facts, made) = tokio::join!(facts, made);
            applicant.facts = facts.ok().and_then(Result::ok);
            let made = made.ok().and_then(Result::ok).and_then(|actor| actor.published);
            applicant.made = made.and_then(timestamp);
        }
        applicant
    }
}

fn timestamp(at: SystemTime) -> Option<Timestamp> {
    let since = at.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok().map(Timestamp)
}
