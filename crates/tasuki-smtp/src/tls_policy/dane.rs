//! DANE (RFC 6698, 7671, 7672): a server's certificate is good if a TLSA record from signed DNS says so.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use rustls::{
    CertificateError, ClientConfig, Error, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::CryptoProvider,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tasuki_core::tls::{PeerCheck, checking_client_config};

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

/// Whether one of these records names the certificate or one of those above it, dates and names aside.
pub(crate) fn names_one_of(records: &[TlsaRecord], chain: &[CertificateDer<'_>]) -> bool {
    usable(records.to_vec()).iter().any(|record| match record.usage {
        DANE_EE => chain.first().is_some_and(|cert| matches(record, cert)),
        _ => chain.iter().any(|cert| matches(record, cert)),
    })
}

/// A client configuration that believes these records alone.
pub(super) fn client_config(
    records: Arc<[TlsaRecord]>,
    domain: Option<ServerName<'static>>,
) -> Arc<ClientConfig> {
    checking_client_config(Dane {
        records,
        domain,
        provider: Arc::new(tasuki_core::tls::provider()),
    })
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

impl PeerCheck for Dane {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: Option<&ServerName<'_>>,
        now: UnixTime,
    ) -> Result<(), Error> {
        // RFC 7672 3.1.1: neither the name nor the dates of the certificate count then.
        let mut ee = self.records.iter().filter(|record| record.usage == DANE_EE);
        if ee.any(|record| matches(record, certificate)) {
            return Ok(());
        }
        let mut why = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        for record in self.records.iter().filter(|record| record.usage == DANE_TA) {
            let (Some(anchor), Some(name)) = (Self::anchor(record, chain), name) else {
                continue;
            };
            match self.is_under(anchor, certificate, chain, name, now) {
                Ok(()) => return Ok(()),
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}
