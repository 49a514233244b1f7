//! The Prometheus registry: one branch for each engine and one for the core.
//!
//! Names are `tasuki_<branch>_<noun>_<unit>`, counters get `_total` from the encoder; labels come from closed sets
//! only, never a host, an address or an actor.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Metric, Registry};

use crate::engine::EngineKind;

#[cfg(unix)]
mod house;
#[cfg(unix)]
mod process;

#[cfg(unix)]
pub use house::House;

/// The whole registry; clones share it.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The branch of one engine: `tasuki_mail_…`, `tasuki_fediverse_…`, `tasuki_tunnel_…`.
    #[must_use]
    pub fn engine(&self, engine: EngineKind) -> Branch {
        Branch {
            registry: self.clone(),
            prefix: engine.name(),
        }
    }

    /// The branch of a part of the core: `tasuki_process_…`, `tasuki_store_…`.
    #[must_use]
    pub fn core(&self, part: &'static str) -> Branch {
        Branch {
            registry: self.clone(),
            prefix: part,
        }
    }

    /// All metrics in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut text, &registry).expect("writing to a string cannot fail");
        text
    }

    /// Adds a collector that is read at each scrape.
    pub fn register_collector(&self, collector: Box<dyn prometheus_client::collector::Collector>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .register_collector(collector);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// One prefix of the registry; its owner alone registers there.
#[derive(Clone, Debug)]
pub struct Branch {
    registry: Metrics,
    prefix: &'static str,
}

impl Branch {
    /// Registers `metric` as `tasuki_<prefix>_<name>`. `name` ends in a base unit (`bytes`, `seconds`) where it has
    /// one; a counter's `_total` is added by the encoder. `help` is one sentence for the operator.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        let mut registry = self.registry.0.lock().unwrap_or_else(PoisonError::into_inner);
        registry
            .sub_registry_with_prefix("tasuki")
            .sub_registry_with_prefix(self.prefix)
            .register(name, help.trim_end_matches('.'), metric.clone());
        metric
    }
}
