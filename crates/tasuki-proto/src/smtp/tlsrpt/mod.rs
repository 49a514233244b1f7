//! TLS reporting (RFC 8460): what is counted of a domain's sessions, where the domain wants to be told of it, and the
//! report, as JSON and as a mail.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use super::mta_sts::{Mode, Policy};
use crate::names::Domain;

mod mail;
mod record;
#[cfg(test)]
mod tests;

pub use mail::{ReportMail, file_name, write as write_mail};
pub use record::{Destination, TlsRptError, destinations};

/// Most strings of a policy that are reported, and the longest of them: a domain's own policy must not fill our store.
const MAX_STRINGS: usize = 64;
const MAX_STRING: usize = 400;
/// Longest reason of a failure.
const MAX_REASON: usize = 200;

/// Why a session was not as safe as it was to be (RFC 8460 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultType {
    /// The server does not do STARTTLS.
    StarttlsNotSupported,
    /// Its certificate is for another name.
    CertificateHostMismatch,
    /// Its certificate's time is over, or has not come.
    CertificateExpired,
    /// Nobody that we believe vouches for its certificate.
    CertificateNotTrusted,
    /// Anything else.
    ValidationFailure,
    /// None of the TLSA records can be used.
    TlsaInvalid,
    /// The DNS gave no proved answer about TLSA records.
    DnssecInvalid,
    /// We are configured to need TLSA records, and there are none.
    DaneRequired,
    /// The MTA-STS policy could not be fetched.
    StsPolicyFetchError,
    /// The MTA-STS policy is not one.
    StsPolicyInvalid,
    /// The web server of the MTA-STS policy has no good certificate.
    StsWebpkiInvalid,
}

impl ResultType {
    /// As reports write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StarttlsNotSupported => "starttls-not-supported",
            Self::CertificateHostMismatch => "certificate-host-mismatch",
            Self::CertificateExpired => "certificate-expired",
            Self::CertificateNotTrusted => "certificate-not-trusted",
            Self::ValidationFailure => "validation-failure",
            Self::TlsaInvalid => "tlsa-invalid",
            Self::DnssecInvalid => "dnssec-invalid",
            Self::DaneRequired => "dane-required",
            Self::StsPolicyFetchError => "sts-policy-fetch-error",
            Self::StsPolicyInvalid => "sts-policy-invalid",
            Self::StsWebpkiInvalid => "sts-webpki-invalid",
        }
    }
}

/// Which policy a session was under (RFC 8460 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyType {
    /// The server's TLSA records.
    Tlsa,
    /// The domain's MTA-STS policy.
    Sts,
    /// Neither.
    NoPolicyFound,
}

impl PolicyType {
    /// As reports write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tlsa => "tlsa",
            Self::Sts => "sts",
            Self::NoPolicyFound => "no-policy-found",
        }
    }
}

/// The policy that a session was under, in the form of a report.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionPolicy {
    /// Which kind.
    pub policy_type: PolicyType,
    /// Its text: TLSA records as in a zone file, or the lines of an MTA-STS policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_string: Vec<String>,
    /// Whose it is: the recipients' domain, or for TLSA the server that has the records (RFC 8460 1.1).
    pub policy_domain: String,
    /// The servers that an MTA-STS policy lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mx_host: Vec<String>,
}

impl SessionPolicy {
    /// No policy of this domain is known.
    pub fn none(domain: &Domain) -> Self {
        Self::bare(PolicyType::NoPolicyFound, domain.as_str())
    }

    /// A policy of which only the kind is known.
    pub fn bare(policy_type: PolicyType, domain: &str) -> Self {
        Self {
            policy_type,
            policy_string: Vec::new(),
            policy_domain: domain.to_owned(),
            mx_host: Vec::new(),
        }
    }

    /// TLSA records of a server, as a zone file has them.
    pub fn tlsa(host: &str, records: impl Iterator<Item = String>) -> Self {
        Self {
            policy_string: bounded(records),
            ..Self::bare(PolicyType::Tlsa, host)
        }
    }

    /// A domain's MTA-STS policy.
    pub fn sts(domain: &Domain, policy: &Policy) -> Self {
        let mode = match policy.mode {
            Mode::Enforce => "enforce",
            Mode::Testing => "testing",
            Mode::None => "none",
        };
        let head = ["version: STSv1".to_owned(), format!("mode: {mode}")];
        let age = format!("max_age: {}", policy.max_age.as_secs());
        let mx = policy
            .mx
            .iter()
            .take(MAX_STRINGS - 3)
            .map(|mx| format!("mx: {mx}"));
        Self {
            policy_string: bounded(head.into_iter().chain(mx).chain([age])),
            mx_host: bounded(policy.mx.iter().map(ToString::to_string)),
            ..Self::bare(PolicyType::Sts, domain.as_str())
        }
    }

    /// The same without what a domain can make different each time.
    pub fn folded(&self) -> Self {
        Self::bare(self.policy_type, &self.policy_domain)
    }
}

fn bounded(strings: impl Iterator<Item = String>) -> Vec<String> {
    let cut = |text: String| text.chars().take(MAX_STRING).collect();
    strings.take(MAX_STRINGS).map(cut).collect()
}

/// How a session failed, and where (RFC 8460 4.4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FailureDetail {
    /// What was wrong.
    pub result_type: ResultType,
    /// Our address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sending_mta_ip: Option<IpAddr>,
    /// The server's name in the MX record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiving_mx_hostname: Option<String>,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiving_ip: Option<IpAddr>,
    /// More of it, in our words or the peer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_reason_code: Option<String>,
}

impl FailureDetail {
    /// A failure for this reason; where it was is filled in by whoever knows.
    pub fn new(result_type: ResultType, reason: &str) -> Self {
        let printable = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
        let reason: String = reason.chars().take(MAX_REASON).map(printable).collect();
        Self {
            result_type,
            sending_mta_ip: None,
            receiving_mx_hostname: None,
            receiving_ip: None,
            failure_reason_code: (!reason.is_empty()).then_some(reason),
        }
    }

    /// The same without where and why.
    pub fn folded(&self) -> Self {
        Self::new(self.result_type, "")
    }
}

/// Sessions with a domain's servers that were alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Under which policy.
    pub policy: SessionPolicy,
    /// How they failed; `None` if they were as safe as the policy asks.
    pub failure: Option<FailureDetail>,
    /// How many.
    pub sessions: u64,
}

/// What a report is made of.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// Who reports.
    pub organization: &'a str,
    /// A mail address of somebody there.
    pub contact: &'a str,
    /// Unique for this report.
    pub id: &'a str,
    /// Midnight (UTC) at the beginning of the day.
    pub start: OffsetDateTime,
    /// The day's sessions.
    pub tallies: &'a [Tally],
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Document<'a> {
    organization_name: &'a str,
    date_range: DateRange,
    contact_info: &'a str,
    report_id: &'a str,
    policies: Vec<PolicyResult<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct DateRange {
    start_datetime: String,
    end_datetime: String,
}

/// What became of the sessions under one policy.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyResult<'a> {
    policy: &'a SessionPolicy,
    summary: Summary,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failure_details: Vec<Failures<'a>>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Summary {
    total_successful_session_count: u64,
    total_failure_session_count: u64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Failures<'a> {
    #[serde(flatten)]
    detail: &'a FailureDetail,
    failed_session_count: u64,
}

/// The sessions by policy, as a report has them.
pub fn by_policy(tallies: &[Tally]) -> Vec<PolicyResult<'_>> {
    let mut results: BTreeMap<&SessionPolicy, PolicyResult<'_>> = BTreeMap::new();
    for tally in tallies {
        let result = results.entry(&tally.policy).or_insert_with(|| PolicyResult {
            policy: &tally.policy,
            summary: Summary::default(),
            failure_details: Vec::new(),
        });
        match &tally.failure {
            None => result.summary.total_successful_session_count += tally.sessions,
            Some(detail) => {
                result.summary.total_failure_session_count += tally.sessions;
                result.failure_details.push(Failures {
                    detail,
                    failed_session_count: tally.sessions,
                });
            }
        }
    }
    results.into_values().collect()
}

/// The report as JSON (RFC 8460 4).
pub fn write_json(report: &Report<'_>) -> Vec<u8> {
    // Years of four digits are all that a clock has, so it can be written.
    let text = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_default();
    let document = Document {
        organization_name: report.organization,
        date_range: DateRange {
            start_datetime: text(report.start),
            end_datetime: text(report.start + Duration::DAY - Duration::SECOND),
        },
        contact_info: report.contact,
        report_id: report.id,
        policies: by_policy(report.tallies),
    };
    serde_json::to_vec(&document).expect("the document has nothing that JSON has not")
}
