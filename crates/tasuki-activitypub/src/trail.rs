//! The last judgements of the inbox, for the operator's question "why".
//!
//! Kept in memory only, and bounded: it answers about what happened lately, not about history.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tasuki_core::clock::Timestamp;
use tasuki_proto::activitypub::ids::Authority;
use url::Url;

/// Judgements kept.
const MAX_KEPT: usize = 5_000;
/// Longest text of one field, in characters.
const MAX_CHARS: usize = 300;

/// What became of one request to the inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// When.
    pub at: Timestamp,
    /// From which address.
    pub from: String,
    /// The id of the key that signed the request, once that was read.
    pub signer: Option<String>,
    /// The activity's type.
    pub kind: Option<String>,
    /// The activity's id.
    pub id: Option<String>,
    /// Who did it.
    pub actor: Option<String>,
    /// What it is about.
    pub object: Option<String>,
    /// The status that was answered.
    pub status: u16,
    /// What became of it, in one word.
    pub outcome: String,
    /// Why, in words.
    pub reason: String,
}

impl Judged {
    /// Whether it is about this id or URL, or this host or one below it.
    fn is_about(&self, wanted: &str) -> bool {
        let names = [&self.id, &self.actor, &self.object, &self.signer];
        let mut names = names.into_iter().flatten();
        if wanted.contains("://") {
            return names.any(|name| name == wanted || name.split('#').next() == Some(wanted));
        }
        names.any(|name| {
            let authority = Url::parse(name).ok().and_then(|url| Authority::of(&url));
            authority.is_some_and(|host| host.as_str() == wanted || host.is_within(wanted))
        })
    }
}

/// The last judgements.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    lines: Mutex<VecDeque<Judged>>,
}

impl Trail {
    pub(crate) fn add(&self, mut judged: Judged) {
        for text in [
            &mut judged.signer,
            &mut judged.id,
            &mut judged.actor,
            &mut judged.object,
        ] {
            *text = text.take().map(|text| text.chars().take(MAX_CHARS).collect());
        }
        judged.reason = judged.reason.chars().take(MAX_CHARS).collect();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= MAX_KEPT {
            lines.pop_front();
        }
        lines.push_back(judged);
    }

    /// What is known about an id, a URL or a host, newest first.
    pub(crate) fn about(&self, wanted: &str, n: usize) -> Vec<Judged> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lines.iter().rev().filter(|line| line.is_about(wanted));
        found.take(n).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Judged, MAX_KEPT, Trail};

    #[test]
    fn the_trail_is_bounded_and_finds_ids_urls_and_hosts() {
        let trail = Trail::default();
        for number in 0..=MAX_KEPT {
            trail.add(Judged {
                id: Some(format!("https://a.example/{number}")),
                signer: Some("https://relay.b.example/actor#main-key".into()),
                reason: "x".repeat(1000),
                ..Judged::default()
            });
        }
        assert!(
            trail.about("https://a.example/0", 9).is_empty(),
            "the oldest is gone"
        );
        assert_eq!(trail.about("https://a.example/5", 9).len(), 1);
        assert_eq!(trail.about("https://relay.b.example/actor", 9).len(), 9);
        assert_eq!(trail.about("b.example", 3).len(), 3);
        assert!(trail.about("notb.example", 3).is_empty());
        assert_eq!(trail.about("a.example", 1)[0].reason.len(), 300);
    }
}
