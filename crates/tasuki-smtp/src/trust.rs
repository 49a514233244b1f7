//! TLS for opportunistic delivery: any certificate will do, because the choice is that or none at all (RFC 7435). It keeps
//! listeners out, not impostors; credentials never go over it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::{ClientConfig, Error};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tasuki_core::tls::{PeerCheck, checking_client_config};

/// A client configuration that takes any certificate.
pub(crate) fn any_certificate() -> Arc<ClientConfig> {
    checking_client_config(Any)
}

#[derive(Debug)]
struct Any;

impl PeerCheck for Any {
    fn check(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: Option<&ServerName<'_>>,
        _now: UnixTime,
    ) -> Result<(), Error> {
        Ok(())
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
