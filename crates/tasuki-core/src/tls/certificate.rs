//! One certificate with its key, and what it says of itself.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;

use super::{TlsError, provider};
use crate::clock::Timestamp;

/// A chain and its key, ready to be presented.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// What rustls presents.
    pub(super) certified: Arc<CertifiedKey>,
    /// See [`super::Tls::end_point`].
    pub(super) end_point: Option<Vec<u8>>,
    /// DNS names and addresses it is good for.
    pub names: Vec<String>,
    /// Good from.
    pub not_before: Timestamp,
    /// Good until.
    pub not_after: Timestamp,
}

impl Certificate {
    /// Puts chain and key together; `what` names them in errors (a path, or "the private CA").
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        what: &str,
    ) -> Result<Self, TlsError> {
        let leaf = chain.first().ok_or_else(|| TlsError::Certificate {
            what: what.to_owned(),
            problem: "there is no certificate in it; a PEM file with the certificate first is expected"
                .to_owned(),
        })?;
        let facts = Facts::read(leaf).map_err(|problem| TlsError::Certificate {
            what: what.to_owned(),
            problem,
        })?;
        let certified =
            CertifiedKey::from_der(chain, key, &provider()).map_err(|error| TlsError::Certificate {
                what: what.to_owned(),
                problem: match error {
                    rustls::Error::InconsistentKeys(_) => "the key belongs to another certificate".to_owned(),
                    other => other.to_string(),
                },
            })?;
        Ok(Self {
            certified: Arc::new(certified),
            end_point: facts.end_point,
            names: facts.names,
            not_before: facts.not_before,
            not_after: facts.not_after,
        })
    }

    /// Reads a PEM chain and a PEM key.
    pub(super) fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain = read_certificates(cert)?;
        let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::from_pem(key, error))?;
        Self::new(chain, key_der, &cert.display().to_string())
    }

    /// What is presented, the certificate itself first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Whole days until it expires; negative when it has.
    #[must_use]
    pub fn days_left(&self, now: Timestamp) -> i64 {
        (self.not_after.0 - now.0).div_euclid(86_400_000)
    }

    /// The time from which at most a third of its life is left.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        self.not_after.minus(self.not_after.since(self.not_before) / 3)
    }

    /// Whether it is good for all of `names`.
    #[must_use]
    pub fn covers(&self, names: &[String]) -> bool {
        names.iter().all(|name| self.names.contains(name))
    }

    /// Whether a client that asks for `name` takes it (RFC 9525 6.3: a wildcard stands for one label).
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        let wildcard = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        self.names
            .iter()
            .any(|has| has == name || wildcard.as_ref() == Some(has))
    }

    /// How long it is good in all.
    #[must_use]
    pub fn life(&self) -> Duration {
        self.not_after.since(self.not_before)
    }

    /// The fingerprint of its key; see [`spki_fingerprint`].
    ///
    /// # Errors
    /// Cannot happen for a certificate that was read; kept for the signature's honesty.
    pub fn fingerprint(&self) -> Result<String, TlsError> {
        let leaf = self.certified.cert.first().map_or(&[][..], |der| der.as_ref());
        spki_fingerprint(leaf)
    }
}

/// The SHA-256 fingerprint of the public key in a certificate: 64 lower-case hex digits over the
/// SubjectPublicKeyInfo (the bytes that RFC 7858 and RFC 7469 pins use). It stays when a certificate is renewed with
/// the same key.
///
/// # Errors
/// The bytes are no X.509 certificate.
pub fn spki_fingerprint(cert_der: &[u8]) -> Result<String, TlsError> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert_der).map_err(|error| TlsError::Certificate {
        what: "certificate".to_owned(),
        problem: error.to_string(),
    })?;
    Ok(key_fingerprint(cert.public_key().raw))
}

/// The same for a bare SubjectPublicKeyInfo in DER.
#[must_use]
pub fn key_fingerprint(spki_der: &[u8]) -> String {
    use std::fmt::Write;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, spki_der);
    digest
        .as_ref()
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// All certificates of a PEM file.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| TlsError::from_pem(path, error))
}

/// RFC 5929 4.1: the certificate's hash by the hash function of its signature, SHA-256 in place of weaker ones. Signatures
/// without one such function (Ed25519, RSASSA-PSS) have none.
fn end_point(der: &[u8], signature: &str) -> Option<Vec<u8>> {
    use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
    let hash = match signature {
        // ecdsa-with-SHA256, SHA-256, SHA-1 and MD5 with RSA
        "1.2.840.10045.4.3.2" | "1.2.840.113549.1.1.11" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.4" => {
            &SHA256
        }
        "1.2.840.10045.4.3.3" | "1.2.840.113549.1.1.12" => &SHA384,
        "1.2.840.10045.4.3.4" | "1.2.840.113549.1.1.13" => &SHA512,
        _ => return None,
    };
    Some(digest(hash, der).as_ref().to_vec())
}

struct Facts {
    end_point: Option<Vec<u8>>,
    names: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Facts {
    fn read(der: &[u8]) -> Result<Self, String> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|error| error.to_string())?;
        let validity = cert.validity();
        let names = cert
            .subject_alternative_name()
            .map_err(|error| error.to_string())?
            .map(|extension| {
                extension
                    .value
                    .general_names
                    .iter()
                    .filter_map(name_text)
                    .collect()
            })
            .unwrap_or_default();
        Ok(Self {
            end_point: end_point(der, &cert.signature_algorithm.algorithm.to_id_string()),
            names,
            not_before: Timestamp(validity.not_before.timestamp().saturating_mul(1000)),
            not_after: Timestamp(validity.not_after.timestamp().saturating_mul(1000)),
        })
    }
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(dns) => Some(dns.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => {
            let ip = <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                .ok()?;
            Some(ip.to_string())
        }
        _ => None,
    }
}
