//! What the relay tells everybody about its work: sums, and no host by name.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tasuki_proto::activitypub::date;

use crate::engine::Inner;
use crate::metrics::Outcome;
use crate::time::system_time;

/// `/stats.json`, and the numbers on the page.
pub(crate) struct Statistics {
    /// Since when the sums count, as RFC 3339 has it.
    pub(crate) since: String,
    pub(crate) instances: usize,
    pub(crate) relayed: u64,
    pub(crate) delivered: u64,
    pub(crate) behind: i64,
    /// How many instances run which software, by the names in their NodeInfo.
    software: BTreeMap<String, usize>,
}

impl Statistics {
    pub(crate) fn of(inner: &Inner) -> Self {
        let table = inner.subscribers.table();
        let mut software = BTreeMap::new();
        let known = table.by_host.values().filter_map(|one| one.software.as_deref());
        for name in known.filter_map(|software| software.split_whitespace().next()) {
            *software.entry(name.to_owned()).or_default() += 1;
        }
        Self {
            since: date::timestamp(system_time(inner.since)),
            instances: table.active_hosts().len(),
            relayed: inner.metrics.count_of(Outcome::Relayed),
            delivered: inner.metrics.delivered.get(),
            behind: inner.metrics.hosts_behind.get(),
            software,
        }
    }

    pub(crate) fn document(&self) -> Value {
        json!({
            "since": self.since,
            "instances": self.instances,
            "instances_behind": self.behind,
            "activities_relayed": self.relayed,
            "deliveries": self.delivered,
            "software": self.software,
        })
    }
}
