//! Looks after what is known of the subscribed hosts: their software, by NodeInfo, and where their actor takes deliveries.
//!
//! Each host is asked once a day, and at once when its inbox answers that it is not there any more. Nothing is taken from
//! another host than the subscriber's own, and a failed look changes nothing.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use moka::sync::Cache;
use tasuki_core::clock::Timestamp;
use tasuki_core::shutdown::Shutdown;
use tasuki_core::store::StoreError;
use tasuki_core::store::fedi::{self, HostFacts};
use tasuki_proto::activitypub::ids::{ActorId, Authority};
use tasuki_proto::activitypub::json::Limits;
use tasuki_proto::activitypub::software::{self, ServerFacts};
use tokio::sync::Notify;
use url::Url;

use crate::engine::Inner;
use crate::keys::KeyError;
use crate::subscribe::Asker;

/// How long facts are good.
const FRESH: Duration = Duration::from_secs(24 * 3600);
/// How soon a host is asked again whose software is not known: until then it is sent Announces only.
const RETRY: Duration = Duration::from_secs(15 * 60);
/// How often a suspended host is asked whether it is back.
const SUSPENDED: Duration = Duration::from_secs(6 * 3600);
/// How often it is seen whose facts are old.
const ROUND: Duration = Duration::from_secs(60);
/// Hosts asked in one round, and at once.
const PER_ROUND: usize = 200;
const AT_ONCE: usize = 4;
/// An inbox that is not there is looked for again after this long at the earliest.
const PAUSE: Duration = Duration::from_secs(300);
/// Largest NodeInfo read.
const MAX_NODEINFO_BYTES: usize = 64 * 1024;

/// Hosts whose inbox answered that it is not there.
pub(crate) struct Suspects {
    hosts: Mutex<BTreeSet<String>>,
    /// Looked for lately.
    asked: Cache<String, ()>,
    wake: Notify,
}

impl Default for Suspects {
    fn default() -> Self {
        Self {
            hosts: Mutex::default(),
            asked: Cache::builder().max_capacity(10_000).time_to_live(PAUSE).build(),
            wake: Notify::new(),
        }
    }
}

impl Suspects {
    pub(crate) fn add(&self, host: &str) {
        if self.asked.contains_key(host) {
            return;
        }
        self.asked.insert(host.to_owned(), ());
        // Hosts are subscribers, so their number is bounded by theirs.
        self.hosts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(host.to_owned());
        self.wake.notify_one();
    }

    /// One more look at what is new, without waiting for the round.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.hosts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Works until the shutdown.
pub(crate) async fn run(inner: Arc<Inner>, shutdown: Shutdown) {
    let mut round = tokio::time::interval(ROUND);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            _ = round.tick() => {}
            () = inner.suspects.wake.notified() => {}
        }
        tokio::select! {
            () = shutdown.begun() => return,
            result = inner.look_round() => match result {
                // What did not fit into the round need not wait for the next.
                Ok(is_more) => if is_more { inner.suspects.wake() },
                Err(error) => {
                    tracing::debug!(error = %error, "the facts of the subscribers were not looked at");
                }
            }
        }
    }
}

impl Inner {
    /// Says whether there were more than fit into a round.
    async fn look_round(&self) -> Result<bool, StoreError> {
        if self.relay.is_none() {
            return Ok(false);
        }
        let now = self.deps.clock.wall();
        let suspend_after = self.config.load().suspend_after;
        let suspects = self.suspects.take();
        let is_due = |row: &fedi::Subscription| {
            let fresh = match (row.suspended_at, &row.software) {
                (Some(_), _) => SUSPENDED.min(suspend_after),
                (None, Some(_)) => FRESH,
                (None, None) => RETRY,
            };
            suspects.contains(&row.host) || row.looked_at.is_none_or(|at| now.since(at) >= fresh)
        };
        let mut due: Vec<fedi::Subscription> = self
            .store
            .subscriptions()
            .await?
            .into_iter()
            .filter(is_due)
            .collect();
        // A host has a row for each actor that it joined.
        due.dedup_by(|a, b| a.host == b.host);
        due.sort_by_key(|row| (!suspects.contains(&row.host), row.looked_at));
        let is_more = due.len() > PER_ROUND;
        due.truncate(PER_ROUND);
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, |row| async move {
                let facts = self.look_at(&row, now).await;
                if let (Some(_), Ok(host)) = (&facts.inbox, Authority::parse(&row.host)) {
                    // A suspended host is sent nothing, so this is how it is found to be back.
                    if row.suspended_at.is_some() {
                        self.is_heard(&host).await;
                    }
                }
                if let Err(error) = self.store.note_facts(&row.host, facts).await {
                    tracing::debug!(actor.host = %row.host, error = %error, "facts were not noted");
                }
            })
            .await;
        // A host that runs other software than before may be blocked by it.
        let asker = Asker {
            who: "moderation".to_owned(),
            from: "tasuki".to_owned(),
        };
        let removed = self.enforce(asker.clone()).await?;
        for host in &removed {
            tracing::info!(actor.host = %host, "a subscriber was removed by a rule of moderation");
        }
        self.purge_removed(&removed, &asker).await?;
        Ok(is_more)
    }

    async fn look_at(&self, row: &fedi::Subscription, at: Timestamp) -> HostFacts {
        let software = match self.software_of(&row.actor).await {
            Ok(software) => Some(software),
            Err(error) => {
                tracing::debug!(actor.host = %row.host, error = %error, "no NodeInfo");
                None
            }
        };
        let inbox = match self.inbox_of(&row.actor).await {
            Ok(inbox) => inbox,
            Err(error) => {
                tracing::debug!(actor.host = %row.host, error = %error, "the actor was not read");
                None
            }
        };
        if let Some(inbox) = inbox.as_ref().filter(|inbox| **inbox != row.inbox) {
            tracing::info!(actor.host = %row.host, %inbox, "a subscriber's inbox moved");
        }
        HostFacts { inbox, software, at }
    }

    async fn inbox_of(&self, actor: &str) -> Result<Option<String>, KeyError> {
        let Ok(id) = ActorId::parse(actor) else {
            return Ok(None);
        };
        let actor = self.keys.actor_now(&id).await?;
        let inbox = actor.inbox.as_ref().or(actor.shared_inbox.as_ref());
        Ok(inbox.map(|inbox| inbox.as_str().to_owned()))
    }

    async fn software_of(&self, actor: &str) -> Result<String, tasuki_core::failure::BoxError> {
        Ok(self.facts_of(actor).await?.software)
    }

    /// What the server of an actor says of itself (NodeInfo).
    pub(crate) async fn facts_of(&self, actor: &str) -> Result<ServerFacts, tasuki_core::failure::BoxError> {
        let document = self.nodeinfo_of(&Url::parse(actor)?).await?;
        Ok(software::read_facts(&document, &nodeinfo_limits())?)
    }

    /// The NodeInfo document of the server that `base` is on, from nowhere else.
    pub(crate) async fn nodeinfo_of(&self, base: &Url) -> Result<Bytes, tasuki_core::failure::BoxError> {
        let links = self
            .keys
            .plain_document(base.join("/.well-known/nodeinfo")?)
            .await?;
        let href = base.join(&software::read_links(&links, &nodeinfo_limits())?)?;
        if Authority::of(&href) != Authority::of(base) {
            return Err("its NodeInfo is on another host".into());
        }
        Ok(self.keys.plain_document(href).await?)
    }
}

/// How much of a NodeInfo document is read.
pub(crate) fn nodeinfo_limits() -> Limits {
    Limits {
        bytes: MAX_NODEINFO_BYTES,
        ..Limits::default()
    }
}
