//! DANE (RFC 6698, 7671, 7672): a server's certificate is good if a TLSA record from signed DNS says so.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::dns::TlsaRecord;

const DANE_TA: u8 = 2;
const DANE_EE: u8 = 3;

/// The records that can be used for mail: usages 2 and 3 only (RFC 7672 3.1.3), and what we can compute.
pub(super) fn usable(records: Vec<TlsaRecord>) -> Vec<TlsaRecord> {
    let can = |record: &TlsaRecord| {
        let length = match record.matching {
            0 => !record.data.is_empty(),
            1 => record.data.len() == 32,
            2 => record.data.len() == 64,
            _ => false,
        };
        matches!(record.usage, DANE_TA | DANE_EE) && record.selector <= 1 && length
    };
    let mut usable: Vec<_> = records.into_iter().filter(can).collect();
    usable.sort();
    usable.dedup();
    usable
}

/// A client configuration that believes these records alone.
pub(super) fn client_config(
    records: Arc<[TlsaRecord]>,
    domain: Option<ServerName<'static>>,
) -> Arc<ClientConfig> {
    let provider = Arc::new(tasuki_core::tls::provider());
    let verifier = Dane {
        records,
        domain,
        provider: Arc::clone(&provider),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider speaks TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Arc::new(config)
}

#[derive(Debug)]
struct Dane {
    records: Arc<[TlsaRecord]>,
    /// The recipients' domain; a certificate under a trust anchor may be for it, too (RFC 7672 3.2.2).
    domain: Option<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

fn matches(record: &TlsaRecord, cert: &CertificateDer<'_>) -> bool {
    let key;
    let subject: &[u8] = if record.selector == 0 {
        cert
    } else {
        let Ok(parsed) = ParsedCertificate::try_from(cert) else {
            return false;
        };
        key = parsed.subject_public_key_info();
        &key
    };
    match record.matching {
        0 => subject == record.data,
        1 => digest(&SHA256, subject).as_ref() == record.data,
        _ => digest(&SHA512, subject).as_ref() == record.data,
    }
}

impl Dane {
    /// The certificate that a record of usage 2 means: one of the chain, or the one that the record holds.
    fn anchor<'a>(record: &TlsaRecord, chain: &[CertificateDer<'a>]) -> Option<CertificateDer<'a>> {
        let sent = chain.iter().find(|cert| matches(record, cert)).cloned();
        let whole = record.selector == 0 && record.matching == 0;
        sent.or_else(|| whole.then(|| CertificateDer::from(record.data.clone())))
    }

    fn is_under(
        &self,
        anchor: CertificateDer<'_>,
        end_entity: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        roots.add(anchor.into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        let verify = |name: &ServerName<'_>| {
            verifier
                .verify_server_cert(end_entity, chain, name, &[], now)
                .map(drop)
        };
        let by_host = verify(host);
        match &self.domain {
            Some(domain) if by_host.is_err() && verify(domain).is_ok() => Ok(()),
            _ => by_host,
        }
    }
}

impl ServerCertVerifier for Dane {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // RFC 7672 3.1.1: neither the name nor the dates of the certificate count then.
        let mut ee = self.records.iter().filter(|record| record.usage == DANE_EE);
        if ee.any(|record| matches(record, end_entity)) {
            return Ok(ServerCertVerified::assertion());
        }
        let mut why = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        for record in self.records.iter().filter(|record| record.usage == DANE_TA) {
            let Some(anchor) = Self::anchor(record, intermediates) else {
                continue;
            };
            match self.is_under(anchor, end_entity, intermediates, server_name, now) {
                Ok(()) => return Ok(ServerCertVerified::assertion()),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
