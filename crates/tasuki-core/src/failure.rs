//! What a failed delivery says: final or not, whose fault, in whose words.

use std::time::Duration;

/// An error of any kind, kept as a cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A delivery that did not succeed, with all that the queue needs to go on.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.reply.as_ref().map_or("delivery failed", |r| r.text.as_str()))]
pub struct Failure {
    /// Whether to try again.
    pub verdict: Verdict,
    /// Whose fault it was. Only [`Blame::Peer`] judges the unit itself (invariant 9).
    pub blame: Blame,
    /// The peer's own words, if it said any.
    pub reply: Option<Reply>,
    /// The cause; logged where the failure is handled, never shown to peers.
    #[source]
    pub source: Option<BoxError>,
}

/// Whether another attempt makes sense. What is unknown is [`Verdict::Retry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again, not before the given time if the peer named one.
    Retry {
        /// The peer's wish (`Retry-After`), if any.
        not_before: Option<Duration>,
    },
    /// Never try again.
    Permanent,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The far end judged this very unit.
    Peer,
    /// The way there failed: connection, TLS, login, name lookup.
    Route,
    /// We failed: disk, clock, our own network.
    Us,
}

/// What the peer answered, escaped for logs and reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// SMTP or HTTP status code.
    pub code: u16,
    /// RFC 3463 enhanced code such as `5.1.1`, if given.
    pub enhanced: Option<String>,
    /// Printable text, at most 1,000 bytes.
    pub text: String,
}

impl Failure {
    /// The way there failed; try again.
    pub fn route(source: impl Into<BoxError>) -> Self {
        Self {
            verdict: Verdict::Retry { not_before: None },
            blame: Blame::Route,
            reply: None,
            source: Some(source.into()),
        }
    }

    /// We failed; try again.
    pub fn us(source: impl Into<BoxError>) -> Self {
        Self {
            verdict: Verdict::Retry { not_before: None },
            blame: Blame::Us,
            reply: None,
            source: Some(source.into()),
        }
    }
}
