//! Rules for large receivers: those shipped with the program, and the operator's in their place.

use std::{sync::LazyLock, time::Duration};

use serde::{Deserialize, Serialize};
use tasuki_core::BuildError;
use tasuki_proto::{
    names::Domain,
    smtp::{Reply, pace::PaceLimits},
};

use super::bad;

#[cfg(test)]
mod tests;

/// Connections that a site begins with.
const START: usize = 2;

/// The rules that come with the program.
static SHIPPED: LazyLock<Vec<ProviderConfig>> = LazyLock::new(|| {
    let file: File = toml::from_str(include_str!("providers.toml")).expect("a test reads the file");
    file.provider
});

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    provider: Vec<ProviderConfig>,
}

/// A large receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Its name here; one of the shipped rules is replaced by a block of its name.
    pub name: String,
    /// Names of its MX hosts, or what they end with; none switches the rule off.
    pub mx: Vec<Domain>,
    /// Most connections at a time; `mail.delivery.connections_per_site` if absent.
    #[serde(default)]
    pub connections: Option<usize>,
    /// Most mails over one connection; `mail.delivery.mails_per_connection` if absent.
    #[serde(default)]
    pub mails_per_connection: Option<usize>,
    /// Most mails in a minute, evenly spaced.
    #[serde(default)]
    pub per_minute: Option<u32>,
    /// Never send to it in the clear: whoever can break TLS on the way could then read the mail.
    #[serde(default)]
    pub require_tls: bool,
    /// Parts of replies that mean "too fast", not "not this mail".
    #[serde(default)]
    pub slow_down: Vec<String>,
    /// It says "unknown user" of people whose own filter refused the mail, so that its word puts nobody on the list of
    /// suppressed addresses.
    #[serde(default)]
    pub unknown_may_be_filter: bool,
    /// Parts of final replies to RCPT that mean that there is no such mailbox, where no enhanced code says so.
    #[serde(default)]
    pub unknown_user: Vec<String>,
}

/// All rules in force, the operator's first.
#[derive(Clone, Debug)]
pub(crate) struct Providers(Vec<ProviderConfig>);

impl Providers {
    pub(crate) fn check(own: &[ProviderConfig]) -> Result<Self, BuildError> {
        let mut all: Vec<ProviderConfig> = Vec::new();
        for rule in own {
            let wrong = |key: &str, problem: &str| {
                let key = format!("mail.providers.{key}");
                Err(bad(&key, format!("{}: {problem}", rule.name)))
            };
            if rule.name.is_empty() || all.iter().any(|known| known.name == rule.name) {
                return wrong("name", "a name that no other rule has");
            }
            if rule.connections == Some(0) {
                return wrong("connections", "must be at least 1");
            }
            if rule.mails_per_connection == Some(0) {
                return wrong("mails_per_connection", "must be at least 1");
            }
            if rule.per_minute == Some(0) {
                return wrong("per_minute", "must be at least 1");
            }
            if rule.slow_down.iter().any(|part| part.trim().is_empty()) {
                return wrong("slow_down", "an empty text would be found in every reply");
            }
            if rule.unknown_user.iter().any(|part| part.trim().is_empty()) {
                return wrong("unknown_user", "an empty text would be found in every reply");
            }
            let mut rule = rule.clone();
            for part in rule.slow_down.iter_mut().chain(&mut rule.unknown_user) {
                *part = part.to_lowercase();
            }
            all.push(rule);
        }
        let replaced = |rule: &&ProviderConfig| !own.iter().any(|mine| mine.name == rule.name);
        all.extend(SHIPPED.iter().filter(replaced).cloned());
        Ok(Self(all))
    }

    /// The rule for a site, by the name of its first server.
    pub(crate) fn of_host(&self, host: &str) -> Option<&ProviderConfig> {
        let host = Domain::parse(host).ok()?;
        self.0
            .iter()
            .find(|rule| rule.mx.iter().any(|mx| host.is_within(mx)))
    }
}

/// The pace of a site with this rule, or without one.
pub(crate) fn pace_limits(rule: Option<&ProviderConfig>, connections: usize) -> PaceLimits {
    let connections = rule.and_then(|rule| rule.connections).unwrap_or(connections);
    let per_minute = rule.and_then(|rule| rule.per_minute);
    PaceLimits {
        connections,
        start: START.min(connections),
        gap: per_minute.map_or(Duration::ZERO, |n| Duration::from_secs(60) / n),
    }
}

/// What others say when it is too fast for them.
const USUAL: &[&str] = &[
    "too many connections",
    "too many concurrent",
    "connection rate limit",
    "rate limit exceeded",
    "too many messages",
    "slow down",
];

/// Whether a reply says that mail comes too fast. A 421 (closing) does on a connection that was just made; later it may
/// only mean that this one has served its time.
pub(crate) fn is_slow_down(rule: Option<&ProviderConfig>, reply: &Reply, is_fresh: bool) -> bool {
    let text = reply.to_string().to_lowercase();
    let is_said = |part: &str| text.contains(part);
    let by_rule = rule.is_some_and(|rule| rule.slow_down.iter().any(|part| is_said(part)));
    by_rule
        || is_fresh && reply.code == 421
        || !reply.is_permanent() && USUAL.iter().any(|part| is_said(part))
}
