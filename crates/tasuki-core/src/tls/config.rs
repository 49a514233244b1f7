//! The `[tls]` part of the configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::TlsError;

/// Where certificates come from and whom we believe.
///
/// `cert` and `key` win over ACME; without either the private CA's certificate is presented.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate and its chain. Read again when it changes and at a reload.
    pub cert: Option<PathBuf>,
    /// PEM file with the certificate's key.
    pub key: Option<PathBuf>,
    /// PEM files of further CAs that outgoing TLS believes.
    pub extra_ca: Vec<PathBuf>,
    /// Certificates by ACME (RFC 8555).
    pub acme: AcmeConfig,
}

/// Certificates by ACME.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcmeConfig {
    /// Whether to ask for certificates; it means agreement to the CA's terms of service.
    pub enabled: bool,
    /// The CA's directory.
    pub directory: String,
    /// Where the CA writes to when something is wrong.
    pub email: Option<String>,
    /// The names on the certificate; empty means `server.host`.
    pub names: Vec<String>,
    /// Ways to prove a name, in order of preference. `http-01` needs the front door on port 80, `tls-alpn-01` on 443.
    pub challenges: Vec<AcmeChallenge>,
}

/// A way to prove a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AcmeChallenge {
    /// A file under `/.well-known/acme-challenge/` on port 80 (RFC 8555 8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// A certificate under the ALPN `acme-tls/1` on port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

impl Default for AcmeConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            directory: "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
            email: None,
            names: Vec::new(),
            challenges: vec![AcmeChallenge::TlsAlpn01, AcmeChallenge::Http01],
        }
    }
}

/// Where the presented certificate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `tls.cert` and `tls.key`.
    Files,
    /// ACME.
    Acme,
    /// The private CA.
    PrivateCa,
}

impl Source {
    /// The name in `status` and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Acme => "acme",
            Self::PrivateCa => "private-ca",
        }
    }
}

impl TlsConfig {
    /// Checks what the types alone cannot say; `host` is `server.host`. Reads no file.
    ///
    /// # Errors
    /// [`TlsError::Config`] with the key.
    pub fn check(&self, host: Option<&str>) -> Result<(), TlsError> {
        Settings::check(self.clone(), host).map(drop)
    }
}

/// A configuration that was checked, with what it needs from outside `[tls]`.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) config: TlsConfig,
    pub(super) host: Option<String>,
}

impl Settings {
    pub(super) fn check(config: TlsConfig, host: Option<&str>) -> Result<Self, TlsError> {
        let wrong = |key: &'static str, problem: &str| {
            Err(TlsError::Config {
                key,
                problem: problem.to_owned(),
            })
        };
        match (&config.cert, &config.key) {
            (Some(_), None) => return wrong("tls.key", "is missing: tls.cert needs the file of its key"),
            (None, Some(_)) => {
                return wrong(
                    "tls.cert",
                    "is missing: tls.key needs the file of its certificate",
                );
            }
            _ => {}
        }
        if config.acme.enabled {
            if config.acme.names.is_empty() && host.is_none() {
                return wrong(
                    "tls.acme.names",
                    "is empty and server.host is not set: name what to certify",
                );
            }
            if config.acme.challenges.is_empty() {
                return wrong(
                    "tls.acme.challenges",
                    "is empty: list \"tls-alpn-01\", \"http-01\" or both",
                );
            }
            if !config.acme.directory.starts_with("https://") {
                return wrong("tls.acme.directory", "must be a URL that begins with https://");
            }
            for name in &config.acme.names {
                if tasuki_proto::names::Domain::parse(name).is_err() {
                    return wrong("tls.acme.names", &format!("{name:?} is not a domain name"));
                }
            }
        }
        Ok(Self {
            config,
            host: host.map(str::to_ascii_lowercase),
        })
    }

    /// The source that is wanted; the presented one may still be another.
    pub(super) fn source(&self) -> Source {
        if self.config.cert.is_some() {
            Source::Files
        } else if self.config.acme.enabled {
            Source::Acme
        } else {
            Source::PrivateCa
        }
    }

    pub(super) fn acme_names(&self) -> Vec<String> {
        if self.config.acme.names.is_empty() {
            self.host.iter().cloned().collect()
        } else {
            self.config
                .acme
                .names
                .iter()
                .map(|n| n.to_ascii_lowercase())
                .collect()
        }
    }

    /// What the private CA certifies.
    pub(super) fn private_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.host.iter().cloned().collect();
        for name in ["localhost", "127.0.0.1", "::1"] {
            if !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        }
        names
    }
}
