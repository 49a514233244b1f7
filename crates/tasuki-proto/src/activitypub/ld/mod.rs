//! Linked Data signatures (`RsaSignature2017`): what has to be verified so that an activity is believed although somebody
//! else brings it.
//!
//! The signature covers the graph that the document says, not its bytes: `sha256(options) + sha256(document)`, both in
//! canonical N-Quads (URDNA2015), as Mastodon and Misskey make them. Expansion is `oxjsonld`'s; contexts come from a table
//! built in ([`contexts`]); canonicalization is bounded ([`canon`]). RSA is the engine's.
//!
//! **Invariant:** what is verified is what was read: type, actor, object and addressing of the JSON are in the signed graph,
//! once each (GHSA-2vxv-pv3m-3wvj, CVE-2022-24307).

mod canon;
mod contexts;

use std::collections::HashMap;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oxjsonld::{JsonLdParser, JsonLdRemoteDocument};
use oxrdf::{GraphName, NamedOrBlankNode, Quad};
use serde_json::{Map, Value, json};

use self::canon::{Term, Triple};
use self::contexts::{AS, UNDEFINED};
use super::activity::{Activity, Addressing, Kind, Object, has_graph_marks, type_of};
use super::date;
use super::ids::{IdError, KeyId};

/// Statements of one document: a post with a thousand mentions has fewer.
const MAX_TRIPLES: usize = 8_000;
/// Things without a name in one document.
const MAX_BLANKS: usize = 2_000;
/// Longest signature, in bytes of base64: RSA-8192 takes 1368.
const MAX_SIGNATURE_BYTES: usize = 2_048;
const RDF_TYPE: &str = "http://www.w3.org/1999/02/22-rdf-syntax-ns#type";

/// Why a Linked Data signature proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LdError {
    /// There is none.
    #[error("the activity has no Linked Data signature")]
    Absent,
    /// Another kind than `RsaSignature2017`.
    #[error("the Linked Data signature is of type {0:?}, only RsaSignature2017 is known here")]
    Kind(String),
    /// A part is missing or not readable.
    #[error("the Linked Data signature has no usable {0:?}")]
    Part(&'static str),
    /// The creator is not the URL of a key.
    #[error("the creator of the Linked Data signature is not usable: {0}")]
    Creator(IdError),
    /// Past its own end.
    #[error("the Linked Data signature has expired")]
    Expired,
    /// The document has no context, so its words have no meaning to sign.
    #[error("the signed document has no @context")]
    NoContext,
    /// A context that is not built in.
    #[error("the signed document uses the context {0:?}, which is not among those built in here")]
    UnknownContext(String),
    /// A context of the document's own that is not accepted.
    #[error("the signed document's own context is not accepted: {0}")]
    Context(String),
    /// `@graph`, `@included`, `@reverse`, or names of blank nodes.
    #[error("the signed document uses {0}, which reads differently as JSON and as linked data")]
    Form(&'static str),
    /// More than is worth the work.
    #[error("the signed document has too many {0}")]
    TooMuch(&'static str),
    /// Not JSON-LD.
    #[error("the signed document is not JSON-LD: {0}")]
    Syntax(String),
    /// The JSON says another thing than the graph.
    #[error("the signed document says something else about {0:?} as linked data than as JSON")]
    Differs(&'static str),
}

/// What has to be verified with the creator's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LdSigned {
    /// Whose key signed.
    pub creator: KeyId,
    /// The signature.
    pub signature: Vec<u8>,
    /// The texts that it may be over, RSA-PKCS1-v1.5 with SHA-256; one is enough. There are several where programs differ:
    /// control characters in texts, capital letters in languages.
    pub messages: Vec<String>,
}

/// The key that an activity's Linked Data signature names, without any of the work.
///
/// # Errors
/// [`LdError`] when there is no usable signature.
pub fn creator(document: &Value) -> Result<KeyId, LdError> {
    let signature = match document.get("signature") {
        None | Some(Value::Null) => return Err(LdError::Absent),
        Some(Value::Object(signature)) => signature,
        Some(_) => return Err(LdError::Part("signature")),
    };
    match type_of(signature) {
        Some("RsaSignature2017") => {}
        Some(other) => return Err(LdError::Kind(other.chars().take(64).collect())),
        None => return Err(LdError::Part("type")),
    }
    let creator = signature
        .get("creator")
        .and_then(Value::as_str)
        .ok_or(LdError::Part("creator"))?;
    KeyId::parse(creator).map_err(LdError::Creator)
}

/// Reads the signature of `document`, which was read as `activity`. Canonicalizes: run it where CPU may be burnt.
///
/// # Errors
/// [`LdError`] says why the signature proves nothing.
pub fn read(document: &Value, activity: &Activity, now: SystemTime) -> Result<LdSigned, LdError> {
    let creator = creator(document)?;
    let Some(mut map) = document.as_object().cloned() else {
        return Err(LdError::Absent);
    };
    let Some(Value::Object(mut options)) = map.remove("signature") else {
        return Err(LdError::Absent);
    };
    let signature = options
        .get("signatureValue")
        .and_then(Value::as_str)
        .filter(|text| text.len() <= MAX_SIGNATURE_BYTES)
        .and_then(|text| STANDARD.decode(text).ok())
        .ok_or(LdError::Part("signatureValue"))?;
    let instant = |key| {
        options
            .get(key)
            .and_then(Value::as_str)
            .and_then(date::parse_timestamp)
    };
    instant("created").ok_or(LdError::Part("created"))?;
    match options.get("expires") {
        None | Some(Value::Null) => {}
        Some(_) => match instant("expires") {
            Some(end) if end >= now => {}
            Some(_) => return Err(LdError::Expired),
            None => return Err(LdError::Part("expires")),
        },
    }
    for key in ["type", "id", "signatureValue", "@context"] {
        options.remove(key);
    }
    if options
        .values()
        .any(|value| !value.is_string() && !value.is_null())
    {
        return Err(LdError::Part("options"));
    }
    options.insert("@context".into(), json!(contexts::OPTIONS_CONTEXT));
    let options = Graph::of(&options)?.canonical(Reading::default())?;

    check_form(&map)?;
    contexts::check(&map)?;
    let graph = Graph::of(&map)?;
    graph.agrees_with(activity)?;
    let options = canon::sha256_hex(&options);
    let mut messages = Vec::with_capacity(1);
    for reading in Reading::all(&map, &graph) {
        let message = format!("{options}{}", canon::sha256_hex(&graph.canonical(reading)?));
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    Ok(LdSigned {
        creator,
        signature,
        messages,
    })
}

/// Forms that two readers understand differently.
fn check_form(map: &Map<String, Value>) -> Result<(), LdError> {
    if map.iter().any(|(key, value)| {
        matches!(key.as_str(), "@graph" | "@included" | "@reverse") || has_graph_marks(value)
    }) {
        return Err(LdError::Form("@graph, @included or @reverse"));
    }
    no_blank_names(map)
}

/// A blank node with a name can stand in several places: only trees are read here.
fn no_blank_names(map: &Map<String, Value>) -> Result<(), LdError> {
    map.iter().try_for_each(|(key, value)| {
        let is_id = matches!(key.as_str(), "id" | "@id" | "type" | "@type");
        match value {
            Value::String(text) if is_id && (text.starts_with("_:") || text.starts_with(UNDEFINED)) => {
                Err(LdError::Form("names of blank nodes"))
            }
            Value::Object(inner) => no_blank_names(inner),
            Value::Array(items) => items
                .iter()
                .filter_map(Value::as_object)
                .try_for_each(no_blank_names),
            _ => Ok(()),
        }
    })
}

/// In what programs differ when they write a literal.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    /// Escape all control characters (RDFC-1.0), not only those that break lines (URDNA2015).
    all_controls: bool,
    /// Languages in lower case, not as written.
    lower_languages: bool,
}

impl Reading {
    fn all(map: &Map<String, Value>, graph: &Graph) -> Vec<Self> {
        let controls = graph.has_controls();
        let languages = !graph.capitals.is_empty() && !map.is_empty();
        let both = [false, true];
        both.iter()
            .flat_map(|&all_controls| {
                both.map(|lower_languages| Self {
                    all_controls,
                    lower_languages,
                })
            })
            .filter(|r| (controls || !r.all_controls) && (languages || !r.lower_languages))
            .collect()
    }
}

/// What a document says.
struct Graph {
    quads: Vec<Quad>,
    /// Languages written with capitals, by their lower-case form, which is all that the quads keep.
    capitals: HashMap<String, String>,
}

impl Graph {
    fn of(map: &Map<String, Value>) -> Result<Self, LdError> {
        let text = serde_json::to_vec(map).map_err(|e| LdError::Syntax(e.to_string()))?;
        let parser = JsonLdParser::new()
            .for_slice(&text)
            .with_load_document_callback(|url, _| {
                let document = contexts::known(url).ok_or("not a context that is built in")?;
                Ok(JsonLdRemoteDocument {
                    document: document.as_bytes().to_vec(),
                    document_url: url.to_owned(),
                })
            });
        let mut quads = Vec::new();
        for quad in parser {
            let quad = quad.map_err(|e| LdError::Syntax(e.to_string().chars().take(200).collect()))?;
            if quad.graph_name != GraphName::DefaultGraph {
                return Err(LdError::Form("named graphs"));
            }
            if quads.len() >= MAX_TRIPLES {
                return Err(LdError::TooMuch("statements"));
            }
            quads.push(quad);
        }
        let mut capitals = HashMap::new();
        find_capitals(map, &mut capitals);
        capitals.retain(|lower, _| quads.iter().any(|quad| language_of(quad) == Some(lower)));
        Ok(Self { quads, capitals })
    }

    fn has_controls(&self) -> bool {
        self.quads.iter().any(|quad| match &quad.object {
            oxrdf::Term::Literal(literal) => literal
                .value()
                .chars()
                .any(|c| c.is_ascii_control() && !matches!(c, '\n' | '\r')),
            _ => false,
        })
    }

    fn canonical(&self, reading: Reading) -> Result<String, LdError> {
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut blank = |name: &str| {
            let next = numbers.len();
            Term::Blank(*numbers.entry(name.to_owned()).or_insert(next))
        };
        let mut triples = Vec::with_capacity(self.quads.len());
        for quad in self
            .quads
            .iter()
            .filter(|quad| !quad.predicate.as_str().starts_with(UNDEFINED))
        {
            triples.push(Triple {
                subject: match &quad.subject {
                    NamedOrBlankNode::NamedNode(node) => Term::Fixed(node.to_string()),
                    NamedOrBlankNode::BlankNode(node) => blank(node.as_str()),
                },
                predicate: quad.predicate.to_string(),
                object: match &quad.object {
                    oxrdf::Term::NamedNode(node) if node.as_str().starts_with(UNDEFINED) => {
                        blank(node.as_str())
                    }
                    oxrdf::Term::NamedNode(node) => Term::Fixed(node.to_string()),
                    oxrdf::Term::BlankNode(node) => blank(node.as_str()),
                    oxrdf::Term::Literal(literal) => Term::Fixed(self.literal(literal, reading)),
                },
            });
        }
        if numbers.len() > MAX_BLANKS {
            return Err(LdError::TooMuch("things without an id"));
        }
        canon::canonicalize(&triples, numbers.len())
    }

    fn literal(&self, literal: &oxrdf::Literal, reading: Reading) -> String {
        let value = canon::escape(literal.value(), reading.all_controls);
        if let Some(language) = literal.language() {
            let written = self.capitals.get(language).filter(|_| !reading.lower_languages);
            return format!("\"{value}\"@{}", written.map_or(language, String::as_str));
        }
        let datatype = literal.datatype();
        if datatype.as_str() == "http://www.w3.org/2001/XMLSchema#string" {
            format!("\"{value}\"")
        } else {
            format!("\"{value}\"^^{datatype}")
        }
    }

    /// The values of one property of one thing, IRIs in angle brackets.
    fn values(&self, subject: &str, predicate: &str) -> Vec<String> {
        let is_subject = |quad: &Quad| match &quad.subject {
            NamedOrBlankNode::NamedNode(node) => node.as_str() == subject,
            NamedOrBlankNode::BlankNode(_) => false,
        };
        self.quads
            .iter()
            .filter(|quad| is_subject(quad) && quad.predicate.as_str() == predicate)
            .map(|quad| quad.object.to_string())
            .collect()
    }

    /// The graph says of the activity what its JSON says.
    fn agrees_with(&self, activity: &Activity) -> Result<(), LdError> {
        let term = |name: &str| format!("{AS}{name}");
        let iri = |id: &str| format!("<{id}>");
        let id = activity.id.as_str();
        let only = |what: &'static str, found: &[String], wanted: &str| match found {
            [one] if one == wanted => Ok(()),
            _ => Err(LdError::Differs(what)),
        };
        if activity.kind != Kind::Other {
            only(
                "type",
                &self.values(id, RDF_TYPE),
                &iri(&term(activity.kind.as_str())),
            )?;
        }
        only(
            "actor",
            &self.values(id, &term("actor")),
            &iri(activity.actor.as_str()),
        )?;
        self.agrees_on_public(id, activity.addressing)?;
        let objects = self.values(id, &term("object"));
        let Some(object_id) = activity.object.as_ref().and_then(Object::id) else {
            return Ok(());
        };
        only("object", &objects, &iri(object_id.as_str()))?;
        let Some(embedded) = activity.object.as_ref().and_then(Object::embedded) else {
            return Ok(());
        };
        self.agrees_on_public(object_id.as_str(), embedded.addressing)?;
        if let Some(author) = &embedded.attributed_to {
            let found = self.values(object_id.as_str(), &term("attributedTo"));
            if !found.contains(&iri(author.as_str())) {
                return Err(LdError::Differs("attributedTo"));
            }
        }
        Ok(())
    }

    fn agrees_on_public(&self, subject: &str, addressing: Addressing) -> Result<(), LdError> {
        let has_public = |list: &str| {
            self.values(subject, &format!("{AS}{list}"))
                .iter()
                .any(|value| *value == format!("<{AS}Public>"))
        };
        match (has_public("to"), addressing.public_in_to) {
            (true, true) | (false, false) => Ok(()),
            _ => Err(LdError::Differs("to")),
        }
    }
}

fn language_of(quad: &Quad) -> Option<&str> {
    match &quad.object {
        oxrdf::Term::Literal(literal) => literal.language(),
        _ => None,
    }
}

/// Languages as they are written: keys of language maps, and `@language`.
fn find_capitals(map: &Map<String, Value>, found: &mut HashMap<String, String>) {
    let mut note = |text: &str| {
        let is_tag = text.len() <= 32 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if is_tag && text.bytes().any(|b| b.is_ascii_uppercase()) {
            found
                .entry(text.to_ascii_lowercase())
                .or_insert_with(|| text.to_owned());
        }
    };
    for (key, value) in map {
        note(key);
        if let ("@language", Value::String(text)) = (key.as_str(), value) {
            note(text);
        }
    }
    for value in map.values() {
        match value {
            Value::Object(inner) => find_capitals(inner, found),
            Value::Array(items) => items
                .iter()
                .filter_map(Value::as_object)
                .for_each(|m| find_capitals(m, found)),
            _ => {}
        }
    }
}
