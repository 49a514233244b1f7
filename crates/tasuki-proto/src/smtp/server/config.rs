//! What a listener's sessions share.

use std::time::Duration;

use crate::{names::Domain, smtp::data::DataLimits};

/// Limits and abilities of a listener's sessions.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The name in the banner, in EHLO's reply, and behind a bare `<postmaster>`.
    pub host: Domain,
    /// Limits of message data.
    pub data: DataLimits,
    /// Whether STARTTLS can be done (there is a certificate).
    pub starttls: bool,
    /// Whether AUTH is offered, under TLS only.
    pub auth: bool,
    /// Whether AUTH includes SCRAM-SHA-256, and its form with channel binding where the shell has one.
    pub scram: bool,
    /// Whether REQUIRETLS is offered, under TLS only (RFC 8689): what it asks for is kept by whoever sends on.
    pub require_tls: bool,
    /// Domains in which an unquoted local part may have dots together, first or last.
    pub legacy_domains: Vec<Domain>,
    /// Most recipients of a message; the next ones get 452 4.5.3 (RFC 5321 4.5.3.1.8 wants at least 100).
    pub max_recipients: usize,
    /// From this many errors on, each delays its reply.
    pub soft_errors: u32,
    /// With this many errors the session ends.
    pub max_errors: u32,
    /// With this many refused logins the session ends.
    pub max_auth_failures: u32,
    /// Waits.
    pub timers: Timers,
}

impl ServerConfig {
    /// The defaults for a server of this name, without STARTTLS and AUTH.
    pub fn new(host: Domain) -> Self {
        Self {
            host,
            data: DataLimits::default(),
            starttls: false,
            auth: false,
            scram: false,
            require_tls: false,
            legacy_domains: Vec::new(),
            max_recipients: 100,
            soft_errors: 10,
            max_errors: 20,
            max_auth_failures: 3,
            timers: Timers::default(),
        }
    }
}

/// How long a session waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Before the banner, listening for clients that do not wait for it; zero for none.
    pub greet_pause: Duration,
    /// For the next command (RFC 5321 4.5.3.2.7: 5 minutes).
    pub command: Duration,
    /// For the next octets of message data.
    pub data_idle: Duration,
    /// For the whole session.
    pub session: Duration,
    /// Message data must keep `min_rate` from this long after its start.
    pub rate_after: Duration,
    /// Octets a second, on average since the data began.
    pub min_rate: u64,
    /// How long the reply to one error too many, or to a refused login, is held back.
    pub error_delay: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            greet_pause: Duration::ZERO,
            command: Duration::from_secs(300),
            data_idle: Duration::from_secs(180),
            session: Duration::from_secs(1800),
            rate_after: Duration::from_secs(30),
            min_rate: 1000,
            error_delay: Duration::from_secs(1),
        }
    }
}
