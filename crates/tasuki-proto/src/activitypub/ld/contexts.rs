//! The JSON-LD contexts that are known here, and what a document may say in contexts of its own.
//!
//! A context from elsewhere is never fetched: whoever serves it could change what a signed document means. One written into
//! the document may add terms, and may not turn the known ones around: what is read as JSON here and by receivers must be
//! what was signed.

use std::collections::HashSet;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::LdError;

/// The namespace of ActivityStreams.
pub(super) const AS: &str = "https://www.w3.org/ns/activitystreams#";
/// Contexts in one document, those of embedded objects included: each costs the work of all its terms.
const MAX_CONTEXTS: usize = 24;
/// Terms that a document adds itself.
const MAX_TERMS: usize = 400;

/// The prefix under which words without a meaning come out of the ActivityStreams context. The context itself makes blank
/// nodes of them (`"@vocab": "_:"`): as properties they are then left out, with what is below them kept, and as types they
/// are things without a name. A prefix of our own lets us do exactly that.
pub(super) const UNDEFINED: &str = "undefined-here:";

const ACTIVITYSTREAMS: &str = include_str!("contexts/activitystreams.json");
const SECURITY: &str = include_str!("contexts/security-v1.json");
/// What `identity/v1` says about a signature's options; the site that had it is gone.
const IDENTITY: &str = include_str!("contexts/identity-v1.json");

/// The context under which the options of a signature are read.
pub(super) const OPTIONS_CONTEXT: &str = "https://w3id.org/identity/v1";

/// The text of a known context. Mastodon, Misskey and their kin name them in these spellings.
pub(super) fn known(url: &str) -> Option<&'static str> {
    let bare = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))?;
    match bare {
        "www.w3.org/ns/activitystreams" | "www.w3.org/ns/activitystreams#" => Some(ACTIVITYSTREAMS),
        "w3id.org/security/v1" => Some(SECURITY),
        "w3id.org/identity/v1" => Some(IDENTITY),
        _ => None,
    }
}

/// Checks every context of a document, wherever it stands.
pub(super) fn check(document: &Map<String, Value>) -> Result<(), LdError> {
    let mut counts = Counts::default();
    if !document.contains_key("@context") {
        return Err(LdError::NoContext);
    }
    walk_map(document, &mut counts)
}

#[derive(Default)]
struct Counts {
    contexts: usize,
    terms: usize,
}

fn walk(value: &Value, counts: &mut Counts) -> Result<(), LdError> {
    match value {
        Value::Object(map) => walk_map(map, counts),
        Value::Array(items) => items.iter().try_for_each(|item| walk(item, counts)),
        _ => Ok(()),
    }
}

fn walk_map(map: &Map<String, Value>, counts: &mut Counts) -> Result<(), LdError> {
    map.iter().try_for_each(|(key, value)| match key.as_str() {
        "@context" => context(value, counts),
        _ => walk(value, counts),
    })
}

fn context(value: &Value, counts: &mut Counts) -> Result<(), LdError> {
    counts.contexts += 1;
    if counts.contexts > MAX_CONTEXTS {
        return Err(LdError::TooMuch("contexts"));
    }
    match value {
        Value::String(url) if known(url).is_some() => Ok(()),
        Value::String(url) => Err(LdError::UnknownContext(url.chars().take(200).collect())),
        Value::Array(many) if many.iter().all(|one| !one.is_array()) => {
            many.iter().try_for_each(|one| context(one, counts))
        }
        Value::Object(terms) => {
            counts.terms += terms.len();
            if counts.terms > MAX_TERMS {
                return Err(LdError::TooMuch("terms in contexts"));
            }
            terms
                .iter()
                .try_for_each(|(term, meaning)| check_term(term, meaning))
        }
        _ => Err(LdError::Context(
            "a context that is neither a URL nor an object".into(),
        )),
    }
}

/// A term of a document's own: a name for an IRI, perhaps with a type and a container, and nothing that changes how other
/// terms are read.
fn check_term(term: &str, meaning: &Value) -> Result<(), LdError> {
    let refuse = |why: &str| {
        let term: String = term.chars().take(80).collect();
        Err(LdError::Context(format!("the term {term:?} {why}")))
    };
    if term.starts_with('@') {
        return match (term, meaning) {
            ("@language", Value::String(_) | Value::Null) => Ok(()),
            ("@version", Value::Number(version)) if version.as_f64() == Some(1.1) => Ok(()),
            _ => refuse("is not allowed in a document's own context"),
        };
    }
    let iri = match meaning {
        Value::String(iri) => iri.as_str(),
        Value::Object(parts) => {
            let is_plain = parts.iter().all(|(key, value)| {
                matches!(key.as_str(), "@id" | "@type" | "@container") && value.is_string()
            });
            let Some(iri) = parts.get("@id").and_then(Value::as_str).filter(|_| is_plain) else {
                return refuse("is defined in a form that is not read here");
            };
            iri
        }
        _ => return refuse("is defined in a form that is not read here"),
    };
    if matches!((term, iri), ("id", "@id") | ("type", "@type")) {
        return Ok(());
    }
    if iri.starts_with('@') {
        return refuse("stands for a keyword");
    }
    if is_reserved(term) && !is_itself(term, iri) {
        return refuse("is given another meaning than ActivityStreams gives it");
    }
    Ok(())
}

fn is_itself(term: &str, iri: &str) -> bool {
    let name = iri.strip_prefix("as:").or_else(|| iri.strip_prefix(AS));
    name == Some(term)
        || (term == "as" && iri == AS)
        || (term == "xsd" && iri == "http://www.w3.org/2001/XMLSchema#")
        || (term == "ldp" && iri == "http://www.w3.org/ns/ldp#")
        || (term == "inbox" && matches!(iri, "ldp:inbox" | "http://www.w3.org/ns/ldp#inbox"))
        || (term == "vcard" && iri == "http://www.w3.org/2006/vcard/ns#")
}

/// Terms of the ActivityStreams context: activities are judged by them, and filters read them.
fn is_reserved(term: &str) -> bool {
    static TERMS: OnceLock<HashSet<String>> = OnceLock::new();
    TERMS
        .get_or_init(|| {
            let context: Value = serde_json::from_str(ACTIVITYSTREAMS).unwrap_or_default();
            context["@context"]
                .as_object()
                .map(|terms| terms.keys().cloned().collect())
                .unwrap_or_default()
        })
        .contains(term)
}
