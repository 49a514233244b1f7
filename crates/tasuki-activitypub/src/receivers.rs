//! Who receives, as bitmaps of hosts: by form, and by what they joined.

use std::collections::HashMap;
use std::sync::Arc;

use roaring::RoaringBitmap;
use tasuki_core::acl::{Acl, Origin, RuleSpec};
use tasuki_proto::activitypub::decision::Delivery;
use tasuki_proto::activitypub::ids::Authority;
use tasuki_proto::activitypub::topic::Topic;
use tasuki_proto::activitypub::traits::Traits;

use crate::config::{FediConfig, Mode};
use crate::filters::{Filters, Sieve};
use crate::moderation::Moderation;
use crate::policy::{Rules, Verdict, Wish, decide};
use crate::subscribers::{Joined, Subscriber, Table};
use crate::topics::{List, is_open, topics_of};

/// What it follows from.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) table: Arc<Table>,
    pub(crate) rules: Arc<Vec<(Origin, RuleSpec)>>,
    pub(crate) moderation: Arc<Moderation>,
    pub(crate) lists: Arc<Vec<List>>,
    pub(crate) filters: Arc<Filters>,
    pub(crate) config: Arc<FediConfig>,
}

/// Who receives.
#[derive(Debug)]
pub(crate) struct Receivers {
    source: Source,
    /// Hosts that take forwards.
    pub(crate) forward: RoaringBitmap,
    /// Hosts that take announces.
    pub(crate) announce: RoaringBitmap,
    /// Of these, the hosts that take forwarded Deletes all the same.
    pub(crate) deletes: RoaringBitmap,
    /// Hosts that may be sent a signature that serves many of them (`lanes/shared.rs` says why): known to ask for no more, the
    /// relay open, and no rule about them nor a filter of theirs.
    pub(crate) shared: RoaringBitmap,
    /// What they leave out.
    pub(crate) sieve: Sieve,
    /// Hosts that joined the whole relay.
    whole: RoaringBitmap,
    by_topic: HashMap<Topic, RoaringBitmap>,
    /// Of hosts that joined several actors: which, in that order.
    several: HashMap<u32, Vec<Topic>>,
}

/// Whom something reaches, and from which topics' actors.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Reach {
    pub(crate) hosts: RoaringBitmap,
    /// Those that do not get it from the whole relay's actor.
    pub(crate) via: Vec<(Topic, RoaringBitmap)>,
}

impl Receivers {
    pub(crate) fn of(source: Source, acl: &Acl) -> Self {
        let mut receivers = Self {
            forward: RoaringBitmap::new(),
            announce: RoaringBitmap::new(),
            deletes: RoaringBitmap::new(),
            shared: RoaringBitmap::new(),
            sieve: source.filters.sieve(&source.table),
            whole: RoaringBitmap::new(),
            by_topic: HashMap::new(),
            several: HashMap::new(),
            source,
        };
        let table = Arc::clone(&receivers.source.table);
        for subscriber in table.by_host.values() {
            receivers.add(subscriber, acl);
        }
        receivers
    }

    fn add(&mut self, subscriber: &Subscriber, acl: &Acl) {
        let Source {
            moderation,
            config,
            lists,
            filters,
            ..
        } = &self.source;
        // A rule that came later, or a host taken from the list, ends the supply at once; the operator's removal then
        // tells the host so.
        let rules = Rules {
            acl,
            moderation,
            mode: config.mode,
        };
        let software = subscriber.software.as_deref();
        let verdict = decide(rules, &subscriber.authority, software, None, Wish::Subscribe);
        let is_served =
            |one: &&Joined| one.is_active() && is_open(&one.topic, config, lists, moderation).is_ok();
        let topics: Vec<Topic> = match (verdict, subscriber.suspended_at) {
            (Verdict::No(_), _) | (_, Some(_)) => Vec::new(),
            _ => subscriber
                .joined
                .iter()
                .filter(is_served)
                .map(|one| one.topic.clone())
                .collect(),
        };
        if topics.is_empty() {
            return;
        }
        let number = subscriber.host_no.0;
        let is_plain = config.mode == Mode::Open && filters.host(&subscriber.authority).is_none();
        if is_plain && subscriber.may_share_signature(moderation, rules) {
            self.shared.insert(number);
        }
        match subscriber.delivery() {
            Delivery::Forward => self.forward.insert(number),
            Delivery::Announce => {
                if subscriber.takes_deletes() {
                    self.deletes.insert(number);
                }
                self.announce.insert(number)
            }
        };
        for topic in &topics {
            match topic {
                Topic::All => self.whole.insert(number),
                topic => self.by_topic.entry(topic.clone()).or_default().insert(number),
            };
        }
        if topics.len() > 1 {
            self.several.insert(number, topics);
        }
    }

    pub(crate) fn is_of(&self, source: &Source) -> bool {
        Arc::ptr_eq(&self.source.table, &source.table)
            && Arc::ptr_eq(&self.source.rules, &source.rules)
            && Arc::ptr_eq(&self.source.moderation, &source.moderation)
            && Arc::ptr_eq(&self.source.lists, &source.lists)
            && Arc::ptr_eq(&self.source.filters, &source.filters)
            && Arc::ptr_eq(&self.source.config, &source.config)
    }

    /// Whether posts have to be read for topics.
    pub(crate) fn has_topics(&self) -> bool {
        !self.by_topic.is_empty()
    }

    /// The relay's actors with the hosts that joined them.
    pub(crate) fn actors(&self) -> impl Iterator<Item = (&Topic, &RoaringBitmap)> {
        [(&Topic::All, &self.whole)].into_iter().chain(&self.by_topic)
    }

    /// The topics of a post that somebody joined.
    pub(crate) fn topics_of(&self, traits: &Traits, author: &Authority) -> Vec<Topic> {
        if !self.has_topics() {
            return Vec::new();
        }
        topics_of(traits, author, &self.source.lists, |topic| {
            self.by_topic.contains_key(topic)
        })
    }

    /// Whom something of these topics reaches: one copy for each host, from the actor that it joined first.
    pub(crate) fn reach(&self, topics: &[Topic]) -> Reach {
        let mut reach = Reach {
            hosts: self.whole.clone(),
            via: Vec::new(),
        };
        for topic in topics {
            let Some(joined) = self.by_topic.get(topic) else {
                continue;
            };
            reach.hosts |= joined;
            let is_first = |host: &u32| match self.several.get(host) {
                None => true,
                Some(order) => {
                    let first = order
                        .iter()
                        .find(|one| **one == Topic::All || topics.contains(one));
                    first == Some(topic)
                }
            };
            reach
                .via
                .push((topic.clone(), joined.iter().filter(is_first).collect()));
        }
        reach
    }
}
