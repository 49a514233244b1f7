//! The `[front]` part of the configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{duration, size};
use crate::engine::BuildError;

/// Smallest `max_header_bytes`: below it ordinary browsers' cookies do not fit.
const LEAST_HEADER_BYTES: u64 = 8 * 1024;

/// The front door of the public web ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FrontConfig {
    /// Where plain HTTP is taken: a reverse proxy in front, ACME's `http-01`, redirects.
    pub listen: Vec<SocketAddr>,
    /// Where TLS is taken.
    pub tls_listen: Vec<SocketAddr>,
    /// Connections at once on all these ports.
    pub max_connections: usize,
    /// Connections at once from one address (/64 of IPv6). Loopback and trusted proxies are not counted.
    pub max_connections_per_address: usize,
    /// Send plain requests for the own name to HTTPS (308).
    pub redirect_to_https: bool,
    /// How long a client may take for the header of a request; also how long an HTTP/1.1 connection may be idle.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// How long an HTTP/2 connection may be idle.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// How long a request may take until its answer begins, its body included.
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    /// Bytes of all headers of a request.
    #[serde(with = "size")]
    pub max_header_bytes: u64,
    /// Peers that must begin each connection with a PROXY header (version 1 or 2). From others it is not understood.
    pub proxy_protocol_from: Vec<IpNet>,
}

impl Default for FrontConfig {
    fn default() -> Self {
        let loopback = |port| vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
        Self {
            listen: loopback(8080),
            tls_listen: loopback(8443),
            max_connections: 4096,
            max_connections_per_address: 256,
            redirect_to_https: false,
            header_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(60),
            max_header_bytes: 32 * 1024,
            proxy_protocol_from: Vec::new(),
        }
    }
}

impl FrontConfig {
    /// Checks what a type cannot.
    ///
    /// # Errors
    /// [`BuildError::Config`] with the key.
    pub fn check(&self) -> Result<(), BuildError> {
        let wrong = |key: &str, problem: &str| {
            Err(BuildError::Config {
                key: format!("front.{key}"),
                problem: problem.to_owned(),
            })
        };
        if self.max_connections == 0 {
            return wrong("max_connections", "must be at least 1");
        }
        if self.max_connections_per_address == 0 {
            return wrong("max_connections_per_address", "must be at least 1");
        }
        if !(LEAST_HEADER_BYTES..=1024 * 1024).contains(&self.max_header_bytes) {
            return wrong("max_header_bytes", "must be between 8KiB and 1MiB");
        }
        for (key, value) in [
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("request_timeout", self.request_timeout),
        ] {
            if value < Duration::from_secs(1) {
                return wrong(key, "must be at least \"1s\"");
            }
        }
        Ok(())
    }
}
