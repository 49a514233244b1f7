//! DKIM: the keys of our domains, and the signatures of the mail that our own people and programs send.
//!
//! The key ring is one sealed secret in the store, equal on all gateways. A domain signs with each of its active keys.
//! **Invariant:** mail of a domain that has keys is never sent without a signature; while they cannot be read it waits.
//! Mail that strangers bring for relay domains is never signed, whatever it claims in From.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::AsDer as _,
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tasuki_core::{clock::Timestamp, failure::BoxError, pool::CpuPool, seal::Secrets, store::audit::Actor};
use tasuki_proto::{
    names::Domain,
    smtp::dkim::{self, Algorithm, MessageHash, Signer},
};

mod ring;

pub use ring::{DkimKey, KeyState};
use ring::{Ring, Stored};

/// The sealed secret's name.
const SECRET: &str = "mail.dkim";
/// How long a ring that was read is used; another gateway's command takes effect within it.
const FRESH: Duration = Duration::from_secs(10);

/// Why a command about keys did nothing.
#[derive(Debug, thiserror::Error)]
pub enum DkimError {
    /// The domain signs already.
    #[error("{0} has keys already; `tasuki mail dkim rotate {0}` makes new ones")]
    Exists(Domain),
    /// The domain does not sign.
    #[error("{0} has no DKIM key; `tasuki mail dkim add {0}` makes one")]
    NoKey(Domain),
    /// The next keys are not in the DNS yet, so signing with them would fail everywhere.
    #[error("the DNS does not show {name} yet: publish it, or say --force")]
    NotPublished {
        /// The record's name.
        name: String,
    },
    /// A selector is one label of a name.
    #[error("{0:?} is no selector: 1 to 63 letters, digits and hyphens")]
    BadSelector(String),
    /// Two keys of a domain cannot have one selector.
    #[error("the selector {0} is in use for this domain")]
    SelectorTaken(String),
    /// The keys cannot be read, made or written.
    #[error("{0}")]
    Unreadable(String),
}

/// What the engine signs with.
pub(crate) struct Dkim {
    secrets: Secrets,
    pool: CpuPool,
    ring: Mutex<Option<(Arc<Ring>, Instant)>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Dkim {
    pub(crate) fn new(secrets: Secrets, pool: CpuPool) -> Self {
        Self {
            secrets,
            pool,
            ring: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// The ring, read again when it is no longer fresh.
    pub(crate) async fn ring(&self, now: Instant) -> Result<Arc<Ring>, String> {
        let known = self.ring.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((ring, read_at)) = known
            && now.saturating_duration_since(read_at) < FRESH
        {
            return Ok(ring);
        }
        let ring = Arc::new(Ring::parse(self.read().await?)?);
        *self.ring.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&ring), now));
        Ok(ring)
    }

    async fn read(&self) -> Result<Vec<Stored>, String> {
        let text = self.secrets.load(SECRET).await.map_err(|error| chain(&error))?;
        let Some(text) = text else {
            return Ok(Vec::new());
        };
        serde_json::from_slice(&text).map_err(|error| format!("the DKIM keys are damaged: {error}"))
    }

    async fn write(&self, keys: &[Stored], audit: tasuki_core::store::AuditEntry) -> Result<(), DkimError> {
        let text = serde_json::to_vec(keys).map_err(|error| DkimError::Unreadable(error.to_string()))?;
        let text = zeroize::Zeroizing::new(text);
        self.secrets
            .replace(SECRET, &text, audit)
            .await
            .map_err(|error| DkimError::Unreadable(chain(&error)))?;
        *self.ring.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// The fields to put in front of a message from `author`'s domain; empty if that has no keys.
    pub(crate) async fn sign(
        &self,
        ring: &Ring,
        author: &Domain,
        header: Vec<u8>,
        body_hash: [u8; 32],
        at: Timestamp,
    ) -> Result<String, String> {
        let keys = ring.signing(author)?;
        if keys.is_empty() {
            return Ok(String::new());
        }
        let time = u64::try_from(at.to_utc().unix_timestamp()).unwrap_or(0);
        let signed = self.pool.run(move || {
            let mut fields = String::new();
            for key in keys {
                let signer = Signer {
                    domain: &key.domain,
                    selector: &key.selector,
                    algorithm: key.algorithm(),
                    time,
                };
                let unsigned = dkim::prepare(&header, &body_hash, &signer);
                let value = key.sign(unsigned.digest())?;
                fields.push_str(&unsigned.finish(&value));
            }
            Ok(fields)
        });
        signed.await.map_err(|error| error.to_string())?
    }

    /// Domain, selector and algorithm of the signatures that [`Dkim::sign`] makes.
    pub(crate) fn signatures(
        ring: &Ring,
        author: &Domain,
    ) -> Result<Vec<(Domain, String, Algorithm)>, String> {
        let keys = ring.signing(author)?;
        let named = keys
            .iter()
            .map(|key| (key.domain.clone(), key.selector.clone(), key.algorithm()));
        Ok(named.collect())
    }

    /// Makes the first keys of a domain; it signs with them from now on.
    pub(crate) async fn add(
        &self,
        domain: Domain,
        algorithms: &[Algorithm],
        selector: Option<&str>,
        now: Timestamp,
        actor: &Actor,
    ) -> Result<Vec<DkimKey>, DkimError> {
        let _changing = self.changing.lock().await;
        let mut keys = self.read().await.map_err(DkimError::Unreadable)?;
        if keys.iter().any(|key| key.domain == domain) {
            return Err(DkimError::Exists(domain));
        }
        let made = self
            .make(&keys, &domain, algorithms, selector, now, KeyState::Active)
            .await?;
        keys.extend(made.iter().cloned());
        let audit = actor.entry(now, "mail.dkim.add", domain.as_str(), selectors(&made));
        self.write(&keys, audit).await?;
        Ok(made.iter().map(Stored::shown).collect())
    }

    /// The first call makes the next keys and signs on with the old ones; the second one, when `published` finds the
    /// next keys' records in the DNS (or `force`), signs with them, and keeps the old ones for the list only.
    pub(crate) async fn rotate<F>(
        &self,
        domain: Domain,
        force: bool,
        now: Timestamp,
        actor: &Actor,
        published: impl Fn(DkimKey) -> F,
    ) -> Result<Vec<DkimKey>, DkimError>
    where
        F: Future<Output = bool>,
    {
        let _changing = self.changing.lock().await;
        let mut keys = self.read().await.map_err(DkimError::Unreadable)?;
        let of_domain = |key: &&Stored| key.domain == domain;
        let active: Vec<Algorithm> = keys
            .iter()
            .filter(of_domain)
            .filter(|key| key.state == KeyState::Active)
            .map(Stored::algorithm)
            .collect();
        if active.is_empty() {
            return Err(DkimError::NoKey(domain));
        }
        let next: Vec<DkimKey> = keys
            .iter()
            .filter(of_domain)
            .filter(|key| key.state == KeyState::Next)
            .map(Stored::shown)
            .collect();
        if next.is_empty() {
            let made = self
                .make(&keys, &domain, &active, None, now, KeyState::Next)
                .await?;
            keys.extend(made.iter().cloned());
            let audit = actor.entry(now, "mail.dkim.rotate", domain.as_str(), selectors(&made));
            self.write(&keys, audit).await?;
            return Ok(made.iter().map(Stored::shown).collect());
        }
        for key in next {
            let name = key.name.clone();
            if !force && !published(key).await {
                return Err(DkimError::NotPublished { name });
            }
        }
        // What was retired before is long out of the mails under way.
        keys.retain(|key| key.domain != domain || key.state != KeyState::Retired);
        for key in keys.iter_mut().filter(|key| key.domain == domain) {
            key.state = match key.state {
                KeyState::Next => KeyState::Active,
                _ => KeyState::Retired,
            };
        }
        let shown: Vec<Stored> = keys.iter().filter(|key| key.domain == domain).cloned().collect();
        let audit = actor.entry(now, "mail.dkim.activate", domain.as_str(), selectors(&shown));
        self.write(&keys, audit).await?;
        Ok(shown.iter().map(Stored::shown).collect())
    }

    /// Takes a domain's keys away; its mail is no longer signed.
    pub(crate) async fn remove(
        &self,
        domain: &Domain,
        now: Timestamp,
        actor: &Actor,
    ) -> Result<(), DkimError> {
        let _changing = self.changing.lock().await;
        let mut keys = self.read().await.map_err(DkimError::Unreadable)?;
        let before = keys.len();
        keys.retain(|key| key.domain != *domain);
        if keys.len() == before {
            return Err(DkimError::NoKey(domain.clone()));
        }
        let audit = actor.entry(now, "mail.dkim.remove", domain.as_str(), "");
        self.write(&keys, audit).await
    }

    /// All keys, without their private halves.
    pub(crate) async fn list(&self) -> Result<Vec<DkimKey>, DkimError> {
        let keys = self.read().await.map_err(DkimError::Unreadable)?;
        Ok(keys.iter().map(Stored::shown).collect())
    }

    async fn make(
        &self,
        there: &[Stored],
        domain: &Domain,
        algorithms: &[Algorithm],
        selector: Option<&str>,
        now: Timestamp,
        state: KeyState,
    ) -> Result<Vec<Stored>, DkimError> {
        let mut made: Vec<Stored> = Vec::new();
        for &algorithm in algorithms {
            let letter = match algorithm {
                Algorithm::RsaSha256 => 'r',
                Algorithm::Ed25519Sha256 => 'e',
            };
            let is_free = |name: &str| {
                let mut all = there.iter().chain(&made);
                all.all(|key| key.domain != *domain || key.selector != name)
            };
            let selector = match selector {
                Some(given) if algorithms.len() > 1 => format!("{given}{letter}"),
                Some(given) => given.to_owned(),
                None => {
                    let day = now.to_utc().date();
                    let day = format!(
                        "t{}{:02}{:02}{letter}",
                        day.year(),
                        u8::from(day.month()),
                        day.day()
                    );
                    let mut names = std::iter::once(day.clone()).chain((2..).map(|n| format!("{day}{n}")));
                    names.find(|name| is_free(name)).unwrap_or(day)
                }
            };
            if !ring::is_selector(&selector) {
                return Err(DkimError::BadSelector(selector));
            }
            if !is_free(&selector) {
                return Err(DkimError::SelectorTaken(selector));
            }
            let pkcs8 = self.pool.run(move || new_key(algorithm)).await;
            let pkcs8 = pkcs8
                .map_err(|error| DkimError::Unreadable(error.to_string()))?
                .map_err(DkimError::Unreadable)?;
            made.push(Stored {
                domain: domain.clone(),
                selector,
                key: algorithm.key_type().to_owned(),
                pkcs8: STANDARD.encode(pkcs8),
                made_at: now,
                state,
            });
        }
        Ok(made)
    }
}

fn selectors(keys: &[Stored]) -> String {
    let names: Vec<&str> = keys.iter().map(|key| key.selector.as_str()).collect();
    format!("selectors {}", names.join(", "))
}

fn chain(error: &tasuki_core::seal::SealError) -> String {
    let mut text = format!("the DKIM keys cannot be read: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A new private key as PKCS #8. RSA keys have 2048 bits (RFC 8301 3.2), which every DNS carries.
fn new_key(algorithm: Algorithm) -> Result<Vec<u8>, String> {
    let failed = |what: &str| format!("a {what} key could not be made");
    match algorithm {
        Algorithm::RsaSha256 => {
            let key = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| failed("RSA"))?;
            let der = key.as_der().map_err(|_| failed("RSA"))?;
            Ok(der.as_ref().to_vec())
        }
        Algorithm::Ed25519Sha256 => {
            let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| failed("Ed25519"))?;
            Ok(der.as_ref().to_vec())
        }
    }
}

/// A private key in use.
pub(crate) enum Private {
    Rsa(Box<RsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

impl Private {
    fn from_pkcs8(algorithm: Algorithm, der: &[u8]) -> Result<Self, BoxError> {
        Ok(match algorithm {
            Algorithm::RsaSha256 => Self::Rsa(Box::new(RsaKeyPair::from_pkcs8(der)?)),
            Algorithm::Ed25519Sha256 => Self::Ed25519(Box::new(Ed25519KeyPair::from_pkcs8(der)?)),
        })
    }

    fn public(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Rsa(key) => {
                let der = key
                    .public_key()
                    .as_der()
                    .map_err(|_| "the public key has no form".to_owned())?;
                Ok(der.as_ref().to_vec())
            }
            Self::Ed25519(key) => Ok(key.public_key().as_ref().to_vec()),
        }
    }

    fn sign(&self, digest: &[u8; 32]) -> Result<Vec<u8>, String> {
        match self {
            Self::Ed25519(key) => Ok(key.sign(digest).as_ref().to_vec()),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let digest = aws_lc_rs::digest::Digest::import_less_safe(digest, &aws_lc_rs::digest::SHA256)
                    .map_err(|_| "the digest has the wrong length".to_owned())?;
                key.sign_digest(&RSA_PKCS1_SHA256, &digest, &mut signature)
                    .map_err(|_| "the RSA key does not sign".to_owned())?;
                Ok(signature)
            }
        }
    }
}

/// Hashes a message that may be signed; `max` octets of header section at most.
pub(crate) fn hasher(max: usize) -> MessageHash {
    MessageHash::new(max)
}
