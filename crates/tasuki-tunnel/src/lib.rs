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
//! The gateway's end is for Unix alone (`cfg(unix)`), the agent's is not: what differs there is in `os`.
//!
//! Invariants: nothing is exposed without a grant; an agent dials only what its own owner declared; a slow visitor,
//! agent or local server holds up only itself; an idle connection holds no buffer.

// Both ends share much; where the gateway's end is left out, some of it has nobody who needs it.
#![cfg_attr(not(unix), allow(dead_code, unused_imports))]

pub mod agent;
mod config;
mod datagrams;
#[cfg(unix)]
mod engine;
mod flows;
mod frames;
#[cfg(unix)]
mod gateway;
#[cfg(unix)]
mod handle;
#[cfg(unix)]
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
#[cfg(unix)]
pub use engine::{Addrs, Engine};
#[cfg(unix)]
pub use gateway::handover::is_agents_port;
#[cfg(unix)]
pub use gateway::here::VisitorLine;
#[cfg(unix)]
pub use gateway::owners::NotReleased;
#[cfg(unix)]
pub use handle::{AgentLine, EndpointLine, Handle};
pub use published::{JAVA, Leads, Published};
pub use tls::{BadFingerprint, BadKey, Fingerprint};
pub use transport::Transport;
