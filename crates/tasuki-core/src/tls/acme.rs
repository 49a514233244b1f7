//! One ACME order (RFC 8555): prove the names, have the server's own key certified, keep the chain.
//!
//! Kept in `keys/acme/`, mode 0600: the account (one file for each directory) and `cert.pem`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use instant_acme::{
    Account, AccountBuilder, AccountCredentials, AuthorizationHandle, AuthorizationStatus, BodyWrapper,
    ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::ca::key_der;
use super::certificate::Certificate;
use super::config::{AcmeChallenge, AcmeConfig};
use super::resolver::Challenges;
use super::{TlsError, key_fingerprint, provider};
use crate::clock::Timestamp;
use crate::files;

/// How long the CA may take to check the names, and to sign.
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// Why an order did not end in a certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum AcmeError {
    #[error("the ACME server could not be used")]
    Protocol(#[from] instant_acme::Error),
    #[error("the ACME server offers none of tls.acme.challenges for {0}")]
    NoChallenge(String),
    #[error("the ACME server refused {name}: {problem}")]
    Refused { name: String, problem: String },
    #[error("the ACME server refused the order without a reason")]
    Unexplained,
    #[error("the ACME order did not end in time")]
    TooSlow,
    #[error("a key or request could not be made")]
    Rcgen(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// All that an order needs.
pub(super) struct Order<'a> {
    pub(super) config: &'a AcmeConfig,
    pub(super) names: &'a [String],
    /// Where the certificate is kept.
    pub(super) path: PathBuf,
    pub(super) keys_dir: &'a Path,
    pub(super) server_key: &'a KeyPair,
    pub(super) challenges: &'a Challenges,
    pub(super) client: Arc<rustls::ClientConfig>,
}

/// The certificate that an earlier order left, if it still serves.
pub(super) fn kept(path: &Path, key: &KeyPair, names: &[String], now: Timestamp) -> Option<Certificate> {
    let pem = std::fs::read(path).ok()?;
    match parse(&pem, key) {
        Ok(certificate) if certificate.covers(names) && certificate.not_after > now => Some(certificate),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the kept ACME certificate cannot be used; a new one is ordered");
            None
        }
    }
}

impl Order<'_> {
    pub(super) async fn run(&self) -> Result<Certificate, AcmeError> {
        let account = self.account().await?;
        let identifiers: Vec<Identifier> = self.names.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            self.answer(authorization?).await?;
        }
        let patience = RetryPolicy::new().timeout(CHECK_TIMEOUT);
        match order.poll_ready(&patience).await {
            Ok(OrderStatus::Ready) => {}
            Ok(_) => return Err(refusal(&mut order).await.unwrap_or(AcmeError::Unexplained)),
            Err(error) => return Err(refusal(&mut order).await.unwrap_or(error.into())),
        }
        order.finalize_csr(&self.request()?).await?;
        let chain = order.poll_certificate(&patience).await?;
        let certificate = parse(chain.as_bytes(), self.server_key)?;
        let path = self.path.clone();
        if let Some(dir) = path.parent() {
            files::make_private_dir(dir).map_err(|source| TlsError::Write {
                path: dir.to_owned(),
                source,
            })?;
        }
        files::write_private(&path, chain.as_bytes()).map_err(|source| TlsError::Write { path, source })?;
        Ok(certificate)
    }

    async fn account(&self) -> Result<Account, AcmeError> {
        let dir = self.keys_dir.join("acme");
        files::make_private_dir(&dir).map_err(|source| TlsError::Write {
            path: dir.clone(),
            source,
        })?;
        let id = key_fingerprint(self.config.directory.as_bytes());
        let path = dir.join(format!("account-{}.json", &id[..16]));
        if let Some(credentials) = read_account(&path)? {
            return Ok(self.builder().from_credentials(credentials).await?);
        }
        let contact: Vec<String> = self.config.email.iter().map(|e| format!("mailto:{e}")).collect();
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let (account, credentials) = self
            .builder()
            .create(
                &NewAccount {
                    contact: &contact,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                },
                self.config.directory.clone(),
                None,
            )
            .await?;
        let text = serde_json::to_vec(&credentials).map_err(instant_acme::Error::from)?;
        files::write_private(&path, &text).map_err(|source| TlsError::Write { path, source })?;
        Ok(account)
    }

    fn builder(&self) -> AccountBuilder {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(self.client.as_ref().clone())
            .https_only()
            .enable_http1()
            .enable_http2()
            .build();
        let http: Client<_, BodyWrapper<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
        Account::builder_with_http(Box::new(http))
    }

    /// Puts the answer to the first challenge we can take where the CA will look for it, and calls it.
    async fn answer(&self, mut authorization: AuthorizationHandle<'_>) -> Result<(), AcmeError> {
        let name = authorization.identifier().to_string();
        match authorization.status {
            AuthorizationStatus::Valid => return Ok(()),
            AuthorizationStatus::Pending => {}
            other => {
                return Err(AcmeError::Refused {
                    name,
                    problem: format!("the authorization is {other:?}"),
                });
            }
        }
        let offered: HashSet<String> = authorization
            .challenges
            .iter()
            .map(|challenge| format!("{:?}", challenge.r#type))
            .collect();
        let way = self
            .config
            .challenges
            .iter()
            .find(|way| offered.contains(&format!("{:?}", acme_type(**way))))
            .ok_or_else(|| AcmeError::NoChallenge(name.clone()))?;
        let mut challenge = authorization
            .challenge(acme_type(*way))
            .ok_or_else(|| AcmeError::NoChallenge(name.clone()))?;
        let proof = challenge.key_authorization();
        match way {
            AcmeChallenge::Http01 => self.challenges.expect_http(&challenge.token, proof.as_str()),
            AcmeChallenge::TlsAlpn01 => {
                let certificate = validation_certificate(&name, proof.digest().as_ref())?;
                self.challenges
                    .expect_tls(&name.to_ascii_lowercase(), certificate);
            }
        }
        challenge.set_ready().await?;
        Ok(())
    }

    /// The certificate request over the server's own key.
    fn request(&self) -> Result<Vec<u8>, AcmeError> {
        let mut params = CertificateParams::new(self.names.to_vec())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(self.server_key)?.der().to_vec())
    }
}

fn acme_type(way: AcmeChallenge) -> ChallengeType {
    match way {
        AcmeChallenge::Http01 => ChallengeType::Http01,
        AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// RFC 8737 3: self-signed, only that name, with the proof's digest in a critical extension.
fn validation_certificate(name: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, AcmeError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    // Not by `CertifiedKey::from_der`: it parses the certificate and refuses the critical extension.
    let signer = provider()
        .key_provider
        .load_private_key(key_der(&key))
        .map_err(|error| TlsError::Certificate {
            what: "the validation certificate".to_owned(),
            problem: error.to_string(),
        })?;
    Ok(Arc::new(CertifiedKey::new(
        vec![certificate.der().clone()],
        signer,
    )))
}

/// Which name the CA refused, and why, if it says so.
async fn refusal(order: &mut instant_acme::Order) -> Option<AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        authorization.refresh().await.ok()?;
        if let Some(problem) = authorization.challenges.iter().find_map(|c| c.error.as_ref()) {
            return Some(AcmeError::Refused {
                name: authorization.identifier().to_string(),
                problem: problem.to_string(),
            });
        }
    }
    None
}

fn read_account(path: &Path) -> Result<Option<AccountCredentials>, TlsError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(TlsError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| TlsError::Certificate {
            what: path.display().to_string(),
            problem: format!(
                "no ACME account ({error}); restore the file, or delete it to make a new account"
            ),
        })
}

fn parse(pem: &[u8], key: &KeyPair) -> Result<Certificate, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| TlsError::Certificate {
        what: "the ACME certificate".to_owned(),
        problem: error.to_string(),
    })?;
    Certificate::new(chain, key_der(key), "the ACME certificate")
}

/// Where the gateway's own certificate is kept.
pub(super) fn cert_path(keys_dir: &Path) -> PathBuf {
    keys_dir.join("acme").join("cert.pem")
}
