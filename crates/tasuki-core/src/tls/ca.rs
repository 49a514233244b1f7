//! The private CA: made at first start, so that TLS works before anybody owns a public name.
//!
//! Its key and the server's key stay; certificates are reissued at one third of life left. So a pin of the server's
//! key ([`super::spki_fingerprint`]) survives every renewal, and also the change from the private CA to ACME, which
//! certifies the same key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;
use super::certificate::{Certificate, key_fingerprint, read_certificates};
use crate::clock::Timestamp;
use crate::files;

const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
const SERVER_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// Peers' clocks may be behind ours.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);

/// The private CA and the server's own key.
#[derive(Debug)]
pub(super) struct PrivateCa {
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    server_key: KeyPair,
}

impl PrivateCa {
    /// Reads `ca.pem`, `ca.key` and `server.key` in `keys_dir`, or makes those that are missing (mode 0600).
    pub(super) fn load_or_make(keys_dir: &Path, now: Timestamp) -> Result<Self, TlsError> {
        files::make_private_dir(keys_dir).map_err(|source| TlsError::Write {
            path: keys_dir.to_owned(),
            source,
        })?;
        let ca_key = load_or_make_key(&keys_dir.join("ca.key"))?;
        let server_key = load_or_make_key(&keys_dir.join("server.key"))?;
        let path = keys_dir.join("ca.pem");
        let params = ca_params(now, &ca_key);
        let cert = if path.exists() {
            read_ca(&path, &ca_key)?
        } else {
            let made = params
                .self_signed(&ca_key)
                .map_err(|error| making(&path, &error))?;
            write(&path, made.pem().as_bytes())?;
            made.der().clone()
        };
        Ok(Self {
            cert,
            issuer: Issuer::new(params, ca_key),
            server_key,
        })
    }

    /// The CA's certificate.
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// The server's own key, which the private CA and ACME certify alike.
    pub(super) fn server_key(&self) -> &KeyPair {
        &self.server_key
    }

    /// A fresh certificate for `names` (DNS names and addresses) over the server's own key.
    pub(super) fn issue(&self, names: &[String], now: Timestamp) -> Result<Certificate, TlsError> {
        let what = "the private CA's certificate";
        let failed = |error: rcgen::Error| TlsError::Certificate {
            what: what.to_owned(),
            problem: error.to_string(),
        };
        let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(first) = names.first() {
            params.distinguished_name.push(DnType::CommonName, first.as_str());
        }
        params.not_before = now.minus(CLOCK_SLACK).to_utc();
        params.not_after = now.plus(SERVER_LIFE).to_utc();
        params.serial_number = Some(random_serial());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issued = params.signed_by(&self.server_key, &self.issuer).map_err(failed)?;
        Certificate::new(
            vec![issued.der().clone(), self.cert.clone()],
            key_der(&self.server_key),
            what,
        )
    }
}

/// The key as rustls takes it.
pub(super) fn key_der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(key.serialize_der().into())
}

fn ca_params(now: Timestamp, key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // Two installations' CAs must not have the same name, or a client that trusts both may take the wrong one.
    let id = key_fingerprint(&rcgen::PublicKeyData::subject_public_key_info(key));
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Tasuki private CA {}", &id[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now.minus(CLOCK_SLACK).to_utc();
    params.not_after = now.plus(CA_LIFE).to_utc();
    params.serial_number = Some(random_serial());
    params
}

/// RFC 5280 4.1.2.2: positive, at most 20 octets, unique for the issuer.
fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn load_or_make_key(path: &Path) -> Result<KeyPair, TlsError> {
    match std::fs::read_to_string(path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|error| TlsError::Certificate {
            what: path.display().to_string(),
            problem: format!("no usable private key: {error}"),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(|error| making(path, &error))?;
            write(path, key.serialize_pem().as_bytes())?;
            Ok(key)
        }
        Err(source) => Err(TlsError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn read_ca(path: &Path, key: &KeyPair) -> Result<CertificateDer<'static>, TlsError> {
    let problem = |problem: &str| TlsError::Certificate {
        what: path.display().to_string(),
        problem: problem.to_owned(),
    };
    let cert = read_certificates(path)?
        .into_iter()
        .next()
        .ok_or_else(|| problem("there is no certificate in it; restore it together with ca.key"))?;
    let own = key_fingerprint(&rcgen::PublicKeyData::subject_public_key_info(key));
    if super::spki_fingerprint(&cert)? != own {
        return Err(problem(
            "it does not belong to ca.key; restore both from the same backup",
        ));
    }
    Ok(cert)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    files::write_private(path, bytes).map_err(|source| TlsError::Write {
        path: PathBuf::from(path),
        source,
    })
}

fn making(path: &Path, error: &rcgen::Error) -> TlsError {
    TlsError::Certificate {
        what: path.display().to_string(),
        problem: format!("it could not be made: {error}"),
    }
}
