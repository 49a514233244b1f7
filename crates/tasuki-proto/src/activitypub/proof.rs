//! Object integrity proofs (FEP-8b32): a document signed by its actor with `eddsa-jcs-2022`, which whoever brings it cannot
//! change. Reading a proof and the message it signs; the Ed25519 signature itself is the engine's part.
//!
//! **Invariant:** a proof counts only for a document that everybody reads alike, for the purpose `assertionMethod`, by a key on
//! the actor's own host.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::activity::{Activity, has_graph_marks};
use super::ids::KeyId;
use super::jcs::Members;
use super::{date, jcs, multikey};

/// How far a peer's clock may be ahead.
const MAX_AHEAD: Duration = Duration::from_secs(300);
/// Most proofs looked at.
const MAX_PROOFS: usize = 4;

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// None there that can be verified.
    #[error("the document has no proof by eddsa-jcs-2022")]
    Absent,
    /// `@graph`, `@included` or `@reverse`: two readers would see two documents.
    #[error("the document hides parts of itself by @graph, @included or @reverse")]
    Graph,
    /// For another purpose.
    #[error("the proof's purpose is not assertionMethod")]
    Purpose,
    /// `verificationMethod` is no URL, or on another host than the actor.
    #[error("the proof's verificationMethod is not a key on the actor's host")]
    Method,
    /// Something in it is not in the right form.
    #[error("the proof has no usable {0}")]
    Form(&'static str),
    /// The proof speaks of another vocabulary than the document.
    #[error("the proof's @context is not the document's")]
    Context,
    /// From the future.
    #[error("the proof's time is more than five minutes ahead")]
    Ahead,
    /// Too late.
    #[error("the proof has expired")]
    Expired,
}

/// A proof that satisfies the rules; what remains is the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Whose key to verify with.
    pub key_id: KeyId,
    /// What may have been signed: the document, or the document before an RsaSignature2017 was added to it.
    pub messages: Vec<Vec<u8>>,
    /// The Ed25519 signature.
    pub signature: Vec<u8>,
}

/// Whether a document carries a proof worth a look: by its form, and by a key on the host of `actor`.
pub(crate) fn is_offered(map: &Map<String, Value>, host: &super::ids::Authority) -> bool {
    proofs(map).any(|proof| is_known_suite(proof) && method(proof).is_some_and(|key| key.authority() == host))
}

/// Reads the proof of an activity; `document` is what [`super::json::read`] made of `body`.
///
/// # Errors
/// [`ProofError`] names the first rule that is broken.
pub fn read(
    document: &Value,
    body: &[u8],
    activity: &Activity,
    now: SystemTime,
) -> Result<Proof, ProofError> {
    let Value::Object(map) = document else {
        return Err(ProofError::Absent);
    };
    if has_graph_marks(document) {
        return Err(ProofError::Graph);
    }
    let proof = proofs(map)
        .find(|proof| is_known_suite(proof))
        .ok_or(ProofError::Absent)?;
    if proof.get("proofPurpose").and_then(Value::as_str) != Some("assertionMethod") {
        return Err(ProofError::Purpose);
    }
    let key_id = method(proof)
        .filter(|key| key.authority() == activity.actor.authority())
        .ok_or(ProofError::Method)?;
    check_times(proof, now)?;
    if proof.contains_key("previousProof") {
        return Err(ProofError::Form("end: it is a link of a chain"));
    }
    // vc-di-eddsa 3.3.2 allows the document more contexts than the proof; they would not be signed.
    if let Some(context) = proof.get("@context")
        && Some(context) != map.get("@context")
    {
        return Err(ProofError::Context);
    }
    let signature = proof
        .get("proofValue")
        .and_then(Value::as_str)
        .and_then(multikey::decode)
        .filter(|bytes| bytes.len() == 64)
        .ok_or(ProofError::Form("proofValue"))?;
    let written = |part| ProofError::Form(part);
    let members = std::str::from_utf8(body).ok().and_then(Members::read);
    let members = members.ok_or(written("document"))?;
    let options = options_of(&members, map).ok_or(written("options"))?;
    let message = |without: &[&str]| {
        let document = members.canonical_without(without).ok_or(written("document"))?;
        Ok([options.as_slice(), Sha256::digest(document).as_slice()].concat())
    };
    let mut messages = vec![message(&["proof"])?];
    if map.contains_key("signature") {
        messages.push(message(&["proof", "signature"])?);
    }
    Ok(Proof {
        key_id,
        messages,
        signature,
    })
}

/// The hash of the proof without its value, as it was written.
fn options_of(members: &Members<'_>, map: &Map<String, Value>) -> Option<Vec<u8>> {
    let text = members.get("proof")?;
    let text = match map.get("proof")? {
        Value::Array(many) => {
            let is_it = |one: &Value| one.as_object().is_some_and(is_known_suite);
            let place = many.iter().take(MAX_PROOFS).position(is_it)?;
            *jcs::items(text)?.get(place)?
        }
        _ => text,
    };
    let options = Members::read(text)?.canonical_without(&["proofValue"])?;
    Some(Sha256::digest(options).to_vec())
}

fn proofs(map: &Map<String, Value>) -> impl Iterator<Item = &Map<String, Value>> {
    let all = match map.get("proof") {
        Some(Value::Array(many)) => many.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    all.iter().take(MAX_PROOFS).filter_map(Value::as_object)
}

fn is_known_suite(proof: &Map<String, Value>) -> bool {
    let text = |name: &str| proof.get(name).and_then(Value::as_str);
    text("type") == Some("DataIntegrityProof") && text("cryptosuite") == Some("eddsa-jcs-2022")
}

fn method(proof: &Map<String, Value>) -> Option<KeyId> {
    KeyId::parse(proof.get("verificationMethod")?.as_str()?).ok()
}

fn check_times(proof: &Map<String, Value>, now: SystemTime) -> Result<(), ProofError> {
    let time = |name: &'static str| match proof.get(name) {
        None => Ok(None),
        Some(value) => value
            .as_str()
            .and_then(date::parse_timestamp)
            .map(Some)
            .ok_or(ProofError::Form(name)),
    };
    if time("created")?.is_some_and(|at| at > now + MAX_AHEAD) {
        return Err(ProofError::Ahead);
    }
    if time("expires")?.is_some_and(|at| at < now) {
        return Err(ProofError::Expired);
    }
    Ok(())
}
