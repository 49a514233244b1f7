//! HTTP signatures of draft-cavage-http-signatures-12 as the fediverse speaks it: RSA with SHA-256 over a list of headers.
//!
//! Reading a `Signature` header, the policy about what must be signed and when, and the signing string (made by the crate
//! `http-signature-normalization`, whose own lax rules about time are not used). Verifying the RSA signature itself is the
//! engine's part.
//!
//! **Invariant:** on POST the method and path, the host, the digest of the body and a time are under the signature, so it
//! holds for one body, at one server, for little more than an hour.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_signature_normalization::verify::ParsedHeader;
use sha2::{Digest as _, Sha256};

use super::date;
use super::ids::{Authority, IdError, KeyId};

/// Longest `Signature` header read, in bytes: a keyId, a list of headers, and an RSA-8192 signature.
const MAX_HEADER_BYTES: usize = 8192;
/// Most names in the list of signed headers.
const MAX_COVERED: usize = 32;

/// How old a signed time may be: an hour, as Mastodon, so that a retried delivery still counts.
pub const MAX_AGE: Duration = Duration::from_secs(3600);
/// How far a peer's clock may be ahead.
pub const MAX_AHEAD: Duration = Duration::from_secs(300);

/// Why a signature is refused before any key is looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No `Signature` header.
    #[error("the request has no Signature header")]
    Missing,
    /// Not in the form of the draft, section 4.1.
    #[error("the Signature header is malformed: {0}")]
    Malformed(&'static str),
    /// keyId is not an https URL.
    #[error("the keyId of the signature is not usable: {0}")]
    KeyId(IdError),
    /// An algorithm other than `rsa-sha256` and `hs2019`.
    #[error("the signature's algorithm is not supported: use rsa-sha256 or hs2019")]
    Algorithm,
    /// Something that must be signed is not.
    #[error("the signature does not cover {0}")]
    NotCovered(&'static str),
    /// A header that is signed is not in the request.
    #[error("the signature covers a header that the request does not have")]
    HeaderMissing,
    /// `Date` is not an HTTP date.
    #[error("the Date header is not an HTTP date")]
    Date,
    /// Too old.
    #[error("the signature is more than one hour old")]
    Old,
    /// From the future.
    #[error("the signature's time is more than five minutes ahead")]
    Ahead,
    /// `(expires)` has passed.
    #[error("the signature has expired")]
    Expired,
    /// `Host` is not this relay.
    #[error("the signed host is not this server")]
    WrongHost,
    /// No usable `Digest` header.
    #[error("the Digest header has no SHA-256 value of the right form")]
    Digest,
    /// The body is not the one that was signed.
    #[error("the body does not match the Digest header")]
    DigestMismatch,
    /// RFC 9421: an algorithm other than the two that the fediverse uses.
    #[error("the signature's algorithm is not supported: use rsa-v1_5-sha256 or ed25519")]
    MessageAlgorithm,
    /// RFC 9421: the signature is meant for another application.
    #[error("the signature's tag names another application")]
    Tag,
    /// RFC 9530: no usable `Content-Digest`.
    #[error("the Content-Digest header has no sha-256 or sha-512 value of the right form")]
    ContentDigest,
    /// RFC 9530: the body is not the one that was signed.
    #[error("the body does not match the Content-Digest header")]
    ContentDigestMismatch,
}

/// The algorithms that mean RSA with SHA-256 here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// `rsa-sha256`.
    RsaSha256,
    /// `hs2019`, also when no algorithm is named: the key decides, and for RSA keys the fediverse means SHA-256.
    Hs2019,
}

/// A parsed `Signature` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureHeader {
    /// Whose key.
    pub key_id: KeyId,
    /// By which algorithm.
    pub algorithm: Algorithm,
    /// What is signed, in order, lower case.
    pub covered: Vec<String>,
    /// The signature.
    pub signature: Vec<u8>,
    /// `(created)`, as written.
    pub created: Option<i64>,
    /// `(expires)`, as written.
    pub expires: Option<i64>,
}

impl SignatureHeader {
    /// Reads the header's value: comma-separated `name="value"`, with or without space, numbers with or without quotes.
    ///
    /// # Errors
    /// [`SignatureError`] for everything else, and for a name given twice.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        if text.len() > MAX_HEADER_BYTES {
            return Err(SignatureError::Malformed("longer than 8192 bytes"));
        }
        let mut fields = parameters(text)?;
        let key_id = fields
            .remove("keyid")
            .ok_or(SignatureError::Malformed("no keyId"))?;
        let signature = fields
            .remove("signature")
            .ok_or(SignatureError::Malformed("no signature"))?;
        let signature = STANDARD
            .decode(signature)
            .map_err(|_| SignatureError::Malformed("the signature is not base64"))?;
        let algorithm = match fields.remove("algorithm").as_deref() {
            Some("rsa-sha256") => Algorithm::RsaSha256,
            Some("hs2019") | None => Algorithm::Hs2019,
            Some(_) => return Err(SignatureError::Algorithm),
        };
        // Section 2.1.6: without a list only (created) is signed.
        let covered = fields.remove("headers").unwrap_or_else(|| "(created)".to_owned());
        let covered: Vec<String> = covered
            .split_ascii_whitespace()
            .take(MAX_COVERED + 1)
            .map(str::to_ascii_lowercase)
            .collect();
        if covered.is_empty() || covered.len() > MAX_COVERED {
            return Err(SignatureError::Malformed(
                "the list of headers is empty or too long",
            ));
        }
        if covered.iter().collect::<HashSet<_>>().len() != covered.len() {
            return Err(SignatureError::Malformed("a header is listed twice"));
        }
        let seconds = |name: &'static str, value: Option<&str>| match value {
            None => Ok(None),
            Some(digits) if digits.len() <= 12 => digits
                .parse::<i64>()
                .map(Some)
                .map_err(|_| SignatureError::Malformed(name)),
            Some(_) => Err(SignatureError::Malformed(name)),
        };
        Ok(Self {
            key_id: KeyId::parse(&key_id).map_err(SignatureError::KeyId)?,
            algorithm,
            covered,
            signature,
            created: seconds(
                "created is not a number of seconds",
                fields.get("created").map(String::as_str),
            )?,
            expires: seconds(
                "expires is not a number of seconds",
                fields.get("expires").map(String::as_str),
            )?,
        })
    }

    fn covers(&self, name: &str) -> bool {
        self.covered.iter().any(|covered| covered == name)
    }
}

/// Splits `a="b", c=1` with quotes respected; names in lower case.
fn parameters(text: &str) -> Result<BTreeMap<String, String>, SignatureError> {
    let malformed = SignatureError::Malformed("not a list of name=\"value\"");
    let mut fields = BTreeMap::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(malformed.clone())?;
        let name = name.trim().to_ascii_lowercase();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(malformed);
        }
        let after = after.trim_start();
        let (value, tail) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or(malformed.clone())?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if fields.insert(name, value.trim().to_owned()).is_some() {
            return Err(SignatureError::Malformed("a parameter is given twice"));
        }
        rest = match tail.trim_start() {
            "" => "",
            tail => tail.strip_prefix(',').ok_or(malformed.clone())?.trim_start(),
        };
    }
    Ok(fields)
}

/// The request as it came over the wire.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    /// `POST`, `GET`.
    pub method: &'a str,
    /// Path with the query, as sent.
    pub path_and_query: &'a str,
    /// All headers, names in lower case, several of one name joined by `, `; `host` holds `:authority` on HTTP/2.
    pub headers: &'a BTreeMap<String, String>,
}

/// What kind of key a signature was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA, PKCS#1 v1.5 with SHA-256.
    Rsa,
    /// Ed25519.
    Ed25519,
}

/// A request whose signature satisfies the policy; what remains is the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Whose key to verify with.
    pub key_id: KeyId,
    /// What the key must be, where the signature says so; otherwise the key decides.
    pub kind: Option<KeyKind>,
    /// The signature.
    pub signature: Vec<u8>,
    /// The signing string as sent, and again without the query string: Mastodon, GoToSocial and Pleroma try both, since
    /// some signers leave it out.
    pub signing_strings: Vec<String>,
    /// Until when the same signature would pass again; a replay cache keeps it that long.
    pub valid_until: SystemTime,
}

/// Judges a POST: what is signed, when, for which host, over which body.
///
/// `own_host` is the value of `Host` under which this server is known, with its port when it is not the default.
///
/// # Errors
/// [`SignatureError`] names the first rule that is broken.
pub fn check_post(
    request: &SignedRequest<'_>,
    body: &[u8],
    own_host: &str,
    now: SystemTime,
) -> Result<Candidate, SignatureError> {
    let header = request.headers.get("signature").ok_or(SignatureError::Missing)?;
    let header = SignatureHeader::parse(header)?;
    for (name, shown) in [
        ("(request-target)", "(request-target)"),
        ("digest", "the Digest header"),
        ("host", "the Host header"),
    ] {
        if !header.covers(name) {
            return Err(SignatureError::NotCovered(shown));
        }
    }
    check_own_host(request, own_host)?;
    let valid_until = check_time(&header, request.headers, now)?;
    let digest = request
        .headers
        .get("digest")
        .ok_or(SignatureError::HeaderMissing)?;
    check_digest(digest, body)?;

    let mut signing_strings = vec![signing_string_for(&header, request, request.path_and_query)?];
    if let Some((path, _query)) = request.path_and_query.split_once('?') {
        signing_strings.push(signing_string_for(&header, request, path)?);
    }
    Ok(Candidate {
        key_id: header.key_id,
        kind: (header.algorithm == Algorithm::RsaSha256).then_some(KeyKind::Rsa),
        signature: header.signature,
        signing_strings,
        valid_until,
    })
}

/// The request is for this server.
pub(super) fn check_own_host(request: &SignedRequest<'_>, own_host: &str) -> Result<(), SignatureError> {
    let host = request.headers.get("host").ok_or(SignatureError::HeaderMissing)?;
    // Some clients write the default port too; the signature holds over what they wrote.
    let is_own = host.eq_ignore_ascii_case(own_host)
        || Authority::parse(host).is_ok_and(|host| host.as_str() == own_host);
    match is_own {
        true => Ok(()),
        false => Err(SignatureError::WrongHost),
    }
}

/// Date or `(created)` must be signed and within the window; returns the end of the window.
fn check_time(
    header: &SignatureHeader,
    headers: &BTreeMap<String, String>,
    now: SystemTime,
) -> Result<SystemTime, SignatureError> {
    let created = match (header.covers("(created)"), header.created) {
        (false, _) => None,
        (true, None) => return Err(SignatureError::Malformed("(created) is signed but not given")),
        // Section 2.3: (created) does not go with an algorithm that begins with rsa.
        (true, Some(_)) if header.algorithm == Algorithm::RsaSha256 => {
            return Err(SignatureError::Malformed("(created) does not go with rsa-sha256"));
        }
        (true, Some(seconds)) => Some(date::from_unix(seconds).ok_or(SignatureError::Old)?),
    };
    let dated = match header.covers("date") {
        false => None,
        true => {
            let text = headers.get("date").ok_or(SignatureError::HeaderMissing)?;
            Some(date::parse_http_date(text).ok_or(SignatureError::Date)?)
        }
    };
    let mut signed_at = None;
    for at in created.into_iter().chain(dated) {
        if at > now + MAX_AHEAD {
            return Err(SignatureError::Ahead);
        }
        if at + MAX_AGE < now {
            return Err(SignatureError::Old);
        }
        signed_at = Some(signed_at.map_or(at, |earlier: SystemTime| earlier.min(at)));
    }
    let signed_at = signed_at.ok_or(SignatureError::NotCovered("the Date header or (created)"))?;
    if header.covers("(expires)") && header.expires.is_none() {
        return Err(SignatureError::Malformed("(expires) is signed but not given"));
    }
    if let Some(expires) = header.expires {
        let expires = date::from_unix(expires).ok_or(SignatureError::Expired)?;
        if expires < now {
            return Err(SignatureError::Expired);
        }
    }
    Ok(signed_at + MAX_AGE)
}

fn signing_string_for(
    header: &SignatureHeader,
    request: &SignedRequest<'_>,
    target: &str,
) -> Result<String, SignatureError> {
    let mut values: BTreeMap<String, String> = header
        .covered
        .iter()
        .filter_map(|name| Some((name.clone(), request.headers.get(name)?.clone())))
        .collect();
    // The times are put in as written: the crate would read its own clock for them.
    for (name, seconds) in [("(created)", header.created), ("(expires)", header.expires)] {
        if let (true, Some(seconds)) = (header.covers(name), seconds) {
            values.insert(name.to_owned(), seconds.to_string());
        }
    }
    let covered: Vec<&str> = header.covered.iter().map(String::as_str).collect();
    signing_string(request.method, target, &covered, values)
}

/// The signing string (section 2.3) over `covered`, in that order, by the crate that is named for it.
///
/// # Errors
/// [`SignatureError::HeaderMissing`] when a covered header has no value.
pub fn signing_string(
    method: &str,
    target: &str,
    covered: &[&str],
    mut values: BTreeMap<String, String>,
) -> Result<String, SignatureError> {
    // The crate takes the order of headers only from a parsed header, so it is given one: key and signature play no part
    // in the string. Nor do times, which it would compare with its own clock: they are among the values.
    let list = format!("keyId=\"k\",headers=\"{}\",signature=\"s\"", covered.join(" "));
    let parsed: ParsedHeader = list
        .parse()
        .map_err(|_| SignatureError::Malformed("the list of headers"))?;
    let unvalidated = parsed
        .into_unvalidated(method, target, &mut values, HashSet::new())
        .map_err(|_| SignatureError::HeaderMissing)?;
    // A thousand years: the window was judged above, by our clock.
    let unverified = unvalidated
        .validate(Duration::from_secs(1000 * 366 * 86_400))
        .map_err(|_| SignatureError::Old)?;
    Ok(unverified.signing_string().to_owned())
}

/// The value of a `Digest` header for a body (RFC 3230, RFC 5843).
pub fn digest_header(body: &[u8]) -> String {
    format!("SHA-256={}", STANDARD.encode(Sha256::digest(body)))
}

/// Compares the `Digest` header with the body: exactly one SHA-256 value; other algorithms beside it do not count.
///
/// # Errors
/// [`SignatureError::Digest`] or [`SignatureError::DigestMismatch`].
pub fn check_digest(header: &str, body: &[u8]) -> Result<(), SignatureError> {
    let mut claimed = None;
    for part in header.split(',').take(16) {
        let (name, value) = part.trim().split_once('=').ok_or(SignatureError::Digest)?;
        if name.eq_ignore_ascii_case("sha-256") && claimed.replace(value).is_some() {
            return Err(SignatureError::Digest);
        }
    }
    let claimed = STANDARD
        .decode(claimed.ok_or(SignatureError::Digest)?)
        .map_err(|_| SignatureError::Digest)?;
    if claimed.len() != 32 {
        return Err(SignatureError::Digest);
    }
    if claimed == Sha256::digest(body).as_slice() {
        Ok(())
    } else {
        Err(SignatureError::DigestMismatch)
    }
}

/// What the relay signs on a POST, in the order that every server accepts.
pub const POST_COVERED: [&str; 5] = ["(request-target)", "host", "date", "digest", "content-type"];
/// What the relay signs on a POST that goes to several hosts: neither the host nor the path.
pub const SHARED_COVERED: [&str; 2] = ["date", "digest"];
/// What the relay signs on a GET.
pub const GET_COVERED: [&str; 4] = ["(request-target)", "host", "date", "accept"];

/// The `Signature` header over a finished signature. No space after commas: Iceshrimp.NET splits there.
pub fn signature_header(key_id: &str, covered: &[&str], signature: &[u8]) -> String {
    format!(
        "keyId=\"{key_id}\",algorithm=\"rsa-sha256\",headers=\"{}\",signature=\"{}\"",
        covered.join(" "),
        STANDARD.encode(signature)
    )
}
