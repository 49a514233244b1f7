//! MTA-STS (RFC 8461): what a domain says of the TLS that its mail servers have, in its DNS record and its policy.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::names::{Domain, DomainError};

#[cfg(test)]
mod tests;

/// Largest policy that is read (RFC 8461 3.3 lets us choose, and names this).
pub const MAX_POLICY_LEN: usize = 64 * 1024;
/// Longest time for which a policy holds, in seconds (RFC 8461 3.2).
const MAX_AGE: u64 = 31_557_600;
/// Most `mx` lines of a policy that are kept.
const MAX_PATTERNS: usize = 256;

/// Why there is no policy to be had from what was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StsError {
    /// There is not exactly one `v=STSv1` record, so the domain has no policy.
    #[error("there are {0} MTA-STS records, one is needed")]
    Records(usize),
    /// The record has no good `id`.
    #[error("the MTA-STS record has no id of 1 to 32 letters and digits")]
    Id,
    /// Over [`MAX_POLICY_LEN`].
    #[error("the MTA-STS policy is over 64 KiB")]
    TooLong,
    /// Not text.
    #[error("the MTA-STS policy is not UTF-8")]
    Encoding,
    /// A line that is not `name: value`.
    #[error("line {0} of the MTA-STS policy is not of the form \"name: value\"")]
    Line(usize),
    /// A field that must be there is not.
    #[error("the MTA-STS policy has no {0:?}")]
    Missing(&'static str),
    /// A field has a value that it cannot have.
    #[error("the MTA-STS policy has a bad value of {0:?}")]
    Value(&'static str),
}

/// What a policy asks of senders (RFC 8461 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Deliver over verified TLS to the listed servers, or not at all.
    Enforce,
    /// Deliver as ever, and report what would have failed.
    Testing,
    /// As if there were no policy.
    None,
}

/// The name of a mail server, or `*.` and a domain for all names with one more label (RFC 8461 4.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MxPattern {
    wildcard: bool,
    name: Domain,
}

impl MxPattern {
    /// Whether this server is meant.
    pub fn matches(&self, host: &Domain) -> bool {
        if self.wildcard {
            host.parent().is_some_and(|parent| parent == self.name)
        } else {
            *host == self.name
        }
    }
}

impl FromStr for MxPattern {
    type Err = DomainError;
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let name = Domain::parse(name)?;
        Ok(Self { wildcard, name })
    }
}

impl TryFrom<String> for MxPattern {
    type Error = DomainError;
    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl fmt::Display for MxPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.wildcard { "*." } else { "" };
        write!(f, "{star}{}", self.name.as_str())
    }
}

impl From<MxPattern> for String {
    fn from(pattern: MxPattern) -> Self {
        pattern.to_string()
    }
}

/// A domain's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What it asks.
    pub mode: Mode,
    /// The servers that mail may go to; at least one unless the mode is `none`.
    pub mx: Vec<MxPattern>,
    /// How long it holds after it was fetched.
    pub max_age: Duration,
}

impl Policy {
    /// Reads a policy as fetched (RFC 8461 3.2). Fields that are not known are left out; of a repeated field the first
    /// holds, except `mx`.
    ///
    /// # Errors
    /// See [`StsError`]; such a policy must be treated as if it could not be fetched.
    pub fn parse(octets: &[u8]) -> Result<Self, StsError> {
        if octets.len() > MAX_POLICY_LEN {
            return Err(StsError::TooLong);
        }
        let text = std::str::from_utf8(octets).map_err(|_| StsError::Encoding)?;
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        for (number, line) in text.split('\n').enumerate() {
            let line = line
                .strip_suffix('\r')
                .unwrap_or(line)
                .trim_end_matches([' ', '\t']);
            if line.is_empty() {
                continue;
            }
            let (name, value) = line.split_once(':').ok_or(StsError::Line(number + 1))?;
            let value = value.trim_start_matches([' ', '\t']);
            match name {
                "version" if version.is_none() => version = Some(value),
                "mode" if mode.is_none() => mode = Some(value),
                "max_age" if max_age.is_none() => max_age = Some(value),
                "mx" if mx.len() < MAX_PATTERNS => mx.push(value),
                _ => {}
            }
        }
        if version.ok_or(StsError::Missing("version"))? != "STSv1" {
            return Err(StsError::Value("version"));
        }
        let mode = match mode.ok_or(StsError::Missing("mode"))? {
            "enforce" => Mode::Enforce,
            "testing" => Mode::Testing,
            "none" => Mode::None,
            _ => return Err(StsError::Value("mode")),
        };
        let max_age = max_age.ok_or(StsError::Missing("max_age"))?;
        let digits = (1..=10).contains(&max_age.len()) && max_age.bytes().all(|b| b.is_ascii_digit());
        let seconds: u64 = max_age
            .parse()
            .ok()
            .filter(|_| digits)
            .ok_or(StsError::Value("max_age"))?;
        let patterns = mx.into_iter().map(str::parse::<MxPattern>);
        let mx = patterns
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| StsError::Value("mx"))?;
        if mx.is_empty() && mode != Mode::None {
            return Err(StsError::Missing("mx"));
        }
        Ok(Self {
            mode,
            mx,
            max_age: Duration::from_secs(seconds.min(MAX_AGE)),
        })
    }

    /// Whether mail may go to this server.
    pub fn allows(&self, host: &Domain) -> bool {
        self.mx.iter().any(|pattern| pattern.matches(host))
    }
}

/// The `id` of the TXT record at `_mta-sts.DOMAIN`; a new one says that the policy has changed (RFC 8461 3.1).
///
/// # Errors
/// There is not exactly one such record, or it has no good id: the domain publishes no policy.
pub fn record_id(texts: &[String]) -> Result<String, StsError> {
    // RFC 8461 3.1: records that do not begin with the version are no MTA-STS records.
    let is_ours = |text: &&String| {
        let rest = text
            .strip_prefix("v=STSv1")
            .map(|rest| rest.trim_start_matches([' ', '\t']));
        rest.is_some_and(|rest| rest.starts_with(';'))
    };
    let ours: Vec<&String> = texts.iter().filter(is_ours).collect();
    let [record] = ours.as_slice() else {
        return Err(StsError::Records(ours.len()));
    };
    let fields = record
        .split(';')
        .skip(1)
        .map(|field| field.trim_matches([' ', '\t']));
    let mut ids = fields.filter_map(|field| field.strip_prefix("id="));
    let id = ids.next().ok_or(StsError::Id)?;
    let good = (1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if good {
        Ok(id.to_owned())
    } else {
        Err(StsError::Id)
    }
}
