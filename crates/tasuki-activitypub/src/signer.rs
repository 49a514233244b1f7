//! The relay's own key: RSA-2048, made at the first start, sealed in the store.

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
use tasuki_core::clock::Clock;
use tasuki_core::failure::BoxError;
use tasuki_core::pool::CpuPool;
use tasuki_core::seal::Secrets;
use tasuki_proto::activitypub::{cavage, date, media};

use zeroize::Zeroizing;

use crate::time::system_time;

/// The name of the key among the sealed secrets.
pub const RELAY_KEY: &str = "fediverse.relay-key";

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

/// Signs for the relay's actor; clones share the key.
#[derive(Clone)]
pub(crate) struct Signer {
    loaded: Arc<ArcSwap<Loaded>>,
    pool: CpuPool,
    clock: Clock,
}

/// A key, ready to sign.
struct Loaded {
    key: Arc<RsaKeyPair>,
    public_pem: Arc<str>,
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
        Ok(Self {
            key: Arc::new(key),
            public_pem,
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

impl Signer {
    /// Takes the key from the sealed secrets, or makes it.
    pub(crate) async fn load(secrets: &Secrets, pool: CpuPool, clock: Clock) -> Result<Self, BoxError> {
        let der = secrets
            .load_or_make(RELAY_KEY, || make_key().unwrap_or_default())
            .await?;
        Ok(Self {
            loaded: Arc::new(ArcSwap::from_pointee(Loaded::of(&der)?)),
            pool,
            clock,
        })
    }

    /// Signs with another key from now on.
    pub(crate) fn change_key(&self, pkcs8: &[u8]) -> Result<(), BoxError> {
        self.loaded.store(Arc::new(Loaded::of(pkcs8)?));
        Ok(())
    }

    /// What the public key of `pkcs8` is, in the form of [`Signer::public_pem`], and its length in bits.
    pub(crate) fn public_of(pkcs8: &[u8]) -> Result<(Arc<str>, usize), BoxError> {
        let loaded = Loaded::of(pkcs8)?;
        Ok((loaded.public_pem, loaded.key.public_modulus_len() * 8))
    }

    /// The public key as SPKI in PEM.
    pub(crate) fn public_pem(&self) -> Arc<str> {
        Arc::clone(&self.loaded.load().public_pem)
    }

    /// Signs a POST: `(request-target) host date digest content-type`.
    pub(crate) async fn sign_post(
        &self,
        key_id: Arc<str>,
        host: Arc<str>,
        target: Arc<str>,
        digest: Arc<str>,
    ) -> Result<SignedHeaders, SignError> {
        let date = date::http_date(system_time(self.clock.wall()));
        let key = Arc::clone(&self.loaded.load().key);
        self.pool
            .run(move || {
                let values = [
                    ("host", &*host),
                    ("date", &date),
                    ("digest", &*digest),
                    ("content-type", media::ACTIVITY_JSON),
                ];
                let signature = sign(&key, &key_id, "POST", &target, &cavage::POST_COVERED, &values)?;
                Ok(SignedHeaders { date, signature })
            })
            .await?
    }

    /// Signs a GET: `(request-target) host date accept`.
    pub(crate) async fn sign_get(
        &self,
        key_id: Arc<str>,
        host: String,
        target: String,
        accept: &'static str,
    ) -> Result<SignedHeaders, SignError> {
        let date = date::http_date(system_time(self.clock.wall()));
        let key = Arc::clone(&self.loaded.load().key);
        self.pool
            .run(move || {
                let values = [("host", &*host), ("date", &date), ("accept", accept)];
                let signature = sign(&key, &key_id, "GET", &target, &cavage::GET_COVERED, &values)?;
                Ok(SignedHeaders { date, signature })
            })
            .await?
    }
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
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        string.as_bytes(),
        &mut signature,
    )
    .map_err(|_| SignError::Key)?;
    Ok(cavage::signature_header(key_id, covered, &signature))
}

fn make_key() -> Option<Vec<u8>> {
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
