//! The `[fediverse]` part of the configuration.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tasuki_core::BuildError;
use tasuki_core::config::{duration, size};
use tasuki_proto::activitypub::topic::{NotATopic, Topic};
use tasuki_proto::backoff::Backoff;

/// Who may subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every host that no rule refuses.
    Open,
    /// An operator says yes to each (`tasuki fedi subscribers approve`).
    Approval,
    /// Only hosts that an access rule allows.
    Allowlist,
}

/// Which topic relays may be joined, beside the operator's lists (`tasuki fedi list`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicMode {
    /// None.
    Off,
    /// Those of the hashtags, instances and languages that are listed.
    Listed,
    /// Of every hashtag, instance and language.
    Any,
}

impl TopicMode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Listed => "listed",
            Self::Any => "any",
        }
    }
}

/// Topic relays: actors of single hashtags, instances and languages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicsConfig {
    /// Which may be joined.
    pub mode: TopicMode,
    /// With `listed`: these hashtags,
    pub tags: Vec<String>,
    /// these instances,
    pub instances: Vec<String>,
    /// and these languages.
    pub languages: Vec<String>,
    /// Topics with a subscriber, at most: another one is refused.
    pub max: usize,
    /// Topics that one instance may join.
    pub per_host: usize,
}

impl Default for TopicsConfig {
    fn default() -> Self {
        Self {
            mode: TopicMode::Off,
            tags: Vec::new(),
            instances: Vec::new(),
            languages: Vec::new(),
            max: 1000,
            per_host: 20,
        }
    }
}

impl TopicsConfig {
    /// The listed topics, each with the key that it stands under.
    fn listed(&self) -> impl Iterator<Item = (&'static str, Result<Topic, NotATopic>)> {
        let of = |key, kind: &'static str, names: &Vec<String>| {
            let topics: Vec<_> = names
                .iter()
                .map(|name| (key, Topic::parse(&format!("{kind}/{name}"))))
                .collect();
            topics
        };
        of("topics.tags", "tag", &self.tags)
            .into_iter()
            .chain(of("topics.instances", "instance", &self.instances))
            .chain(of("topics.languages", "lang", &self.languages))
    }

    /// The names of the topics that may be joined, as far as they can be listed.
    pub(crate) fn names(&self) -> Vec<String> {
        match self.mode {
            TopicMode::Off => Vec::new(),
            TopicMode::Listed | TopicMode::Any => self
                .listed()
                .filter_map(|(_, topic)| Some(topic.ok()?.to_string()))
                .collect(),
        }
    }

    /// Whether a hashtag, an instance or a language is open.
    pub(crate) fn opens(&self, topic: &Topic) -> bool {
        match self.mode {
            TopicMode::Off => false,
            TopicMode::Any => true,
            TopicMode::Listed => self.listed().any(|(_, listed)| listed.as_ref() == Ok(topic)),
        }
    }
}

/// What the operator writes; every key has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FediConfig {
    /// The relay's display name.
    pub name: String,
    /// What the relay is for; plain text, shown by instances and directories.
    pub summary: String,
    /// How to reach the operator: a mail address or URL. Shown.
    pub contact: String,
    /// What publishers keep to, on the page: one text each, at most 50 of 500 characters.
    pub rules: Vec<String>,
    /// Who may subscribe.
    pub mode: Mode,
    /// Whether unlisted posts (Public in `cc` only) are relayed too.
    pub unlisted: bool,
    /// Whether boosts by people are relayed: each makes every subscriber fetch the boosted post.
    pub boosts: bool,
    /// Topic relays.
    pub topics: TopicsConfig,
    /// Whether NodeInfo and the page list the subscribed hosts.
    pub show_peers: bool,
    /// Whether instances may set their own filter, and opt out of being relayed, at `/filter`, after they proved themselves.
    pub self_service: bool,
    /// Who is asked for their proofs in DNS; `None`: whom the system asks.
    pub dns_server: Option<SocketAddr>,
    /// Largest activity taken, in bytes. Mastodon takes 1 MiB.
    #[serde(with = "size")]
    pub max_activity_size: u64,
    /// How long activities wait for a host that does not answer.
    #[serde(with = "duration")]
    pub retention: Duration,
    /// How many bytes of activities wait at most; the oldest go first.
    #[serde(with = "size")]
    pub log_max_bytes: u64,
    /// Deliveries under way to one host at once.
    pub host_concurrency: usize,
    /// Activities that waited over a minute and are sent to one host in a second, when it returns; at most 10 to the Misskey
    /// family. What is new goes before them.
    pub backlog_per_second: u32,
    /// Deliveries under way to all hosts at once.
    pub max_deliveries: usize,
    /// Whether one signature serves many hosts that ask for no more (Mastodon and what was made of it), where the relay is open
    /// and no rule is about them.
    pub shared_signatures: bool,
    /// Time to connect to another server, TLS included.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Time for a whole request to another server.
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    /// Waits after the first, second, ... failure of a host in a row; the last one repeats.
    #[serde(with = "durations")]
    pub retry: Vec<Duration>,
    /// After this long without reaching a host it gets nothing new until it is heard again.
    #[serde(with = "duration")]
    pub suspend_after: Duration,
    /// After this long without reaching a host it is removed, with a Reject.
    #[serde(with = "duration")]
    pub prune_after: Duration,
    /// Activities of one author in an hour, in the long run; 0 for no limit.
    pub author_per_hour: u32,
    /// The same for accounts younger than a week.
    pub new_author_per_hour: u32,
    /// Activities of one host in a minute, in the long run; 0 for no limit.
    pub host_per_minute: u32,
    /// The same for hosts that joined less than a week ago.
    pub new_host_per_minute: u32,
    /// Whether authors who keep their posts out of public search (`indexable: false`) are not relayed.
    pub honor_indexable: bool,
    /// Fetches and delivers to private addresses too, and over plain HTTP: for tests on one machine. Whoever can send a
    /// signed request could then make the gateway ask servers inside your network.
    pub danger_allow_private_addresses: bool,
}

impl Default for FediConfig {
    fn default() -> Self {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        Self {
            name: "Tasuki relay".to_owned(),
            summary: "A relay for public posts. Subscribe with the inbox URL of this server.".to_owned(),
            contact: String::new(),
            rules: Vec::new(),
            mode: Mode::Open,
            unlisted: false,
            boosts: false,
            topics: TopicsConfig::default(),
            show_peers: true,
            self_service: true,
            dns_server: None,
            max_activity_size: 1 << 20,
            retention: Duration::from_secs(3 * 24 * HOUR),
            log_max_bytes: 1 << 30,
            host_concurrency: 4,
            backlog_per_second: 50,
            max_deliveries: 2000,
            shared_signatures: true,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            retry: [
                10,
                30,
                MINUTE,
                2 * MINUTE,
                5 * MINUTE,
                10 * MINUTE,
                30 * MINUTE,
                HOUR,
            ]
            .map(Duration::from_secs)
            .to_vec(),
            suspend_after: Duration::from_secs(7 * 24 * HOUR),
            prune_after: Duration::from_secs(30 * 24 * HOUR),
            author_per_hour: 300,
            new_author_per_hour: 60,
            host_per_minute: 600,
            new_host_per_minute: 120,
            honor_indexable: false,
            danger_allow_private_addresses: false,
        }
    }
}

/// Topics of a kind that may be listed.
const MAX_LISTED: usize = 1000;

/// How far waits are moved either way, in per cent: hosts that failed together do not come back together.
const JITTER_PERCENT: u8 = 20;

impl FediConfig {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`BuildError::Config`] names the key.
    pub fn validate(&self) -> Result<(), BuildError> {
        let refuse = |key: &str, problem: &str| {
            Err(BuildError::Config {
                key: format!("fediverse.{key}"),
                problem: problem.to_owned(),
            })
        };
        if self.name.trim().is_empty() || self.name.len() > 200 {
            return refuse("name", "must have 1 to 200 bytes");
        }
        if self.summary.len() > 2000 {
            return refuse("summary", "must have at most 2000 bytes");
        }
        if !(16 * 1024..=16 << 20).contains(&self.max_activity_size) {
            return refuse("max_activity_size", "must be from \"16KiB\" to \"16MiB\"");
        }
        if self.rules.len() > 50 || self.rules.iter().any(|rule| rule.chars().count() > 500) {
            return refuse("rules", "at most 50 of at most 500 characters");
        }
        if self.retention < Duration::from_secs(60) {
            return refuse("retention", "must be at least \"1m\"");
        }
        if self.log_max_bytes < self.max_activity_size {
            return refuse(
                "log_max_bytes",
                "must not be smaller than fediverse.max_activity_size",
            );
        }
        if !(1..=64).contains(&self.host_concurrency) {
            return refuse("host_concurrency", "must be from 1 to 64");
        }
        if !(1..=10_000).contains(&self.backlog_per_second) {
            return refuse("backlog_per_second", "must be from 1 to 10000");
        }
        if !(1..=100_000).contains(&self.max_deliveries) {
            return refuse("max_deliveries", "must be from 1 to 100000");
        }
        if self.connect_timeout.is_zero() || self.request_timeout < self.connect_timeout {
            return refuse(
                "request_timeout",
                "must not be shorter than fediverse.connect_timeout, which must not be zero",
            );
        }
        if self.suspend_after.is_zero() || self.prune_after < self.suspend_after {
            return refuse(
                "prune_after",
                "must not be shorter than fediverse.suspend_after, which must not be zero",
            );
        }
        let topics = &self.topics;
        if let Some((key, Err(error))) = topics.listed().find(|(_, topic)| topic.is_err()) {
            return refuse(key, &error.to_string());
        }
        if [&topics.tags, &topics.instances, &topics.languages]
            .iter()
            .any(|list| list.len() > MAX_LISTED)
        {
            return refuse(
                "topics",
                &format!("must not list more than {MAX_LISTED} of a kind"),
            );
        }
        if !(1..=100_000).contains(&topics.max) {
            return refuse("topics.max", "must be from 1 to 100000");
        }
        if !(1..=1000).contains(&topics.per_host) {
            return refuse("topics.per_host", "must be from 1 to 1000");
        }
        match Backoff::try_new(self.retry.clone(), JITTER_PERCENT) {
            Ok(_) => Ok(()),
            Err(e) => refuse("retry", &e.to_string()),
        }
    }

    /// The retry schedule of a validated configuration.
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::try_new(self.retry.clone(), JITTER_PERCENT).unwrap_or_else(|_| {
            Backoff::try_new([Duration::from_secs(60)], JITTER_PERCENT)
                .expect("one delay of a minute is a schedule")
        })
    }
}

/// Lists of durations as texts.
mod durations {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};
    use tasuki_core::config::duration;

    pub(super) fn serialize<S: Serializer>(list: &[Duration], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(list.iter().map(|d| duration::format(*d)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Duration>, D::Error> {
        Vec::<String>::deserialize(d)?
            .iter()
            .map(|text| duration::parse(text).map_err(serde::de::Error::custom))
            .collect()
    }
}
