//! Where a domain wants its reports: the TXT record at `_smtp._tls.DOMAIN` (RFC 8460 3).

use url::Url;

use crate::names::Mailbox;

/// Most places that a report is sent to.
const MAX_DESTINATIONS: usize = 4;

/// A place for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A mail address.
    Mail(Mailbox),
    /// A web server; the scheme is `https`, and there is a host.
    Web(Url),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mail(mailbox) => write!(f, "mailto:{mailbox}"),
            Self::Web(url) => url.fmt(f),
        }
    }
}

/// Why a domain gets no reports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsRptError {
    /// There is not exactly one `v=TLSRPTv1` record.
    #[error("there are {0} TLSRPT records, one is needed")]
    Records(usize),
    /// The record has no `rua` that can be used.
    #[error("the TLSRPT record has no rua= with a mailto: or https: address")]
    NoDestination,
}

/// The places that a domain's record names; at least one.
///
/// # Errors
/// See [`TlsRptError`]; the domain wants no reports then.
pub fn destinations(texts: &[String]) -> Result<Vec<Destination>, TlsRptError> {
    let is_ours = |text: &&String| {
        let rest = text
            .strip_prefix("v=TLSRPTv1")
            .map(|rest| rest.trim_start_matches([' ', '\t']));
        rest.is_some_and(|rest| rest.starts_with(';'))
    };
    let ours: Vec<&String> = texts.iter().filter(is_ours).collect();
    let [record] = ours.as_slice() else {
        return Err(TlsRptError::Records(ours.len()));
    };
    let fields = record
        .split(';')
        .skip(1)
        .map(|field| field.trim_matches([' ', '\t']));
    let mut found = Vec::new();
    for list in fields.filter_map(|field| field.strip_prefix("rua=")) {
        for uri in list.split(',').filter_map(|uri| destination(uri.trim())) {
            if !found.contains(&uri) && found.len() < MAX_DESTINATIONS {
                found.push(uri);
            }
        }
    }
    if found.is_empty() {
        return Err(TlsRptError::NoDestination);
    }
    Ok(found)
}

fn destination(uri: &str) -> Option<Destination> {
    if let Some((scheme, rest)) = uri.split_once(':')
        && scheme.eq_ignore_ascii_case("mailto")
    {
        // RFC 6068 2: header fields after "?" are not for us.
        let address = rest.split('?').next().unwrap_or_default();
        return Mailbox::parse(&decoded(address)?).ok().map(Destination::Mail);
    }
    let url = Url::parse(uri).ok()?;
    let good =
        url.scheme() == "https" && url.has_host() && url.username().is_empty() && url.password().is_none();
    good.then_some(Destination::Web(url))
}

/// RFC 8460 3: "!", "," and ";" in an address are percent-encoded.
fn decoded(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        if octet != b'%' {
            octets.push(octet);
            continue;
        }
        let digit = |octet: Option<u8>| char::from(octet?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        octets.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(octets).ok()
}
