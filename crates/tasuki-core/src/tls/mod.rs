//! Certificates for all engines and trust for outgoing TLS; replaced without restart.
//!
//! One certificate is presented by SMTP, HTTPS and the tunnel. It comes from files, from ACME, or from the private CA;
//! [`Tls::keep_fresh`] replaces it when files change or a third of its life is left. The server's own key (certified by
//! the private CA and by ACME alike) stays, so pins of it ([`spki_fingerprint`]) survive.
//!
//! **Invariant:** a certificate that works is never given up for one that does not: a failed read or order keeps the
//! old one, says so in `status`, and is tried again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::ProducesTickets;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Serialize;

use crate::clock::{Clock, Timestamp};
use crate::engine::Applied;
use crate::events::EventBus;

mod acme;
mod ca;
mod certificate;
mod clients;
mod config;
mod fresh;
mod guests;
mod resolver;
mod trust;
mod verify;

pub use certificate::{Certificate, key_fingerprint, spki_fingerprint};
pub use clients::ClientCertificate;
pub use config::{AcmeChallenge, AcmeConfig, Source, TlsConfig};
pub use trust::client_config;
pub use verify::{PeerCheck, Verifier, checking_client_config};

use ca::PrivateCa;
use clients::AnyClient;
use config::Settings;
use fresh::Renewal;
use guests::Waiting;
use resolver::{Challenges, Newest, Presented};
use trust::Trust;

/// The ALPN of ACME's TLS challenge (RFC 8737 6.2).
pub const ACME_ALPN: &[u8] = b"acme-tls/1";

/// Makes aws-lc-rs the process's provider of cryptography. Called first thing in every `main` and test that uses TLS;
/// repeating it does nothing.
pub fn install_provider() {
    // An error says that one is installed already.
    let _ = provider().install_default();
}

/// The one provider of this house, X25519MLKEM768 first.
#[must_use]
pub fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// The TLS side of the house; clones share it.
#[derive(Clone)]
pub struct Tls {
    inner: Arc<Inner>,
}

struct Inner {
    keys_dir: PathBuf,
    clock: Clock,
    events: EventBus,
    ca: PrivateCa,
    settings: ArcSwap<Settings>,
    newest: Arc<Newest>,
    challenges: Arc<Challenges>,
    tickets: Option<Arc<dyn ProducesTickets>>,
    trust: ArcSwap<Trust>,
    /// Why the last attempt to replace the certificate failed.
    trouble: ArcSwapOption<String>,
    renewal: tokio::sync::Mutex<Renewal>,
    waiting: Mutex<Waiting>,
    /// Wakes [`Tls::keep_fresh`] when guests have come.
    guests_changed: tokio::sync::Notify,
    /// Wakes [`Tls::keep_fresh`] after a reload.
    reloaded: tokio::sync::Notify,
}

/// Why TLS is not as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A value of the configuration cannot be used.
    #[error("{key}: {problem}")]
    Config {
        /// The configuration key.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file or directory cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A certificate or key is not usable.
    #[error("{what}: {problem}")]
    Certificate {
        /// The file or thing.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl TlsError {
    fn from_pem(path: &Path, error: rustls_pki_types::pem::Error) -> Self {
        match error {
            rustls_pki_types::pem::Error::Io(source) => Self::Read {
                path: path.to_owned(),
                source,
            },
            other => Self::Certificate {
                what: path.display().to_string(),
                problem: format!("not the PEM file that is expected: {other}"),
            },
        }
    }
}

/// The presented certificate, for `status`.
#[derive(Clone, Debug, Serialize)]
pub struct TlsStatus {
    /// Where it comes from.
    pub source: Source,
    /// Where it should come from; another one than `source` while the first ACME order is not done.
    pub wanted: Source,
    /// Names it is good for.
    pub names: Vec<String>,
    /// Good until.
    pub not_after: Timestamp,
    /// Whole days until then; negative when over.
    pub days_left: i64,
    /// Fingerprint of its key, see [`spki_fingerprint`].
    pub fingerprint: String,
    /// Why the last attempt to replace it failed, if it did.
    pub trouble: Option<String>,
}

impl Tls {
    /// Reads the certificate that `config` names, or makes what is missing: `keys_dir` is `keys/` in the data
    /// directory, `host` is `server.host`. Contacts nobody: an ACME order is [`Tls::keep_fresh`]'s work, and the private
    /// CA's certificate is presented until it is done.
    ///
    /// # Errors
    /// A file cannot be read or written, or does not hold what it should.
    pub fn load(
        config: &TlsConfig,
        keys_dir: &Path,
        host: Option<&str>,
        clock: Clock,
        events: EventBus,
    ) -> Result<Self, TlsError> {
        let settings = Settings::check(config.clone(), host)?;
        let ca = PrivateCa::load_or_make(keys_dir, clock.wall())?;
        let presented = pick(&settings, &ca, keys_dir, clock.wall())?;
        let trust = Trust::load(&config.extra_ca, &[ca.certificate().clone()])?;
        let renewal = Renewal::new(&settings);
        let tickets = rustls::crypto::aws_lc_rs::Ticketer::new().ok();
        Ok(Self {
            inner: Arc::new(Inner {
                keys_dir: keys_dir.to_owned(),
                clock,
                events,
                ca,
                settings: ArcSwap::from_pointee(settings),
                newest: Arc::new(Newest {
                    own: ArcSwap::from_pointee(presented),
                    guests: ArcSwap::default(),
                }),
                waiting: Mutex::default(),
                guests_changed: tokio::sync::Notify::new(),
                challenges: Arc::default(),
                tickets,
                trust: ArcSwap::from_pointee(trust),
                trouble: ArcSwapOption::empty(),
                renewal: tokio::sync::Mutex::new(renewal),
                reloaded: tokio::sync::Notify::new(),
            }),
        })
    }

    /// What a login may be bound to besides its TLS session: the hash of the presented certificate
    /// (`tls-server-end-point`, RFC 5929 4). A session that began just before the certificate was replaced has another.
    #[must_use]
    pub fn end_point(&self) -> Option<Vec<u8>> {
        self.inner.newest.own.load().certificate.end_point.clone()
    }

    /// A server configuration that always presents the newest certificate. `alpn` in order of preference; empty for
    /// protocols without ALPN (SMTP). Make it once and keep it.
    #[must_use]
    pub fn server(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        self.serving(server_builder().with_no_client_auth(), alpn)
    }

    /// The same, which also asks clients for a certificate and takes any or none: that a client has the key of the one it
    /// shows is all that is known then. A resumed session shows the certificate of the one before, so that who it is must
    /// be asked again in each.
    #[must_use]
    pub fn server_that_asks(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        self.serving(
            server_builder().with_client_cert_verifier(Arc::new(Verifier::new(AnyClient))),
            alpn,
        )
    }

    fn serving(
        &self,
        builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
        alpn: &[&[u8]],
    ) -> Arc<ServerConfig> {
        let mut config = builder.with_cert_resolver(Arc::clone(&self.inner.newest) as _);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        if let Some(tickets) = &self.inner.tickets {
            config.ticketer = Arc::clone(tickets);
        }
        Arc::new(config)
    }

    /// A client configuration that verifies against the public roots, the machine's own, `tls.extra_ca` and the private
    /// CA. After a reload it is a new one: ask again instead of keeping it for long.
    #[must_use]
    pub fn client(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.inner.trust.load().client)
    }

    /// Whether [`Tls::client`] would have believed a server with this certificate, which its chain follows.
    ///
    /// # Errors
    /// It would not, for this reason.
    pub fn judge(&self, chain: &[CertificateDer<'_>], name: &ServerName<'_>) -> Result<(), rustls::Error> {
        let now = self.inner.clock.wall().unix_seconds().unsigned_abs();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        self.inner.trust.load().judge(chain, name, now)
    }

    /// The server configuration for handshakes that offer [`ACME_ALPN`]; they end with the handshake.
    #[must_use]
    pub fn acme_server(&self) -> Arc<ServerConfig> {
        let builder = server_builder().with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::clone(&self.inner.challenges) as _);
        config.alpn_protocols = vec![ACME_ALPN.to_vec()];
        Arc::new(config)
    }

    /// The body of `/.well-known/acme-challenge/TOKEN` (RFC 8555 8.3), if an order of ours is waiting for it.
    #[must_use]
    pub fn acme_http_answer(&self, token: &str) -> Option<String> {
        self.inner.challenges.http_answer(token)
    }

    /// The private CA's certificate, for clients that shall believe it.
    #[must_use]
    pub fn private_ca(&self) -> CertificateDer<'static> {
        self.inner.ca.certificate().clone()
    }

    /// The certificate that is presented now.
    #[must_use]
    pub fn certificate(&self) -> Certificate {
        self.inner.newest.own.load().certificate.clone()
    }

    /// Whole days until the presented certificate expires.
    #[must_use]
    pub fn days_left(&self) -> i64 {
        let now = self.inner.clock.wall();
        self.inner.newest.own.load().certificate.days_left(now)
    }

    /// The fingerprint of the presented certificate's key, see [`spki_fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.inner
            .newest
            .own
            .load()
            .certificate
            .fingerprint()
            .unwrap_or_default()
    }

    /// What is presented, and what is wrong.
    #[must_use]
    pub fn status(&self) -> TlsStatus {
        let presented = self.inner.newest.own.load();
        TlsStatus {
            source: presented.source,
            wanted: self.inner.settings.load().source(),
            names: presented.certificate.names.clone(),
            not_after: presented.certificate.not_after,
            days_left: presented.certificate.days_left(self.inner.clock.wall()),
            fingerprint: presented.certificate.fingerprint().unwrap_or_default(),
            trouble: self.inner.trouble.load_full().map(|text| text.as_ref().clone()),
        }
    }

    /// Takes a new configuration (reload): certificate files are read again, trust is compiled again. On an error
    /// nothing is changed.
    ///
    /// # Errors
    /// As for [`Tls::load`].
    pub fn apply(&self, config: &TlsConfig, host: Option<&str>) -> Result<Applied, TlsError> {
        let inner = &self.inner;
        let old = inner.settings.load_full();
        let settings = Settings::check(config.clone(), host)?;
        let trust = Trust::load(&config.extra_ca, &[inner.ca.certificate().clone()])?;
        let presented = pick(&settings, &inner.ca, &inner.keys_dir, inner.clock.wall())?;
        let mut changed = Vec::new();
        for (key, differs) in [
            ("tls.cert", old.config.cert != config.cert),
            ("tls.key", old.config.key != config.key),
            ("tls.extra_ca", old.config.extra_ca != config.extra_ca),
            ("tls.acme", old.config.acme != config.acme),
        ] {
            if differs {
                changed.push(key.to_owned());
            }
        }
        inner.settings.store(Arc::new(settings));
        inner.trust.store(Arc::new(trust));
        // The private CA's certificate need not change with every reload.
        let current = inner.newest.own.load_full();
        let keeps = presented.source == Source::PrivateCa
            && current.source == Source::PrivateCa
            && current.certificate.covers(&presented.certificate.names)
            && inner.clock.wall() < current.certificate.renew_at();
        if !keeps {
            inner.newest.own.store(Arc::new(presented));
        }
        inner.trouble.store(None);
        inner.reloaded.notify_one();
        Ok(Applied {
            changed,
            needs_restart: Vec::new(),
        })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn server_builder() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider speaks TLS 1.2 and 1.3")
}

/// The certificate to present at once.
fn pick(settings: &Settings, ca: &PrivateCa, keys_dir: &Path, now: Timestamp) -> Result<Presented, TlsError> {
    if let (Some(cert), Some(key)) = (&settings.config.cert, &settings.config.key) {
        return Ok(Presented {
            certificate: Certificate::read(cert, key)?,
            source: Source::Files,
        });
    }
    if settings.source() == Source::Acme
        && let Some(certificate) = acme::kept(
            &acme::cert_path(keys_dir),
            ca.server_key(),
            &settings.acme_names(),
            now,
        )
    {
        return Ok(Presented {
            certificate,
            source: Source::Acme,
        });
    }
    Ok(Presented {
        certificate: ca.issue(&settings.private_names(), now)?,
        source: Source::PrivateCa,
    })
}
