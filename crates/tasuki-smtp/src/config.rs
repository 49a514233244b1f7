//! The `[mail]` part of the configuration: as written, and as validated.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tasuki_core::{
    BuildError, Shared, accounts::MailClass, config::duration, config::size, store::accounts::Principal,
};
use tasuki_proto::{
    backoff::Backoff,
    names::{Domain, Mailbox},
    smtp::{
        data::DataLimits,
        server::{ServerConfig, Timers},
    },
};

mod devices;
mod providers;
mod recipients;
mod rewrite;
mod smarthost;
mod sources;
mod suppression;
mod tls_policy;
mod tls_reports;
mod trace;

pub(crate) use devices::{Device, device_at};
pub use devices::{DeviceConfig, DevicesConfig, Target};
pub use providers::ProviderConfig;
pub(crate) use providers::{Providers, is_slow_down, pace_limits};
pub use recipients::RecipientsConfig;
pub(crate) use recipients::{Listed, Recipients};
pub(crate) use rewrite::Rewrite;
pub use rewrite::{AliasConfig, HeaderConfig, Pattern, RewriteConfig, SenderConfig};
pub(crate) use smarthost::{Granting, OAuth, Origin, Password, ProviderSpf, Smarthost, Via, Ways};
pub use smarthost::{
    OAuthConfig, OAuthFlow, RouteConfig, SmarthostConfig, SmarthostGroupConfig, SmarthostProtocol,
    SmarthostTls,
};
pub(crate) use sources::{Pool, seed_of};
pub use sources::{SourceAddressConfig, SourceConfig};
pub use suppression::{Automatic, SuppressionConfig};
pub(crate) use tls_policy::TlsPolicies;
pub use tls_policy::{TlsLevel, TlsPolicyConfig};
pub use tls_reports::TlsReportsConfig;
pub use trace::TraceConfig;

/// The mail engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MailConfig {
    /// Port 25 in production: other mail servers, and clients in `mynetworks`.
    pub relay: RelayConfig,
    /// Port 587 in production: people and services that log in after STARTTLS.
    pub submission: ListenerConfig,
    /// Port 465 in production: the same with TLS from the first octet.
    pub submissions: ListenerConfig,
    /// Copiers, cameras and power supplies, which cannot log in.
    pub devices: DevicesConfig,
    /// Largest message.
    #[serde(with = "size")]
    pub max_size: u64,
    /// Most recipients of one message; further ones are told to come in another.
    pub max_recipients: usize,
    /// Domains (with their subdomains) for which mail is taken from anybody.
    pub relay_domains: Vec<Domain>,
    /// Networks whose clients need not log in; each acts as a service.
    pub mynetworks: Vec<NetworkConfig>,
    /// Offers SCRAM-SHA-256, which works for app passwords only: a client that insists on it cannot use a person's own
    /// password.
    pub scram: bool,
    /// Asks clients for a certificate in TLS, and lets those in whose key is listed (`tasuki service certificate add`).
    pub client_certificates: bool,
    /// Domains whose addresses may have dots where RFC 5321 has none (`foo..bar@docomo.ne.jp`); quoted on the wire.
    pub legacy_domains: Vec<Domain>,
    /// Which addresses of a domain there are; a domain that is not named has all.
    pub recipients: Vec<RecipientsConfig>,
    /// Load balancers that begin each connection with a PROXY header (version 1 or 2); others may not.
    pub proxy_protocol_from: Vec<IpNet>,
    /// What is changed of mail on its way through.
    pub rewrite: RewriteConfig,
    /// Where mail for postmaster at `server.host` goes.
    pub postmaster: Option<Mailbox>,
    /// `direct` (to the recipient's MX), or the name of a smarthost or group.
    pub default_route: String,
    /// Mail that goes another way, by recipient domain, sender or principal.
    pub routes: Vec<RouteConfig>,
    /// The pool of our addresses that mail goes out from; empty leaves it to the system.
    pub default_source: String,
    /// Pools of our addresses.
    pub sources: Vec<SourceConfig>,
    /// Servers that take our mail and carry it on.
    pub smarthosts: Vec<SmarthostConfig>,
    /// Smarthosts that stand in for each other.
    pub smarthost_groups: Vec<SmarthostGroupConfig>,
    /// What TLS to some domains' mail servers must be.
    pub tls_policy: Vec<TlsPolicyConfig>,
    /// Rules for large receivers, beside and in place of those shipped with the program.
    pub providers: Vec<ProviderConfig>,
    /// Trying, and trying again.
    pub delivery: DeliveryConfig,
    /// Reports about TLS to the domains that ask for them.
    pub tls_reports: TlsReportsConfig,
    /// What sessions may do to us.
    pub limits: LimitsConfig,
    /// Addresses that mail does not go to.
    pub suppression: SuppressionConfig,
    /// What is remembered of mail that is gone.
    pub trace: TraceConfig,
    /// Name lookups.
    pub dns: DnsConfig,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerConfig {
    /// Addresses with ports; empty closes it.
    pub listen: Vec<SocketAddr>,
    /// Most connections at a time.
    pub max_connections: usize,
}

/// The relay listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// Addresses with ports; empty closes it.
    pub listen: Vec<SocketAddr>,
    /// Most connections at a time.
    pub max_connections: usize,
    /// How long strangers wait for the greeting; who talks before it is refused.
    #[serde(with = "duration")]
    pub greet_pause: Duration,
}

/// A network whose clients need not log in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Such as `192.168.10.0/24`.
    pub net: IpNet,
    /// The service (made with `tasuki service add`) whose grants they have.
    pub service: String,
}

/// Trying, and trying again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryConfig {
    /// Waits after the first, second, ... failure; the last one repeats.
    pub retry: Vec<RetryDelay>,
    /// Per cent by which each wait moves, either way.
    pub jitter_percent: u8,
    /// After this long a mail is given back to its sender.
    #[serde(with = "duration")]
    pub expire: Duration,
    /// The same for mail of services of the class transactional, if that is less: what somebody waits for now is of no use
    /// days later.
    #[serde(with = "duration")]
    pub expire_transactional: Duration,
    /// After this long the sender is told of the delay.
    #[serde(with = "duration")]
    pub delay_notice: Duration,
    /// Most connections at a time to one site: all domains whose MX records name the same servers.
    pub connections_per_site: usize,
    /// Most connections out in all.
    pub max_connections: usize,
    /// Most mails over one connection to a domain's server.
    pub mails_per_connection: usize,
    /// How long an unused connection is kept.
    #[serde(with = "duration")]
    pub idle: Duration,
    /// How long a connection attempt may take.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Try a server's IPv4 address before its IPv6 address; otherwise the other way round.
    pub ipv4_first: bool,
    /// The port of other domains' mail servers.
    pub mx_port: u16,
    /// Keep to the TLS policies that domains publish by MTA-STS (RFC 8461).
    pub mta_sts: bool,
    /// The port of the web servers that have those policies.
    pub mta_sts_port: u16,
    /// Ports that are tried at servers whose mail port is silent, to tell whether our provider blocks just that one.
    pub probe_ports: Vec<u16>,
    /// Deliver to private, loopback and other special addresses that a domain's MX names.
    pub danger_private_addresses: bool,
}

/// A wait, written as a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RetryDelay(#[serde(with = "duration")] pub Duration);

/// What sessions may do to us.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Most connections from one address (/32, /64) at a time; `mynetworks` and loopback are free.
    pub connections_per_address: usize,
    /// The same of one prefix (/24, /48).
    pub connections_per_prefix: usize,
    /// Wait for the next command.
    #[serde(with = "duration")]
    pub command_timeout: Duration,
    /// Wait for the next octets of a message.
    #[serde(with = "duration")]
    pub data_timeout: Duration,
    /// Slowest message, in octets a second on average,
    #[serde(with = "size")]
    pub min_rate: u64,
    /// once it has come for so long.
    #[serde(with = "duration")]
    pub min_rate_after: Duration,
    /// Longest session.
    #[serde(with = "duration")]
    pub session_timeout: Duration,
    /// Longest line of a message, with CRLF.
    #[serde(with = "size")]
    pub max_line: u64,
    /// Largest header section.
    #[serde(with = "size")]
    pub max_header: u64,
    /// Most multiparts and enclosed messages within each other.
    pub max_mime_depth: usize,
    /// Hops after which a message is looping.
    pub max_received: usize,
    /// Recipients that a principal may send to in a minute, in the long run; 0 for no limit.
    pub recipients_per_minute: u32,
    /// Recipients that a person may send to in an hour, unless its grant `mail:hourly:N` says otherwise; 0 for no limit. Who
    /// goes on trying is switched off.
    pub recipients_per_hour: u32,
    /// Addresses (/32, /64) from which a person may send within an hour, unless its grant `mail:addresses:N` says otherwise;
    /// 0 for no limit. Who sends from more is switched off.
    pub addresses_per_hour: u32,
    /// Recipients that a person may send to in a day (UTC), unless its grant `mail:daily:N` says otherwise; 0 for no
    /// limit. Services have only their own caps.
    pub recipients_per_day: u32,
}

/// Name lookups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsConfig {
    /// The resolver to ask, with port; absent means what the system says.
    pub server: Option<SocketAddr>,
    /// Check DNSSEC, for DANE; the resolver must pass signatures on.
    pub dnssec: bool,
    /// A file with the root's DNSKEY records, instead of the built-in ones.
    pub trust_anchor: Option<PathBuf>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            server: None,
            dnssec: true,
            trust_anchor: None,
        }
    }
}

impl Default for MailConfig {
    fn default() -> Self {
        Self {
            relay: RelayConfig::default(),
            submission: ListenerConfig {
                listen: vec![loopback(2587)],
                max_connections: 1000,
            },
            submissions: ListenerConfig {
                listen: vec![loopback(2465)],
                max_connections: 1000,
            },
            devices: DevicesConfig::default(),
            max_size: 25 * 1024 * 1024,
            max_recipients: 100,
            relay_domains: Vec::new(),
            mynetworks: Vec::new(),
            scram: true,
            client_certificates: false,
            legacy_domains: ["docomo.ne.jp", "ezweb.ne.jp"]
                .iter()
                .filter_map(|name| Domain::parse(name).ok())
                .collect(),
            recipients: Vec::new(),
            proxy_protocol_from: Vec::new(),
            rewrite: RewriteConfig::default(),
            postmaster: None,
            default_route: "direct".to_owned(),
            routes: Vec::new(),
            default_source: String::new(),
            sources: Vec::new(),
            smarthosts: Vec::new(),
            smarthost_groups: Vec::new(),
            tls_policy: Vec::new(),
            providers: Vec::new(),
            delivery: DeliveryConfig::default(),
            tls_reports: TlsReportsConfig::default(),
            limits: LimitsConfig::default(),
            suppression: SuppressionConfig::default(),
            trace: TraceConfig::default(),
            dns: DnsConfig::default(),
        }
    }
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            max_connections: 1000,
        }
    }
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            listen: vec![loopback(2525)],
            max_connections: 1000,
            greet_pause: Duration::from_millis(500),
        }
    }
}

impl Default for DeliveryConfig {
    fn default() -> Self {
        let minutes = [1, 5, 15, 30, 60, 120, 240];
        Self {
            retry: minutes.map(|m| RetryDelay(Duration::from_secs(60 * m))).to_vec(),
            jitter_percent: 15,
            expire: Duration::from_secs(5 * 86_400),
            expire_transactional: Duration::from_secs(86_400),
            delay_notice: Duration::from_secs(4 * 3600),
            connections_per_site: 5,
            max_connections: 500,
            mails_per_connection: 100,
            idle: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(30),
            ipv4_first: true,
            mx_port: 25,
            mta_sts: true,
            mta_sts_port: 443,
            probe_ports: vec![443, 587],
            danger_private_addresses: false,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let timers = Timers::default();
        let data = DataLimits::default();
        Self {
            connections_per_address: 50,
            connections_per_prefix: 200,
            command_timeout: timers.command,
            data_timeout: timers.data_idle,
            min_rate: timers.min_rate,
            min_rate_after: timers.rate_after,
            session_timeout: timers.session,
            max_line: data.max_line as u64,
            max_header: data.max_header_size as u64,
            max_mime_depth: data.max_mime_depth,
            max_received: data.max_received,
            recipients_per_minute: 0,
            recipients_per_hour: 200,
            addresses_per_hour: 20,
            recipients_per_day: 500,
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Who a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Other servers, and `mynetworks`.
    Relay,
    /// Login required.
    Submission,
    /// Login required, TLS from the first octet.
    Submissions,
    /// Listed devices, without login.
    Devices,
    /// The same with TLS from the first octet.
    DevicesTls,
}

impl Role {
    /// Whether TLS begins with the first octet.
    pub(crate) fn is_implicit_tls(self) -> bool {
        matches!(self, Self::Submissions | Self::DevicesTls)
    }

    /// Whether it is for devices.
    pub(crate) fn is_for_devices(self) -> bool {
        matches!(self, Self::Devices | Self::DevicesTls)
    }
}

/// The configuration in force. Replaced as a whole by a reload.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) host: Domain,
    pub(crate) server: Arc<ServerConfig>,
    /// For devices: no AUTH, other sizes, old habits.
    pub(crate) devices_server: Arc<ServerConfig>,
    pub(crate) devices: Vec<Arc<Device>>,
    pub(crate) rewrite: Rewrite,
    pub(crate) proxies: Vec<IpNet>,
    pub(crate) recipients: Recipients,
    pub(crate) greet_pause: Duration,
    pub(crate) relay_domains: Vec<Domain>,
    pub(crate) networks: Vec<NetworkConfig>,
    pub(crate) postmaster: Option<Mailbox>,
    pub(crate) ways: Ways,
    pub(crate) tls_policies: TlsPolicies,
    pub(crate) providers: Providers,
    pub(crate) delivery: DeliveryConfig,
    pub(crate) tls_reports: TlsReportsConfig,
    pub(crate) retry: Backoff,
    pub(crate) client_certificates: bool,
    pub(crate) connections_per_address: usize,
    pub(crate) connections_per_prefix: usize,
    pub(crate) recipients_per_minute: u32,
    pub(crate) recipients_per_hour: u32,
    pub(crate) recipients_per_day: u32,
    pub(crate) addresses_per_hour: u32,
    pub(crate) suppression: SuppressionConfig,
    pub(crate) trace: TraceConfig,
}

impl MailConfig {
    /// Checks what the types cannot: names that must exist, values that must fit together.
    ///
    /// # Errors
    /// [`BuildError::Config`] with the key and what would be right.
    pub fn validate(&self, shared: &Shared) -> Result<(), BuildError> {
        Settings::new(self, shared).map(drop)
    }
}

impl DeliveryConfig {
    /// For how long mail of this principal is tried. Only a class that was named counts: most mail is of none.
    pub(crate) fn expire_of(&self, principal: Option<&Principal>) -> Duration {
        match principal.and_then(Principal::named_mail_class) {
            Some(MailClass::Transactional) => self.expire.min(self.expire_transactional),
            _ => self.expire,
        }
    }
}

impl Settings {
    pub(crate) fn new(config: &MailConfig, shared: &Shared) -> Result<Self, BuildError> {
        let host = shared
            .host
            .clone()
            .unwrap_or_else(|| Domain::parse("localhost").expect("localhost is a domain name"));
        let ways = Ways::new(
            &config.smarthosts,
            &config.smarthost_groups,
            &config.routes,
            &config.default_route,
        )?
        .with_sources(
            &config.sources,
            &config.routes,
            Some(config.default_source.as_str()).filter(|name| !name.is_empty()),
        )?;
        let steps: Vec<Duration> = config.delivery.retry.iter().map(|d| d.0).collect();
        let retry = Backoff::try_new(steps, config.delivery.jitter_percent)
            .map_err(|e| bad("mail.delivery.retry", e.to_string()))?;
        for (key, value) in [
            ("mail.max_recipients", config.max_recipients),
            (
                "mail.delivery.connections_per_site",
                config.delivery.connections_per_site,
            ),
            ("mail.delivery.max_connections", config.delivery.max_connections),
            (
                "mail.delivery.mails_per_connection",
                config.delivery.mails_per_connection,
            ),
            (
                "mail.limits.connections_per_address",
                config.limits.connections_per_address,
            ),
            (
                "mail.limits.connections_per_prefix",
                config.limits.connections_per_prefix,
            ),
        ] {
            if value == 0 {
                return Err(bad(key, "must be at least 1".to_owned()));
            }
        }
        if config.max_size == 0 {
            return Err(bad("mail.max_size", "must be at least 1B".to_owned()));
        }
        let server = server_config(config, &host);
        Ok(Self {
            devices_server: Arc::new(devices_server(config, &server)),
            devices: config.devices.check()?,
            rewrite: config.rewrite.check()?,
            recipients: Recipients::check(&config.recipients)?,
            proxies: config.proxy_protocol_from.clone(),
            server: Arc::new(server),
            host,
            greet_pause: config.relay.greet_pause,
            relay_domains: config.relay_domains.clone(),
            networks: config.mynetworks.clone(),
            postmaster: config.postmaster.clone(),
            ways,
            tls_policies: TlsPolicies::check(&config.tls_policy)?,
            providers: Providers::check(&config.providers)?,
            delivery: config.delivery.clone(),
            tls_reports: config.tls_reports.clone(),
            retry,
            client_certificates: config.client_certificates,
            connections_per_address: config.limits.connections_per_address,
            connections_per_prefix: config.limits.connections_per_prefix,
            recipients_per_minute: config.limits.recipients_per_minute,
            recipients_per_hour: config.limits.recipients_per_hour,
            recipients_per_day: config.limits.recipients_per_day,
            addresses_per_hour: config.limits.addresses_per_hour,
            suppression: config.suppression.check()?,
            trace: config.trace.clone(),
        })
    }

    /// The device at this address.
    pub(crate) fn device(&self, from: IpAddr) -> Option<&Arc<Device>> {
        device_at(&self.devices, from)
    }

    /// The service that clients at this address act as.
    pub(crate) fn network_service(&self, from: IpAddr) -> Option<&str> {
        let nets = self.networks.iter().filter(|n| n.net.contains(&from));
        nets.max_by_key(|n| n.net.prefix_len())
            .map(|n| n.service.as_str())
    }
}

fn server_config(config: &MailConfig, host: &Domain) -> ServerConfig {
    let usize_of = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut server = ServerConfig::new(host.clone());
    server.data = DataLimits {
        max_size: config.max_size,
        max_line: usize_of(config.limits.max_line),
        max_header_size: usize_of(config.limits.max_header),
        max_mime_depth: config.limits.max_mime_depth,
        max_received: config.limits.max_received,
        ..DataLimits::default()
    };
    server.max_recipients = config.max_recipients;
    server.legacy_domains.clone_from(&config.legacy_domains);
    server.starttls = true;
    server.auth = true;
    server.require_tls = true;
    server.scram = config.scram;
    server.timers = Timers {
        command: config.limits.command_timeout,
        data_idle: config.limits.data_timeout,
        session: config.limits.session_timeout,
        rate_after: config.limits.min_rate_after,
        min_rate: config.limits.min_rate,
        ..Timers::default()
    };
    server
}

fn devices_server(config: &MailConfig, server: &ServerConfig) -> ServerConfig {
    let mut server = server.clone();
    server.auth = false;
    server.data.max_size = config.devices.max_size;
    server.data.repair_bare_lf = true;
    server
}

/// The keys that differ, and whether each needs a restart.
pub(crate) fn differences(old: &MailConfig, new: &MailConfig) -> (Vec<String>, Vec<String>) {
    let doors = |config: &MailConfig| {
        let devices = &config.devices;
        let open = devices.is_open();
        (
            devices.listen.clone(),
            devices.listen_tls.clone(),
            devices.max_connections,
            open,
        )
    };
    let rebinds = doors(old) != doors(new);
    let fields = |config: &MailConfig| match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (fields(old), fields(new));
    let keys: HashSet<&String> = old.keys().chain(new.keys()).collect();
    let mut changed: Vec<String> = keys
        .into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| format!("mail.{key}"))
        .collect();
    changed.sort();
    // Listeners are bound once, and the resolver is made once.
    changed.into_iter().partition(|key| {
        let bound = matches!(
            key.as_str(),
            "mail.relay" | "mail.submission" | "mail.submissions" | "mail.dns"
        );
        !bound && (key != "mail.devices" || !rebinds)
    })
}

fn bad(key: &str, problem: String) -> BuildError {
    BuildError::Config {
        key: key.to_owned(),
        problem,
    }
}
