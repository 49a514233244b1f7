//! The tunnel engine, both ends.
//!
//! **Gateway** ([`Engine`]): agents come in over QUIC and prove their key; visitors come in over TCP, by a port or by
//! the name in a Minecraft handshake; each visitor becomes one stream to the agent. **Agent** ([`agent`]): dials out,
//! declares what it serves, and joins every stream with a local server.
//!
//! A session is a QUIC connection. Its packets travel in UDP, or in TLS connections at the front door where no UDP passes
//! (`way`); quinn's trait `AsyncUdpSocket` is the border between the two and all the rest.
//!
//! What is not here: the bytes of the protocols (pure, in `tasuki-proto`), and who may do what (decided by
//! `tasuki-core` with grants and rules, asked in one function: `gateway::grants::may_expose`).
//!
//! Invariants: nothing is exposed without a grant; an agent dials only what its own owner declared; a slow visitor,
//! agent or local server holds up only itself; an idle connection holds no buffer.

pub mod agent;
mod config;
mod datagrams;
mod engine;
mod flows;
mod gateway;
mod handle;
mod metrics;
mod os;
mod pool;
mod published;
mod quic;
mod shaper;
mod splice;
mod tls;
mod transport;
mod way;

pub use config::{
    AgentsConfig, BadPortRange, HttpConfig, MinecraftConfig, PortRange, QuicConfig, TcpConfig, Texts,
    TunnelConfig, UdpConfig,
};
pub use engine::{Addrs, Engine};
pub use gateway::handover::is_agents_port;
pub use gateway::owners::NotReleased;
pub use handle::{AgentLine, EndpointLine, Handle};
pub use published::{JAVA, Leads, Published};
pub use tls::{BadFingerprint, BadKey, Fingerprint};
pub use transport::Transport;
