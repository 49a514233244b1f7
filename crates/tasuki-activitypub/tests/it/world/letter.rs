//! Requests as instances sign them, and the keys for it.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::SystemTime;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tasuki_proto::activitypub::cavage::{self, POST_COVERED};
use tasuki_proto::activitypub::date;

use super::RelayUnderTest;

/// A signed request that a test may spoil before it is sent.
pub(crate) struct Letter {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Letter {
    pub(crate) fn new(relay: &RelayUnderTest, key_id: &str, body: &[u8]) -> Self {
        Self::signed(&relay.addr.to_string(), key_id, body, SystemTime::now(), key())
    }

    pub(crate) fn at(relay: &RelayUnderTest, key_id: &str, body: &[u8], at: SystemTime) -> Self {
        Self::signed(&relay.addr.to_string(), key_id, body, at, key())
    }

    pub(crate) fn for_host(host: &str, key_id: &str, body: &[u8]) -> Self {
        Self::signed(host, key_id, body, SystemTime::now(), key())
    }

    pub(crate) fn by_other_key(relay: &RelayUnderTest, key_id: &str, body: &[u8]) -> Self {
        Self::signed(
            &relay.addr.to_string(),
            key_id,
            body,
            SystemTime::now(),
            other_key(),
        )
    }

    /// To another inbox than the whole relay's.
    pub(crate) fn to(relay: &RelayUnderTest, path: &str, key_id: &str, body: &[u8]) -> Self {
        Self::signed_for(
            path,
            &relay.addr.to_string(),
            key_id,
            body,
            SystemTime::now(),
            key(),
        )
    }

    fn signed(host: &str, key_id: &str, body: &[u8], at: SystemTime, key: &RsaKeyPair) -> Self {
        Self::signed_for("/inbox", host, key_id, body, at, key)
    }

    fn signed_for(
        path: &str,
        host: &str,
        key_id: &str,
        body: &[u8],
        at: SystemTime,
        key: &RsaKeyPair,
    ) -> Self {
        let mut headers = BTreeMap::from(
            [
                ("host", host.to_owned()),
                ("date", date::http_date(at)),
                ("digest", cavage::digest_header(body)),
                ("content-type", "application/activity+json".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let string = cavage::signing_string("POST", path, &POST_COVERED, headers.clone()).unwrap();
        let signature = sign(key, string.as_bytes());
        headers.insert(
            "signature".to_owned(),
            cavage::signature_header(key_id, &POST_COVERED, &signature),
        );
        Self {
            path: path.to_owned(),
            headers,
            body: body.to_vec(),
        }
    }
}

pub(super) fn sign(key: &RsaKeyPair, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
        .unwrap();
    signature
}

/// The one key pair of all instances here; making one takes long.
pub(super) fn key() -> &'static RsaKeyPair {
    static KEY: OnceLock<RsaKeyPair> = OnceLock::new();
    KEY.get_or_init(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
}

/// Another one, for forgeries and rotations.
pub(super) fn other_key() -> &'static RsaKeyPair {
    static KEY: OnceLock<RsaKeyPair> = OnceLock::new();
    KEY.get_or_init(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
}

pub(super) fn pem(key: &RsaKeyPair) -> String {
    let der: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(der.as_ref())
    )
}
