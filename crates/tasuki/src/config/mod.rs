//! The configuration file as a whole: each part's struct lives with its owner, here they are put together.
//!
//! Everything has a default, and all defaults together make a gateway that listens on loopback alone. A key that nobody
//! knows is an error. `config/tasuki.toml` shows every key at its default.

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tasuki_activitypub::FediConfig;
use tasuki_core::acl::RuleSpec;
use tasuki_core::config::{self, ConfigError, duration, size};
use tasuki_core::front::FrontConfig;
use tasuki_core::net::Surroundings;
use tasuki_core::tls::{TlsConfig, TlsError};
use tasuki_core::{BuildError, EngineKind, Shared};
use tasuki_proto::names::Domain;
use tasuki_smtp::MailConfig;
use tasuki_tunnel::TunnelConfig;
use url::Url;

use crate::exit::{self, Fail, Outcome};
use crate::log::LogConfig;
use crate::place::DataDir;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The engines that run: mail, fediverse, tunnel. One that is not named opens no port.
    pub engines: Vec<EngineKind>,
    /// What concerns the gateway as a whole.
    pub server: ServerConfig,
    /// Where everything is stored.
    pub store: StoreConfig,
    /// Memory.
    pub memory: MemoryConfig,
    /// Certificates.
    pub tls: TlsConfig,
    /// The public web ports.
    pub front: FrontConfig,
    /// The mail engine.
    pub mail: MailConfig,
    /// The fediverse engine.
    pub fediverse: FediConfig,
    /// The tunnel engine.
    pub tunnel: TunnelConfig,
    /// The admin API.
    pub admin: AdminConfig,
    /// The log.
    pub log: LogConfig,
    /// Access rules, tried in this order, before those added by command.
    pub acl: Vec<RuleSpec>,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServerConfig {
    /// The one public name of this gateway: actor ids, HELO, bounces and printed commands come from it.
    pub host: Option<Domain>,
    /// The data directory.
    pub data: PathBuf,
    /// Peers whose Forwarded, X-Forwarded-For and PROXY headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How long a stop may take before what is left is cut.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// Threads for RSA, argon2 and other computations; 0 takes one for each processor.
    pub cpu_threads: usize,
    /// For tests on one machine: where the front door is reached, in place of https://HOST. Port 0 stands for its plain
    /// port.
    pub danger_public_url: Option<String>,
    /// Take another `host` although instances have subscribed under the old one. They will not find the new one by
    /// themselves.
    pub danger_change_host: bool,
}

/// `[store]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StoreConfig {
    /// Empty: an embedded database in the data directory. Or postgres://USER:PASSWORD@HOST/DATABASE, or sqlite:PATH.
    pub url: String,
}

/// `[memory]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MemoryConfig {
    /// What all peers together can make the gateway hold.
    #[serde(with = "size")]
    pub budget: u64,
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AdminConfig {
    /// Where the admin API, metrics and health are served.
    pub listen: SocketAddr,
    /// Connections at once.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            engines: EngineKind::ALL.to_vec(),
            server: ServerConfig::default(),
            store: StoreConfig::default(),
            memory: MemoryConfig::default(),
            tls: TlsConfig::default(),
            front: FrontConfig::default(),
            mail: MailConfig::default(),
            fediverse: FediConfig::default(),
            tunnel: TunnelConfig::default(),
            admin: AdminConfig::default(),
            log: LogConfig::default(),
            acl: Vec::new(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: None,
            data: PathBuf::from("./data"),
            trusted_proxies: Vec::new(),
            grace: Duration::from_secs(30),
            cpu_threads: 0,
            danger_public_url: None,
            danger_change_host: false,
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { budget: 256 << 20 }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8600)),
            max_connections: 128,
        }
    }
}

impl Config {
    /// Reads and checks `text`; `file` is its name in errors.
    fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let parsed: Self = config::parse(file, text)?;
        parsed.check().map_err(|error| match error {
            BuildError::Config { key, problem } => config::error_at(file, text, &key, problem),
            other => ConfigError {
                file: file.to_owned(),
                line: None,
                key: None,
                problem: other.to_string(),
            },
        })?;
        Ok(parsed)
    }

    /// Whether this engine runs.
    pub(crate) fn has(&self, engine: EngineKind) -> bool {
        self.engines.contains(&engine)
    }

    /// Checks what the types alone cannot say. The error names the key.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let wrong = |key: &str, problem: String| {
            Err(BuildError::Config {
                key: key.to_owned(),
                problem,
            })
        };
        if self.engines.is_empty() {
            return wrong(
                "engines",
                "at least one of mail, fediverse, tunnel must run".to_owned(),
            );
        }
        for (place, engine) in self.engines.iter().enumerate() {
            if self.engines[..place].contains(engine) {
                return wrong("engines", format!("{engine} is named twice"));
            }
        }
        if let Some(text) = &self.server.danger_public_url {
            let usable = Url::parse(text).is_ok_and(|url| {
                ["http", "https"].contains(&url.scheme())
                    && url.host().is_some()
                    && url.path() == "/"
                    && !text.ends_with('/')
            });
            if !usable {
                return wrong(
                    "server.danger_public_url",
                    format!(
                        "{text:?} is not usable; write scheme, host and port, for example \"http://127.0.0.1:0\""
                    ),
                );
            }
        }
        if self.memory.budget < 16 << 20 {
            return wrong("memory.budget", "must be at least \"16MiB\"".to_owned());
        }
        let known = ["sqlite:", "postgres://", "postgresql://"]
            .iter()
            .any(|s| self.store.url.starts_with(s));
        if !self.store.url.is_empty() && !known {
            return wrong(
                "store.url",
                "must be empty (an embedded database), or begin with postgres:// or sqlite:".to_owned(),
            );
        }
        if self.admin.max_connections == 0 {
            return wrong("admin.max_connections", "must be at least 1".to_owned());
        }
        if let Err(problem) = self.log.filter() {
            return wrong("log.level", problem);
        }
        self.front.check()?;
        let host = self.server.host.as_ref().map(Domain::as_str);
        match self.tls.check(host) {
            Err(TlsError::Config { key, problem }) => return wrong(key, problem),
            Err(error) => return wrong("tls", crate::exit::chain(&error)),
            Ok(()) => {}
        }
        self.check_engines()
    }

    fn check_engines(&self) -> Result<(), BuildError> {
        let shared = Shared {
            host: self.server.host.clone(),
            public_url: None,
            trusted_proxies: self.server.trusted_proxies.clone(),
        };
        self.mail.validate(&shared)?;
        self.fediverse.validate()?;
        self.tunnel.check().map_err(|(key, problem)| BuildError::Config {
            key: key.to_owned(),
            problem,
        })
    }

    /// The store's URL.
    pub(crate) fn store_url(&self) -> &str {
        match self.store.url.as_str() {
            "" => tasuki_store::DEFAULT_URL,
            url => url,
        }
    }
}

/// A configuration with where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// The values.
    pub config: Config,
    /// The file; `None` when all defaults hold.
    pub file: Option<PathBuf>,
    /// `--data`, which stands above the file.
    data_option: Option<PathBuf>,
}

impl Loaded {
    /// Reads and checks `file`; without one all defaults hold.
    pub(crate) fn read(file: Option<&Path>, data_option: Option<&Path>) -> Outcome<Self> {
        let config = match file {
            None => Config::default(),
            Some(path) => {
                let bytes = std::fs::read(path).map_err(|e| {
                    Fail::io(
                        format!("the configuration file {} cannot be read", path.display()),
                        &e,
                    )
                })?;
                let file = path.display().to_string();
                config::utf8(&file, &bytes)
                    .and_then(|text| Config::parse(&file, text))
                    .map_err(refused)?
            }
        };
        Ok(Self {
            config,
            file: file.map(Path::to_owned),
            data_option: data_option.map(Path::to_owned),
        })
    }

    /// The same file, read again.
    pub(crate) fn again(&self) -> Outcome<Self> {
        Self::read(self.file.as_deref(), self.data_option.as_deref())
    }

    /// The data directory, as an absolute path: it is printed in commands that are pasted elsewhere.
    pub(crate) fn data_dir(&self) -> DataDir {
        let path = self.data_option.as_ref().unwrap_or(&self.config.server.data);
        DataDir::new(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
    }

    /// Files outside the data directory that the configuration names, with their keys.
    pub(crate) fn named_files(&self) -> Vec<(String, &PathBuf)> {
        let tls = &self.config.tls;
        let named = [("tls.cert", &tls.cert), ("tls.key", &tls.key)];
        let single = named
            .into_iter()
            .filter_map(|(key, path)| Some((key, path.as_ref()?)));
        let all = single.chain(tls.extra_ca.iter().map(|path| ("tls.extra_ca", path)));
        let mut named: Vec<(String, &PathBuf)> = all.map(|(key, path)| (key.to_owned(), path)).collect();
        let mail = &self.config.mail;
        named.extend(
            mail.dns
                .trust_anchor
                .iter()
                .map(|path| ("mail.dns.trust_anchor".to_owned(), path)),
        );
        for smarthost in &mail.smarthosts {
            let of = |key: &str| format!("mail.smarthosts.{key} of {:?}", smarthost.name);
            named.extend(
                smarthost
                    .password_file
                    .iter()
                    .map(|path| (of("password_file"), path)),
            );
            let oauth = smarthost.oauth.iter().filter_map(|oauth| oauth.key_file.as_ref());
            named.extend(oauth.map(|path| (of("oauth.key_file"), path)));
        }
        named
    }

    /// Those of them that cannot be read now: `serve` would refuse to start, or defer mail.
    pub(crate) fn unreadable_files(&self) -> Vec<String> {
        // A directory opens, and gives nothing.
        let read = |path: &Path| std::fs::read(path).err();
        self.named_files()
            .into_iter()
            .filter_map(|(key, path)| {
                let error = read(path)?;
                Some(format!("{key}: {} cannot be read now: {error}", path.display()))
            })
            .collect()
    }

    /// What works, but perhaps not as it was meant.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let config = &self.config;
        if config.has(EngineKind::Fediverse)
            && config.server.host.is_none()
            && config.server.danger_public_url.is_none()
        {
            warnings.push(format!(
                "the fediverse engine answers every subscription with 503 until the gateway has a name: add `host = \"relay.example.org\"` under [server] in {}",
                self.file.as_deref().unwrap_or(Path::new("tasuki.toml")).display()
            ));
        }
        if config.server.danger_public_url.is_some() {
            warnings.push(
                "server.danger_public_url is set: instances elsewhere cannot reach this relay".to_owned(),
            );
        }
        if config.has(EngineKind::Mail) {
            warnings.extend(config.mail.trust_warnings(&Surroundings::look()));
        }
        if config.fediverse.danger_allow_private_addresses {
            warnings.push(
                "fediverse.danger_allow_private_addresses is set: peers can make the gateway ask servers inside your network"
                    .to_owned(),
            );
        }
        if config.server.danger_change_host {
            warnings
                .push("server.danger_change_host is set: remove it when the new name is in use".to_owned());
        }
        warnings
    }
}

/// A mistake in the file as an exit.
fn refused(error: ConfigError) -> Fail {
    Fail::new(exit::USAGE, error.to_string())
}
