//! What is remembered of mail that is gone.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tasuki_core::config::{duration, size};

/// The trail of finished mail, for `tasuki mail trace`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceConfig {
    /// How long finished mail is remembered; `0s` remembers nothing.
    #[serde(with = "duration")]
    pub keep: Duration,
    /// Most that the store keeps of it; the oldest is forgotten first.
    #[serde(with = "size")]
    pub max_size: u64,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(7 * 86_400),
            max_size: 256 << 20,
        }
    }
}
