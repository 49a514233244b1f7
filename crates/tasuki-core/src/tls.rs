//! Certificates for all engines and trust for outgoing TLS; replaced without restart.

use std::sync::Arc;

/// The TLS side of the house; clones share it.
#[derive(Clone, Debug)]
pub struct Tls {
    _todo: Arc<()>,
}

impl Tls {
    /// A server configuration that always presents the newest certificate. `alpn` in order of preference; empty for
    /// protocols without ALPN (SMTP).
    #[must_use]
    pub fn server(&self, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
        let _ = alpn;
        todo!("core2")
    }

    /// A client configuration that verifies against the public roots, `tls.extra_ca` and the private CA.
    #[must_use]
    pub fn client(&self) -> Arc<rustls::ClientConfig> {
        todo!("core2")
    }
}
