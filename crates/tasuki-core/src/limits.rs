//! Rates (GCRA) by principal, address, prefix, domain and engine, in a table of bounded size.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::engine::EngineKind;

/// A rate: `burst` at once, then one in each `period / per_period`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units that may pass at once.
    pub burst: u32,
    /// Units that pass in each `period` in the long run.
    pub per_period: u32,
    /// The period.
    pub period: Duration,
}

/// Who is limited.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// One address.
    Address(IpAddr),
    /// The address's /24 or /48.
    Prefix(IpAddr),
    /// A principal.
    Principal(crate::ids::PrincipalId),
    /// A domain or host.
    Domain(String),
    /// Everybody together.
    Engine,
}

/// The table; clones share it.
#[derive(Clone)]
pub struct Limits {
    inner: Arc<Inner>,
}

#[expect(dead_code, reason = "filled in with the implementation")]
struct Inner {
    clock: Clock,
}

impl Limits {
    /// An empty table.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            inner: Arc::new(Inner { clock }),
        }
    }

    /// Takes one unit of `what` (a name in code, such as `login` or `status`) for `who` at `rate`.
    ///
    /// # Errors
    /// How long to wait until one would pass.
    pub fn take(&self, engine: EngineKind, what: &'static str, who: Who, rate: Rate) -> Result<(), Duration> {
        let _ = (engine, what, who, rate);
        todo!("core1")
    }
}
