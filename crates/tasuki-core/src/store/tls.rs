//! TLS of outgoing mail: MTA-STS policies that hold (RFC 8461), and what became of each day's sessions (RFC 8460).

use async_trait::async_trait;
use tasuki_proto::{
    names::Domain,
    smtp::{mta_sts::Policy, tlsrpt::Tally},
};

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

/// Most different kinds of sessions that are kept apart for one domain and day; others of the same result are counted
/// together, without where and why.
pub const MAX_TALLIES: i64 = 100;

/// Sessions of one day (days since 1970, UTC) with the servers of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DayTally {
    /// Which day.
    pub day: i64,
    /// The recipients' domain.
    pub domain: Domain,
    /// What they were like.
    pub tally: Tally,
}

/// How far the report of a domain's day is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsReport {
    /// How often it was taken up.
    pub tries: i64,
    /// Where it was sent to, or why it was not; a line each.
    pub sent: Vec<String>,
    /// Whether nothing more is to be done.
    pub is_done: bool,
}

/// See the module.
#[async_trait]
pub trait TlsStore: Send + Sync {
    /// The policy of exactly this domain, even if its time is over.
    async fn sts_policy(&self, domain: &Domain) -> StoreResult<Option<StsPolicy>>;
    /// Keeps a domain's policy in place of an earlier one, and forgets all whose time is over at `now`.
    async fn keep_sts_policy(&self, domain: &Domain, policy: StsPolicy, now: Timestamp) -> StoreResult<()>;
    /// Adds sessions to the sums of their day; at most [`MAX_TALLIES`] kinds are kept apart for each domain and day.
    async fn add_tls_sessions(&self, tallies: Vec<DayTally>) -> StoreResult<()>;
    /// The sessions of a day, of one domain or of all, by domain; at most `limit` kinds.
    async fn tls_sessions(&self, day: i64, domain: Option<&Domain>, limit: i64)
    -> StoreResult<Vec<DayTally>>;
    /// Up to `limit` domains with sessions on this day, in order, that come after `after`.
    async fn tls_domains(&self, day: i64, after: Option<&Domain>, limit: i64) -> StoreResult<Vec<Domain>>;
    /// Takes up the report of a domain's day, if nobody else has since `now` and it is not done: until `until` it is the
    /// caller's. How far it is, this time counted.
    async fn take_tls_report(
        &self,
        day: i64,
        domain: &Domain,
        now: Timestamp,
        until: Timestamp,
    ) -> StoreResult<Option<TlsReport>>;
    /// Notes where a report was sent to.
    async fn note_tls_report(
        &self,
        day: i64,
        domain: &Domain,
        sent: &[String],
        is_done: bool,
    ) -> StoreResult<()>;
    /// How far the reports of a day are, by domain; at most `limit`.
    async fn tls_reports(&self, day: i64, limit: i64) -> StoreResult<Vec<(Domain, TlsReport)>>;
    /// Forgets sessions and reports of the days before this one.
    async fn forget_tls_sessions(&self, before: i64) -> StoreResult<()>;
}
