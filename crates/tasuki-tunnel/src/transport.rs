//! The ways in which a session's packets can travel.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a session's packets travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// In UDP: the best where it passes.
    Quic,
    /// In TLS connections to the front door, where no UDP passes.
    Tls,
}

impl Transport {
    /// The other one.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Quic => Self::Tls,
            Self::Tls => Self::Quic,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "QUIC",
            Self::Tls => "TLS",
        })
    }
}
