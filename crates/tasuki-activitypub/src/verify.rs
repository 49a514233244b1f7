//! Verification: aws-lc-rs for Ed25519 and ordinary RSA keys, the `rsa` crate for those it refuses (shorter than 2048 bits).

use aws_lc_rs::signature::{ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rsa::pkcs1::DecodeRsaPublicKey as _;
use rsa::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};
use rsa::signature::Verifier as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{PublicKey, pkcs1v15};
use sha2::Sha256;
use tasuki_proto::activitypub::cavage::KeyKind;
use tasuki_proto::activitypub::multikey::Multikey;

/// Shortest modulus believed, in bits: the few servers with such keys are old, but there.
const MIN_BITS: u32 = 1024;
/// Longest modulus verified, in bits: verification grows with its square.
const MAX_BITS: u32 = 8192;

/// Why a published key is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadKey {
    #[error("the public key is neither an RSA key in PEM (SPKI or PKCS#1) nor a Multikey (Ed25519 or RSA)")]
    Form,
    #[error("the public key has fewer than {MIN_BITS} or more than {MAX_BITS} bits")]
    Size,
}

/// A parsed public key.
pub(crate) enum VerifyKey {
    Fast(ParsedPublicKey),
    Slow(Box<pkcs1v15::VerifyingKey<Sha256>>),
    Ed25519(ParsedPublicKey),
}

impl VerifyKey {
    /// Reads `BEGIN PUBLIC KEY` (SPKI) and `BEGIN RSA PUBLIC KEY` (PKCS#1), both RSA, and what `publicKeyMultibase` holds. An
    /// Ed25519 key is taken from a Multikey alone: only these are published for the purpose `assertionMethod`.
    pub(crate) fn parse(text: &str) -> Result<Self, BadKey> {
        let der = match Multikey::parse(text) {
            Some(Multikey::Ed25519(key)) => {
                let key = ParsedPublicKey::new(&ED25519, key).map_err(|_| BadKey::Form)?;
                return Ok(Self::Ed25519(key));
            }
            Some(Multikey::Rsa(der)) => der,
            None => der_of(text).ok_or(BadKey::Form)?,
        };
        let key = PublicKey::from_public_key_der(&der)
            .or_else(|_| PublicKey::from_pkcs1_der(&der))
            .map_err(|_| BadKey::Form)?;
        let bits = key.n().bit_width();
        if !(MIN_BITS..=MAX_BITS).contains(&bits) {
            return Err(BadKey::Size);
        }
        let spki = key.to_public_key_der().map_err(|_| BadKey::Form)?;
        match ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, spki.as_bytes()) {
            Ok(fast) if bits >= 2048 => Ok(Self::Fast(fast)),
            _ => Ok(Self::Slow(Box::new(pkcs1v15::VerifyingKey::new(key)))),
        }
    }

    /// What kind of key it is.
    pub(crate) fn kind(&self) -> KeyKind {
        match self {
            Self::Fast(_) | Self::Slow(_) => KeyKind::Rsa,
            Self::Ed25519(_) => KeyKind::Ed25519,
        }
    }

    /// Whether `signature` over `message` was made with this key.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Fast(key) | Self::Ed25519(key) => key.verify_sig(message, signature).is_ok(),
            Self::Slow(key) => pkcs1v15::Signature::try_from(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
        }
    }
}

/// What is between the PEM's two marks, however it is broken into lines: servers publish keys with 64 columns, with 76, with
/// CRLF, and in a single line.
fn der_of(pem: &str) -> Option<Vec<u8>> {
    let (_, inner) = pem.split_once("PUBLIC KEY-----")?;
    let (inner, _) = inner.split_once("-----END")?;
    let base64: String = inner.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(base64).ok()
}

impl std::fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VerifyKey")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use base64::Engine as _;
    use std::time::SystemTime;

    use base64::engine::general_purpose::STANDARD;
    use tasuki_proto::activitypub::activity::Activity;
    use tasuki_proto::activitypub::json::Limits;
    use tasuki_proto::activitypub::ld;

    use super::{BadKey, VerifyKey};

    /// draft-cavage-http-signatures-12, Appendix C: an RSA-1024 key.
    const APPENDIX_C_KEY: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDCFENGw33yGihy92pDjZQhl0C3
6rPJj+CvfSC8+q28hxA161QFNUd13wuCTUcq0Qd2qsBe/2hFyc2DCJJg0h1L78+6
Z4UMR7EOcpfdUE9Hf3m/hs+FUR45uBJeDK1HSFHD8bHKD6kv8FPGfJTotc+2xjJw
oYi+1hqp1fIekaxsyQIDAQAB
-----END PUBLIC KEY-----";

    const DATE: &str = "date: Sun, 05 Jan 2014 21:31:40 GMT";
    const TARGET: &str = "(request-target): post /foo?param=value&pet=dog\nhost: example.com";

    #[test]
    fn the_signatures_of_appendix_c_verify_with_its_short_key() {
        let key = VerifyKey::parse(APPENDIX_C_KEY).unwrap();
        let all = format!(
            "{TARGET}\n{DATE}\ncontent-type: application/json\n\
             digest: SHA-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=\ncontent-length: 18"
        );
        for (message, signature) in [
            (
                DATE.to_owned(),
                "SjWJWbWN7i0wzBvtPl8rbASWz5xQW6mcJmn+ibttBqtifLN7Sazz6m79cNfwwb8DMJ5cou1s7uEGKKCs+FLEEaDV5lp7q25WqS+lavg7T8hc0GppauB6hbgEKTwblDHYGEtbGmtdHgVCk9SuS13F0hZ8FD0k/5OxEPXe5WozsbM=",
            ),
            (
                format!("{TARGET}\n{DATE}"),
                "qdx+H7PHHDZgy4y/Ahn9Tny9V3GP6YgBPyUXMmoxWtLbHpUnXS2mg2+SbrQDMCJypxBLSPQR2aAjn7ndmw2iicw3HMbe8VfEdKFYRqzic+efkb3nndiv/x1xSHDJWeSWkx3ButlYSuBskLu6kd9Fswtemr3lgdDEmn04swr2Os0=",
            ),
            (
                all,
                "vSdrb+dS3EceC9bcwHSo4MlyKS59iFIrhgYkz8+oVLEEzmYZZvRs8rgOp+63LEM3v+MFHB32NfpB2bEKBIvB1q52LaEUHFv120V01IL+TAD48XaERZFukWgHoBTLMhYS2Gb51gWxpeIq8knRmPnYePbF5MOkR0Zkly4zKH7s1dE=",
            ),
        ] {
            let signature = STANDARD.decode(signature).unwrap();
            assert!(key.verifies(message.as_bytes(), &signature), "{message}");
            assert!(!key.verifies(b"another message", &signature));
            assert!(!key.verifies(message.as_bytes(), &signature[1..]));
        }
    }

    /// The key of the account that signed the first of the vectors.
    const ACADEMY_KEY: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA5W/9rYXddIjKo9Ury/LK
XqQYbj0cOx/c+T1uRHJzced8JbvXdiBCNZXVVrIaygy3G/MOvxMW4kbA1bqeiSYY
V9TXBMI6gVVDnl5VG64uGxswcvUWqQU5Q1mwuwyGCPhexAq3BKe/7uH64AZgx11e
KLl3W3WcIMKmunYn8+z6hm0003hMensXMNpMVfqLoXaeuro7pYnwOSWoHFS3AxWK
llMwAoa5waulgai8gD7/uA5Y9Hvguk/OBYBh9YnIX5N5jScsmY/EYuesNIH2Ct9s
E3aVkTjZUt55JtXnk8Q9eTnrcB/98RtLWH4pJTKJhzxv19i3aZT3yDApPk0Q/biI
JQIDAQAB
-----END PUBLIC KEY-----";

    #[test]
    fn the_signature_that_a_mastodon_server_made_verifies_until_a_byte_is_changed() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!(
            "../../tasuki-proto/src/activitypub/tests/ld_vectors.json"
        ))
        .unwrap();
        let key = VerifyKey::parse(ACADEMY_KEY).unwrap();
        let verifies = |document: &serde_json::Value| {
            let body = document.to_string();
            let activity = Activity::read(body.as_bytes(), &Limits::default()).unwrap();
            let signed = ld::read(document, &activity, SystemTime::UNIX_EPOCH).unwrap();
            assert_eq!(signed.messages.len(), 1);
            key.verifies(signed.messages[0].as_bytes(), &signed.signature)
        };
        let mut document = vectors[0]["document"].clone();
        assert!(verifies(&document));
        document["object"]["content"] = "<p>Tess</p>".into();
        assert!(!verifies(&document));
    }

    #[test]
    fn texts_that_are_no_keys_are_refused() {
        for bad in [
            "",
            "PEM",
            &APPENDIX_C_KEY[..200],
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        ] {
            assert_eq!(VerifyKey::parse(bad).unwrap_err(), BadKey::Form, "{bad}");
        }
    }
}
