//! How a delivery is signed: what a host is known to take, what its answers teach, and what is tried in which order.
//!
//! A delivery is sent again under another signature only after `400` or `401`, the answers that speak of a signature, and at
//! most once in each way. What was taken then is remembered: for the scheme in the store, for the relay's key in memory.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tasuki_core::clock::Timestamp;
use tasuki_core::store::fedi::LearntSignature;

use crate::signer::KeyChoice;

/// How often RFC 9421 is tried at a host that did not ask for it.
const KNOCK_PAUSE: Duration = Duration::from_secs(3600);

/// How a host is sent what the relay signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureUse {
    /// One signature for many hosts, where the content allows it.
    Shared,
    /// One signature for each request, by the draft that everybody knows.
    Full,
    /// One signature for each request, by RFC 9421.
    Rfc9421,
}

impl SignatureUse {
    /// What a host is sent, by what was learnt and by whether it may be sent shared signatures.
    pub(crate) fn of(learnt: Option<LearntSignature>, takes_shared: bool) -> Self {
        match learnt {
            Some(LearntSignature::Message) => Self::Rfc9421,
            Some(LearntSignature::Full) => Self::Full,
            None if takes_shared => Self::Shared,
            None => Self::Full,
        }
    }

    /// What is to be remembered when this was taken after `first` was not.
    pub(crate) fn learnt_after(self, first: Self) -> Option<Option<LearntSignature>> {
        match (first, self) {
            (first, taken) if first == taken => None,
            (_, Self::Rfc9421) => Some(Some(LearntSignature::Message)),
            (Self::Shared, Self::Full) => Some(Some(LearntSignature::Full)),
            (Self::Rfc9421, Self::Full) => Some(None),
            _ => None,
        }
    }
}

/// One way to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) signature: SignatureUse,
    pub(crate) key: KeyChoice,
}

/// Whether an answer speaks of the signature, so that another one may be taken.
pub(crate) fn speaks_of_signature(status: u16) -> bool {
    matches!(status, 400 | 401)
}

/// The ways that are left after `tried`, best first. `asks_for_message`: the answer has an `Accept-Signature`, or nothing is
/// known against a try. `has_previous`: the relay's key was changed some days ago.
pub(crate) fn next(tried: &[Style], asks_for_message: bool, has_previous: bool) -> Option<Style> {
    let first = tried.first()?;
    let other_key = match first.key {
        KeyChoice::Current => KeyChoice::Previous,
        KeyChoice::Previous => KeyChoice::Current,
    };
    let mut ways = Vec::with_capacity(4);
    let way = |signature, key| Style { signature, key };
    if has_previous || first.key == KeyChoice::Previous {
        ways.push(way(first.signature, other_key));
    }
    match first.signature {
        SignatureUse::Shared | SignatureUse::Rfc9421 => ways.push(way(SignatureUse::Full, first.key)),
        SignatureUse::Full => {}
    }
    if asks_for_message && first.signature != SignatureUse::Rfc9421 {
        ways.push(way(SignatureUse::Rfc9421, first.key));
    }
    ways.into_iter().find(|way| !tried.contains(way))
}

/// What a lane remembers of signatures beside what the store does.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The serial of the relay's key that the host took last, while there are two; 0 before that.
    took_serial: AtomicU64,
    /// When RFC 9421 was last tried in vain, in milliseconds; 0 for never.
    knocked_at: AtomicI64,
}

impl Known {
    /// Which key to begin with. A host that is not known to have heard of the change is sent the one before it; `told` is
    /// whether that matters here: after a restart every host begins with the published key.
    pub(crate) fn key(&self, current: u64, previous: Option<u64>) -> KeyChoice {
        match previous {
            Some(previous) if self.took_serial.load(Ordering::Relaxed) == previous && previous != current => {
                KeyChoice::Previous
            }
            _ => KeyChoice::Current,
        }
    }

    /// The host took what this key signed.
    pub(crate) fn took(&self, serial: u64) {
        if self.took_serial.load(Ordering::Relaxed) != serial {
            self.took_serial.store(serial, Ordering::Relaxed);
        }
    }

    /// Whether RFC 9421 may be tried unasked; if so, not again for a while.
    pub(crate) fn may_knock(&self, now: Timestamp) -> bool {
        let last = self.knocked_at.load(Ordering::Relaxed);
        let may = last == 0 || now.since(Timestamp(last)) >= KNOCK_PAUSE;
        if may {
            self.knocked_at.store(now.0, Ordering::Relaxed);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyChoice, Known, SignatureUse, Style, next, speaks_of_signature};
    use tasuki_core::clock::Timestamp;
    use tasuki_core::store::fedi::LearntSignature;

    fn ladder(signature: SignatureUse, asks: bool, has_previous: bool) -> Vec<Style> {
        let mut tried = vec![Style {
            signature,
            key: KeyChoice::Current,
        }];
        while let Some(way) = next(&tried, asks, has_previous) {
            tried.push(way);
        }
        tried
    }

    #[test]
    fn a_refused_signature_is_followed_by_the_next_and_each_is_tried_once() {
        use SignatureUse::{Full, Rfc9421, Shared};
        let uses = |ladder: Vec<Style>| ladder.into_iter().map(|way| way.signature).collect::<Vec<_>>();
        assert_eq!(uses(ladder(Shared, false, false)), [Shared, Full]);
        assert_eq!(uses(ladder(Shared, true, false)), [Shared, Full, Rfc9421]);
        assert_eq!(uses(ladder(Full, false, false)), [Full]);
        assert_eq!(uses(ladder(Full, true, false)), [Full, Rfc9421]);
        assert_eq!(uses(ladder(Rfc9421, true, false)), [Rfc9421, Full]);
        let both = ladder(Shared, false, true);
        assert_eq!(both.len(), 3);
        assert_eq!((both[1].signature, both[1].key), (Shared, KeyChoice::Previous));
        assert!(speaks_of_signature(400) && speaks_of_signature(401));
        assert!(!speaks_of_signature(403) && !speaks_of_signature(503) && !speaks_of_signature(202));
    }

    #[test]
    fn what_was_taken_is_remembered() {
        use SignatureUse::{Full, Rfc9421, Shared};
        assert_eq!(Full.learnt_after(Shared), Some(Some(LearntSignature::Full)));
        assert_eq!(Rfc9421.learnt_after(Full), Some(Some(LearntSignature::Message)));
        assert_eq!(Full.learnt_after(Rfc9421), Some(None), "forgotten");
        assert_eq!(Shared.learnt_after(Shared), None, "only the key was another");
        assert_eq!(SignatureUse::of(None, true), Shared);
        assert_eq!(SignatureUse::of(Some(LearntSignature::Full), true), Full);
        assert_eq!(SignatureUse::of(Some(LearntSignature::Message), true), Rfc9421);
        assert_eq!(SignatureUse::of(None, false), Full);
    }

    #[test]
    fn rfc_9421_is_tried_unasked_once_in_an_hour() {
        let known = Known::default();
        assert!(known.may_knock(Timestamp(1_000)));
        assert!(!known.may_knock(Timestamp(1_000 + 3_599_999)));
        assert!(known.may_knock(Timestamp(1_000 + 3_600_000)));
    }

    #[test]
    fn the_key_before_is_used_only_where_it_was_taken_last() {
        let known = Known::default();
        assert_eq!(known.key(2, Some(1)), KeyChoice::Current, "after a restart");
        known.took(1);
        assert_eq!(known.key(2, Some(1)), KeyChoice::Previous);
        assert_eq!(known.key(2, None), KeyChoice::Current, "its time is over");
        known.took(2);
        assert_eq!(known.key(2, Some(1)), KeyChoice::Current);
    }
}
