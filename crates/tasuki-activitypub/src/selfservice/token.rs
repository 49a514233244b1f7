//! What an admin posts or puts in DNS, and what is given for it.
//!
//! A challenge has a public part, the token that is posted, and a nonce that only the page of the asker knows, and it counts for
//! the browser in which it was asked for alone: who sees the token in public can do nothing with it. What was proven is a grant
//! for half an hour, in the form; no other site can make the browser use it.
//!
//! **Invariant:** a token is good for one host, one browser, one hour and one proof; a grant for one host and one browser.

use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use moka::sync::Cache;
use tasuki_core::clock::Timestamp;
use tasuki_core::failure::BoxError;
use tasuki_core::seal::Secrets;
use tasuki_proto::activitypub::ids::Authority;
use zeroize::Zeroizing;

use super::session::Session;

/// The name of the key among the sealed secrets: all gateways of a store know it.
const KEY: &str = "fediverse.proof-key";
/// How long a token may be posted, and a grant used.
const CHALLENGE: Duration = Duration::from_secs(3600);
const GRANT: Duration = Duration::from_secs(1800);
/// Tokens remembered as used; each took a proof.
const MAX_USED: u64 = 10_000;

/// Makes and checks tokens.
#[derive(Clone)]
pub(crate) struct Prover {
    key: hmac::Key,
    used: Cache<String, ()>,
}

/// What somebody is to post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) host: Authority,
    pub(super) expires: Timestamp,
    pub(super) nonce: String,
    pub(super) token: String,
}

/// That somebody did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) host: Authority,
    pub(super) expires: Timestamp,
    pub(super) seal: String,
}

impl Prover {
    pub(crate) async fn load(secrets: &Secrets) -> Result<Self, BoxError> {
        let make = || {
            let bytes: [u8; 32] = rand::random();
            bytes.to_vec()
        };
        let bytes: Zeroizing<Vec<u8>> = Zeroizing::new(secrets.load_or_make(KEY, make).await?.to_vec());
        Ok(Self::of(&bytes))
    }

    fn of(key: &[u8]) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            used: Cache::builder()
                .max_capacity(MAX_USED)
                .time_to_live(CHALLENGE)
                .build(),
        }
    }

    pub(super) fn challenge(&self, host: &Authority, session: &Session, now: Timestamp) -> Challenge {
        let (expires, nonce) = (now.plus(CHALLENGE), crate::unique());
        Challenge {
            token: self.token(host, session, expires, &nonce),
            host: host.clone(),
            expires,
            nonce,
        }
    }

    /// The same challenge again, as its page sends it back; `None` when it is too late.
    pub(super) fn again(
        &self,
        host: &Authority,
        session: &Session,
        (expires, nonce): (Timestamp, &str),
        now: Timestamp,
    ) -> Option<Challenge> {
        let is_good = expires > now && expires <= now.plus(CHALLENGE) && nonce.len() == 32;
        let again = is_good.then(|| Challenge {
            token: self.token(host, session, expires, nonce),
            host: host.clone(),
            expires,
            nonce: nonce.to_owned(),
        });
        again.filter(|challenge| !self.used.contains_key(&challenge.token))
    }

    /// For who proved itself; the token is used.
    pub(super) fn grant(&self, challenge: &Challenge, session: &Session, now: Timestamp) -> Grant {
        self.used.insert(challenge.token.clone(), ());
        let expires = now.plus(GRANT);
        Grant {
            seal: self.seal(&challenge.host, session, expires),
            host: challenge.host.clone(),
            expires,
        }
    }

    /// A grant as its page sends it back, if it is one of ours, for this host and browser, and in time.
    pub(super) fn granted(
        &self,
        host: &Authority,
        session: &Session,
        (expires, seal): (Timestamp, &str),
        now: Timestamp,
    ) -> Option<Grant> {
        let ours = self.seal(host, session, expires);
        let is_ours = verify_slices_are_equal(ours.as_bytes(), seal.as_bytes()).is_ok();
        (is_ours && expires > now).then(|| Grant {
            host: host.clone(),
            expires,
            seal: ours,
        })
    }

    fn token(&self, host: &Authority, session: &Session, expires: Timestamp, nonce: &str) -> String {
        let hash = self.hash(&[
            "token",
            host.as_str(),
            session.as_str(),
            &expires.0.to_string(),
            nonce,
        ]);
        format!("tasuki-{}", &hash[..32])
    }

    fn seal(&self, host: &Authority, session: &Session, expires: Timestamp) -> String {
        self.hash(&["grant", host.as_str(), session.as_str(), &expires.0.to_string()])
    }

    fn hash(&self, parts: &[&str]) -> String {
        let tag = hmac::sign(&self.key, parts.join("\n").as_bytes());
        tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tasuki_core::clock::Timestamp;
    use tasuki_proto::activitypub::ids::Authority;

    use super::{CHALLENGE, GRANT, Prover, Session};

    #[test]
    fn a_proof_is_good_for_one_host_one_browser_one_nonce_its_time_and_once() {
        let prover = Prover::of(&[7; 32]);
        let (a, b) = (
            Authority::parse("a.example").unwrap(),
            Authority::parse("b.example").unwrap(),
        );
        let (own, foreign) = (Session::new(), Session::new());
        let now = Timestamp(1_000_000);
        let made = prover.challenge(&a, &own, now);
        let (expires, nonce) = (made.expires, made.nonce.as_str());
        assert_eq!(prover.again(&a, &own, (expires, nonce), now), Some(made.clone()));
        let other = "0".repeat(32);
        for (host, session, expires, nonce) in [
            (&b, &own, expires, nonce),
            (&a, &foreign, expires, nonce),
            (&a, &own, Timestamp(expires.0 - 1), nonce),
            (&a, &own, expires, other.as_str()),
        ] {
            let again = prover.again(host, session, (expires, nonce), now).unwrap();
            assert_ne!(again.token, made.token);
        }
        let late = prover.again(&a, &own, (expires, nonce), now.plus(CHALLENGE));
        assert_eq!(late, None);
        let forged = now.plus(CHALLENGE + CHALLENGE);
        assert_eq!(prover.again(&a, &own, (forged, nonce), now), None);

        let grant = prover.grant(&made, &own, now);
        assert_eq!(prover.again(&a, &own, (expires, nonce), now), None);
        let is_granted = |host, session, expires, seal: &str, now| {
            prover.granted(host, session, (expires, seal), now).is_some()
        };
        assert!(is_granted(&a, &own, grant.expires, &grant.seal, now));
        assert!(!is_granted(&b, &own, grant.expires, &grant.seal, now));
        assert!(!is_granted(&a, &foreign, grant.expires, &grant.seal, now));
        assert!(!is_granted(&a, &own, grant.expires.plus(GRANT), &grant.seal, now));
        assert!(!is_granted(&a, &own, grant.expires, &grant.seal, now.plus(GRANT)));
        assert!(!is_granted(&a, &own, grant.expires, "", now));
    }
}
