//! The subscribed hosts in memory: an immutable snapshot, made anew when the store says that something changed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use sha2::{Digest as _, Sha256};
use tasuki_core::acl::Acl;
use tasuki_core::clock::Timestamp;
use tasuki_core::ids::HostNo;
use tasuki_core::store::fedi::{
    self, DeliveryForm, LearntSignature, Orders, SubscriptionState, SubscriptionStyle,
};
use tasuki_core::store::{FediStore, StoreError};
use tasuki_proto::activitypub::PUBLIC;
use tasuki_proto::activitypub::decision::Delivery;
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::{ActorId, Authority, InboxUrl};
use tasuki_proto::activitypub::software::{self, Known};
use tasuki_proto::activitypub::subscription::{FollowBack, State, Style, Subscription};
use tasuki_proto::activitypub::topic::Topic;

use crate::config::{FediConfig, Mode};
use crate::filters::Filters;
use crate::lanes::SignatureUse;
use crate::moderation::Moderation;
use crate::policy::{Rules, Verdict, Wish, decide};
use crate::receivers::{Receivers, Source};
use crate::topics::List;

/// One of the relay's actors that a host joined.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    pub(crate) topic: Topic,
    pub(crate) subscription: Subscription,
}

impl Joined {
    fn from_store(row: &fedi::Subscription, relay: &Relay) -> Option<Self> {
        let topic = Topic::parse(&row.topic).ok()?;
        let relay = relay.at(&topic);
        let authority = Authority::parse(&row.host).ok()?;
        let actor = ActorId::parse(&row.actor).ok()?;
        let style = style_of(row.style);
        Some(Self {
            topic,
            subscription: Subscription {
                inbox: InboxUrl::parse(&row.inbox).ok()?,
                style,
                follow_id: row.follow_id.clone(),
                follow_object: match style {
                    Style::Mastodon => PUBLIC.to_owned(),
                    Style::LitePub => relay.actor_id(),
                },
                state: match row.state {
                    SubscriptionState::Pending => State::Pending,
                    SubscriptionState::Active => State::Active,
                },
                follow_back: (style == Style::LitePub && row.state == SubscriptionState::Active).then(|| {
                    FollowBack {
                        id: follow_back_id(&relay, &authority, &actor),
                        accepted: false,
                    }
                }),
                actor,
            },
        })
    }

    pub(crate) fn is_active(&self) -> bool {
        self.subscription.state == State::Active
    }
}

/// One subscribed host.
#[derive(Debug, Clone)]
pub(crate) struct Subscriber {
    pub(crate) host_no: HostNo,
    pub(crate) authority: Authority,
    /// What it joined, in that order; never empty.
    pub(crate) joined: Vec<Joined>,
    pub(crate) software: Option<String>,
    chosen_form: Option<DeliveryForm>,
    delivery: Delivery,
    takes_deletes: bool,
    /// How it wants requests signed, if it refused the usual way.
    pub(crate) learnt_signature: Option<LearntSignature>,
    pub(crate) since: Timestamp,
    pub(crate) failing_since: Option<Timestamp>,
    pub(crate) suspended_at: Option<Timestamp>,
}

impl Subscriber {
    fn from_store(row: &fedi::Subscription, relay: &Relay) -> Option<Self> {
        Some(Self {
            host_no: row.host_no,
            authority: Authority::parse(&row.host).ok()?,
            joined: vec![Joined::from_store(row, relay)?],
            software: row.software.clone(),
            chosen_form: row.chosen_form,
            learnt_signature: row.learnt_signature,
            since: row.since,
            failing_since: row.failing_since,
            suspended_at: row.suspended_at,
            takes_deletes: row.chosen_form.is_none()
                && style_of(row.style) == Style::Mastodon
                && row
                    .software
                    .as_deref()
                    .is_some_and(software::takes_forwarded_deletes),
            delivery: match form_of(row) {
                DeliveryForm::Forward => Delivery::Forward,
                DeliveryForm::Announce => Delivery::Announce,
            },
        })
    }

    /// The subscription to one of the relay's actors.
    pub(crate) fn joined(&self, topic: &Topic) -> Option<&Joined> {
        self.joined.iter().find(|one| one.topic == *topic)
    }

    /// Whether it may publish and receives something.
    pub(crate) fn is_active(&self) -> bool {
        self.joined.iter().any(Joined::is_active)
    }

    /// Whether this is the actor that subscribed in LitePub's way.
    pub(crate) fn is_litepub_actor(&self, actor: &ActorId) -> bool {
        self.joined
            .iter()
            .any(|one| one.subscription.actor == *actor && one.subscription.style == Style::LitePub)
    }

    /// Whether all that it sends is for everybody; a host that joined topics only sends what is of these.
    pub(crate) fn feeds_all(&self) -> bool {
        self.joined(&Topic::All).is_some_and(Joined::is_active)
    }

    /// Whether the operator wants forwards sent, whatever the host answers.
    pub(crate) fn is_forward_chosen(&self) -> bool {
        self.chosen_form == Some(DeliveryForm::Forward)
    }

    /// The form for other people's activities; see [`form_of`].
    pub(crate) fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// Whether nothing speaks against a shared signature: its software takes one, it has not refused one, and it is neither
    /// blocked nor limited, by name, by software or by an access rule.
    pub(crate) fn may_share_signature(&self, moderation: &Moderation, rules: Rules<'_>) -> bool {
        let software = self.software.as_deref();
        let publish = Wish::Publish {
            subscribed: true,
            principal: None,
        };
        software.is_some_and(software::takes_shared_signatures)
            && self.learnt_signature.is_none()
            && moderation.host(&self.authority).is_none()
            && moderation.opt_out(&self.authority).is_none()
            && moderation.software(software).is_none()
            && decide(rules, &self.authority, software, None, publish) == Verdict::Yes
    }

    /// Whether it takes forwarded Deletes, whatever the form for the rest.
    pub(crate) fn takes_deletes(&self) -> bool {
        self.takes_deletes || self.delivery == Delivery::Forward
    }
}

/// The form in which a host is sent other people's activities: the operator's choice, then what the host's answers taught,
/// then what style and software say.
pub(crate) fn form_of(row: &fedi::Subscription) -> DeliveryForm {
    match (row.chosen_form, &row.refused_forward) {
        (Some(chosen), _) => chosen,
        (None, Some(_)) => DeliveryForm::Announce,
        (None, None) => match software::usual_form(style_of(row.style), known_of(row)) {
            Delivery::Forward => DeliveryForm::Forward,
            Delivery::Announce => DeliveryForm::Announce,
        },
    }
}

fn known_of(row: &fedi::Subscription) -> Known<'_> {
    match (&row.software, row.looked_at) {
        (Some(software), _) => Known::Software(software),
        (None, Some(_)) => Known::Nothing,
        (None, None) => Known::NotYet,
    }
}

/// Why, in words for the operator.
pub(crate) fn form_reason(row: &fedi::Subscription) -> String {
    match (row.chosen_form, &row.refused_forward, row.style, &row.software) {
        (Some(_), ..) => "chosen by the operator".to_owned(),
        (None, Some(answer), ..) => format!("it refused a forward: {answer}"),
        (None, None, SubscriptionStyle::LitePub, _) => "LitePub servers take Announces only".to_owned(),
        (None, None, SubscriptionStyle::Mastodon, None) => match row.looked_at {
            None => "its software is not asked yet".to_owned(),
            Some(_) => {
                "it has no NodeInfo that can be read, so nothing says that it takes forwards".to_owned()
            }
        },
        (None, None, SubscriptionStyle::Mastodon, Some(software)) => {
            match software::takes_forwards(software) {
                true => format!("{software} takes forwards"),
                false => format!("{software} is not known to take forwards"),
            }
        }
    }
}

/// How what is public is signed for a host, and why, in words for the operator.
pub(crate) fn signature_of(
    row: &fedi::Subscription,
    receivers: &Receivers,
    config: &FediConfig,
) -> (SignatureUse, String) {
    let is_shared = config.shared_signatures && receivers.shared.contains(row.host_no.0);
    let signature = SignatureUse::of(row.learnt_signature, is_shared);
    let answer = row.signature_answer.as_deref().unwrap_or_default();
    let reason = match (row.learnt_signature, &row.software) {
        (Some(LearntSignature::Full), _) => format!("it refused a shared signature: {answer}"),
        (Some(LearntSignature::Message), _) => format!("it refused the older draft: {answer}"),
        (None, Some(software)) if is_shared => {
            format!("{software} asks for date and digest under a signature")
        }
        (None, _) if !config.shared_signatures => "fediverse.shared_signatures is off".to_owned(),
        (None, _) if config.mode != Mode::Open => "the relay is not open to everybody".to_owned(),
        (None, Some(software)) if software::takes_shared_signatures(software) => {
            "it does not receive, or a rule is about it, or it has a filter".to_owned()
        }
        (None, Some(software)) => format!("{software} is not known to take a shared signature"),
        (None, None) => "its software is not known".to_owned(),
    };
    (signature, reason)
}

fn style_of(style: SubscriptionStyle) -> Style {
    match style {
        SubscriptionStyle::Mastodon => Style::Mastodon,
        SubscriptionStyle::LitePub => Style::LitePub,
    }
}

/// The id of the relay's own Follow of a LitePub server: the same for the same server, so that it need not be stored and a
/// repeated one is the same Follow to them.
pub(crate) fn follow_back_id(relay: &Relay, host: &Authority, actor: &ActorId) -> String {
    let hash = Sha256::digest(format!("follow {host} {actor}"));
    let short: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    relay.activity_id(&format!("follow-{short}"))
}

/// All subscribed hosts at one time.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) by_host: HashMap<Authority, Arc<Subscriber>>,
    topics: HashSet<Topic>,
}

impl Table {
    /// The subscription of a host, active or pending.
    pub(crate) fn host(&self, host: &Authority) -> Option<&Arc<Subscriber>> {
        self.by_host.get(host)
    }

    /// Whether the host may publish by its subscription.
    pub(crate) fn is_active(&self, host: &Authority) -> bool {
        self.host(host).is_some_and(|s| s.is_active())
    }

    /// Topics that somebody joined.
    pub(crate) fn topics(&self) -> &HashSet<Topic> {
        &self.topics
    }

    /// Hosts that receive, by name.
    pub(crate) fn active_hosts(&self) -> Vec<String> {
        let mut hosts: Vec<String> = self
            .by_host
            .values()
            .filter(|s| s.is_active())
            .map(|s| s.authority.to_string())
            .collect();
        hosts.sort_unstable();
        hosts
    }

    /// Rows as the store gives them: by host, and of each host in the order in which it joined.
    fn of(rows: &[fedi::Subscription], relay: &Relay) -> Self {
        let mut hosts: Vec<Subscriber> = Vec::new();
        for row in rows {
            match hosts
                .last_mut()
                .filter(|known| known.authority.as_str() == row.host)
            {
                Some(known) => known.joined.extend(Joined::from_store(row, relay)),
                None => hosts.extend(Subscriber::from_store(row, relay)),
            }
        }
        let joined = hosts.iter().flat_map(|one| &one.joined);
        Self {
            topics: joined
                .map(|one| one.topic.clone())
                .filter(|topic| *topic != Topic::All)
                .collect(),
            by_host: hosts
                .into_iter()
                .map(|one| (one.authority.clone(), Arc::new(one)))
                .collect(),
        }
    }
}

/// The table, shared and replaced as a whole.
pub(crate) struct Subscribers {
    store: Arc<dyn FediStore>,
    relay: Option<Relay>,
    acl: Acl,
    /// What the table was made of; `None` before the first load. Held while the store is asked.
    version: tokio::sync::Mutex<Option<i64>>,
    table: ArcSwap<Table>,
    moderation: ArcSwap<Moderation>,
    lists: ArcSwap<Vec<List>>,
    filters: ArcSwap<Filters>,
    orders: ArcSwap<Orders>,
    receivers: ArcSwapOption<Receivers>,
}

impl Subscribers {
    pub(crate) fn new(store: Arc<dyn FediStore>, relay: Option<Relay>, acl: Acl) -> Self {
        Self {
            store,
            relay,
            acl,
            version: tokio::sync::Mutex::new(None),
            table: ArcSwap::default(),
            moderation: ArcSwap::default(),
            lists: ArcSwap::default(),
            filters: ArcSwap::default(),
            orders: ArcSwap::default(),
            receivers: ArcSwapOption::empty(),
        }
    }

    /// The rules of moderation as they are now.
    pub(crate) fn moderation(&self) -> Arc<Moderation> {
        self.moderation.load_full()
    }

    /// The operator's lists.
    pub(crate) fn lists(&self) -> Arc<Vec<List>> {
        self.lists.load_full()
    }

    /// What hosts leave out.
    pub(crate) fn filters(&self) -> Arc<Filters> {
        self.filters.load_full()
    }

    /// What the operator ordered for the whole relay.
    pub(crate) fn orders(&self) -> Arc<Orders> {
        self.orders.load_full()
    }

    /// The table as it is now.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Reads the table anew if the store's version is another one; says whether it did.
    pub(crate) async fn refresh(&self) -> Result<bool, StoreError> {
        let mut known = self.version.lock().await;
        // The version is read first: a change between the two reads is seen again the next time, never missed.
        let version = self.store.subscriptions_version().await?;
        if *known == Some(version) {
            return Ok(false);
        }
        let rows = self.store.subscriptions().await?;
        let rules = self.store.moderation().await?;
        let orders = self.store.orders().await?;
        let filters = self.store.filters().await?;
        self.filters.store(Arc::new(Filters::of(filters)));
        let lists = self.store.topic_lists().await?;
        self.lists
            .store(Arc::new(lists.iter().filter_map(List::of).collect()));
        self.orders.store(Arc::new(orders));
        self.moderation.store(Arc::new(Moderation::compile(rules)));
        if let Some(relay) = &self.relay {
            self.table.store(Arc::new(Table::of(&rows, relay)));
        }
        *known = Some(version);
        Ok(true)
    }

    /// Which state of the store is known here.
    pub(crate) async fn known_version(&self) -> Option<i64> {
        *self.version.lock().await
    }

    /// Who receives now: active, and not refused by a rule. Computed anew only when something of that changed.
    pub(crate) fn receivers(&self, config: &Arc<FediConfig>) -> Arc<Receivers> {
        let source = Source {
            table: self.table(),
            rules: self.acl.rules(),
            moderation: self.moderation(),
            lists: self.lists(),
            filters: self.filters(),
            config: Arc::clone(config),
        };
        if let Some(known) = self.receivers.load_full()
            && known.is_of(&source)
        {
            return known;
        }
        let receivers = Arc::new(Receivers::of(source, &self.acl));
        self.receivers.store(Some(Arc::clone(&receivers)));
        receivers
    }
}
