//! DKIM signatures up to the key: canonical forms, hashes, and the field (RFC 6376, RFC 8301, RFC 8463).
//!
//! Feed a message to [`MessageHash`], give its header and body hash to [`prepare`], sign [`Unsigned::digest`], and put
//! what [`Unsigned::finish`] returns in front of the message. Both canonical forms are "relaxed"; there is no `l=`. The
//! key itself stays with the caller.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use super::header::{Header, LineKind, line_kind};
use crate::names::Domain;

mod body;
#[cfg(test)]
mod tests;

use body::BodyHash;

/// How a signature is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// PKCS #1 v1.5 over the digest (RFC 8301 3.1).
    RsaSha256,
    /// PureEdDSA over the digest itself (RFC 8463 3).
    Ed25519Sha256,
}

impl Algorithm {
    /// The name in `a=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RsaSha256 => "rsa-sha256",
            Self::Ed25519Sha256 => "ed25519-sha256",
        }
    }

    /// The name in `k=` of the key's DNS record.
    pub const fn key_type(self) -> &'static str {
        match self {
            Self::RsaSha256 => "rsa",
            Self::Ed25519Sha256 => "ed25519",
        }
    }
}

/// Fields that are signed as often as they occur (RFC 6376 5.4.1, RFC 8058 4).
const SIGNED: [&str; 24] = [
    "from",
    "to",
    "cc",
    "subject",
    "date",
    "reply-to",
    "message-id",
    "sender",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "content-disposition",
    "content-language",
    "in-reply-to",
    "references",
    "list-id",
    "list-help",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "list-subscribe",
    "list-post",
    "list-owner",
    "list-archive",
    "feedback-id",
];

/// Fields that are signed once more than they occur, so that nobody can add another one that readers would be shown.
const OVERSIGNED: [&str; 6] = ["from", "to", "cc", "subject", "date", "reply-to"];

/// The header section is longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the header section is too long to be signed")]
pub struct HeaderTooLong;

/// Takes a message in pieces; keeps its header section and hashes its body.
#[derive(Debug)]
pub struct MessageHash {
    header: Vec<u8>,
    max_header: usize,
    /// Where the line starts that is not yet looked at, while the header section lasts.
    line_start: usize,
    in_header: bool,
    body: BodyHash,
}

impl MessageHash {
    /// For a message whose header section has at most this many octets.
    pub fn new(max_header: usize) -> Self {
        Self {
            header: Vec::new(),
            max_header,
            line_start: 0,
            in_header: true,
            body: BodyHash::default(),
        }
    }

    /// The next piece.
    pub fn update(&mut self, piece: &[u8]) -> Result<(), HeaderTooLong> {
        if !self.in_header {
            self.body.update(piece);
            return Ok(());
        }
        self.header.extend_from_slice(piece);
        while let Some(len) = memchr::memchr(b'\n', &self.header[self.line_start..]) {
            let end = self.line_start + len + 1;
            let body = match line_kind(&self.header[self.line_start..end]) {
                LineKind::End => end,
                LineKind::Body => self.line_start,
                LineKind::Folded | LineKind::Field(_) => {
                    self.line_start = end;
                    continue;
                }
            };
            self.in_header = false;
            self.body.update(&self.header[body..]);
            self.header.truncate(self.line_start);
            break;
        }
        if self.header.len() > self.max_header {
            return Err(HeaderTooLong);
        }
        Ok(())
    }

    /// The header section, and the body's hash.
    pub fn finish(self) -> (Vec<u8>, [u8; 32]) {
        (self.header, self.body.finish())
    }
}

/// Whose signature it is to be.
#[derive(Debug, Clone, Copy)]
pub struct Signer<'a> {
    /// `d=`.
    pub domain: &'a Domain,
    /// `s=`.
    pub selector: &'a str,
    /// `a=`.
    pub algorithm: Algorithm,
    /// `t=`, seconds since 1970.
    pub time: u64,
}

/// A signature without its value.
#[derive(Debug, Clone)]
pub struct Unsigned {
    field: String,
    /// SHA-256 over the canonical form of all that is signed.
    digest: [u8; 32],
}

/// The field without its value, for a message with this header section and body hash.
pub fn prepare(header: &[u8], body_hash: &[u8; 32], signer: &Signer<'_>) -> Unsigned {
    let header = Header::parse(header);
    let mut names = Vec::new();
    for name in SIGNED {
        let count = header.count(name);
        let extra = usize::from(name == "from" || count > 0 && OVERSIGNED.contains(&name));
        names.extend(std::iter::repeat_n(name, count + extra));
    }
    let mut field = format!(
        "DKIM-Signature: v=1; a={}; c=relaxed/relaxed;\r\n\td={}; s={}; t={};\r\n\tbh={};\r\n\th=",
        signer.algorithm.name(),
        signer.domain,
        signer.selector,
        signer.time,
        STANDARD.encode(body_hash),
    );
    let mut column = 3;
    for (at, name) in names.iter().enumerate() {
        if column + name.len() > 74 {
            field.push_str("\r\n\t");
            column = 1;
        }
        let end = if at + 1 == names.len() { ";" } else { ":" };
        // Writing to a String cannot fail.
        let _ = write!(field, "{name}{end}");
        column += name.len() + 1;
    }
    field.push_str("\r\n\tb=");
    let digest = digest(&header, &names, field.as_bytes());
    Unsigned { field, digest }
}

impl Unsigned {
    /// What the key signs: RSA pads this digest, Ed25519 takes it as its message.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The whole field with its CRLF.
    pub fn finish(self, signature: &[u8]) -> String {
        let value = STANDARD.encode(signature);
        let mut field = self.field;
        for (at, c) in value.chars().enumerate() {
            if at > 0 && at % 72 == 0 {
                field.push_str("\r\n\t");
            }
            field.push(c);
        }
        field.push_str("\r\n");
        field
    }
}

/// The digest over the named fields, from the last instance of each upwards (RFC 6376 5.4.2), and the signature's own
/// field with an empty `b=`.
fn digest(header: &Header<'_>, names: &[&str], own: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (at, name) in names.iter().enumerate() {
        let taken = names[..at]
            .iter()
            .filter(|n| n.eq_ignore_ascii_case(name))
            .count();
        let instances: Vec<&[u8]> = header.fields_named(name).collect();
        // RFC 6376 5.4.2: a name without a field is signed as nothing, so that none can be added.
        if let Some(field) = instances.len().checked_sub(taken + 1).map(|n| instances[n]) {
            hash.update(relaxed_field(field));
            hash.update(b"\r\n");
        }
    }
    hash.update(relaxed_field(own));
    hash.finalize().into()
}

/// A field in the relaxed form, without its CRLF (RFC 6376 3.4.2).
fn relaxed_field(field: &[u8]) -> Vec<u8> {
    let colon = memchr::memchr(b':', field).unwrap_or(field.len());
    let mut out = field[..colon].trim_ascii_end().to_ascii_lowercase();
    out.push(b':');
    let mut gap = false;
    let value = field.get(colon + 1..).unwrap_or_default().trim_ascii();
    for &octet in value {
        match octet {
            b' ' | b'\t' => gap = true,
            // Unfolding: the white space that follows the line end stays.
            b'\r' | b'\n' => {}
            octet => {
                if std::mem::take(&mut gap) {
                    out.push(b' ');
                }
                out.push(octet);
            }
        }
    }
    out
}

/// The TXT record for a key: RSA keys as SubjectPublicKeyInfo, Ed25519 keys as their 32 octets (RFC 8463 4).
pub fn record(algorithm: Algorithm, public_key: &[u8]) -> String {
    format!(
        "v=DKIM1; k={}; p={}",
        algorithm.key_type(),
        STANDARD.encode(public_key)
    )
}
