//! TLS of outgoing mail: MTA-STS policies that hold (RFC 8461).

use async_trait::async_trait;
use tasuki_proto::{names::Domain, smtp::mta_sts::Policy};

use super::StoreResult;
use crate::clock::Timestamp;

/// A domain's policy as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StsPolicy {
    /// The id of the record that named it.
    pub id: String,
    /// What it says.
    pub policy: Policy,
    /// Until when it holds.
    pub expires: Timestamp,
}

/// See the module.
#[async_trait]
pub trait TlsStore: Send + Sync {
    /// The policy of exactly this domain, even if its time is over.
    async fn sts_policy(&self, domain: &Domain) -> StoreResult<Option<StsPolicy>>;
    /// Keeps a domain's policy in place of an earlier one, and forgets all whose time is over at `now`.
    async fn keep_sts_policy(&self, domain: &Domain, policy: StsPolicy, now: Timestamp) -> StoreResult<()>;
}
