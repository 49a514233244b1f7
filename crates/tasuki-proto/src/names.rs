//! Validated names: `Domain`, `Mailbox`, `ReversePath`.
//!
//! A name is parsed once, at the edge, and is a type from there on. Two domains that mean the same are equal
//! (lower-case A-labels), a local part keeps exactly the characters its owner wrote. No name here was looked up:
//! that a domain is well-formed says nothing about who may use it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[cfg(test)]
mod tests;

/// Longest domain in octets, as text without the final dot (RFC 1035 2.3.4).
pub const MAX_DOMAIN_LEN: usize = 253;
/// Longest local part in octets (RFC 5321 4.5.3.1.1).
pub const MAX_LOCAL_LEN: usize = 64;

/// A host or domain name as lower-case A-labels (`例え.jp` becomes `xn--r8jz45g.jp`); never an IP address, never empty,
/// no trailing dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

/// Why a text is not a domain name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Nothing there.
    #[error("a domain name may not be empty")]
    Empty,
    /// Over 253 octets, or a label over 63.
    #[error("a domain name has at most 253 characters, each part at most 63")]
    TooLong,
    /// Two dots in a row, or a dot at an end.
    #[error("a domain name may not start or end with a dot, nor have two in a row")]
    EmptyLabel,
    /// The last label is a number: this is an address, or was meant to be one.
    #[error("this is an IP address, a domain name is needed")]
    Address,
    /// A character outside letters, digits and hyphen, or a label that IDNA refuses.
    #[error("a domain name has only letters, digits and inner hyphens (or valid international letters)")]
    Character,
}

impl Domain {
    /// Parses and normalises; accepts Unicode (IDNA, UTS 46) and A-labels in any case.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        if text.is_empty() {
            return Err(DomainError::Empty);
        }
        // An IDNA label may shrink, so the cap before conversion is generous; the cap after it is exact.
        if text.len() > 4 * MAX_DOMAIN_LEN {
            return Err(DomainError::TooLong);
        }
        let plain = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
        if plain && !text.contains("xn--") {
            check_labels(text)?;
            return Ok(Self(Arc::from(text)));
        }
        if text
            .bytes()
            .any(|b| b.is_ascii() && !b.is_ascii_alphanumeric() && !matches!(b, b'-' | b'.'))
        {
            return Err(DomainError::Character);
        }
        let ascii = if text.is_ascii() && !contains_ignore_case(text, "xn--") {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii_strict(text).map_err(|_| specific_idna_error(text))?
        };
        check_labels(&ascii)?;
        Ok(Self(Arc::from(ascii)))
    }

    /// The lower-case A-label form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form for people: A-labels shown as Unicode where they decode.
    pub fn to_unicode(&self) -> String {
        idna::domain_to_unicode(&self.0).0
    }

    /// Whether `self` is `parent` or lies under it, at a label boundary: `a.example.org` is within `example.org`,
    /// `badexample.org` is not.
    pub fn is_within(&self, parent: &Domain) -> bool {
        match self.0.strip_suffix(&*parent.0) {
            Some("") => true,
            Some(head) => head.ends_with('.'),
            None => false,
        }
    }

    /// The name without its first label, if any is left.
    pub fn parent(&self) -> Option<Domain> {
        self.0.split_once('.').map(|(_, rest)| Self(Arc::from(rest)))
    }
}

fn specific_idna_error(text: &str) -> DomainError {
    if text.split('.').any(str::is_empty) {
        DomainError::EmptyLabel
    } else {
        DomainError::Character
    }
}

fn contains_ignore_case(text: &str, needle: &str) -> bool {
    text.as_bytes()
        .windows(needle.len())
        .any(|w| w.eq_ignore_ascii_case(needle.as_bytes()))
}

fn check_labels(text: &str) -> Result<(), DomainError> {
    if text.len() > MAX_DOMAIN_LEN {
        return Err(DomainError::TooLong);
    }
    let mut last = "";
    for label in text.split('.') {
        if label.is_empty() {
            return Err(DomainError::EmptyLabel);
        }
        if label.len() > 63 {
            return Err(DomainError::TooLong);
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(DomainError::Character);
        }
        if !label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(DomainError::Character);
        }
        last = label;
    }
    // WHATWG URL "ends in a number": 127.1, 2130706433 and 0x7f.1 would otherwise pass as names and reach an address.
    let hex = last
        .strip_prefix("0x")
        .is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
    if hex || last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(DomainError::Address);
    }
    Ok(())
}

/// Where a mailbox lives: a domain, or an address literal (RFC 5321 4.1.3).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MailHost {
    /// The usual case.
    Domain(Domain),
    /// `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    Literal(IpAddr),
}

impl MailHost {
    /// Parses a domain or an address literal in brackets.
    pub fn parse(text: &str) -> Result<Self, MailboxError> {
        let Some(inner) = text.strip_prefix('[') else {
            return Domain::parse(text)
                .map(Self::Domain)
                .map_err(MailboxError::Domain);
        };
        let inner = inner.strip_suffix(']').ok_or(MailboxError::Literal)?;
        let v6 = inner
            .get(..5)
            .filter(|tag| tag.eq_ignore_ascii_case("IPv6:"))
            .map(|_| &inner[5..]);
        let ip = match v6 {
            Some(v6) => v6.parse::<Ipv6Addr>().map(IpAddr::V6).ok(),
            None => inner.parse::<Ipv4Addr>().map(IpAddr::V4).ok(),
        };
        ip.map(Self::Literal).ok_or(MailboxError::Literal)
    }

    /// The domain, unless this is an address literal.
    pub fn domain(&self) -> Option<&Domain> {
        match self {
            Self::Domain(domain) => Some(domain),
            Self::Literal(_) => None,
        }
    }
}

/// `local@host` (RFC 5321 4.1.2, RFC 6531 3.3): quoted strings understood, the local part kept exactly as written
/// (without its quotes), the domain normalised.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mailbox {
    local: Box<str>,
    host: MailHost,
}

/// Why a text is not a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MailboxError {
    /// No local part, or no `@`.
    #[error("an address needs a part before and a part after the @")]
    Incomplete,
    /// The local part is over 64 octets.
    #[error("the part before the @ has at most 64 characters")]
    LocalTooLong,
    /// A character that needs quotes, or a control character that no quotes allow.
    #[error("the part before the @ has a character that is not allowed there")]
    LocalCharacter,
    /// A quoted string without its end.
    #[error("the quoted part before the @ is not closed")]
    OpenQuote,
    /// `[...]` that is neither an IPv4 address nor `IPv6:` and an IPv6 address.
    #[error("an address literal looks like [192.0.2.1] or [IPv6:2001:db8::1]")]
    Literal,
    /// The part after the `@` is not a domain.
    #[error("the part after the @ is not a domain name")]
    Domain(#[source] DomainError),
}

impl Mailbox {
    /// Parses `local@host` without angle brackets.
    pub fn parse(text: &str) -> Result<Self, MailboxError> {
        let (local, rest) = parse_local(text)?;
        let host = rest.strip_prefix('@').ok_or(MailboxError::Incomplete)?;
        if host.is_empty() {
            return Err(MailboxError::Incomplete);
        }
        Self::from_parts(local, MailHost::parse(host)?)
    }

    /// As [`Mailbox::parse`], and also takes dots that stand together, first or last in an unquoted local part. Japanese
    /// carriers gave out such addresses (`foo..bar@docomo.ne.jp`, `foo.@ezweb.ne.jp`), and they are alive; on the wire
    /// they are quoted, as RFC 5321 4.1.2 wants it.
    pub fn parse_legacy(text: &str) -> Result<Self, MailboxError> {
        let strict = match Self::parse(text) {
            Err(error @ MailboxError::LocalCharacter) => error,
            parsed => return parsed,
        };
        let (local, host) = text.split_once('@').ok_or(MailboxError::Incomplete)?;
        if !local.chars().all(|c| c == '.' || is_atext(c)) || local.chars().all(|c| c == '.') {
            return Err(strict);
        }
        Self::from_parts(local, MailHost::parse(host)?)
    }

    /// Builds a mailbox from an unquoted local part and a host.
    pub fn from_parts(local: impl Into<Box<str>>, host: MailHost) -> Result<Self, MailboxError> {
        let local = local.into();
        if local.len() > MAX_LOCAL_LEN {
            return Err(MailboxError::LocalTooLong);
        }
        if local.chars().any(char::is_control) {
            return Err(MailboxError::LocalCharacter);
        }
        Ok(Self { local, host })
    }

    /// The local part, exactly, without quotes or escapes.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// What follows the `@`.
    pub fn host(&self) -> &MailHost {
        &self.host
    }

    /// The domain, unless the mailbox is at an address literal.
    pub fn domain(&self) -> Option<&Domain> {
        self.host.domain()
    }

    /// Whether a next hop needs SMTPUTF8 for this address. Only the local part decides, because the domain is an
    /// A-label (RFC 6531 3.7.1).
    pub fn needs_smtputf8(&self) -> bool {
        !self.local.is_ascii()
    }

    /// Whether the local part can be read as a route of its own (`user%dom`, `dom!user`, `"user@dom"`), which a
    /// next hop might follow. A relay decision must treat such an address as one to a stranger.
    pub fn hides_route(&self) -> bool {
        self.local.contains(['%', '!', '@'])
    }
}

/// Takes the local part off the front of `text`; returns it unquoted, and the rest (which starts with `@` if well-formed).
fn parse_local(text: &str) -> Result<(String, &str), MailboxError> {
    if let Some(inner) = text.strip_prefix('"') {
        let mut local = String::new();
        let mut chars = inner.char_indices();
        while let Some((at, c)) = chars.next() {
            let c = match c {
                '"' => return Ok((local, &inner[at + 1..])),
                '\\' => match chars.next() {
                    Some((_, c @ ' '..='~')) => c,
                    Some(_) => return Err(MailboxError::LocalCharacter),
                    None => return Err(MailboxError::OpenQuote),
                },
                c => c,
            };
            if c.is_control() {
                return Err(MailboxError::LocalCharacter);
            }
            local.push(c);
        }
        return Err(MailboxError::OpenQuote);
    }
    let at = text.find('@').ok_or(MailboxError::Incomplete)?;
    let (local, rest) = text.split_at(at);
    if local.is_empty() {
        return Err(MailboxError::Incomplete);
    }
    if !is_dot_atom(local) {
        return Err(MailboxError::LocalCharacter);
    }
    Ok((local.to_owned(), rest))
}

fn is_dot_atom(text: &str) -> bool {
    text.split('.')
        .all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

/// RFC 5322 3.2.3 atext, and every non-ASCII character that is no control (RFC 6531 3.3).
fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || (!c.is_ascii() && !c.is_control())
}

/// A reverse-path: the sender's mailbox, or null (`<>`) for mail that must never be answered.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReversePath {
    /// `<>`: delivery notices and other automatic mail.
    Null,
    /// A sender that wants to hear of failures.
    Mailbox(Mailbox),
}

impl ReversePath {
    /// Parses a mailbox, or the empty text as null.
    pub fn parse(text: &str) -> Result<Self, MailboxError> {
        if text.is_empty() {
            Ok(Self::Null)
        } else {
            Mailbox::parse(text).map(Self::Mailbox)
        }
    }

    /// Whether this is `<>`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The mailbox, unless null.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            Self::Null => None,
            Self::Mailbox(mailbox) => Some(mailbox),
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for MailHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(domain) => domain.fmt(f),
            Self::Literal(IpAddr::V4(ip)) => write!(f, "[{ip}]"),
            Self::Literal(IpAddr::V6(ip)) => write!(f, "[IPv6:{ip}]"),
        }
    }
}

impl fmt::Display for Mailbox {
    /// The form for the wire: quoted exactly when the grammar demands it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_dot_atom(&self.local) {
            return write!(f, "{}@{}", self.local, self.host);
        }
        f.write_str("\"")?;
        for c in self.local.chars() {
            if matches!(c, '"' | '\\') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        write!(f, "\"@{}", self.host)
    }
}

impl fmt::Display for ReversePath {
    /// The mailbox, or nothing for null; angle brackets are the writer's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Mailbox(mailbox) => mailbox.fmt(f),
        }
    }
}

macro_rules! text_form {
    ($($type:ty, $error:ty);*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.to_string())
            }
        }
        impl FromStr for $type {
            type Err = $error;
            fn from_str(text: &str) -> Result<Self, $error> {
                Self::parse(text)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(|e| serde::de::Error::custom(format!("{text:?}: {e}")))
            }
        }
    )*};
}

text_form!(Domain, DomainError; MailHost, MailboxError; Mailbox, MailboxError; ReversePath, MailboxError);
