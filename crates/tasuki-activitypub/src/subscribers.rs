//! The subscribed hosts in memory: an immutable snapshot, made anew when the store says that something changed.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use roaring::RoaringBitmap;
use sha2::{Digest as _, Sha256};
use tasuki_core::acl::{Acl, Origin, RuleSpec};
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

use crate::config::{FediConfig, Mode};
use crate::lanes::SignatureUse;
use crate::moderation::Moderation;
use crate::policy::{Rules, Verdict, Wish, decide};

/// One subscribed host.
#[derive(Debug, Clone)]
pub(crate) struct Subscriber {
    pub(crate) host_no: HostNo,
    pub(crate) authority: Authority,
    pub(crate) subscription: Subscription,
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
        let authority = Authority::parse(&row.host).ok()?;
        let actor = ActorId::parse(&row.actor).ok()?;
        let style = style_of(row.style);
        Some(Self {
            host_no: row.host_no,
            software: row.software.clone(),
            chosen_form: row.chosen_form,
            learnt_signature: row.learnt_signature,
            since: row.since,
            failing_since: row.failing_since,
            suspended_at: row.suspended_at,
            takes_deletes: row.chosen_form.is_none()
                && style == Style::Mastodon
                && row
                    .software
                    .as_deref()
                    .is_some_and(software::takes_forwarded_deletes),
            delivery: match form_of(row) {
                DeliveryForm::Forward => Delivery::Forward,
                DeliveryForm::Announce => Delivery::Announce,
            },
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
                        id: follow_back_id(relay, &authority, &actor),
                        accepted: false,
                    }
                }),
                actor,
            },
            authority,
        })
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
    fn may_share_signature(&self, moderation: &Moderation, rules: Rules<'_>) -> bool {
        let software = self.software.as_deref();
        let publish = Wish::Publish {
            subscribed: true,
            principal: None,
        };
        software.is_some_and(software::takes_shared_signatures)
            && self.learnt_signature.is_none()
            && moderation.host(&self.authority).is_none()
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
            "it does not receive, or a rule is about it".to_owned()
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
}

impl Table {
    /// The subscription of a host, active or pending.
    pub(crate) fn host(&self, host: &Authority) -> Option<&Arc<Subscriber>> {
        self.by_host.get(host)
    }

    /// Whether the host may publish by its subscription.
    pub(crate) fn is_active(&self, host: &Authority) -> bool {
        self.host(host)
            .is_some_and(|s| s.subscription.state == State::Active)
    }

    /// Hosts that receive, by name.
    pub(crate) fn active_hosts(&self) -> Vec<String> {
        let mut hosts: Vec<String> = self
            .by_host
            .values()
            .filter(|s| s.subscription.state == State::Active)
            .map(|s| s.authority.to_string())
            .collect();
        hosts.sort_unstable();
        hosts
    }
}

/// Who receives, as bitmaps, by one table and under one set of rules.
#[derive(Debug)]
pub(crate) struct Receivers {
    table: Arc<Table>,
    rules: Arc<Vec<(Origin, RuleSpec)>>,
    moderation: Arc<Moderation>,
    mode: Mode,
    /// Hosts that take forwards.
    pub(crate) forward: RoaringBitmap,
    /// Hosts that take announces.
    pub(crate) announce: RoaringBitmap,
    /// Of these, the hosts that take forwarded Deletes all the same.
    pub(crate) deletes: RoaringBitmap,
    /// Hosts that may be sent a signature that serves many of them (`lanes/shared.rs` says why): known to ask for no more, the
    /// relay open, and no rule about them.
    pub(crate) shared: RoaringBitmap,
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
            orders: ArcSwap::default(),
            receivers: ArcSwapOption::empty(),
        }
    }

    /// The rules of moderation as they are now.
    pub(crate) fn moderation(&self) -> Arc<Moderation> {
        self.moderation.load_full()
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
        self.orders.store(Arc::new(orders));
        self.moderation.store(Arc::new(Moderation::compile(rules)));
        if let Some(relay) = &self.relay {
            let by_host = rows
                .iter()
                .filter_map(|row| Subscriber::from_store(row, relay))
                .map(|s| (s.authority.clone(), Arc::new(s)))
                .collect();
            self.table.store(Arc::new(Table { by_host }));
        }
        *known = Some(version);
        Ok(true)
    }

    /// Who receives now: active, and not refused by a rule. Computed anew only when the table or the rules changed.
    pub(crate) fn receivers(&self, mode: Mode) -> Arc<Receivers> {
        let table = self.table();
        let rules = self.acl.rules();
        let moderation = self.moderation();
        if let Some(known) = self.receivers.load_full()
            && Arc::ptr_eq(&known.table, &table)
            && Arc::ptr_eq(&known.rules, &rules)
            && Arc::ptr_eq(&known.moderation, &moderation)
            && known.mode == mode
        {
            return known;
        }
        let mut receivers = Receivers {
            table: Arc::clone(&table),
            rules,
            moderation: Arc::clone(&moderation),
            mode,
            forward: RoaringBitmap::new(),
            announce: RoaringBitmap::new(),
            deletes: RoaringBitmap::new(),
            shared: RoaringBitmap::new(),
        };
        for subscriber in table.by_host.values() {
            // A rule that came later, or a host taken from the list, ends the supply at once; the operator's removal then
            // tells the host so.
            let rules = Rules {
                acl: &self.acl,
                moderation: &moderation,
                mode,
            };
            let software = subscriber.software.as_deref();
            let verdict = decide(rules, &subscriber.authority, software, None, Wish::Subscribe);
            let is_served =
                subscriber.subscription.state == State::Active && subscriber.suspended_at.is_none();
            if matches!(verdict, Verdict::No(_)) || !is_served {
                continue;
            }
            if mode == Mode::Open && subscriber.may_share_signature(&moderation, rules) {
                receivers.shared.insert(subscriber.host_no.0);
            }
            match subscriber.delivery() {
                Delivery::Forward => receivers.forward.insert(subscriber.host_no.0),
                Delivery::Announce => {
                    if subscriber.takes_deletes() {
                        receivers.deletes.insert(subscriber.host_no.0);
                    }
                    receivers.announce.insert(subscriber.host_no.0)
                }
            };
        }
        let receivers = Arc::new(receivers);
        self.receivers.store(Some(Arc::clone(&receivers)));
        receivers
    }
}
