//! The last judgements of the inbox, for the operator's question "why".
//!
//! Kept in memory only, and bounded: it answers about what happened lately, not about history.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use serde::Serialize;
use tasuki_core::clock::Timestamp;
use tasuki_proto::activitypub::ids::Authority;
use url::Url;

/// Judgements kept.
const MAX_KEPT: usize = 5_000;
/// Attempts kept.
const MAX_SENT: usize = 2_000;
/// Explanations kept for a moment.
const MAX_EXPLANATIONS: u64 = 1_000;
/// Hosts watched at once, and how long after each question.
const MAX_WATCHED: usize = 20;
const WATCH: Duration = Duration::from_secs(30);
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

/// What became of one attempt to send something to a host that somebody watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// When.
    pub at: Timestamp,
    /// To whom.
    pub host: String,
    /// What it is about.
    pub object: String,
    /// What became of it, in one word.
    pub outcome: &'static str,
    /// Why, in words.
    pub reason: String,
}

/// One line of what happens with a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum Line {
    /// A request to the inbox.
    Received(Judged),
    /// An attempt to send.
    Sent(Sent),
}

#[derive(Debug, Default)]
struct Lines {
    judged: VecDeque<(u64, Judged)>,
    sent: VecDeque<(u64, Sent)>,
    /// The number of the next line, of both kinds.
    next: u64,
    /// Watched hosts, until when.
    watched: HashMap<String, Timestamp>,
}

#[derive(Debug)]
struct Explanations(Cache<String, String>);

impl Default for Explanations {
    fn default() -> Self {
        Self(Cache::new(MAX_EXPLANATIONS))
    }
}

/// The last judgements, and the last attempts at hosts that are watched.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    lines: Mutex<Lines>,
    /// More about judgements that are still being made, by the activity's id.
    explanations: Explanations,
    /// Whether anybody watches: read for each delivery.
    is_watching: AtomicBool,
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
        let mut lines = self.lock();
        if lines.judged.len() >= MAX_KEPT {
            lines.judged.pop_front();
        }
        let number = lines.next;
        lines.next += 1;
        lines.judged.push_back((number, judged));
    }

    /// Says more about what becomes of an activity; it is added to its judgement.
    pub(crate) fn explain(&self, id: &str, why: String) {
        self.explanations.0.insert(id.to_owned(), why);
    }

    /// What was said, once.
    pub(crate) fn explanation(&self, id: &str) -> Option<String> {
        self.explanations.0.remove(id)
    }

    /// Whether attempts at this host are to be told.
    pub(crate) fn is_watched(&self, host: &str) -> bool {
        self.is_watching.load(Ordering::Relaxed) && self.lock().watched.contains_key(host)
    }

    /// An attempt at a watched host ended.
    pub(crate) fn sent(
        &self,
        host: &str,
        object: &str,
        at: Timestamp,
        (outcome, reason): (&'static str, String),
    ) {
        let mut lines = self.lock();
        if lines.sent.len() >= MAX_SENT {
            lines.sent.pop_front();
        }
        let number = lines.next;
        lines.next += 1;
        let sent = Sent {
            at,
            host: host.to_owned(),
            object: object.chars().take(MAX_CHARS).collect(),
            outcome,
            reason: reason.chars().take(MAX_CHARS).collect(),
        };
        lines.sent.push_back((number, sent));
    }

    /// What happened with a host since line `after` (from now on, without one), oldest first, and the number to go on from.
    /// The host is watched for a while from now.
    pub(crate) fn follow(&self, host: &str, after: Option<u64>, now: Timestamp) -> (Vec<Line>, u64) {
        let mut lines = self.lock();
        lines.watched.retain(|_, until| *until > now);
        if lines.watched.len() < MAX_WATCHED || lines.watched.contains_key(host) {
            lines.watched.insert(host.to_owned(), now.plus(WATCH));
        }
        self.is_watching.store(true, Ordering::Relaxed);
        let Some(after) = after else {
            return (Vec::new(), lines.next);
        };
        let received = lines
            .judged
            .iter()
            .rev()
            .take_while(|(number, _)| *number >= after)
            .filter(|(_, judged)| judged.is_about(host))
            .map(|(number, judged)| (*number, Line::Received(judged.clone())));
        let sent = lines
            .sent
            .iter()
            .rev()
            .take_while(|(number, _)| *number >= after)
            .filter(|(_, sent)| sent.host == host)
            .map(|(number, sent)| (*number, Line::Sent(sent.clone())));
        let mut found: Vec<(u64, Line)> = received.chain(sent).collect();
        found.sort_by_key(|(number, _)| *number);
        (found.into_iter().map(|(_, line)| line).collect(), lines.next)
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known about an id, a URL or a host, newest first.
    pub(crate) fn about(&self, wanted: &str, n: usize) -> Vec<Judged> {
        let lines = self.lock();
        let judged = lines.judged.iter().rev().map(|(_, judged)| judged);
        judged
            .filter(|line| line.is_about(wanted))
            .take(n)
            .cloned()
            .collect()
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
