//! TLS for opportunistic delivery: any certificate will do, because the choice is that or none at all (RFC 7435). It keeps
//! listeners out, not impostors; credentials never go over it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// A client configuration that takes any certificate.
pub(crate) fn any_certificate() -> Arc<ClientConfig> {
    let provider = Arc::new(tasuki_core::tls::provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider speaks TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any(provider)))
        .with_no_client_auth();
    Arc::new(config)
}

#[derive(Debug)]
struct Any(Arc<CryptoProvider>);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// How long a server's broken TLS is remembered, and most servers that are.
const BROKEN_FOR: Duration = Duration::from_secs(3 * 86_400);
const MAX_BROKEN: usize = 10_000;

/// Servers that offer STARTTLS and cannot do it, but take mail in the clear. Each attempt to protect a connection to one
/// costs a connection, so they are left in peace for a while.
#[derive(Default)]
pub(crate) struct BrokenTls(Mutex<HashMap<String, Instant>>);

impl BrokenTls {
    /// The handshake failed and the connection without it did not.
    pub(crate) fn remember(&self, host: &str, now: Instant) {
        let mut broken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.len() >= MAX_BROKEN {
            broken.retain(|_, until| *until > now);
            if broken.len() >= MAX_BROKEN {
                broken.clear();
            }
        }
        broken.insert(host.to_owned(), now + BROKEN_FOR);
    }

    pub(crate) fn is_broken(&self, host: &str, now: Instant) -> bool {
        let broken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        broken.get(host).is_some_and(|until| *until > now)
    }
}
