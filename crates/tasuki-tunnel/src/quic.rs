//! QUIC settings of both ends. The numbers are chosen for many small flows beside a few large ones on home lines.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};
use tasuki_proto::tunnel::MAX_CARRIED;

use crate::way::Way;

/// How long a session lives without a word from the other side.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the agent says that it lives.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// What one flow may have on the way towards the gateway.
pub(crate) const GATEWAY_STREAM_WINDOW: u32 = 1 << 20;
/// What one flow may have on the way towards the agent.
pub(crate) const AGENT_STREAM_WINDOW: u32 = 2 << 20;
/// What all flows of a session together may have on the way, at either end: the real bound on memory per session.
pub(crate) const SESSION_WINDOW: u32 = 32 << 20;
/// Datagrams that QUIC itself holds for sending: a few, since those behind them wait where they can grow old and go.
const DATAGRAM_SEND_BUFFER: usize = 16 << 10;
/// Datagrams that came and were not read yet; the oldest are dropped.
const DATAGRAM_RECEIVE_BUFFER: usize = 256 << 10;
/// Streams an agent may open: the control stream, and room for later kinds.
pub(crate) const AGENT_OPENS: u32 = 4;
/// Visitor streams that an agent allows at first; it raises the number while they fill.
pub(crate) const FIRST_FLOWS: u32 = 512;

fn transport(gso: bool) -> TransportConfig {
    let mut cubic = CubicConfig::default();
    // 32 packets: a first burst of map data fits into the first round trip.
    cubic.initial_window(32 * 1200);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(SESSION_WINDOW))
        .send_window(8 << 20)
        .initial_rtt(Duration::from_millis(100))
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
        .congestion_controller_factory(Arc::new(cubic))
        .enable_segmentation_offload(gso);
    config
}

/// The gateway's transport.
pub(crate) fn gateway_transport(gso: bool) -> TransportConfig {
    let mut config = transport(gso);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(AGENT_OPENS))
        .stream_receive_window(VarInt::from_u32(GATEWAY_STREAM_WINDOW));
    config
}

/// The agent's transport.
pub(crate) fn agent_transport(gso: bool) -> TransportConfig {
    let mut config = transport(gso);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(FIRST_FLOWS))
        .stream_receive_window(VarInt::from_u32(AGENT_STREAM_WINDOW))
        .keep_alive_interval(Some(KEEP_ALIVE));
    config
}

/// For packets that travel in a way of TLS connections: large ones, which overtake each other without being lost.
pub(crate) fn in_way(mut config: TransportConfig) -> TransportConfig {
    const LARGEST: u16 = MAX_CARRIED as u16;
    let mut cubic = CubicConfig::default();
    cubic.initial_window(32 * MAX_CARRIED as u64);
    config
        .initial_mtu(LARGEST)
        .min_mtu(LARGEST)
        .mtu_discovery_config(None)
        // One connection of the way may be far behind another: only time tells that a packet is lost with one.
        .packet_threshold(4096)
        .time_threshold(3.0)
        .congestion_controller_factory(Arc::new(cubic))
        .enable_segmentation_offload(false);
    config
}

/// A bound UDP socket with room for bursts: the kernel's default holds fewer than a hundred full packets. The kernel
/// caps what we ask for; the second value is what it granted for receiving, in bytes.
pub(crate) fn bind_udp(addr: SocketAddr, buffer_bytes: usize) -> io::Result<(UdpSocket, usize)> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    // Less than asked is still a working socket.
    let _ = socket.set_recv_buffer_size(buffer_bytes);
    let _ = socket.set_send_buffer_size(buffer_bytes);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    let granted = socket.recv_buffer_size()?;
    Ok((socket.into(), granted))
}

/// An endpoint on a bound socket, for both directions or only for dialling. Must be called on a tokio runtime.
pub(crate) fn endpoint(
    socket: UdpSocket,
    server: Option<quinn::ServerConfig>,
) -> io::Result<quinn::Endpoint> {
    quinn::Endpoint::new(
        EndpointConfig::default(),
        server,
        socket,
        Arc::new(quinn::TokioRuntime),
    )
}

/// An endpoint whose packets travel in a way. Must be called on a tokio runtime.
pub(crate) fn endpoint_in(way: Arc<Way>, server: Option<quinn::ServerConfig>) -> io::Result<quinn::Endpoint> {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(MAX_CARRIED as u16)
        .map_err(io::Error::other)?;
    quinn::Endpoint::new_with_abstract_socket(config, server, way, Arc::new(quinn::TokioRuntime))
}
