//! HTTP message signatures (RFC 9421) with `Content-Digest` (RFC 9530), in the profile that the fediverse speaks.
//!
//! Structured fields are read by the crate `sfv`; the signature base and the policy are here, since the policy is the point:
//! which components must be covered, by which of several signatures, within which time.
//!
//! **Invariant:** as with the older draft ([`super::cavage`]), what is signed is the method, the whole target at this server,
//! the body and a time.

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sfv::{Dictionary, FieldType as _, InnerList, ListEntry, Parser, Version};
use sha2::{Digest as _, Sha256, Sha512};

use super::cavage::{Candidate, KeyKind, MAX_AGE, MAX_AHEAD, SignatureError, SignedRequest, check_own_host};
use super::date;
use super::ids::KeyId;

/// Longest `Signature-Input` and `Signature` read, in bytes.
const MAX_HEADER_BYTES: usize = 8192;
/// Most signatures in one request that are looked at.
const MAX_LABELS: usize = 8;
/// Most components under one signature.
const MAX_COMPONENTS: usize = 32;
/// The application that a signature may name (`tag`, RFC 9421 2.3); one for another application is not ours to judge.
const TAG: &str = "activitypub";

/// What the relay covers on a POST; Mastodon and Fedify want these.
pub const POST_COVERED: [&str; 3] = ["@method", "@target-uri", "content-digest"];

/// Whether a request is signed by RFC 9421: it has `Signature-Input`. Its `Signature` header is then no header of the draft.
pub fn is_used(headers: &BTreeMap<String, String>) -> bool {
    headers.contains_key("signature-input")
}

/// Judges a POST: what is signed, when, for which target, over which body.
///
/// `origin` is this server's own, `https://HOST`; what a proxy in front of it turned the request into plays no part.
///
/// # Errors
/// [`SignatureError`] of the first signature, when none of them satisfies the rules.
pub fn check_post(
    request: &SignedRequest<'_>,
    body: &[u8],
    origin: &str,
    own_host: &str,
    now: SystemTime,
) -> Result<Candidate, SignatureError> {
    let inputs = dictionary(request, "signature-input")?;
    let signatures = dictionary(request, "signature")?;
    let mut first_error = None;
    for (label, input) in inputs.iter().take(MAX_LABELS) {
        let ListEntry::InnerList(input) = input else {
            first_error.get_or_insert(SignatureError::Malformed(
                "Signature-Input is not a list of components",
            ));
            continue;
        };
        let signature = match signatures.get(label) {
            Some(ListEntry::Item(item)) => item.bare_item.as_byte_sequence(),
            _ => None,
        };
        let judged = match signature {
            Some(signature) => judge(input, signature, request, body, (origin, own_host), now),
            None => Err(SignatureError::Malformed(
                "a signature is announced that is not there",
            )),
        };
        match judged {
            Ok(candidate) => return Ok(candidate),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or(SignatureError::Missing))
}

fn dictionary(request: &SignedRequest<'_>, name: &'static str) -> Result<Dictionary, SignatureError> {
    let text = request.headers.get(name).ok_or(SignatureError::Missing)?;
    if text.len() > MAX_HEADER_BYTES {
        return Err(SignatureError::Malformed("longer than 8192 bytes"));
    }
    parse(text).ok_or(SignatureError::Malformed("not a dictionary of structured fields"))
}

fn parse(text: &str) -> Option<Dictionary> {
    Parser::new(text)
        .with_version(Version::Rfc8941)
        .parse::<Dictionary>()
        .ok()
}

fn judge(
    input: &InnerList,
    signature: &[u8],
    request: &SignedRequest<'_>,
    body: &[u8],
    (origin, own_host): (&str, &str),
    now: SystemTime,
) -> Result<Candidate, SignatureError> {
    let parameter = |name: &str| input.params.iter().find(|(key, _)| key.as_str() == name);
    let text = |name: &'static str| match parameter(name) {
        None => Ok(None),
        Some((_, value)) => match value.as_string() {
            Some(text) => Ok(Some(text.as_str())),
            None => Err(SignatureError::Malformed(
                "a parameter of the signature is not a text",
            )),
        },
    };
    if text("tag")?.is_some_and(|tag| tag != TAG) {
        return Err(SignatureError::Tag);
    }
    let key_id = text("keyid")?.ok_or(SignatureError::Malformed("no keyid"))?;
    let key_id = KeyId::parse(key_id).map_err(SignatureError::KeyId)?;
    let kind = match text("alg")? {
        None => None,
        Some("rsa-v1_5-sha256") => Some(KeyKind::Rsa),
        Some("ed25519") => Some(KeyKind::Ed25519),
        Some(_) => return Err(SignatureError::MessageAlgorithm),
    };
    let names = component_names(input)?;
    let covers = |name: &str| names.contains(&name);
    if !covers("@method") {
        return Err(SignatureError::NotCovered("@method"));
    }
    let names_host = covers("@authority") || covers("host");
    let names_path = covers("@path") || covers("@request-target");
    if !(covers("@target-uri") || (names_host && names_path)) {
        return Err(SignatureError::NotCovered("@target-uri"));
    }
    if !covers("content-digest") {
        return Err(SignatureError::NotCovered("the Content-Digest header"));
    }
    check_own_host(request, own_host)?;
    let seconds = |name: &'static str| match parameter(name) {
        None => Ok(None),
        Some((_, value)) => match value.as_integer() {
            Some(seconds) => Ok(Some(i64::from(seconds))),
            None => Err(SignatureError::Malformed(
                "a time of the signature is not a number of seconds",
            )),
        },
    };
    let created = seconds("created")?.ok_or(SignatureError::NotCovered("created"))?;
    let valid_until = check_time(created, seconds("expires")?, now)?;
    let digest = request
        .headers
        .get("content-digest")
        .ok_or(SignatureError::HeaderMissing)?;
    check_content_digest(digest, body)?;
    let base = signature_base(input, &names, request, origin, own_host)?;
    Ok(Candidate {
        key_id,
        kind,
        signature: signature.to_vec(),
        signing_strings: vec![base],
        valid_until,
    })
}

/// The names of the components, in order. Parameters of components (`;sf`, `;req`, `;tr`, ...) are used by nobody here, and a
/// component that is not understood must not be believed (RFC 9421 3.2).
fn component_names(input: &InnerList) -> Result<Vec<&str>, SignatureError> {
    if input.items.is_empty() || input.items.len() > MAX_COMPONENTS {
        return Err(SignatureError::Malformed(
            "the list of components is empty or too long",
        ));
    }
    let mut names = Vec::with_capacity(input.items.len());
    for item in &input.items {
        let name = item.bare_item.as_string().map(|name| name.as_str());
        let is_name = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"@-_".contains(&c);
        match name {
            Some(name) if item.params.is_empty() && name.bytes().all(is_name) => names.push(name),
            _ => {
                return Err(SignatureError::Malformed(
                    "a component that is not understood here",
                ));
            }
        }
    }
    if names.iter().collect::<HashSet<_>>().len() != names.len() {
        return Err(SignatureError::Malformed("a component is listed twice"));
    }
    Ok(names)
}

fn check_time(created: i64, expires: Option<i64>, now: SystemTime) -> Result<SystemTime, SignatureError> {
    let created = date::from_unix(created).ok_or(SignatureError::Old)?;
    if created > now + MAX_AHEAD {
        return Err(SignatureError::Ahead);
    }
    if created.checked_add(MAX_AGE).is_none_or(|end| end < now) {
        return Err(SignatureError::Old);
    }
    if let Some(expires) = expires
        && date::from_unix(expires).is_none_or(|end| end < now)
    {
        return Err(SignatureError::Expired);
    }
    Ok(created + MAX_AGE)
}

/// RFC 9421 2.5: one line for each component, then the list of them with its parameters.
pub(super) fn signature_base(
    input: &InnerList,
    names: &[&str],
    request: &SignedRequest<'_>,
    origin: &str,
    own_host: &str,
) -> Result<String, SignatureError> {
    let target = request.path_and_query;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut base = String::new();
    for name in names {
        let value = match *name {
            "@method" => request.method.to_owned(),
            "@target-uri" => format!("{origin}{target}"),
            "@authority" => own_host.to_ascii_lowercase(),
            "@scheme" => origin.split(':').next().unwrap_or_default().to_owned(),
            "@request-target" => target.to_owned(),
            "@path" => path.to_owned(),
            "@query" => format!("?{query}"),
            name if name.starts_with('@') => {
                return Err(SignatureError::Malformed(
                    "a component that is not understood here",
                ));
            }
            name => request
                .headers
                .get(name)
                .ok_or(SignatureError::HeaderMissing)?
                .trim()
                .to_owned(),
        };
        base.push_str(&format!("\"{name}\": {value}\n"));
    }
    // Written anew from what was read, in the one form that there is (RFC 9421 2.3).
    let list = vec![ListEntry::InnerList(input.clone())];
    let parameters = list
        .serialize()
        .ok_or(SignatureError::Malformed("the list of components is empty"))?;
    base.push_str("\"@signature-params\": ");
    base.push_str(&parameters);
    Ok(base)
}

/// The value of a `Content-Digest` header for a body (RFC 9530 2).
pub fn content_digest_header(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
}

/// Compares `Content-Digest` with the body: SHA-256 or SHA-512 must be there, each at most once, and every one of them right.
///
/// # Errors
/// [`SignatureError::ContentDigest`] or [`SignatureError::ContentDigestMismatch`].
pub fn check_content_digest(header: &str, body: &[u8]) -> Result<(), SignatureError> {
    let is_long = header.len() > MAX_HEADER_BYTES;
    // A dictionary keeps the last of two equal keys; another reader may keep the first.
    let is_twice = |name: &str| header.matches(name).count() > 1;
    if is_long || is_twice("sha-256=") || is_twice("sha-512=") {
        return Err(SignatureError::ContentDigest);
    }
    let digests = parse(header).ok_or(SignatureError::ContentDigest)?;
    let mut is_proven = false;
    for (name, value) in &digests {
        let computed = match name.as_str() {
            "sha-256" => Sha256::digest(body).to_vec(),
            "sha-512" => Sha512::digest(body).to_vec(),
            _ => continue,
        };
        let claimed = match value {
            ListEntry::Item(item) => item.bare_item.as_byte_sequence(),
            ListEntry::InnerList(_) => None,
        };
        match claimed.ok_or(SignatureError::ContentDigest)? {
            claimed if claimed == computed => is_proven = true,
            _ => return Err(SignatureError::ContentDigestMismatch),
        }
    }
    match is_proven {
        true => Ok(()),
        false => Err(SignatureError::ContentDigest),
    }
}

/// What the relay signs by RFC 9421 on a POST, and how it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The signature base: what the key signs.
    pub base: String,
    /// The value of `Signature-Input`.
    pub input: String,
}

impl Outgoing {
    /// A POST to `target_uri` with this `Content-Digest`, created now. The key id is an https URL of the relay's own.
    pub fn post(target_uri: &str, content_digest: &str, key_id: &str, created: i64) -> Self {
        let covered = POST_COVERED.map(|name| format!("\"{name}\"")).join(" ");
        let parameters = format!("({covered});created={created};keyid=\"{key_id}\";alg=\"rsa-v1_5-sha256\"");
        let base = format!(
            "\"@method\": POST\n\"@target-uri\": {target_uri}\n\"content-digest\": {content_digest}\n\
             \"@signature-params\": {parameters}"
        );
        Self {
            base,
            input: format!("sig1={parameters}"),
        }
    }

    /// The value of `Signature` over a finished signature.
    pub fn signature_header(signature: &[u8]) -> String {
        format!("sig1=:{}:", STANDARD.encode(signature))
    }
}

/// Whether an answer's `Accept-Signature` (RFC 9421 5.1) asks for a signature that the relay makes: it wants nothing covered
/// that the relay does not cover.
pub fn is_asked_for(accept_signature: &str) -> bool {
    if accept_signature.len() > MAX_HEADER_BYTES {
        return false;
    }
    let Some(wishes) = parse(accept_signature) else {
        return false;
    };
    wishes.values().take(MAX_LABELS).any(|wish| match wish {
        ListEntry::InnerList(wish) => {
            component_names(wish).is_ok_and(|names| names.iter().all(|name| POST_COVERED.contains(name)))
        }
        ListEntry::Item(_) => false,
    })
}
