//! The record as it is written (RFC 7208 4.5, 5, 6).

use std::net::IpAddr;

use ipnet::IpNet;

use super::macros;

/// What a term says of those whom it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qualifier {
    /// `+`, or nothing: they may send.
    Pass,
    /// `-`: they may not.
    Fail,
    /// `~`: probably they may not.
    SoftFail,
    /// `?`: nothing is said.
    Neutral,
}

/// Whom a term names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Everybody.
    All,
    /// Those whom another domain's record lets send.
    Include(String),
    /// The addresses of a host, the domain itself if absent, with prefix lengths.
    A(Option<String>, u8, u8),
    /// The addresses of a domain's mail servers.
    Mx(Option<String>, u8, u8),
    /// Those whose name is in this domain.
    Ptr(Option<String>),
    /// A network.
    Ip(IpNet),
    /// Everybody, if this name has an address.
    Exists(String),
}

/// A qualifier with a mechanism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// What is said
    pub qualifier: Qualifier,
    /// of whom.
    pub mechanism: Mechanism,
}

/// A record that follows the grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// In their order; the first that matches counts.
    pub terms: Vec<Term>,
    /// Whose record counts if no term matches.
    pub redirect: Option<String>,
}

/// What is wrong with a record: nobody gets a pass from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpfError {
    /// No mechanism or modifier of RFC 7208.
    #[error("{0:?} is no term of SPF")]
    Term(String),
    /// Not an address or network of the right family.
    #[error("{0:?} names no IP network of its kind")]
    Network(String),
    /// Not a domain, or a macro that does not exist.
    #[error("{0:?} names no domain")]
    DomainSpec(String),
    /// A modifier that may be there once.
    #[error("{0}= is there twice")]
    Twice(&'static str),
}

/// Whether this TXT record is an SPF record (RFC 7208 4.5).
pub fn is_spf(text: &str) -> bool {
    let version = text.split(' ').next().unwrap_or_default();
    version.eq_ignore_ascii_case("v=spf1")
}

impl Record {
    /// Reads a record, version included.
    ///
    /// # Errors
    /// See [`SpfError`].
    pub fn parse(text: &str) -> Result<Self, SpfError> {
        let (mut terms, mut redirect, mut exp) = (Vec::new(), None, None);
        for word in text.split(' ').skip(1).filter(|word| !word.is_empty()) {
            match modifier(word) {
                Some(("redirect", value)) => once("redirect", &mut redirect, domain_spec(word, value)?)?,
                Some(("exp", value)) => once("exp", &mut exp, domain_spec(word, value)?)?,
                // RFC 7208 6: unknown modifiers are ignored.
                Some((_, value)) if macros::is_valid(value) => {}
                Some(_) => return Err(SpfError::Term(word.to_owned())),
                None => terms.push(Term::parse(word)?),
            }
        }
        Ok(Self { terms, redirect })
    }

    /// What is said of everybody whom no other term names, if it is said here.
    pub fn all(&self) -> Option<Qualifier> {
        let mut terms = self.terms.iter();
        terms
            .find(|term| term.mechanism == Mechanism::All)
            .map(|term| term.qualifier)
    }
}

fn once(name: &'static str, place: &mut Option<String>, value: String) -> Result<(), SpfError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(SpfError::Twice(name)),
    }
}

/// Name and value of a modifier; `None` for a mechanism.
fn modifier(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic());
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let known = ["redirect", "exp"]
        .into_iter()
        .find(|k| k.eq_ignore_ascii_case(name));
    (first && rest).then_some((known.unwrap_or(name), value))
}

fn domain_spec(word: &str, spec: &str) -> Result<String, SpfError> {
    if macros::is_domain_spec(spec) {
        Ok(spec.to_owned())
    } else {
        Err(SpfError::DomainSpec(word.to_owned()))
    }
}

impl Term {
    fn parse(word: &str) -> Result<Self, SpfError> {
        let (qualifier, rest) = match word.as_bytes().first() {
            Some(b'+') => (Qualifier::Pass, &word[1..]),
            Some(b'-') => (Qualifier::Fail, &word[1..]),
            Some(b'~') => (Qualifier::SoftFail, &word[1..]),
            Some(b'?') => (Qualifier::Neutral, &word[1..]),
            _ => (Qualifier::Pass, word),
        };
        let end = rest.find([':', '/']).unwrap_or(rest.len());
        let (name, value) = rest.split_at(end);
        let spec = value.strip_prefix(':');
        let unknown = || SpfError::Term(word.to_owned());
        let mechanism = match name.to_ascii_lowercase().as_str() {
            "all" if value.is_empty() => Mechanism::All,
            "include" => Mechanism::Include(domain_spec(word, spec.ok_or_else(unknown)?)?),
            "exists" => Mechanism::Exists(domain_spec(word, spec.ok_or_else(unknown)?)?),
            "ptr" if value.is_empty() => Mechanism::Ptr(None),
            "ptr" => Mechanism::Ptr(Some(domain_spec(word, spec.ok_or_else(unknown)?)?)),
            "ip4" => Mechanism::Ip(network(word, spec, false)?),
            "ip6" => Mechanism::Ip(network(word, spec, true)?),
            name @ ("a" | "mx") => {
                let (spec, v4, v6) = dual_cidr(value).ok_or_else(unknown)?;
                let spec = match spec {
                    "" => None,
                    spec => Some(domain_spec(word, spec.strip_prefix(':').ok_or_else(unknown)?)?),
                };
                match name {
                    "a" => Mechanism::A(spec, v4, v6),
                    _ => Mechanism::Mx(spec, v4, v6),
                }
            }
            _ => return Err(unknown()),
        };
        Ok(Self { qualifier, mechanism })
    }
}

/// Splits `:domain/24//64` into domain and prefix lengths (RFC 7208 5.6). A slash within a macro is part of the domain.
fn dual_cidr(value: &str) -> Option<(&str, u8, u8)> {
    let (mut rest, mut v4, mut v6) = (value, 32, 128);
    if let Some((head, length)) = rest.rsplit_once("//").filter(|(_, length)| !length.contains('}')) {
        (rest, v6) = (head, prefix_length(length, 128)?);
    }
    if let Some((head, length)) = rest.rsplit_once('/').filter(|(_, length)| !length.contains('}')) {
        (rest, v4) = (head, prefix_length(length, 32)?);
    }
    Some((rest, v4, v6))
}

fn prefix_length(text: &str, most: u8) -> Option<u8> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|length| plain && *length <= most)
}

fn network(word: &str, spec: Option<&str>, v6: bool) -> Result<IpNet, SpfError> {
    let wrong = || SpfError::Network(word.to_owned());
    let spec = spec.ok_or_else(wrong)?;
    let most = if v6 { 128 } else { 32 };
    let (ip, length) = match spec.split_once('/') {
        Some((ip, length)) => (ip, prefix_length(length, most).ok_or_else(wrong)?),
        None => (spec, most),
    };
    let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
    if ip.is_ipv6() != v6 {
        return Err(wrong());
    }
    IpNet::new(ip, length).map(|net| net.trunc()).map_err(|_| wrong())
}

/// A record with more terms, before the one that says what becomes of everybody else; a new record if there is none.
pub fn extended(record: Option<&str>, more: &[String]) -> String {
    let Some(record) = record else {
        return format!("v=spf1 {} ~all", more.join(" "));
    };
    let mut words: Vec<&str> = record.split(' ').filter(|word| !word.is_empty()).collect();
    let is_last = |word: &&str| {
        let word = word.to_ascii_lowercase();
        word.starts_with("redirect=") || word.trim_start_matches(['+', '-', '~', '?']) == "all"
    };
    let at = words.iter().position(is_last).unwrap_or(words.len());
    words.splice(at..at, more.iter().map(String::as_str));
    words.join(" ")
}
