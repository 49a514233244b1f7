//! The gateway's part of the configuration file: `[tunnel]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tasuki_core::config::{duration, size};
use tasuki_core::limits::Rate;
use tasuki_proto::minecraft::Page;

/// `[tunnel]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TunnelConfig {
    /// How long an agent and its local server may take to answer a new visitor.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// A visitor's connection that takes no bytes for this long is cut.
    #[serde(with = "duration")]
    pub stall_timeout: Duration,
    /// What all visitors' connections together may keep for the loss of a session; at the limit, sockets are not read.
    #[serde(with = "size")]
    pub memory: u64,
    /// Where agents connect.
    pub quic: QuicConfig,
    /// The shared Minecraft port.
    pub minecraft: MinecraftConfig,
    /// Ports for agents' TCP endpoints.
    pub tcp: TcpConfig,
    /// Visitors of agents' UDP ports.
    pub udp: UdpConfig,
    /// Requests for agents' HTTP endpoints.
    pub http: HttpConfig,
    /// What one agent may have.
    pub agents: AgentsConfig,
}

/// `[tunnel.quic]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuicConfig {
    /// UDP address for agents.
    pub listen: SocketAddr,
    /// Sends packets in batches (UDP GSO). Switch it off on networks that lose batches.
    pub gso: bool,
    /// Socket buffers asked of the kernel, for each direction.
    #[serde(with = "size")]
    pub socket_buffer: u64,
    /// How long a connecting agent may take to say who it is.
    #[serde(with = "duration")]
    pub handshake_timeout: Duration,
}

/// `[tunnel.minecraft]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MinecraftConfig {
    /// Off: no Minecraft port is opened.
    pub enabled: bool,
    /// TCP address for players.
    pub listen: SocketAddr,
    /// Connections at once, playing or not.
    pub max_connections: usize,
    /// Connections at once from one address (one /64 of IPv6).
    pub max_connections_per_address: usize,
    /// How long a client may take to say what it wants.
    #[serde(with = "duration")]
    pub handshake_timeout: Duration,
    /// Proxies whose players' addresses and profiles in the handshake are handed on unchanged.
    pub trusted_upstreams: Vec<ipnet::IpNet>,
    /// Load balancers that must begin each connection with a PROXY header (version 1 or 2). What they say of the player's
    /// address is believed, by limits and by the local server.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    /// Server list requests from one address: this many at once; ten times as many from its /24 or /48.
    pub status_burst: u32,
    /// And so many each second after that.
    pub status_per_second: u32,
    /// Joins from one address: this many at once; ten times as many from its /24 or /48.
    pub login_burst: u32,
    /// And so many each second after that. For 60 s after a start of the gateway or of the agent it is three times as much
    /// of all, and always five times as much for an address that stayed in a game for 5 minutes within a week.
    pub login_per_second: u32,
    /// What players read.
    pub texts: Texts,
}

/// `[tunnel.minecraft.texts]`: one or two lines each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Texts {
    /// No agent owns the name.
    pub unknown_host: String,
    /// The agent is not connected.
    pub agent_away: String,
    /// The local server refuses connections.
    pub server_refused: String,
    /// The local server does not answer in time.
    pub server_silent: String,
    /// The address asks too often. `{seconds}` stands for the time to wait.
    pub too_many: String,
    /// The agent has as many connections as it may have.
    pub full: String,
    /// The home host keeps the player or the address out.
    pub denied: String,
    /// The gateway stops.
    pub closing: String,
    /// The local server sleeps.
    pub sleeping: String,
    /// The local server is being started.
    pub starting: String,
}

/// `[tunnel.tcp]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TcpConfig {
    /// The address on which agents' TCP ports are opened.
    pub bind: IpAddr,
    /// Ports to choose from when an agent asks for any.
    pub ports: PortRange,
    /// Ports that no agent gets, whatever its grants say.
    pub reserved: Vec<u16>,
    /// Connections at once on one port.
    pub max_connections: usize,
    /// Connections at once on one port from one address (one /64 of IPv6).
    pub max_connections_per_address: usize,
    /// Load balancers that must begin each connection with a PROXY header (version 1 or 2), on all these ports.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
}

/// `[tunnel.udp]`. Address, range and reserved ports are those of `[tunnel.tcp]`: a port's TCP and UDP belong together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UdpConfig {
    /// Visitors at once on one port.
    pub max_visitors: usize,
    /// Visitors at once on one port from one address (one /64 of IPv6).
    pub max_visitors_per_address: usize,
    /// A visitor who sends nothing for this long is forgotten.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
}

/// `[tunnel.http]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// A request, an answer or a websocket in which nothing moves for this long is ended.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(300),
        }
    }
}

/// `[tunnel.agents]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentsConfig {
    /// Agents at once.
    pub max_sessions: usize,
    /// Endpoints of one agent.
    pub max_endpoints: usize,
    /// Visitors' connections to one agent at once.
    pub max_connections: usize,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            stall_timeout: Duration::from_secs(30),
            memory: 128 << 20,
            quic: QuicConfig::default(),
            minecraft: MinecraftConfig::default(),
            tcp: TcpConfig::default(),
            udp: UdpConfig::default(),
            http: HttpConfig::default(),
            agents: AgentsConfig::default(),
        }
    }
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7443)),
            gso: true,
            socket_buffer: 4 << 20,
            handshake_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for MinecraftConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 25565)),
            max_connections: 8192,
            max_connections_per_address: 200,
            handshake_timeout: Duration::from_secs(5),
            trusted_upstreams: Vec::new(),
            proxy_protocol_from: Vec::new(),
            status_burst: 40,
            status_per_second: 10,
            login_burst: 20,
            login_per_second: 2,
            texts: Texts::default(),
        }
    }
}

impl Default for Texts {
    fn default() -> Self {
        let text = |page: Page| page.default_text().to_owned();
        Self {
            unknown_host: text(Page::UnknownHost),
            agent_away: text(Page::AgentAway),
            server_refused: text(Page::ServerRefused),
            server_silent: text(Page::ServerSilent),
            too_many: text(Page::TooMany),
            full: text(Page::Full),
            denied: text(Page::Denied),
            closing: text(Page::Closing),
            sleeping: text(Page::Sleeping),
            starting: text(Page::Starting),
        }
    }
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ports: PortRange {
                from: 20_000,
                to: 29_999,
            },
            // The gateway's own doors; those below 1024 are closed to agents anyway.
            reserved: vec![2465, 2525, 2526, 2587, 7443, 8080, 8443, 8600],
            max_connections: 16_384,
            // One address alone never takes more than half of a port.
            max_connections_per_address: 8192,
            proxy_protocol_from: Vec::new(),
        }
    }
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self {
            max_visitors: 4096,
            max_visitors_per_address: 256,
            idle_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for AgentsConfig {
    fn default() -> Self {
        Self {
            max_sessions: 1000,
            max_endpoints: 64,
            max_connections: 8192,
        }
    }
}

impl TunnelConfig {
    /// Checks what types alone cannot say: the key that is wrong, and what would be right.
    ///
    /// # Errors
    /// Key and problem.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let positive = [
            ("tunnel.minecraft.max_connections", self.minecraft.max_connections),
            (
                "tunnel.minecraft.max_connections_per_address",
                self.minecraft.max_connections_per_address,
            ),
            ("tunnel.tcp.max_connections", self.tcp.max_connections),
            (
                "tunnel.tcp.max_connections_per_address",
                self.tcp.max_connections_per_address,
            ),
            ("tunnel.udp.max_visitors", self.udp.max_visitors),
            (
                "tunnel.udp.max_visitors_per_address",
                self.udp.max_visitors_per_address,
            ),
            ("tunnel.agents.max_sessions", self.agents.max_sessions),
            ("tunnel.agents.max_endpoints", self.agents.max_endpoints),
            ("tunnel.agents.max_connections", self.agents.max_connections),
            (
                "tunnel.minecraft.status_burst",
                self.minecraft.status_burst as usize,
            ),
            (
                "tunnel.minecraft.status_per_second",
                self.minecraft.status_per_second as usize,
            ),
            (
                "tunnel.minecraft.login_burst",
                self.minecraft.login_burst as usize,
            ),
            (
                "tunnel.minecraft.login_per_second",
                self.minecraft.login_per_second as usize,
            ),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err((key, "0 would let nobody in; write a positive number".into()));
        }
        if self.memory < 1 << 20 {
            return Err((
                "tunnel.memory",
                "too little to carry anything; write at least \"1MiB\"".into(),
            ));
        }
        // A declaration and its answer must fit into one control frame.
        if self.agents.max_endpoints > 128 {
            return Err(("tunnel.agents.max_endpoints", "at most 128".into()));
        }
        let waits = [
            ("tunnel.connect_timeout", self.connect_timeout),
            ("tunnel.stall_timeout", self.stall_timeout),
            ("tunnel.udp.idle_timeout", self.udp.idle_timeout),
            ("tunnel.http.idle_timeout", self.http.idle_timeout),
            ("tunnel.quic.handshake_timeout", self.quic.handshake_timeout),
            (
                "tunnel.minecraft.handshake_timeout",
                self.minecraft.handshake_timeout,
            ),
        ];
        match waits.into_iter().find(|(_, wait)| wait.is_zero()) {
            Some((key, _)) => Err((
                key,
                "a time of 0 would cut everybody; write for example \"5s\"".into(),
            )),
            None => Ok(()),
        }
    }
}

impl Texts {
    pub(crate) fn of(&self, page: Page) -> &str {
        match page {
            Page::UnknownHost => &self.unknown_host,
            Page::AgentAway => &self.agent_away,
            Page::ServerRefused => &self.server_refused,
            Page::ServerSilent => &self.server_silent,
            Page::TooMany => &self.too_many,
            Page::Full => &self.full,
            Page::Denied => &self.denied,
            Page::Closing => &self.closing,
            Page::Sleeping => &self.sleeping,
            Page::Starting => &self.starting,
        }
    }
}

impl MinecraftConfig {
    pub(crate) fn status_rate(&self) -> Rate {
        Rate::per_second(self.status_burst, self.status_per_second)
    }

    pub(crate) fn login_rate(&self) -> Rate {
        Rate::per_second(self.login_burst, self.login_per_second)
    }
}

/// `rate` so many times.
pub(crate) fn times(rate: Rate, factor: u32) -> Rate {
    Rate {
        burst: rate.burst.saturating_mul(factor),
        per_period: rate.per_period.saturating_mul(factor),
        ..rate
    }
}

/// The rate for a whole /24 or /48: a carrier has many customers in one.
pub(crate) fn for_prefix(rate: Rate) -> Rate {
    times(rate, 10)
}

/// Ports `from` to `to`, both included, written "20000-29999".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PortRange {
    /// The first port.
    pub from: u16,
    /// The last port.
    pub to: u16,
}

/// The text is not a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of ports; write for example \"20000-29999\"")]
pub struct BadPortRange(String);

impl FromStr for PortRange {
    type Err = BadPortRange;

    fn from_str(text: &str) -> Result<Self, BadPortRange> {
        let bad = || BadPortRange(text.chars().take(40).collect());
        let (from, to) = text.split_once('-').ok_or_else(bad)?;
        let port = |part: &str| part.trim().parse::<u16>().map_err(|_| bad());
        let range = Self {
            from: port(from)?,
            to: port(to)?,
        };
        if range.from == 0 || range.from > range.to {
            Err(bad())
        } else {
            Ok(range)
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from, self.to)
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl TryFrom<String> for PortRange {
    type Error = BadPortRange;

    fn try_from(text: String) -> Result<Self, BadPortRange> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::{PortRange, TunnelConfig};

    #[test]
    fn the_default_is_valid_and_binds_only_loopback() {
        let config = TunnelConfig::default();
        assert_eq!(config.check(), Ok(()));
        assert!(config.quic.listen.ip().is_loopback());
        assert!(config.minecraft.listen.ip().is_loopback());
        assert!(config.tcp.bind.is_loopback());
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let read = |json: &str| serde_json::from_str::<TunnelConfig>(json);
        assert!(read(r#"{"tcp":{"ports":"30000-30010"}}"#).is_ok());
        assert!(
            read(r#"{"tcp":{"port":"30000-30010"}}"#)
                .unwrap_err()
                .to_string()
                .contains("unknown field `port`")
        );
        assert!(read(r#"{"tcp":{"ports":"30010-30000"}}"#).is_err());
        assert_eq!("1-2".parse(), Ok(PortRange { from: 1, to: 2 }));
    }
}
