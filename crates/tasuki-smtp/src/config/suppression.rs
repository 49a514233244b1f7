//! Addresses that mail does not go to.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tasuki_core::{BuildError, config::duration, store::mail::Class};

use super::bad;

/// The list of suppressed addresses, see `tasuki mail suppress`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SuppressionConfig {
    /// Refuse at RCPT what is on the list.
    pub enforce: bool,
    /// Whose mail puts an address on the list by itself.
    pub automatic: Automatic,
    /// How long such an entry lasts.
    #[serde(with = "duration")]
    pub keep: Duration,
    /// Most entries of the list, of both kinds.
    pub max_entries: usize,
}

/// Whose mail puts an address on the list when its server says that there is no such mailbox. One refusal is enough, for
/// only the plainest are taken. Bulk mail goes to lists, which nobody tidies by hand, and is what receivers judge a sender
/// by; a single mail has somebody who reads its bounce, and who must be able to try again once the receiver has mended
/// its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Automatic {
    /// Nobody's.
    Off,
    /// That of services of the class bulk.
    Bulk,
    /// Every principal's.
    All,
}

impl Automatic {
    pub(crate) fn covers(self, class: Class) -> bool {
        match self {
            Self::Off => false,
            Self::Bulk => class == Class::Bulk,
            Self::All => true,
        }
    }
}

impl Default for SuppressionConfig {
    fn default() -> Self {
        Self {
            enforce: true,
            automatic: Automatic::Bulk,
            keep: Duration::from_secs(30 * 86_400),
            max_entries: 100_000,
        }
    }
}

impl SuppressionConfig {
    pub(super) fn check(&self) -> Result<Self, BuildError> {
        let wrong =
            |key: &str, problem: &str| Err(bad(&format!("mail.suppression.{key}"), problem.to_owned()));
        if self.keep.is_zero() {
            return wrong(
                "keep",
                "must be more than 0s; automatic = \"off\" makes no entries",
            );
        }
        // Each takes some 16 bytes of memory, in every gateway.
        if !(1..=1_000_000).contains(&self.max_entries) {
            return wrong("max_entries", "must be from 1 to 1000000");
        }
        Ok(self.clone())
    }
}
