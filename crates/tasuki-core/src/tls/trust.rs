//! Whom outgoing TLS believes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::certificate::read_certificates;
use super::{TlsError, provider};

/// Where distributions keep their bundle of roots; the first one found is read besides the built-in roots, so that a
/// company's own CA installed on the machine is believed.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A client configuration that believes the public roots (built in, and the machine's own), the certificates in the
/// files `extra_ca` and those in `more`.
///
/// # Errors
/// A file of `extra_ca` cannot be read or holds no certificate. The machine's own bundle is read as far as it goes.
pub fn client_config(
    extra_ca: &[PathBuf],
    more: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, TlsError> {
    Trust::load(extra_ca, more).map(|trust| trust.client)
}

/// Whom outgoing TLS believes: as a configuration, and to judge certificates that were taken without it.
pub(super) struct Trust {
    pub(super) client: Arc<ClientConfig>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Trust {
    pub(super) fn load(extra_ca: &[PathBuf], more: &[CertificateDer<'static>]) -> Result<Self, TlsError> {
        let roots = roots(extra_ca, more)?;
        let provider = Arc::new(provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| TlsError::Certificate {
                what: "the trusted roots".to_owned(),
                problem: error.to_string(),
            })?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider speaks TLS 1.2 and 1.3")
            .with_webpki_verifier(Arc::clone(&verifier))
            .with_no_client_auth();
        Ok(Self {
            client: Arc::new(config),
            verifier,
        })
    }

    /// Whether a server's certificate, followed by its chain, is good for this name.
    pub(super) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (end_entity, intermediates) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier
            .verify_server_cert(end_entity, intermediates, name, &[], now)
            .map(drop)
    }
}

fn roots(extra_ca: &[PathBuf], more: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    add_system_roots(&mut roots);
    for path in extra_ca {
        add_file(&mut roots, path)?;
    }
    for cert in more {
        roots.add(cert.clone()).map_err(|error| TlsError::Certificate {
            what: "ca.pem".to_owned(),
            problem: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    let problem = |problem: String| TlsError::Certificate {
        what: path.display().to_string(),
        problem,
    };
    let certs = read_certificates(path)?;
    if certs.is_empty() {
        return Err(problem(
            "there is no certificate in it; a PEM file is expected (tls.extra_ca)".to_owned(),
        ));
    }
    for cert in certs {
        roots.add(cert).map_err(|error| problem(error.to_string()))?;
    }
    Ok(())
}

fn add_system_roots(roots: &mut RootCertStore) {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let found = named
        .into_iter()
        .chain(SYSTEM_ROOTS.iter().map(PathBuf::from))
        .find(|path| path.is_file());
    let Some(path) = found else { return };
    match CertificateDer::pem_file_iter(&path) {
        Ok(certs) => {
            for anchor in certs.flatten().filter_map(|cert| anchor_of(&cert)) {
                if !roots.roots.contains(&anchor) {
                    roots.roots.push(anchor);
                }
            }
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the machine's root certificates cannot be read")
        }
    }
}

/// The anchor of one certificate, through a store of its own, so that repeats can be told.
fn anchor_of(cert: &CertificateDer<'static>) -> Option<rustls_pki_types::TrustAnchor<'static>> {
    let mut one = RootCertStore::empty();
    one.add(cert.clone()).ok()?;
    one.roots.pop()
}
