//! Logins by a client's certificate: its key is listed for one person or service, and the TLS handshake proved that the
//! client has it. Who issued the certificate and whom it names does not matter.
//!
//! **Invariant:** each question is answered from the store's version of now, whatever a TLS session remembers: what is
//! revoked or switched off is refused at once.

use std::net::IpAddr;
use std::sync::Arc;

use super::making::Terms;
use super::{Accounts, AuthError, Bearer, MakeError, PrincipalKind, Refusal};
use crate::engine::EngineKind;
use crate::store::accounts::{Credential, CredentialKind, NewCredential, Principal};
use crate::store::{Actor, StoreError};
use crate::tls::ClientCertificate;

/// Most characters of a certificate's subject that become its label.
const LABEL: usize = 100;

/// A certificate that is listed, and whose it is.
pub(super) type Listed = Arc<(Credential, Principal)>;

impl Accounts {
    /// Lists the key of a certificate (PEM) for a person or service: whoever has that key acts as them. Without a label
    /// the certificate's subject is one.
    ///
    /// # Errors
    /// See [`MakeError`]; `Conflict` if the key is listed for anybody.
    pub async fn add_certificate(
        &self,
        name: &str,
        pem: &[u8],
        terms: Terms,
        actor: &Actor,
    ) -> Result<(Credential, ClientCertificate), MakeError> {
        let principal = self.there(name).await?;
        if !matches!(principal.kind, PrincipalKind::Person | PrincipalKind::Service) {
            return Err(MakeError::WrongKind {
                name: principal.name,
                wanted: "person or service",
            });
        }
        let now = self.inner.clock.wall();
        let certificate =
            ClientCertificate::from_pem(pem).map_err(|error| MakeError::BadCertificate(error.to_string()))?;
        if certificate.not_after <= now {
            let problem = format!("it expired at {}", certificate.not_after);
            return Err(MakeError::BadCertificate(problem));
        }
        let label = if terms.label.is_empty() {
            &certificate.subject
        } else {
            &terms.label
        };
        let new = NewCredential {
            kind: CredentialKind::Certificate,
            hash: certificate.fingerprint.clone(),
            label: label.chars().filter(|c| !c.is_control()).take(LABEL).collect(),
            scope: terms.scope,
            created_at: now,
            expires_at: terms.valid_for.map(|d| now.plus(d)),
        };
        let added = self.add(&principal, new, actor, "certificate.add").await?;
        Ok((added, certificate))
    }

    /// Who may act by this certificate in `engine` now; nobody if it is not listed, has expired, or is not for that.
    ///
    /// # Errors
    /// The store's.
    pub async fn certificate_holder(
        &self,
        engine: EngineKind,
        certificate: &ClientCertificate,
    ) -> Result<Option<Arc<Principal>>, StoreError> {
        let listed = self.listed(certificate).await?;
        let good = certificate.is_good_at(self.inner.clock.wall());
        Ok(listed
            .filter(|listed| good && self.refusal(listed).is_none() && listed.0.scope.works_in(engine))
            .map(|listed| Arc::new(listed.1.clone())))
    }

    /// Logs in by a certificate whose key the client has proved to have. `wanted` is as whom: empty, or the name that it
    /// must be.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub async fn login_by_certificate(
        &self,
        engine: EngineKind,
        certificate: &ClientCertificate,
        wanted: &str,
        from: IpAddr,
    ) -> Result<Arc<Principal>, AuthError> {
        let refuse = |name: &str, refusal| {
            self.inner.tell_refused(name, from, refusal);
            Err(AuthError::Refused)
        };
        let Some(listed) = self.listed(certificate).await? else {
            return refuse(wanted, Refusal::UnknownName);
        };
        let (credential, principal) = &*listed;
        if let Some(refusal) = self.refusal(&listed) {
            return refuse(&principal.name, refusal);
        }
        if !certificate.is_good_at(self.inner.clock.wall()) {
            return refuse(&principal.name, Refusal::Expired);
        }
        // Acting for somebody else is not offered.
        if !wanted.is_empty() && !wanted.eq_ignore_ascii_case(&principal.name) {
            return refuse(wanted, Refusal::WrongSecret);
        }
        let bearer = Bearer {
            principal: Arc::new(principal.clone()),
            scope: credential.scope.clone(),
        };
        self.inner.within_scope(engine, from, bearer)
    }

    async fn listed(&self, certificate: &ClientCertificate) -> Result<Option<Listed>, StoreError> {
        let inner = &*self.inner;
        let version = inner.version().await?;
        let key = Box::from(certificate.fingerprint.as_str());
        if let Some(listed) = inner.certificates.find(&key, version) {
            return Ok(Some(listed));
        }
        let found = inner
            .store
            .credential_by_hash(CredentialKind::Certificate, &certificate.fingerprint)
            .await?
            .map(Arc::new);
        if let Some(listed) = &found {
            inner.certificates.keep(key, version, Arc::clone(listed));
        }
        Ok(found)
    }

    fn refusal(&self, listed: &Listed) -> Option<Refusal> {
        if listed.1.disabled {
            Some(Refusal::Disabled)
        } else if self.inner.is_over(listed.0.expires_at) {
            Some(Refusal::Expired)
        } else {
            None
        }
    }
}
