//! What the command line and `status` ask of the engine while it runs.

use std::sync::Arc;

use serde::Serialize;
use tasuki_core::clock::Timestamp;
use tasuki_core::store::fedi::{DeliveryForm, SubscriptionState, SubscriptionStyle};
use tasuki_core::store::{AuditEntry, StoreError};
use tasuki_core::{Applied, Snapshot};
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::Authority;
use tasuki_proto::activitypub::topic::Topic;

use crate::config::FediConfig;
use crate::engine::Inner;
use crate::lanes::{LaneStatus, SignatureUse};
use crate::subscribe::Asker;
use crate::subscribers::{self, Joined, Subscriber, follow_back_id};

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The text is not a host.
    #[error("{0:?} is not a host name; write it as in the list, for example example.org")]
    NotAHost(String),
    /// The host is not subscribed.
    #[error("{0} is not subscribed; see `tasuki fedi subscribers`")]
    NotSubscribed(String),
    /// It does not wait for approval.
    #[error("{0} is subscribed already")]
    AlreadyActive(String),
    /// Not a rule of moderation; why, in words.
    #[error("{0}")]
    NotARule(String),
    /// There is no such rule.
    #[error("there is no rule about {0}; see `tasuki fedi rules`")]
    NoSuchRule(String),
    /// There is no such list.
    #[error("there is no list {0}; see `tasuki fedi list show`")]
    NoSuchList(String),
    /// The host has no filter.
    #[error("{0} has no filter")]
    NoFilter(String),
    /// Not a topic.
    #[error("{0}")]
    NotATopic(String),
    /// Subscribers know the present key.
    #[error(
        "instances have subscribed here under another key: take the other relay over into a gateway without subscribers"
    )]
    KeyInUse,
    /// The last change of the key is not over.
    #[error(
        "the key was changed a short while ago: the one before it still signs until {0}; a key that others know is changed with --compromised"
    )]
    KeyChanging(String),
    /// The key was not stored.
    #[error("the key was not taken over: {0}")]
    Key(String),
    /// Nobody is judged while the fault seems to be here.
    #[error("nothing removed: {0}")]
    OurFault(String),
    /// Without a public name there is no relay.
    #[error("the relay has no public name: set server.host")]
    NoHost,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A subscribed host, for listings. The Follow's id is a secret and not among this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SubscriberStatus {
    /// Authority.
    pub host: String,
    /// What it joined: a topic by its name, or nothing for the whole relay.
    pub topic: String,
    /// The actor that subscribed.
    pub actor: String,
    /// Where it takes deliveries.
    pub inbox: String,
    /// How it subscribed.
    pub style: SubscriptionStyle,
    /// Where it stands.
    pub state: SubscriptionState,
    /// Its software, if known.
    pub software: Option<String>,
    /// The form in which it is sent other people's activities.
    pub form: DeliveryForm,
    /// Why that form, in words.
    pub form_reason: String,
    /// How what is public is signed for it.
    pub signature: SignatureUse,
    /// Why so, in words.
    pub signature_reason: String,
    /// Since when.
    pub since: Timestamp,
    /// Since when nothing reaches it, if so.
    pub failing_since: Option<Timestamp>,
    /// Since when it gets nothing new because of that.
    pub suspended_at: Option<Timestamp>,
    /// Where its deliveries stand; `None` if nothing was ever due here.
    pub deliveries: Option<LaneStatus>,
}

/// The engine in a few figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The URL that an instance's admin pastes; `None` without `server.host`.
    pub inbox: Option<String>,
    /// Hosts that receive.
    pub active: usize,
    /// Hosts that wait for the operator.
    pub pending: usize,
    /// Hosts whose deliveries fail at present, worst first.
    pub failing: Vec<LaneStatus>,
}

/// Speaks to the running engine; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) inner: Arc<Inner>,
}

impl Handle {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// The inbox URL, or `None` without `server.host`.
    pub fn inbox(&self) -> Option<String> {
        self.inner.relay.as_ref().map(Relay::inbox)
    }

    /// A few figures.
    pub fn status(&self) -> Status {
        let table = self.inner.subscribers.table();
        let active = table.active_hosts().len();
        Status {
            inbox: self.inbox(),
            active,
            pending: table.by_host.len() - active,
            failing: self
                .inner
                .lanes
                .status()
                .into_iter()
                .filter(|lane| lane.failures > 0 || lane.reads_log)
                .collect(),
        }
    }

    /// All subscribed hosts with the state of their deliveries.
    ///
    /// # Errors
    /// [`HandleError::Store`].
    pub async fn subscribers(&self) -> Result<Vec<SubscriberStatus>, HandleError> {
        let lanes: std::collections::HashMap<String, LaneStatus> = self
            .inner
            .lanes
            .status()
            .into_iter()
            .map(|lane| (lane.host.clone(), lane))
            .collect();
        let rows = self.inner.store.subscriptions().await?;
        let config = self.inner.config.load_full();
        let receivers = self.inner.subscribers.receivers(&config);
        let sign = |row: &_| subscribers::signature_of(row, &receivers, &config);
        Ok(rows
            .into_iter()
            .map(|row| (sign(&row), row))
            .map(|((signature, signature_reason), row)| SubscriberStatus {
                signature,
                signature_reason,
                deliveries: lanes.get(&row.host).cloned(),
                topic: row.topic.clone(),
                form: subscribers::form_of(&row),
                form_reason: subscribers::form_reason(&row),
                host: row.host,
                actor: row.actor,
                inbox: row.inbox,
                style: row.style,
                state: row.state,
                software: row.software,
                since: row.since,
                failing_since: row.failing_since,
                suspended_at: row.suspended_at,
            })
            .collect())
    }

    /// Removes a subscriber, or takes a topic from it (`""` is the whole relay), and tells it so by a Reject. `who` and `from`
    /// go into the audit.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn remove(
        &self,
        host: &str,
        topic: Option<&str>,
        who: &str,
        from: &str,
    ) -> Result<(), HandleError> {
        let (relay, subscriber) = self.find(host).await?;
        let topic = topic.map(Topic::parse).transpose();
        let topic = topic.map_err(|error| HandleError::NotATopic(error.to_string()))?;
        let removed = self
            .inner
            .reject(relay, &subscriber, topic.as_ref(), asker(who, from));
        match removed.await? {
            0 => Err(HandleError::NotSubscribed(match topic {
                Some(topic) => format!("{} to {topic}", subscriber.authority),
                None => subscriber.authority.to_string(),
            })),
            _ => Ok(()),
        }
    }

    /// Lets a waiting host in, to all that it asked for.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn approve(&self, host: &str, who: &str, from: &str) -> Result<(), HandleError> {
        let (relay, subscriber) = self.find(host).await?;
        if subscriber.joined.iter().all(Joined::is_active) {
            return Err(HandleError::AlreadyActive(subscriber.authority.to_string()));
        }
        for one in subscriber.joined.iter().filter(|one| !one.is_active()) {
            let relay = relay.at(&one.topic);
            let id = follow_back_id(&relay, &subscriber.authority, &one.subscription.actor);
            let commands = one.subscription.approve(id);
            self.inner
                .obey(&relay, &subscriber.authority, commands, asker(who, from))
                .await?;
        }
        Ok(())
    }

    /// Chooses the form for a host, or leaves it to the gateway again.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn choose_form(
        &self,
        host: &str,
        form: Option<DeliveryForm>,
        who: &str,
        from: &str,
    ) -> Result<(), HandleError> {
        let (_, subscriber) = self.find(host).await?;
        let audit = AuditEntry {
            at: self.inner.deps.clock.wall(),
            who: who.to_owned(),
            from: from.to_owned(),
            action: "fedi.form".to_owned(),
            object: subscriber.authority.to_string(),
            detail: form.map_or("auto", |form| form.as_str()).to_owned(),
        };
        let host = subscriber.authority.as_str();
        self.inner.store.choose_form(host, form, Some(audit)).await?;
        self.inner.subscribers.refresh().await?;
        Ok(())
    }

    /// A reload; see [`crate::Engine::apply`]. Works while the engine runs.
    pub fn apply(&self, snapshot: &Snapshot<FediConfig>) -> Applied {
        self.inner.apply(snapshot)
    }

    async fn find(&self, host: &str) -> Result<(&Relay, Arc<Subscriber>), HandleError> {
        let relay = self.inner.relay.as_ref().ok_or(HandleError::NoHost)?;
        let authority =
            Authority::parse(host).map_err(|_| HandleError::NotAHost(host.chars().take(100).collect()))?;
        self.inner.subscribers.refresh().await?;
        let subscriber = self.inner.subscribers.table().host(&authority).cloned();
        let subscriber = subscriber.ok_or_else(|| HandleError::NotSubscribed(authority.to_string()))?;
        Ok((relay, subscriber))
    }
}

impl Inner {
    /// Ends what a host joined, or one of it, with a Reject for each; says how many. What another gateway ended is ended.
    pub(crate) async fn reject(
        &self,
        relay: &Relay,
        subscriber: &Subscriber,
        topic: Option<&Topic>,
        asker: Asker,
    ) -> Result<usize, StoreError> {
        let mut ended = 0;
        for one in &subscriber.joined {
            if topic.is_some_and(|topic| *topic != one.topic) {
                continue;
            }
            let commands = one.subscription.reject();
            let relay = relay.at(&one.topic);
            self.ended.insert(one.topic.clone(), ());
            match self
                .obey(&relay, &subscriber.authority, commands, asker.clone())
                .await
            {
                Ok(_) | Err(StoreError::NotFound(_)) => ended += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }
}

pub(crate) fn asker(who: &str, from: &str) -> Asker {
    Asker {
        who: who.to_owned(),
        from: from.to_owned(),
    }
}
