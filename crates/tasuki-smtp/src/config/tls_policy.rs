//! What the operator asks of the TLS to some domains' mail servers.

use serde::{Deserialize, Serialize};
use tasuki_core::BuildError;
use tasuki_proto::{names::Domain, smtp::mta_sts::MxPattern};

use super::bad;

/// The TLS that mail to some domains needs. It stands in for what the domains themselves publish.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPolicyConfig {
    /// The recipients' domains (with their subdomains); the longest that fits decides.
    pub domains: Vec<Domain>,
    /// What is asked.
    pub level: TlsLevel,
    /// The only servers that mail may go to, whatever the MX records say: names, or `*.` and a domain for one more label.
    #[serde(default)]
    pub mx: Vec<MxPattern>,
}

/// How well a connection must be protected, in the words that Postfix has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsLevel {
    /// In the clear, even where TLS is offered.
    None,
    /// TLS where it works, with any certificate.
    May,
    /// TLS with any certificate.
    Encrypt,
    /// TLS with a certificate of the server's name that a trusted CA gave.
    Verify,
    /// TLS with a certificate that the server's signed TLSA records name; no mail without such records.
    DaneOnly,
}

impl TlsLevel {
    /// As the configuration writes it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::May => "may",
            Self::Encrypt => "encrypt",
            Self::Verify => "verify",
            Self::DaneOnly => "dane-only",
        }
    }
}

/// All rules, checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsPolicies(Vec<TlsPolicyConfig>);

impl TlsPolicies {
    pub(crate) fn check(rules: &[TlsPolicyConfig]) -> Result<Self, BuildError> {
        let mut seen = std::collections::HashSet::new();
        for rule in rules {
            if rule.domains.is_empty() {
                return Err(bad(
                    "mail.tls_policy.domains",
                    "must name at least one domain".to_owned(),
                ));
            }
            if let Some(twice) = rule.domains.iter().find(|domain| !seen.insert(*domain)) {
                let problem = format!("{} is named twice", twice.as_str());
                return Err(bad("mail.tls_policy.domains", problem));
            }
        }
        Ok(Self(rules.to_vec()))
    }

    /// The rule for mail to this domain.
    pub(crate) fn rule_for(&self, domain: &Domain) -> Option<&TlsPolicyConfig> {
        let named = self
            .0
            .iter()
            .flat_map(|rule| rule.domains.iter().map(move |name| (name, rule)));
        let fits = named.filter(|(name, _)| domain.is_within(name));
        fits.max_by_key(|(name, _)| name.as_str().len())
            .map(|(_, rule)| rule)
    }
}
