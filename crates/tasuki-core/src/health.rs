//! What keeps the gateway from being well, as conditions that come and go; `/readyz` and `status --check` read them.
//!
//! Engines report what they know (queue age, a route that is down, an agent that is away); [`watch`] looks at what they
//! share: disk, store, certificate, clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

#[cfg(unix)]
mod looks;
#[cfg(test)]
mod tests;

#[cfg(unix)]
pub use looks::{DiskSpace, Watched, disk_space, reserve_bytes, watch};

/// Conditions kept at once; a reporter that makes up keys cannot fill the memory.
const MAX_CONDITIONS: usize = 1000;

/// What kind of thing is not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The data directory's disk is below its reserve.
    Disk,
    /// The store does not answer.
    Store,
    /// The oldest waiting work is too old.
    QueueAge,
    /// The certificate expires soon and could not be replaced.
    Certificate,
    /// A route (smarthost, provider, network) is down.
    RouteDown,
    /// An agent that should be here is away.
    AgentAway,
    /// The machine's clock is wrong or jumped.
    Clock,
    /// Mail cannot be signed.
    Signing,
    /// An operator stopped the fediverse relay.
    Paused,
    /// Many peers do not answer at once: the network here is the suspect.
    Network,
    /// An account was locked: its secret may be stolen.
    Locked,
    /// A trusted address seems to stand for more than one.
    Trust,
}

impl Code {
    /// The name in `status`, JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Store => "store",
            Self::QueueAge => "queue-age",
            Self::Certificate => "certificate",
            Self::RouteDown => "route-down",
            Self::AgentAway => "agent-away",
            Self::Clock => "clock",
            Self::Signing => "signing",
            Self::Paused => "paused",
            Self::Network => "network",
            Self::Locked => "locked",
            Self::Trust => "trust",
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody should look; work goes on.
    Warning,
    /// New work is not taken: the gateway is not ready.
    Critical,
}

/// Something that is not well now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// What kind of thing.
    pub code: Code,
    /// How bad.
    pub severity: Severity,
    /// One sentence for the operator: what is wrong and what to do.
    pub sentence: String,
}

impl Condition {
    /// A warning.
    pub fn warning(code: Code, sentence: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Warning,
            sentence: sentence.into(),
        }
    }

    /// A reason not to be ready.
    pub fn critical(code: Code, sentence: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Critical,
            sentence: sentence.into(),
        }
    }
}

/// The gateway's health; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    conditions_by_key: Mutex<BTreeMap<String, Condition>>,
    disk_full: AtomicBool,
}

impl Health {
    /// Nothing is wrong yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports `condition` under `key` (`disk`, `mail.queue`, `mail.route.NAME`), or that all is well there again.
    /// A change is logged once.
    pub fn set(&self, key: &str, condition: Option<Condition>) {
        let mut conditions = self
            .0
            .conditions_by_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(condition) = condition else {
            if let Some(over) = conditions.remove(key) {
                tracing::info!(
                    health.key = key,
                    health.code = over.code.name(),
                    "condition is over"
                );
            }
            return;
        };
        if conditions.len() >= MAX_CONDITIONS && !conditions.contains_key(key) {
            return;
        }
        let known = conditions.insert(key.to_owned(), condition.clone());
        let is_news =
            known.is_none_or(|known| (known.code, known.severity) != (condition.code, condition.severity));
        if is_news {
            tracing::warn!(
                health.key = key,
                health.code = condition.code.name(),
                "{}",
                condition.sentence
            );
        }
    }

    /// All that is not well now, by key.
    #[must_use]
    pub fn conditions(&self) -> Vec<(String, Condition)> {
        let conditions = self
            .0
            .conditions_by_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        conditions
            .iter()
            .map(|(key, condition)| (key.clone(), condition.clone()))
            .collect()
    }

    /// Whether new work is taken: no critical condition.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let conditions = self
            .0
            .conditions_by_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        conditions
            .values()
            .all(|condition| condition.severity < Severity::Critical)
    }

    /// Whether the disk is below its reserve: mail answers 452, the fediverse inbox 503, until it is not. Cheap enough
    /// for every message.
    #[must_use]
    pub fn disk_full(&self) -> bool {
        self.0.disk_full.load(Ordering::Relaxed)
    }

    /// Sets [`Health::disk_full`]; for [`watch`], and for tests of engines.
    pub fn set_disk_full(&self, full: bool) {
        self.0.disk_full.store(full, Ordering::Relaxed);
    }
}
