//! Arguments of MAIL and RCPT: path and parameters, each parameter checked by its RFC.

use super::{BodyType, Envelope, Notify, OriginalRecipient, Recipient, Reply, ReturnPart, decode_xtext};
use crate::names::{Domain, Mailbox, MailboxError, ReversePath};

#[cfg(test)]
mod tests;

/// Longest path with its brackets, in octets (RFC 5321 4.5.3.1.3); local part and domain have their own limits.
const MAX_PATH_LEN: usize = 256;
/// Longest ENVID as sent (RFC 3461 4.4).
const MAX_ENVID_LEN: usize = 100;

/// Why an argument is refused; [`ParamError::reply`] says it in the protocol's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// Not `FROM:<...>` or `TO:<...>`.
    #[error("the command's syntax is not that of RFC 5321")]
    Syntax,
    /// Over 256 octets.
    #[error("the path is too long")]
    PathTooLong,
    /// What stands in the brackets is no mailbox.
    #[error("the address is malformed")]
    Mailbox(#[source] MailboxError),
    /// A non-ASCII address without SMTPUTF8.
    #[error("the address needs SMTPUTF8")]
    NeedsUtf8,
    /// A parameter that no advertised extension defines.
    #[error("the parameter is not known")]
    UnknownParameter,
    /// A known parameter with a value it cannot have, or given twice.
    #[error("the parameter {0} has a bad value or is repeated")]
    BadParameter(&'static str),
}

impl ParamError {
    /// The reply to the client; `sender` says whether the path is the reverse-path.
    pub fn reply(&self, sender: bool) -> Reply {
        let (system, mailbox): ((u8, u16, u16), (u8, u16, u16)) = if sender {
            ((5, 1, 8), (5, 1, 7))
        } else {
            ((5, 1, 2), (5, 1, 3))
        };
        match self {
            Self::Syntax => Reply::new(501, (5, 5, 4), "syntax: MAIL FROM:<address> or RCPT TO:<address>"),
            Self::PathTooLong => Reply::new(501, mailbox, "the address is too long"),
            Self::Mailbox(MailboxError::Domain(e)) => Reply::with_text(501, system, e.to_string()),
            Self::Mailbox(e) => Reply::with_text(501, mailbox, e.to_string()),
            Self::NeedsUtf8 => Reply::new(553, (5, 6, 7), "a non-ASCII address needs SMTPUTF8 on MAIL"),
            Self::UnknownParameter => Reply::new(555, (5, 5, 4), "a parameter is not supported"),
            Self::BadParameter(name) => {
                Reply::with_text(501, (5, 5, 4), format!("{name} has a bad value or is repeated"))
            }
        }
    }
}

/// A recipient as RCPT names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardPath {
    /// The usual case.
    Mailbox(Mailbox),
    /// `<postmaster>` without a domain (RFC 5321 4.1.1.3), any case.
    Postmaster,
}

/// Parses what follows `MAIL `: `FROM:<path> params`. Addresses in `legacy` domains may have dots where the grammar has
/// none.
pub fn parse_mail(text: &str, legacy: &[Domain]) -> Result<Envelope, ParamError> {
    let rest = strip_prefix_ignore_case(text, "FROM:").ok_or(ParamError::Syntax)?;
    let (path, params) = split_path(rest)?;
    let from = if path.is_empty() {
        ReversePath::Null
    } else {
        ReversePath::Mailbox(parse_mailbox(strip_source_route(path)?, legacy)?)
    };
    let mut envelope = Envelope::new(from);
    let mut seen_body = false;
    let mut seen_auth = false;
    for param in params.split_ascii_whitespace() {
        let (key, value) = split_param(param);
        match key.to_ascii_uppercase().as_str() {
            "SIZE" => {
                let size = value.and_then(decimal).ok_or(ParamError::BadParameter("SIZE"))?;
                set_once(&mut envelope.size, size, "SIZE")?;
            }
            "BODY" => {
                envelope.body = match value.map(str::to_ascii_uppercase).as_deref() {
                    Some("7BIT") if !seen_body => BodyType::SevenBit,
                    Some("8BITMIME") if !seen_body => BodyType::EightBitMime,
                    _ => return Err(ParamError::BadParameter("BODY")),
                };
                seen_body = true;
            }
            "SMTPUTF8" => {
                if value.is_some() || envelope.smtputf8 {
                    return Err(ParamError::BadParameter("SMTPUTF8"));
                }
                envelope.smtputf8 = true;
            }
            "REQUIRETLS" => {
                if value.is_some() || envelope.require_tls {
                    return Err(ParamError::BadParameter("REQUIRETLS"));
                }
                envelope.require_tls = true;
            }
            "RET" => {
                let ret = match value.map(str::to_ascii_uppercase).as_deref() {
                    Some("FULL") => ReturnPart::Full,
                    Some("HDRS") => ReturnPart::Headers,
                    _ => return Err(ParamError::BadParameter("RET")),
                };
                set_once(&mut envelope.ret, ret, "RET")?;
            }
            "ENVID" => {
                let envid = value
                    .filter(|v| is_envid(v))
                    .ok_or(ParamError::BadParameter("ENVID"))?;
                set_once(&mut envelope.envid, envid.to_owned(), "ENVID")?;
            }
            // RFC 4954 5: a hint by the client about the author. It is checked and not believed.
            "AUTH" => {
                let valid = value.is_some_and(|v| v == "<>" || decode_xtext(v).is_some());
                if !valid || seen_auth {
                    return Err(ParamError::BadParameter("AUTH"));
                }
                seen_auth = true;
            }
            _ => return Err(ParamError::UnknownParameter),
        }
    }
    if envelope.from.mailbox().is_some_and(|m| m.needs_smtputf8()) && !envelope.smtputf8 {
        return Err(ParamError::NeedsUtf8);
    }
    Ok(envelope)
}

/// Parses what follows `RCPT `: `TO:<path> params`; a bare postmaster becomes one at `own_host`. For `legacy` see
/// [`parse_mail`].
pub fn parse_rcpt(
    text: &str,
    smtputf8: bool,
    own_host: &Domain,
    legacy: &[Domain],
) -> Result<Recipient, ParamError> {
    let rest = strip_prefix_ignore_case(text, "TO:").ok_or(ParamError::Syntax)?;
    let (path, params) = split_path(rest)?;
    let mailbox = match parse_forward_path(path, legacy)? {
        ForwardPath::Mailbox(mailbox) => mailbox,
        ForwardPath::Postmaster => {
            let host = crate::names::MailHost::Domain(own_host.clone());
            Mailbox::from_parts("postmaster", host).map_err(ParamError::Mailbox)?
        }
    };
    if mailbox.needs_smtputf8() && !smtputf8 {
        return Err(ParamError::NeedsUtf8);
    }
    let mut recipient = Recipient::plain(mailbox);
    for param in params.split_ascii_whitespace() {
        let (key, value) = split_param(param);
        match key.to_ascii_uppercase().as_str() {
            "NOTIFY" => {
                let notify = value
                    .and_then(parse_notify)
                    .ok_or(ParamError::BadParameter("NOTIFY"))?;
                set_once(&mut recipient.notify, notify, "NOTIFY")?;
            }
            "ORCPT" => {
                let orcpt = value
                    .and_then(|v| OriginalRecipient::parse(v).ok())
                    .ok_or(ParamError::BadParameter("ORCPT"))?;
                set_once(&mut recipient.orcpt, orcpt, "ORCPT")?;
            }
            _ => return Err(ParamError::UnknownParameter),
        }
    }
    Ok(recipient)
}

fn parse_forward_path(path: &str, legacy: &[Domain]) -> Result<ForwardPath, ParamError> {
    if path.eq_ignore_ascii_case("postmaster") {
        return Ok(ForwardPath::Postmaster);
    }
    let mailbox = parse_mailbox(strip_source_route(path)?, legacy)?;
    Ok(ForwardPath::Mailbox(mailbox))
}

/// An address without its angle brackets: by the strict grammar; in `legacy` domains also as carriers gave it out in spite
/// of that (`foo..bar@docomo.ne.jp`).
///
/// # Errors
/// [`ParamError::Mailbox`].
pub fn parse_mailbox(text: &str, legacy: &[Domain]) -> Result<Mailbox, ParamError> {
    Mailbox::parse(text).or_else(|error| {
        let is_listed = |mailbox: &Mailbox| {
            let domain = mailbox.domain();
            domain.is_some_and(|domain| legacy.iter().any(|listed| domain.is_within(listed)))
        };
        let lenient = Mailbox::parse_legacy(text).ok().filter(is_listed);
        lenient.ok_or(ParamError::Mailbox(error))
    })
}

/// Splits `<path> params`. Only the path inside angle brackets counts; brackets inside a quoted string are text.
fn split_path(text: &str) -> Result<(&str, &str), ParamError> {
    // Some clients put a space after the colon; RFC 5321 3.3 forbids it, and no harm comes from taking it.
    let text = text.trim_start_matches(' ');
    let inner = text.strip_prefix('<').ok_or(ParamError::Syntax)?;
    let (mut quoted, mut escaped) = (false, false);
    for (at, b) in inner.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => {
                let (path, params) = (&inner[..at], &inner[at + 1..]);
                if path.len() + 2 > MAX_PATH_LEN {
                    return Err(ParamError::PathTooLong);
                }
                if !params.is_empty() && !params.starts_with(' ') {
                    return Err(ParamError::Syntax);
                }
                return Ok((path, params));
            }
            _ => {}
        }
    }
    Err(ParamError::Syntax)
}

/// RFC 5321 4.1.1.3 and appendix C: a source route `@a,@b:` is accepted as syntax and ignored.
fn strip_source_route(path: &str) -> Result<&str, ParamError> {
    if !path.starts_with('@') {
        return Ok(path);
    }
    let (route, mailbox) = path
        .split_once(':')
        .ok_or(ParamError::Mailbox(MailboxError::Incomplete))?;
    for hop in route.split(',') {
        let host = hop.strip_prefix('@').ok_or(ParamError::Syntax)?;
        crate::names::MailHost::parse(host).map_err(ParamError::Mailbox)?;
    }
    Ok(mailbox)
}

fn split_param(param: &str) -> (&str, Option<&str>) {
    match param.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (param, None),
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, name: &'static str) -> Result<(), ParamError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ParamError::BadParameter(name)),
    }
}

fn decimal(text: &str) -> Option<u64> {
    // RFC 1870 4: up to 20 digits. What overflows is certainly over the limit.
    let digits = !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn is_envid(value: &str) -> bool {
    let printable = |text: String| text.bytes().all(|b| (b' '..=b'~').contains(&b));
    !value.is_empty() && value.len() <= MAX_ENVID_LEN && decode_xtext(value).is_some_and(printable)
}

fn parse_notify(value: &str) -> Option<Notify> {
    if value.eq_ignore_ascii_case("NEVER") {
        return Some(Notify::NEVER);
    }
    let mut notify = Notify::NEVER;
    for word in value.split(',') {
        let flag = match word.to_ascii_uppercase().as_str() {
            "SUCCESS" => &mut notify.success,
            "FAILURE" => &mut notify.failure,
            "DELAY" => &mut notify.delay,
            _ => return None,
        };
        *flag = true;
    }
    Some(notify)
}

fn strip_prefix_ignore_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}
