//! Keys and signatures of the demo's instances: HTTP signatures (draft-cavage-12) and LD signatures
//! (RsaSignature2017), made here and not by the engine.

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::backup::hex;

/// An actor's key.
pub(super) struct Key {
    /// `https://H/actor#main-key`.
    pub(super) id: String,
    pair: KeyPair,
    /// SPKI.
    pub(super) public_pem: String,
}

impl Key {
    /// A new RSA-2048 key for `actor`.
    pub(super) fn new(actor: &str) -> Result<Self> {
        let pair =
            KeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow::anyhow!("no RSA key could be made"))?;
        let der = aws_lc_rs::signature::KeyPair::public_key(&pair)
            .as_der()
            .map_err(|_| anyhow::anyhow!("an RSA key could not be written"))?;
        let mut public_pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        for line in STANDARD.encode(der.as_ref()).as_bytes().chunks(64) {
            public_pem.push_str(&String::from_utf8_lossy(line));
            public_pem.push('\n');
        }
        public_pem.push_str("-----END PUBLIC KEY-----\n");
        Ok(Self {
            id: format!("{actor}#main-key"),
            pair,
            public_pem,
        })
    }

    fn sign(&self, message: &[u8]) -> Result<String> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| anyhow::anyhow!("a signature could not be made"))?;
        Ok(STANDARD.encode(signature))
    }

    /// The headers of a signed POST of `body`.
    pub(super) fn sign_post(
        &self,
        host: &str,
        path: &str,
        date: &str,
        body: &[u8],
    ) -> Result<Vec<(&'static str, String)>> {
        let digest = digest(body);
        let signature = self.sign(
            format!("(request-target): post {path}\nhost: {host}\ndate: {date}\ndigest: {digest}").as_bytes(),
        )?;
        let header = format!(
            "keyId=\"{}\",algorithm=\"rsa-sha256\",headers=\"(request-target) host date digest\",signature=\"{signature}\"",
            self.id
        );
        Ok(vec![
            ("date", date.to_owned()),
            ("digest", digest),
            ("signature", header),
            ("content-type", "application/activity+json".to_owned()),
        ])
    }

    /// Adds an LD signature to `document`. `quads` is its RDF: as no node in it is blank, the canonical form
    /// (RDF Dataset Canonicalization) is the sorted lines.
    pub(super) fn sign_document(
        &self,
        document: &mut Value,
        mut quads: Vec<String>,
        created: &str,
    ) -> Result<()> {
        const DATE_TIME: &str = "http://www.w3.org/2001/XMLSchema#dateTime";
        const TERMS: &str = "http://purl.org/dc/terms";
        let options = format!(
            "_:c14n0 <{TERMS}/created> \"{created}\"^^<{DATE_TIME}> .\n_:c14n0 <{TERMS}/creator> <{}> .\n",
            self.id
        );
        quads.sort();
        let to_sign = hex(&Sha256::digest(options)) + &hex(&Sha256::digest(quads.concat()));
        document["signature"] = json!({
            "type": "RsaSignature2017",
            "creator": self.id,
            "created": created,
            "signatureValue": self.sign(to_sign.as_bytes())?,
        });
        Ok(())
    }
}

/// The value of a `Digest` header.
pub(super) fn digest(body: &[u8]) -> String {
    format!("SHA-256={}", STANDARD.encode(Sha256::digest(body)))
}

/// Checks a received POST: the digest, and the signature with the key in `public_pem`.
pub(super) fn verify_post(
    headers: &http::HeaderMap,
    path: &str,
    body: &[u8],
    public_pem: &str,
) -> Result<()> {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .with_context(|| format!("the header {name} is missing"))
    };
    ensure!(
        header("digest")? == digest(body),
        "the digest is not that of the body"
    );
    let signature = header("signature")?;
    let field = |name: &str| {
        signature
            .split(',')
            .find_map(|part| {
                part.trim()
                    .strip_prefix(name)?
                    .strip_prefix("=\"")?
                    .strip_suffix('"')
            })
            .with_context(|| format!("the signature has no {name}"))
    };
    let covered = field("headers")?;
    for needed in ["(request-target)", "host", "date", "digest"] {
        ensure!(covered.split(' ').any(|c| c == needed), "{needed} is not signed");
    }
    let lines: Vec<String> = covered
        .split(' ')
        .map(|name| match name {
            "(request-target)" => Ok(format!("(request-target): post {path}")),
            name => Ok(format!("{name}: {}", header(name)?)),
        })
        .collect::<Result<_>>()?;
    let der = STANDARD.decode(
        public_pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect::<String>(),
    )?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der)
        .verify(
            lines.join("\n").as_bytes(),
            &STANDARD.decode(field("signature")?)?,
        )
        .map_err(|_| anyhow::anyhow!("the signature does not verify"))
}
