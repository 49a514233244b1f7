//! The pure half of the fediverse relay: reading, judging and writing what goes over the wire.
//!
//! What it does: strict reading of activities ([`json`], [`activity`]), names that compare safely ([`ids`]),
//! HTTP signatures ([`cavage`], [`message_signature`]), signed documents ([`ld`], [`proof`]), the subscription machine ([`subscription`]), the table that says what is
//! sent to whom ([`decision`]), and every document that the relay serves or sends ([`documents`]).
//! What it does not: sockets, keys, time of day, storage. Time is an argument, keys belong to the engine.
//!
//! **Invariant:** whatever a peer sends, every function here returns; none panics, and none keeps more than a fixed
//! multiple of its input.
//!
//! Texts: FEP-ae0c (relay protocols), ActivityPub (W3C), draft-cavage-http-signatures-12, RFC 7033 (WebFinger),
//! NodeInfo 2.0 and 2.1.

pub mod activity;
pub mod actor;
pub mod blocklist;
pub mod cavage;
pub mod date;
pub mod decision;
pub mod documents;
pub mod ids;
pub mod jcs;
pub mod json;
pub mod ld;
pub mod media;
pub mod message_signature;
pub mod multikey;
pub mod proof;
pub mod software;
pub mod subscription;
pub mod topic;
pub mod traits;
pub mod words;

/// The collection that means "everybody" (ActivityPub 5.6).
pub const PUBLIC: &str = "https://www.w3.org/ns/activitystreams#Public";

/// The JSON-LD context of every ActivityStreams document.
pub const CONTEXT: &str = "https://www.w3.org/ns/activitystreams";

/// Whether `text` is one of the three spellings of the Public collection that are in use (ActivityPub 5.6 names the
/// last two as results of JSON-LD compaction).
pub fn is_public(text: &str) -> bool {
    matches!(text, PUBLIC | "as:Public" | "Public")
}

#[cfg(test)]
mod tests;
