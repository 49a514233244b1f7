//! The relay's own key: RSA-2048, made at the first start, sealed in the store; and for some days after it was changed the one
//! before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};
use sha2::{Digest as _, Sha256};
use tasuki_core::clock::{Clock, Timestamp};
use tasuki_core::failure::BoxError;
use tasuki_core::pool::CpuPool;
use tasuki_core::seal::Secrets;
use tasuki_proto::activitypub::message_signature::Outgoing;
use tasuki_proto::activitypub::{cavage, date, media};
use zeroize::Zeroizing;

use crate::time::system_time;

/// The name of the key among the sealed secrets.
pub const RELAY_KEY: &str = "fediverse.relay-key";
/// The name of the key before it, with the end of its time in front.
pub(crate) const PREVIOUS_KEY: &str = "fediverse.relay-key-before";

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    /// The pool lost the job.
    #[error("the signature was not computed")]
    Pool(#[from] tasuki_core::pool::PoolError),
    /// The key refused.
    #[error("the relay's key cannot sign")]
    Key,
}

/// Which of the relay's keys signs. There are two for some days after the key was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeyChoice {
    /// The published one.
    #[default]
    Current,
    /// The one before it, for hosts that have not learnt of the change; the current one when there is none.
    Previous,
}

/// Signs for the relay's actor; clones share the key.
#[derive(Clone)]
pub(crate) struct Signer {
    loaded: Arc<ArcSwap<Pair>>,
    pool: CpuPool,
    clock: Clock,
}

/// The relay's keys.
struct Pair {
    current: Arc<Loaded>,
    previous: Option<(Arc<Loaded>, Timestamp)>,
}

/// A key, ready to sign.
struct Loaded {
    key: RsaKeyPair,
    public_pem: Arc<str>,
    /// Another number for another key, the same after a restart.
    serial: u64,
}

impl Loaded {
    fn of(pkcs8: &[u8]) -> Result<Self, BoxError> {
        let key = RsaKeyPair::from_pkcs8(pkcs8)
            .map_err(|_| "the relay's key is not an RSA key of at least 2048 bits")?;
        let spki: PublicKeyX509Der<'_> = key
            .public_key()
            .as_der()
            .map_err(|_| "the relay's public key cannot be written")?;
        let public_pem = pem("PUBLIC KEY", spki.as_ref()).into();
        let hash = Sha256::digest(spki.as_ref());
        let first = hash.first_chunk().expect("a hash has more than eight bytes");
        Ok(Self {
            key,
            public_pem,
            serial: u64::from_be_bytes(*first),
        })
    }
}

/// Reads a private key in PEM, PKCS#8 or PKCS#1 as OpenSSL and Python write them; as PKCS#8.
pub(crate) fn read_private_pem(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (_, inner) = text.split_once("PRIVATE KEY-----")?;
    let (inner, _) = inner.split_once("-----END")?;
    let base64: Zeroizing<String> =
        Zeroizing::new(inner.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    let der = Zeroizing::new(STANDARD.decode(&*base64).ok()?);
    let key = rsa::PrivateKey::from_pkcs8_der(&der)
        .or_else(|_| rsa::PrivateKey::from_pkcs1_der(&der))
        .ok()?;
    let pkcs8 = key.to_pkcs8_der().ok()?;
    Some(Zeroizing::new(pkcs8.as_bytes().to_vec()))
}

/// What a POST needs beside its body.
#[derive(Debug)]
pub(crate) struct SignedHeaders {
    pub(crate) date: String,
    pub(crate) signature: String,
}

/// What a POST needs by RFC 9421.
#[derive(Debug)]
pub(crate) struct MessageHeaders {
    pub(crate) content_digest: String,
    pub(crate) input: String,
    pub(crate) signature: String,
}

impl Signer {
    /// Takes the keys from the sealed secrets, or makes the first.
    pub(crate) async fn load(secrets: &Secrets, pool: CpuPool, clock: Clock) -> Result<Self, BoxError> {
        let pair = Pair::load(secrets, clock.wall()).await?;
        Ok(Self {
            loaded: Arc::new(ArcSwap::from_pointee(pair)),
            pool,
            clock,
        })
    }

    /// Reads the keys again: another gateway of the store may have changed them. Says whether they are others now.
    pub(crate) async fn reload(&self, secrets: &Secrets) -> Result<bool, BoxError> {
        let fresh = Pair::load(secrets, self.clock.wall()).await?;
        let known = self.loaded.load();
        let previous = |pair: &Pair| pair.previous.as_ref().map(|(key, _)| Arc::clone(&key.public_pem));
        let is_same =
            fresh.current.public_pem == known.current.public_pem && previous(&fresh) == previous(&known);
        if !is_same {
            self.loaded.store(Arc::new(fresh));
        }
        Ok(!is_same)
    }

    /// Signs with another key from now on, as if there had never been another.
    pub(crate) fn change_key(&self, pkcs8: &[u8]) -> Result<(), BoxError> {
        self.loaded.store(Arc::new(Pair {
            current: Arc::new(Loaded::of(pkcs8)?),
            previous: None,
        }));
        Ok(())
    }

    /// What the public key of `pkcs8` is, in the form of [`Signer::public_pem`], and its length in bits.
    pub(crate) fn public_of(pkcs8: &[u8]) -> Result<(Arc<str>, usize), BoxError> {
        let loaded = Loaded::of(pkcs8)?;
        Ok((loaded.public_pem, loaded.key.public_modulus_len() * 8))
    }

    /// The published key as SPKI in PEM.
    pub(crate) fn public_pem(&self) -> Arc<str> {
        Arc::clone(&self.loaded.load().current.public_pem)
    }

    /// Until when the key before the present one may still sign; `None` when there is none.
    pub(crate) fn previous_until(&self) -> Option<Timestamp> {
        let until = self.loaded.load().previous.as_ref().map(|(_, until)| *until);
        until.filter(|until| self.clock.wall() < *until)
    }

    /// A number for the key behind the choice: another key, another number.
    pub(crate) fn serial(&self, choice: KeyChoice) -> u64 {
        self.key(choice).serial
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    fn key(&self, choice: KeyChoice) -> Arc<Loaded> {
        let pair = self.loaded.load();
        match (choice, &pair.previous) {
            (KeyChoice::Previous, Some((key, until))) if self.clock.wall() < *until => Arc::clone(key),
            _ => Arc::clone(&pair.current),
        }
    }

    /// Signs a POST: `(request-target) host date digest content-type`.
    pub(crate) async fn sign_post(
        &self,
        choice: KeyChoice,
        key_id: Arc<str>,
        host: Arc<str>,
        target: Arc<str>,
        digest: Arc<str>,
    ) -> Result<SignedHeaders, SignError> {
        let date = date::http_date(system_time(self.clock.wall()));
        let key = self.key(choice);
        self.pool
            .run(move || {
                let values = [
                    ("host", &*host),
                    ("date", &date),
                    ("digest", &*digest),
                    ("content-type", media::ACTIVITY_JSON),
                ];
                let signature = sign(&key.key, &key_id, "POST", &target, &cavage::POST_COVERED, &values)?;
                Ok(SignedHeaders { date, signature })
            })
            .await?
    }

    /// Signs a POST for several hosts: `date digest`.
    pub(crate) async fn sign_shared(
        &self,
        choice: KeyChoice,
        key_id: Arc<str>,
        digest: Arc<str>,
    ) -> Result<SignedHeaders, SignError> {
        let date = date::http_date(system_time(self.clock.wall()));
        let key = self.key(choice);
        self.pool
            .run(move || {
                let values = [("date", &*date), ("digest", &*digest)];
                let signature = sign(&key.key, &key_id, "POST", "/", &cavage::SHARED_COVERED, &values)?;
                Ok(SignedHeaders { date, signature })
            })
            .await?
    }

    /// Signs a POST by RFC 9421.
    pub(crate) async fn sign_message(
        &self,
        choice: KeyChoice,
        key_id: Arc<str>,
        target_uri: String,
        content_digest: String,
    ) -> Result<MessageHeaders, SignError> {
        let created = self.clock.wall().unix_seconds();
        let key = self.key(choice);
        self.pool
            .run(move || {
                let outgoing = Outgoing::post(&target_uri, &content_digest, &key_id, created);
                let signature = signature_of(&key.key, outgoing.base.as_bytes())?;
                Ok(MessageHeaders {
                    content_digest,
                    input: outgoing.input,
                    signature: Outgoing::signature_header(&signature),
                })
            })
            .await?
    }

    /// Signs a GET: `(request-target) host date accept`.
    pub(crate) async fn sign_get(
        &self,
        choice: KeyChoice,
        key_id: Arc<str>,
        host: String,
        target: String,
        accept: &'static str,
    ) -> Result<SignedHeaders, SignError> {
        let date = date::http_date(system_time(self.clock.wall()));
        let key = self.key(choice);
        self.pool
            .run(move || {
                let values = [("host", &*host), ("date", &date), ("accept", accept)];
                let signature = sign(&key.key, &key_id, "GET", &target, &cavage::GET_COVERED, &values)?;
                Ok(SignedHeaders { date, signature })
            })
            .await?
    }
}

impl Pair {
    async fn load(secrets: &Secrets, now: Timestamp) -> Result<Self, BoxError> {
        let der = secrets
            .load_or_make(RELAY_KEY, || make_key().unwrap_or_default())
            .await?;
        let previous = match secrets.load(PREVIOUS_KEY).await? {
            Some(kept) => previous_of(&kept, now)?,
            None => None,
        };
        Ok(Self {
            current: Arc::new(Loaded::of(&der)?),
            previous,
        })
    }
}

/// The end of its time in milliseconds, then the key. One whose time is over is none.
fn previous_of(kept: &[u8], now: Timestamp) -> Result<Option<(Arc<Loaded>, Timestamp)>, BoxError> {
    let Some((until, der)) = kept.split_first_chunk::<8>() else {
        return Ok(None);
    };
    let until = Timestamp(i64::from_be_bytes(*until));
    if now >= until {
        return Ok(None);
    }
    Ok(Some((Arc::new(Loaded::of(der)?), until)))
}

/// Whether a key is kept here whose time is over.
pub(crate) fn is_over(kept: &[u8], now: Timestamp) -> bool {
    let end = kept.split_first_chunk::<8>();
    end.is_some_and(|(until, der)| !der.is_empty() && now >= Timestamp(i64::from_be_bytes(*until)))
}

/// How the key before the present one is kept.
pub(crate) fn kept_until(pkcs8: &[u8], until: Timestamp) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([until.0.to_be_bytes().as_slice(), pkcs8].concat())
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

fn sign(
    key: &RsaKeyPair,
    key_id: &str,
    method: &str,
    target: &str,
    covered: &[&str],
    values: &[(&str, &str)],
) -> Result<String, SignError> {
    let values: BTreeMap<String, String> = values
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let string = cavage::signing_string(method, target, covered, values).map_err(|_| SignError::Key)?;
    let signature = signature_of(key, string.as_bytes())?;
    Ok(cavage::signature_header(key_id, covered, &signature))
}

fn signature_of(key: &RsaKeyPair, message: &[u8]) -> Result<Vec<u8>, SignError> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
        .map_err(|_| SignError::Key)?;
    Ok(signature)
}

pub(crate) fn make_key() -> Option<Vec<u8>> {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).ok()?;
    let der: Pkcs8V1Der<'_> = key.as_der().ok()?;
    Some(der.as_ref().to_vec())
}

fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let base64 = STANDARD.encode(der);
    for line in base64.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
