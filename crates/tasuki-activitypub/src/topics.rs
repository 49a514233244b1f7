//! Topic relays: which are open, which a post belongs to, and the operator's lists.
//!
//! **Invariant:** a topic exists because the operator opened it or made it, and the number of topics with subscribers has a
//! bound; a hashtag that is silenced, or a host that is blocked, has none.

use std::collections::HashSet;

use serde::Serialize;
use tasuki_core::store::StoreError;
use tasuki_core::store::fedi::{ModerationEffect, TopicList};
use tasuki_proto::activitypub::ids::Authority;
use tasuki_proto::activitypub::topic::Topic;
use tasuki_proto::activitypub::traits::Traits;

use crate::config::FediConfig;
use crate::engine::Inner;
use crate::handle::{Handle, HandleError};
use crate::moderation::Moderation;

/// Lists at most, and entries of one: each post is compared with them.
const MAX_LISTS: usize = 200;
const MAX_ENTRIES: usize = 1000;

/// A list of the operator's, ready to be asked.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) topic: Topic,
    pub(crate) title: String,
    parts: HashSet<Topic>,
}

impl List {
    /// `None` for one that is not in the form in which lists are made here.
    pub(crate) fn of(list: &TopicList) -> Option<Self> {
        Some(Self {
            topic: Topic::parse(&format!("list/{}", list.name)).ok()?,
            title: list.title.clone(),
            parts: parts(list).ok()?.into_iter().collect(),
        })
    }
}

fn parts(list: &TopicList) -> Result<Vec<Topic>, HandleError> {
    let all = [
        ("tag", &list.tags),
        ("instance", &list.instances),
        ("lang", &list.languages),
    ];
    all.into_iter()
        .flat_map(|(kind, names)| names.iter().map(move |name| format!("{kind}/{name}")))
        .map(|text| Topic::parse(&text).map_err(|error| HandleError::NotARule(error.to_string())))
        .collect()
}

/// The topics of a post that `wanted` says yes to, the operator's lists among them.
pub(crate) fn topics_of(
    traits: &Traits,
    author: &Authority,
    lists: &[List],
    wanted: impl Fn(&Topic) -> bool,
) -> Vec<Topic> {
    let mut own: Vec<Topic> = vec![Topic::Instance(author.clone())];
    own.extend(traits.tags.iter().map(|tag| Topic::Tag(tag.as_str().into())));
    for language in &traits.languages {
        let ends = language
            .match_indices('-')
            .map(|(at, _)| at)
            .chain([language.len()]);
        own.extend(ends.map(|end| Topic::Language(language[..end].into())));
    }
    own.sort_unstable();
    own.dedup();
    let of_lists: Vec<Topic> = lists
        .iter()
        .filter(|list| wanted(&list.topic) && own.iter().any(|topic| list.parts.contains(topic)))
        .map(|list| list.topic.clone())
        .collect();
    own.retain(wanted);
    own.extend(of_lists);
    own
}

/// Whether a topic may be joined and is served, and why not.
pub(crate) fn is_open(
    topic: &Topic,
    config: &FediConfig,
    lists: &[List],
    moderation: &Moderation,
) -> Result<(), String> {
    match topic {
        Topic::All => return Ok(()),
        Topic::List(_) => {
            let known = lists.iter().any(|list| list.topic == *topic);
            return known
                .then_some(())
                .ok_or_else(|| format!("there is no {topic} here"));
        }
        Topic::Tag(tag) if moderation.tag(tag).is_some() => {
            return Err(format!("{topic} is silenced by this relay"));
        }
        Topic::Instance(host)
            if moderation
                .host(host)
                .is_some_and(|rule| rule.effect == ModerationEffect::Block) =>
        {
            return Err(format!("{host} is blocked by this relay"));
        }
        Topic::Instance(host) if moderation.opt_out(host).is_some() => {
            return Err(format!("{host} does not want to be relayed"));
        }
        Topic::Tag(_) | Topic::Instance(_) | Topic::Language(_) => {}
    }
    match config.topics.opens(topic) {
        true => Ok(()),
        false => Err(format!("there is no {topic} here")),
    }
}

/// A topic relay, for the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListStatus {
    /// The list.
    pub list: TopicList,
    /// What an admin pastes; `None` without `server.host`.
    pub inbox: Option<String>,
    /// Instances that joined it.
    pub subscribers: usize,
}

impl Inner {
    /// Whether a topic is open now, and why not.
    pub(crate) fn opens(&self, topic: &Topic) -> Result<(), String> {
        let moderation = self.subscribers.moderation();
        is_open(topic, &self.config.load(), &self.subscribers.lists(), &moderation)
    }

    /// Whether a topic has an actor: it is open, somebody joined it, or somebody is just being told that it ended.
    pub(crate) fn serves(&self, topic: &Topic) -> bool {
        self.opens(topic).is_ok()
            || self.subscribers.table().topics().contains(topic)
            || self.ended.contains_key(topic)
    }

    /// Name and summary of an actor.
    pub(crate) fn words_of(&self, topic: &Topic) -> (String, String) {
        let config = self.config.load();
        let lists = self.subscribers.lists();
        let title = lists
            .iter()
            .find(|list| list.topic == *topic)
            .map(|list| list.title.as_str());
        let what = match topic {
            Topic::All => return (config.name.clone(), config.summary.clone()),
            Topic::Tag(tag) => format!("#{tag}"),
            Topic::Instance(host) => host.to_string(),
            Topic::Language(code) => code.to_string(),
            Topic::List(name) => title.filter(|title| !title.is_empty()).unwrap_or(name).to_owned(),
        };
        (
            format!("{} ({what})", config.name),
            format!("{} ({what})", config.summary),
        )
    }

    /// Whether `host` may join a topic, and why not.
    pub(crate) fn admits(&self, topic: &Topic, host: &Authority) -> Result<(), String> {
        self.opens(topic)?;
        let table = self.subscribers.table();
        let joined = table.host(host);
        if *topic == Topic::All || joined.is_some_and(|one| one.joined(topic).is_some()) {
            return Ok(());
        }
        let bounds = &self.config.load().topics;
        let own = joined.map_or(0, |one| {
            one.joined.iter().filter(|one| one.topic != Topic::All).count()
        });
        if own >= bounds.per_host {
            return Err(format!(
                "{host} has joined {own} topics of this relay: that is all that it may"
            ));
        }
        let all = table.topics();
        match all.contains(topic) || all.len() < bounds.max {
            true => Ok(()),
            false => Err("this relay has as many topics as it can".to_owned()),
        }
    }

    /// The topics that are shown to everybody: those that the configuration and the operator list.
    pub(crate) fn shown_topics(&self) -> Vec<(Topic, String)> {
        let (config, lists) = (self.config.load(), self.subscribers.lists());
        let names = config.topics.names();
        let listed = names
            .iter()
            .filter_map(|name| Some((Topic::parse(name).ok()?, String::new())));
        let made = lists.iter().map(|list| (list.topic.clone(), list.title.clone()));
        let mut shown: Vec<_> = made.chain(listed).collect();
        let moderation = self.subscribers.moderation();
        shown.retain(|(topic, _)| is_open(topic, &config, &lists, &moderation).is_ok());
        shown
    }
}

impl Handle {
    /// The operator's lists.
    ///
    /// # Errors
    /// [`HandleError::Store`].
    pub async fn lists(&self) -> Result<Vec<ListStatus>, HandleError> {
        let lists = self.inner.store.topic_lists().await?;
        self.inner.subscribers.refresh().await?;
        let table = self.inner.subscribers.table();
        let status = |list: TopicList| {
            let topic = Topic::parse(&format!("list/{}", list.name)).ok()?;
            let has_joined =
                |one: &&std::sync::Arc<crate::subscribers::Subscriber>| one.joined(&topic).is_some();
            Some(ListStatus {
                inbox: self.inner.relay.as_ref().map(|relay| relay.at(&topic).inbox()),
                subscribers: table.by_host.values().filter(has_joined).count(),
                list,
            })
        };
        Ok(lists.into_iter().filter_map(status).collect())
    }

    /// Makes a list, or changes it; gives its inbox, which an admin pastes.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn put_list(
        &self,
        mut list: TopicList,
        (who, from): (&str, &str),
    ) -> Result<ListStatus, HandleError> {
        let topic = Topic::parse(&format!("list/{}", list.name)).map_err(|_| {
            HandleError::NotARule(format!(
                "{:?} is not the name of a list: it has small letters, digits, - and _, and begins and ends with a letter or digit",
                list.name
            ))
        })?;
        let parts = parts(&list)?;
        if parts.is_empty() || parts.len() > MAX_ENTRIES {
            return Err(HandleError::NotARule(format!(
                "a list has from 1 to {MAX_ENTRIES} hashtags, instances and languages together"
            )));
        }
        let known = self.inner.store.topic_lists().await?;
        if known.len() >= MAX_LISTS && known.iter().all(|one| one.name != list.name) {
            return Err(HandleError::NotARule(format!(
                "there are {MAX_LISTS} lists already, which is all there may be"
            )));
        }
        let named = |topic: &Topic| topic.to_string().split_once('/').map(|(_, name)| name.to_owned());
        let of = |wanted: fn(&Topic) -> bool| {
            parts
                .iter()
                .filter(|topic| wanted(topic))
                .filter_map(named)
                .collect()
        };
        list.tags = of(|topic| matches!(topic, Topic::Tag(_)));
        list.instances = of(|topic| matches!(topic, Topic::Instance(_)));
        list.languages = of(|topic| matches!(topic, Topic::Language(_)));
        list.title = list.title.chars().filter(|c| !c.is_control()).take(200).collect();
        let detail: Vec<String> = parts.iter().take(20).map(ToString::to_string).collect();
        let audit = self.audit("fedi.list", list.name.clone(), detail.join(" "), (who, from));
        self.inner.store.put_topic_list(list.clone(), Some(audit)).await?;
        self.inner.subscribers.refresh().await?;
        Ok(ListStatus {
            inbox: self.inner.relay.as_ref().map(|relay| relay.at(&topic).inbox()),
            subscribers: 0,
            list,
        })
    }

    /// Removes a list; who joined it is told by a Reject.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn remove_list(
        &self,
        name: &str,
        (who, from): (&str, &str),
    ) -> Result<Vec<String>, HandleError> {
        let audit = self.audit("fedi.list.remove", name.to_owned(), String::new(), (who, from));
        match self.inner.store.remove_topic_list(name, Some(audit)).await {
            Err(StoreError::NotFound(_)) => return Err(HandleError::NoSuchList(name.to_owned())),
            other => other?,
        }
        let topic = Topic::parse(&format!("list/{name}"))
            .map_err(|error| HandleError::NotARule(error.to_string()))?;
        self.inner.subscribers.refresh().await?;
        let table = self.inner.subscribers.table();
        let hosts = table.by_host.values().filter(|one| one.joined(&topic).is_some());
        let mut removed: Vec<String> = hosts.map(|one| one.authority.to_string()).collect();
        removed.sort_unstable();
        for host in &removed {
            self.remove(host, Some(&topic.to_string()), who, from).await?;
        }
        Ok(removed)
    }
}
