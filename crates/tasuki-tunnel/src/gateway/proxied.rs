//! Load balancers in front of visitors' ports: who is listed begins each connection with a PROXY header, and is believed.

use std::net::SocketAddr;

use ipnet::IpNet;
use tasuki_core::front::read_proxied;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Who really visits: `peer` itself, or whom a listed load balancer names. One that speaks for itself, such as a health
/// check, stays who it is.
///
/// The error is a metric's label: a listed one without a header could hide a visitor who is kept out.
pub(crate) async fn visitor(
    stream: &mut TcpStream,
    peer: SocketAddr,
    listed: &[IpNet],
    deadline: Instant,
) -> Result<SocketAddr, &'static str> {
    if !listed.iter().any(|net| net.contains(&peer.ip().to_canonical())) {
        return Ok(peer);
    }
    match timeout_at(deadline, read_proxied(stream)).await {
        Ok(Ok(client)) => Ok(client.unwrap_or(peer)),
        Ok(Err(error)) => {
            tracing::debug!(peer.addr = %peer, %error, "the load balancer's connection has no PROXY header");
            Err("no_proxy_header")
        }
        Err(_) => {
            tracing::debug!(peer.addr = %peer, "the load balancer sent no PROXY header in time");
            Err("no_proxy_header")
        }
    }
}
