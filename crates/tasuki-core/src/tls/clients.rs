//! Clients that show a certificate: who they are is decided by whoever asked, from the key alone.

use rustls::Error;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::TlsError;
use super::certificate::key_fingerprint;
use super::verify::PeerCheck;
use crate::clock::Timestamp;

/// A client's certificate, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Of its key, see [`super::spki_fingerprint`].
    pub fingerprint: String,
    /// Whom it names; nobody relies on that.
    pub subject: String,
    /// Good from.
    pub not_before: Timestamp,
    /// Good until.
    pub not_after: Timestamp,
}

impl ClientCertificate {
    /// Reads what a client showed.
    ///
    /// # Errors
    /// The bytes are no X.509 certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, TlsError> {
        let (_, cert) =
            x509_parser::parse_x509_certificate(der).map_err(|error| wrong(&error.to_string()))?;
        let validity = cert.validity();
        Ok(Self {
            fingerprint: key_fingerprint(cert.public_key().raw),
            subject: cert.subject().to_string(),
            not_before: Timestamp(validity.not_before.timestamp().saturating_mul(1000)),
            not_after: Timestamp(validity.not_after.timestamp().saturating_mul(1000)),
        })
    }

    /// Reads the first certificate of a PEM file.
    ///
    /// # Errors
    /// There is none in it.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let first = CertificateDer::pem_slice_iter(pem).next();
        match first {
            Some(Ok(der)) => Self::from_der(&der),
            Some(Err(error)) => Err(wrong(&format!("not the PEM file that is expected: {error}"))),
            None => Err(wrong("there is no certificate in it; a PEM file is expected")),
        }
    }

    /// Whether it is good at this time.
    #[must_use]
    pub fn is_good_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

fn wrong(problem: &str) -> TlsError {
    TlsError::Certificate {
        what: "the client certificate".to_owned(),
        problem: problem.to_owned(),
    }
}

/// Asks for a certificate and takes any, or none: the handshake proves that the client has its key, and that is all it
/// proves.
#[derive(Debug)]
pub(super) struct AnyClient;

impl PeerCheck for AnyClient {
    fn check(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: Option<&ServerName<'_>>,
        _now: UnixTime,
    ) -> Result<(), Error> {
        Ok(())
    }

    fn is_mandatory(&self) -> bool {
        false
    }
}
