//! Reports about TLS to the domains that ask for them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tasuki_core::config::duration;
use tasuki_proto::names::Mailbox;

/// Daily reports about the TLS of our sessions (RFC 8460).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsReportsConfig {
    /// Who sends them, and whom receivers may ask. Its domain must have DKIM keys here, or receivers throw them away.
    /// Without it none are sent; sessions are counted all the same.
    pub from: Option<Mailbox>,
    /// Who we are, for people; empty means `server.host`.
    pub organization: String,
    /// Reports go out at a time of our own within this long after midnight (UTC).
    #[serde(with = "duration")]
    pub spread: Duration,
}

impl Default for TlsReportsConfig {
    fn default() -> Self {
        Self {
            from: None,
            organization: String::new(),
            spread: Duration::from_secs(4 * 3600),
        }
    }
}
