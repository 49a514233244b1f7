//! Which certificate a TLS client gets to see.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;
use super::config::Source;

/// The certificate in use and where it came from.
#[derive(Debug)]
pub(super) struct Presented {
    pub(super) certificate: Certificate,
    pub(super) source: Source,
}

/// Presents the newest certificate to everybody, with or without SNI, unless they ask for a guest.
pub(super) struct Newest {
    pub(super) own: ArcSwap<Presented>,
    /// Those of guests, by name.
    pub(super) guests: ArcSwap<HashMap<String, Arc<Presented>>>,
}

impl fmt::Debug for Newest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Newest")
    }
}

impl ResolvesServerCert for Newest {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = self.own.load();
        let guests = self.guests.load();
        let guest = match hello.server_name() {
            Some(name) if !guests.is_empty() && !own.certificate.is_for(name) => {
                guests.get(&name.to_ascii_lowercase())
            }
            _ => None,
        };
        let presented = guest.map_or(&own.certificate, |guest| &guest.certificate);
        Some(Arc::clone(&presented.certified))
    }
}

/// Answers to the ACME server's questions while an order is open. Only our own orders add to it, and they take away
/// what they added.
#[derive(Default)]
pub(super) struct Challenges {
    key_authorizations_by_token: Mutex<HashMap<String, String>>,
    certificates_by_name: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl Challenges {
    pub(super) fn http_answer(&self, token: &str) -> Option<String> {
        lock(&self.key_authorizations_by_token).get(token).cloned()
    }

    pub(super) fn expect_http(&self, token: &str, key_authorization: &str) {
        lock(&self.key_authorizations_by_token).insert(token.to_owned(), key_authorization.to_owned());
    }

    pub(super) fn expect_tls(&self, name: &str, certificate: Arc<CertifiedKey>) {
        lock(&self.certificates_by_name).insert(name.to_owned(), certificate);
    }

    pub(super) fn clear(&self) {
        lock(&self.key_authorizations_by_token).clear();
        lock(&self.certificates_by_name).clear();
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Challenges")
    }
}

// RFC 8737 3: the validation certificate is presented by name, and to nobody else.
impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        lock(&self.certificates_by_name).get(&name).cloned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
