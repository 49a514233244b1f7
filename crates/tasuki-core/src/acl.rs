//! Access rules: ordered, first match wins, closed by default.
//!
//! File rules come first, then the rules added by command. They are compiled into an immutable snapshot and swapped.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tasuki_proto::names::Domain;

use crate::engine::EngineKind;
use crate::ids::RuleId;
use crate::store::accounts::Principal;

mod explain;
#[cfg(test)]
mod tests;

pub use explain::Explanation;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Let it pass.
    Allow,
    /// Refuse it.
    Deny,
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Open a connection to an engine at all. Without a rule: allowed.
    Connect,
    /// Mail: hand in mail for another domain. Without a rule: only what the principal's grants say.
    Relay,
    /// Fediverse: join the relay. Without a rule: what `fediverse.mode` says.
    Subscribe,
    /// Fediverse: publish through the relay. Without a rule: only subscribers.
    Publish,
    /// Tunnel: expose a name or port. Without a rule: only what the agent's grants say.
    Expose,
    /// Tunnel: visit an endpoint. Without a rule: allowed.
    Visit,
    /// Use the admin API. Without a rule: by role. It belongs to no engine: a rule for one engine, and a rule that does
    /// not name this action, say nothing about it.
    Admin,
}

impl Action {
    /// All actions, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::Connect,
        Self::Relay,
        Self::Subscribe,
        Self::Publish,
        Self::Expose,
        Self::Visit,
        Self::Admin,
    ];

    /// The name in rules and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Relay => "relay",
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
            Self::Expose => "expose",
            Self::Visit => "visit",
            Self::Admin => "admin",
        }
    }

    /// The engines that ask about it; none about [`Action::Admin`].
    #[must_use]
    pub const fn engines(self) -> &'static [EngineKind] {
        match self {
            Self::Connect => &EngineKind::ALL,
            Self::Relay => &[EngineKind::Mail],
            Self::Subscribe | Self::Publish => &[EngineKind::Fediverse],
            Self::Expose | Self::Visit => &[EngineKind::Tunnel],
            Self::Admin => &[],
        }
    }
}

/// A rule as written in the file or by command. An absent field matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// Allow or deny.
    pub effect: Effect,
    /// Only in this engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineKind>,
    /// Only for this action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// Only from these networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<IpNet>,
    /// Only this principal, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Only this domain and its subdomains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Domain>,
    /// Why the rule exists; shown by `explain`.
    #[serde(default)]
    pub reason: String,
}

/// A question to the rules.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The engine that asks.
    pub engine: EngineKind,
    /// What is wanted.
    pub action: Action,
    /// The client's address, if there is one.
    pub from: Option<IpAddr>,
    /// The proven principal, if there is one.
    pub principal: Option<&'a Principal>,
    /// The domain or host concerned, if there is one.
    pub domain: Option<&'a Domain>,
}

/// Where a rule stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The n-th rule of the file, from 1.
    File(usize),
    /// A rule added by command.
    Store(RuleId),
}

/// The rules' answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Answer {
    /// This rule decided.
    Rule {
        /// What it does.
        effect: Effect,
        /// Where it stands.
        origin: Origin,
        /// Its reason.
        reason: String,
    },
    /// No rule matches: the action's own default holds (see [`Action`]).
    Default,
}

impl Answer {
    /// Whether a rule denies.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(
            self,
            Self::Rule {
                effect: Effect::Deny,
                ..
            }
        )
    }

    /// Whether a rule allows.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(
            self,
            Self::Rule {
                effect: Effect::Allow,
                ..
            }
        )
    }
}

/// The compiled rules; clones share the snapshot.
#[derive(Clone, Debug, Default)]
pub struct Acl {
    rules: Arc<ArcSwap<Vec<(Origin, RuleSpec)>>>,
}

impl Acl {
    /// No rules.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces all rules: the file's first, then the store's.
    pub fn replace(&self, rules: Vec<(Origin, RuleSpec)>) {
        self.rules.store(Arc::new(rules));
    }

    /// All rules in order.
    #[must_use]
    pub fn rules(&self) -> Arc<Vec<(Origin, RuleSpec)>> {
        self.rules.load_full()
    }

    /// The first rule about the admin API that matches decides; see [`Action::Admin`].
    #[must_use]
    pub fn decide_admin(&self, from: IpAddr, principal: &Principal) -> Answer {
        self.decide(&Question {
            // Rules that name an engine say nothing about the admin API, so any engine will do here.
            engine: EngineKind::Mail,
            action: Action::Admin,
            from: Some(from),
            principal: Some(principal),
            domain: None,
        })
    }

    /// The first rule that matches decides.
    #[must_use]
    pub fn decide(&self, question: &Question<'_>) -> Answer {
        self.rules
            .load()
            .iter()
            .find(|(_, rule)| rule.matches(question))
            .map_or(Answer::Default, |(origin, rule)| Answer::Rule {
                effect: rule.effect,
                origin: origin.clone(),
                reason: rule.reason.clone(),
            })
    }
}

impl RuleSpec {
    fn matches(&self, q: &Question<'_>) -> bool {
        let about = match q.action {
            Action::Admin => self.engine.is_none() && self.action == Some(Action::Admin),
            action => self.engine.is_none_or(|e| e == q.engine) && self.action.is_none_or(|a| a == action),
        };
        about
            && (self.from.is_empty()
                || q.from.is_some_and(|ip| {
                    self.from
                        .iter()
                        .any(|net| net.contains(&crate::net::unmapped(ip)))
                }))
            && self
                .principal
                .as_ref()
                .is_none_or(|name| q.principal.is_some_and(|p| p.name == *name))
            && self
                .domain
                .as_ref()
                .is_none_or(|d| q.domain.is_some_and(|asked| asked.is_within(d)))
    }
}
