//! The keys as stored, as shown, and ready to sign.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tasuki_core::clock::Timestamp;
use tasuki_proto::{
    names::Domain,
    smtp::dkim::{self, Algorithm},
};

use super::Private;

/// What a key is for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// It signs.
    Active,
    /// It will sign once its record is in the DNS and `rotate` is said again.
    Next,
    /// It signed until the last rotation; its record may go a week after.
    Retired,
}

/// A key without its private half.
#[derive(Clone, Debug, Serialize)]
pub struct DkimKey {
    /// Whose mail it signs, with subdomains that have no keys of their own.
    pub domain: Domain,
    /// Its name among the domain's keys.
    pub selector: String,
    /// `rsa-sha256` or `ed25519-sha256`.
    pub algorithm: &'static str,
    /// What it is for now.
    pub state: KeyState,
    /// When it was made.
    pub made_at: Timestamp,
    /// The name of its TXT record.
    pub name: String,
    /// What the TXT record says.
    pub record: String,
}

/// A key as the sealed secret holds it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    pub(super) domain: Domain,
    pub(super) selector: String,
    /// As in `k=`.
    pub(super) key: String,
    pub(super) pkcs8: String,
    pub(super) made_at: Timestamp,
    pub(super) state: KeyState,
}

impl Stored {
    pub(super) fn algorithm(&self) -> Algorithm {
        if self.key == Algorithm::Ed25519Sha256.key_type() {
            Algorithm::Ed25519Sha256
        } else {
            Algorithm::RsaSha256
        }
    }

    fn private(&self) -> Result<Private, String> {
        let wrong = |error: &dyn std::fmt::Display| {
            format!(
                "the DKIM key {} of {} is unreadable: {error}",
                self.selector, self.domain
            )
        };
        let der = STANDARD.decode(&self.pkcs8).map_err(|error| wrong(&error))?;
        Private::from_pkcs8(self.algorithm(), &der).map_err(|error| wrong(&error))
    }

    /// For people; a key that is unreadable has no record to show.
    pub(super) fn shown(&self) -> DkimKey {
        let public = self.private().and_then(|private| private.public());
        DkimKey {
            domain: self.domain.clone(),
            selector: self.selector.clone(),
            algorithm: self.algorithm().name(),
            state: self.state,
            made_at: self.made_at,
            name: format!("{}._domainkey.{}", self.selector, self.domain),
            record: match public {
                Ok(public) => dkim::record(self.algorithm(), &public),
                Err(why) => why,
            },
        }
    }
}

/// A key that signs.
pub(crate) struct SigningKey {
    pub(super) domain: Domain,
    pub(super) selector: String,
    algorithm: Algorithm,
    private: Private,
}

impl SigningKey {
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn sign(&self, digest: &[u8; 32]) -> Result<Vec<u8>, String> {
        self.private.sign(digest)
    }
}

/// The keys that sign, by domain; for a domain with an unreadable one, why.
#[derive(Default)]
pub(crate) struct Ring(HashMap<Domain, Result<Vec<Arc<SigningKey>>, String>>);

impl Ring {
    pub(super) fn parse(keys: Vec<Stored>) -> Result<Self, String> {
        let mut ring = Self::default();
        for key in keys.into_iter().filter(|key| key.state == KeyState::Active) {
            let made = key.private().map(|private| {
                Arc::new(SigningKey {
                    domain: key.domain.clone(),
                    selector: key.selector.clone(),
                    algorithm: key.algorithm(),
                    private,
                })
            });
            let of_domain = ring.0.entry(key.domain).or_insert_with(|| Ok(Vec::new()));
            match (&mut *of_domain, made) {
                (Ok(keys), Ok(made)) => keys.push(made),
                (Ok(_), Err(why)) => *of_domain = Err(why),
                (Err(_), _) => {}
            }
        }
        Ok(ring)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys for mail of this domain: its own, or those of the nearest domain above. Empty if there are none.
    pub(super) fn signing(&self, author: &Domain) -> Result<Vec<Arc<SigningKey>>, String> {
        let above = self.0.iter().filter(|(domain, _)| author.is_within(domain));
        match above.max_by_key(|(domain, _)| domain.as_str().len()) {
            Some((_, keys)) => keys.clone(),
            None => Ok(Vec::new()),
        }
    }
}

/// Whether it can be a selector: one label of a domain name.
pub(super) fn is_selector(text: &str) -> bool {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain && (1..=63).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
}
