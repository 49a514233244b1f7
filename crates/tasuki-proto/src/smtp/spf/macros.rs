//! Macros in names (RFC 7208 7).

use std::{fmt::Write as _, net::IpAddr};

use super::walk::Asker;

/// Longest name after expansion; RFC 7208 7.3 cuts labels from the left.
const MAX_NAME: usize = 253;

enum Piece<'a> {
    Text(&'a str),
    Macro {
        letter: char,
        keep: usize,
        reversed: bool,
        delimiters: &'a str,
    },
}

/// The pieces of a macro string; `None` if it is none.
fn pieces(spec: &str) -> Option<Vec<Piece<'_>>> {
    let mut found = Vec::new();
    let mut rest = spec;
    while !rest.is_empty() {
        let Some(at) = rest.find('%') else {
            found.push(Piece::Text(rest));
            break;
        };
        if at > 0 {
            found.push(Piece::Text(&rest[..at]));
        }
        rest = &rest[at + 1..];
        let (piece, len) = match rest.as_bytes().first()? {
            b'%' => (Piece::Text("%"), 1),
            b'_' => (Piece::Text(" "), 1),
            b'-' => (Piece::Text("%20"), 1),
            b'{' => {
                let end = rest.find('}')?;
                (expandable(&rest[1..end])?, end + 1)
            }
            _ => return None,
        };
        found.push(piece);
        rest = &rest[len..];
    }
    let visible = spec.bytes().all(|b| b.is_ascii_graphic());
    visible.then_some(found)
}

fn expandable(inner: &str) -> Option<Piece<'_>> {
    let letter = inner.chars().next()?.to_ascii_lowercase();
    if !"slodiphcrtv".contains(letter) {
        return None;
    }
    let rest = &inner[1..];
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let keep = match &rest[..digits] {
        "" => usize::MAX,
        number => number.parse().ok().filter(|n| *n > 0)?,
    };
    let rest = &rest[digits..];
    let (reversed, delimiters) = match rest.strip_prefix(['r', 'R']) {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let good = delimiters.chars().all(|c| ".-+,/_=".contains(c));
    good.then_some(Piece::Macro {
        letter,
        keep,
        reversed,
        delimiters,
    })
}

/// Whether it is a macro string.
pub(super) fn is_valid(spec: &str) -> bool {
    pieces(spec).is_some()
}

/// Whether it can name a domain: it ends in a macro or in a label that is no number (RFC 7208 7.1).
pub(super) fn is_domain_spec(spec: &str) -> bool {
    let bare = spec.strip_suffix('.').unwrap_or(spec);
    let label = bare.rsplit_once('.').map(|(_, label)| label);
    let ends_well = spec.ends_with('}')
        || label.is_some_and(|label| {
            let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            plain && !label.is_empty() && !label.bytes().all(|b| b.is_ascii_digit())
        });
    ends_well && is_valid(spec)
}

/// Whether a name is the same for everybody who asks.
pub(super) fn is_fixed(spec: &str) -> bool {
    !spec.contains('%')
}

/// The name that a macro string gives for one who asks, within `domain`'s record.
pub(super) fn expand(spec: &str, asker: &Asker, domain: &str) -> String {
    let mut out = String::new();
    for piece in pieces(spec).unwrap_or_default() {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Macro {
                letter,
                keep,
                reversed,
                delimiters,
            } => {
                let value = value(letter, asker, domain);
                let delimiters = if delimiters.is_empty() { "." } else { delimiters };
                let mut parts: Vec<&str> = value.split(|c| delimiters.contains(c)).collect();
                if reversed {
                    parts.reverse();
                }
                let from = parts.len().saturating_sub(keep);
                out.push_str(&parts[from..].join("."));
            }
        }
    }
    let mut name = out.trim_end_matches('.');
    while name.len() > MAX_NAME
        && let Some((_, rest)) = name.split_once('.')
    {
        name = rest;
    }
    name.to_ascii_lowercase()
}

fn value(letter: char, asker: &Asker, domain: &str) -> String {
    match letter {
        // RFC 7208 4.3: without a local part it is postmaster.
        'l' => "postmaster".to_owned(),
        's' => format!("postmaster@{}", asker.domain),
        'o' => asker.domain.clone(),
        'd' => domain.to_owned(),
        'i' => match asker.ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => {
                let mut text = String::new();
                for octet in ip.octets() {
                    let _ = write!(text, "{:x}.{:x}.", octet >> 4, octet & 15);
                }
                text.truncate(text.len() - 1);
                text
            }
        },
        'v' if asker.ip.is_ipv4() => "in-addr".to_owned(),
        'v' => "ip6".to_owned(),
        'h' => asker.helo.clone(),
        // RFC 7208 7.2: p is discouraged, c, r and t are for explanations only.
        _ => "unknown".to_owned(),
    }
}
