//! A domain's DMARC record (RFC 7489 6.3, RFC 9989 4.7): what receivers are to do with mail that does not prove itself.

#[cfg(test)]
mod tests;

/// What is to be done with mail that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Nothing; it is reported at most.
    None,
    /// Into the spam folder.
    Quarantine,
    /// Refused.
    Reject,
}

impl Policy {
    /// As in `p=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Quarantine => "quarantine",
            Self::Reject => "reject",
        }
    }

    fn named(text: &str) -> Option<Self> {
        let all = [Self::None, Self::Quarantine, Self::Reject];
        all.into_iter()
            .find(|policy| policy.name().eq_ignore_ascii_case(text))
    }
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dmarc {
    /// For the domain itself.
    pub policy: Policy,
    /// For its subdomains, if they are to be treated otherwise.
    pub subdomains: Option<Policy>,
    /// The domain of the DKIM signature must be the one in From, not only of the same organisation.
    pub strict_dkim: bool,
    /// The same of MAIL FROM, for SPF.
    pub strict_spf: bool,
    /// Where reports go.
    pub reports: Vec<String>,
    /// The domain is a registry's, like `co.jp`: the record is nobody's own (RFC 9989 4.7).
    pub public_suffix: bool,
}

/// Why there is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmarcError {
    /// There is none, or more than one.
    #[error("there are {0} DMARC records, one is needed")]
    Records(usize),
    /// Without it receivers may ignore the record.
    #[error("the DMARC record has no p=")]
    NoPolicy,
    /// A value that is none of the RFC's.
    #[error("{0} is no value that DMARC knows")]
    Value(String),
    /// Not `tag=value`.
    #[error("{0:?} is no tag with a value")]
    Tag(String),
}

/// Whether this TXT record is a DMARC record: the version comes first.
pub fn is_dmarc(text: &str) -> bool {
    let first = text.split(';').next().unwrap_or_default();
    first
        .split_once('=')
        .is_some_and(|(tag, value)| tag.trim() == "v" && value.trim() == "DMARC1")
}

impl Dmarc {
    /// Reads the record among the TXT records at `_dmarc.DOMAIN`.
    ///
    /// # Errors
    /// See [`DmarcError`].
    pub fn find(texts: &[String]) -> Result<Self, DmarcError> {
        let found: Vec<&String> = texts.iter().filter(|text| is_dmarc(text)).collect();
        match found.as_slice() {
            [text] => Self::parse(text),
            other => Err(DmarcError::Records(other.len())),
        }
    }

    fn parse(text: &str) -> Result<Self, DmarcError> {
        let (mut policy, mut subdomains) = (None, None);
        let (mut strict_dkim, mut strict_spf, mut public_suffix) = (false, false, false);
        let mut reports = Vec::new();
        for tag in text
            .split(';')
            .skip(1)
            .map(str::trim)
            .filter(|tag| !tag.is_empty())
        {
            let (name, value) = tag
                .split_once('=')
                .ok_or_else(|| DmarcError::Tag(tag.to_owned()))?;
            let value = value.trim();
            let wrong = || DmarcError::Value(format!("{}={value}", name.trim()));
            let policy_of = || Policy::named(value).ok_or_else(wrong);
            let strict = || match value {
                "s" | "S" => Ok(true),
                "r" | "R" => Ok(false),
                _ => Err(wrong()),
            };
            match name.trim() {
                "p" => policy = Some(policy_of()?),
                "sp" => subdomains = Some(policy_of()?),
                "adkim" => strict_dkim = strict()?,
                "aspf" => strict_spf = strict()?,
                "psd" => public_suffix = value.eq_ignore_ascii_case("y"),
                "rua" => reports.extend(value.split(',').map(|uri| uri.trim().to_owned())),
                // RFC 7489 6.3: unknown tags are ignored.
                _ => {}
            }
        }
        Ok(Self {
            policy: policy.ok_or(DmarcError::NoPolicy)?,
            subdomains,
            strict_dkim,
            strict_spf,
            reports,
            public_suffix,
        })
    }
}
