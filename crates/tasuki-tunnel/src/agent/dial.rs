//! Reaching the gateway: over UDP, and in TLS connections where no UDP passes, one shortly after the other.
//!
//! Each way is a [`Carrier`]. The one that worked last in this network goes first, the other follows after [`APART`];
//! whichever stands first carries the session.

use std::collections::HashMap;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};
use tasuki_proto::tunnel::SERVER_NAME;
use tokio_util::task::AbortOnDropHandle;

use super::session::{Why, why_ended};
use super::tls_line::Dialler;
use super::{AgentConfig, Final};
use crate::quic;
use crate::tls::{self, Identity, KeyExchange};
use crate::transport::Transport;
use crate::way::Way;

/// One address of the gateway: one that swallows packets must leave time for the others.
const DIAL: Duration = Duration::from_secs(4);
/// TCP, perhaps through a proxy, then TLS, then QUIC.
pub(super) const DIAL_TLS: Duration = Duration::from_secs(10);
/// Addresses that are tried.
const MAX_ADDRESSES: usize = 4;
/// How long the second way waits for the first.
const APART: Duration = Duration::from_millis(250);
/// A handshake that has not ended by now may be one whose larger ClientHello a middlebox swallows.
pub(super) const SWALLOWED: Duration = Duration::from_millis(1500);
/// Networks that are remembered.
const MAX_NETWORKS: usize = 64;

/// A connection to the gateway that has proved both keys.
pub(super) struct Reached {
    pub(super) endpoint: Endpoint,
    pub(super) connection: Connection,
    pub(super) transport: Transport,
    /// What carries the packets, if it is not UDP.
    pub(super) way: Option<HeldWay>,
}

/// A way with the tasks that keep its connections; it ends when this is dropped, after the last packets are sent.
pub(super) struct HeldWay {
    pub(super) way: Arc<Way>,
    pub(super) lines: Vec<AbortOnDropHandle<()>>,
}

impl Drop for HeldWay {
    fn drop(&mut self) {
        self.way.end();
        // They end by themselves when the last packets are sent.
        for line in self.lines.drain(..) {
            line.detach();
        }
    }
}

/// What future a carrier's work is.
type Dialling<'a> = Pin<Box<dyn Future<Output = Result<Reached, Why>> + Send + 'a>>;

/// One kind of way to the gateway.
pub(super) trait Carrier: Sync {
    fn dial(&self) -> Dialling<'_>;
}

/// What dialling needs to know.
pub(super) struct Gateway<'a> {
    pub(super) config: &'a AgentConfig,
    pub(super) identity: &'a Identity,
    pub(super) networks: &'a Networks,
}

impl Gateway<'_> {
    /// Reaches the gateway in the way that the settings name, or in the one of both that stands first.
    pub(super) async fn reach(&self) -> Result<Reached, Why> {
        let (udp, tls) = (OverUdp(self), Dialler::new(self)?);
        if let Some(only) = self.config.transport {
            return self.carrier(only, &udp, &tls).dial().await;
        }
        let network = network_towards(&self.config.gateway).await;
        let first = self.networks.best(network.as_deref());
        let (a, b) = (
            self.carrier(first, &udp, &tls).dial(),
            self.carrier(first.other(), &udp, &tls).dial(),
        );
        let reached = first_of(a, APART, true, b).await.map_err(|(a, b)| {
            // QUIC's failure says more: where it works, nobody needs the other.
            if first == Transport::Quic { a } else { b }
        })?;
        self.networks.note(network, reached.transport);
        Ok(reached)
    }

    /// Only over UDP: to leave the other way again.
    pub(super) async fn reach_by_udp(&self) -> Result<Reached, Why> {
        let reached = OverUdp(self).dial().await?;
        let network = network_towards(&self.config.gateway).await;
        self.networks.note(network, reached.transport);
        Ok(reached)
    }

    fn carrier<'b>(&self, kind: Transport, udp: &'b dyn Carrier, tls: &'b dyn Carrier) -> &'b dyn Carrier {
        match kind {
            Transport::Quic => udp,
            Transport::Tls => tls,
        }
    }

    /// The agent's side of TLS; the flag tells afterwards that another key was shown than the pinned one.
    pub(super) fn client(
        &self,
        exchange: KeyExchange,
    ) -> Result<(rustls::ClientConfig, Arc<AtomicBool>), Why> {
        tls::client_config(self.identity, self.config.pin, exchange).map_err(|error| tls_error(&error))
    }
}

fn tls_error(error: &dyn std::error::Error) -> Why {
    Why::Final(Final::Tls(error.to_string()))
}

/// Runs `a`, and `b` beside it after `wait`, or as soon as `a` has failed if `then` says so: the first success, or both
/// failures. If `b` was not needed, its failure is `a`'s.
async fn first_of<T>(
    a: impl Future<Output = Result<T, Why>>,
    wait: Duration,
    then: bool,
    b: impl Future<Output = Result<T, Why>>,
) -> Result<T, (Why, Why)> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let early = tokio::select! {
        early = &mut a => Some(early),
        () = tokio::time::sleep(wait) => None,
    };
    match early {
        Some(Ok(reached)) => Ok(reached),
        Some(Err(why)) if !then => Err((why.clone(), why)),
        Some(Err(why)) => b.await.map_err(|other| (why, other)),
        None => tokio::select! {
            done = &mut a => match done {
                Ok(reached) => Ok(reached),
                Err(why) => b.await.map_err(|other| (why, other)),
            },
            done = &mut b => match done {
                Ok(reached) => Ok(reached),
                Err(why) => a.await.map_err(|other| (other, why)),
            },
        },
    }
}

/// Makes a handshake; once more beside it without the post-quantum part, if a middlebox seems to swallow the first.
pub(super) async fn with_one_retry<T, F: Future<Output = Result<T, Why>>>(
    dial: impl Fn(KeyExchange) -> F,
) -> Result<T, Why> {
    let classic = async {
        tracing::debug!("no answer to a post-quantum handshake; trying once without it");
        dial(KeyExchange::Classic).await
    };
    first_of(dial(KeyExchange::Hybrid), SWALLOWED, false, classic)
        .await
        .map_err(|(hybrid, _)| hybrid)
}

/// Over UDP.
struct OverUdp<'a>(&'a Gateway<'a>);

impl Carrier for OverUdp<'_> {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(self.every_address())
    }
}

impl OverUdp<'_> {
    /// Dials every address of the gateway until one answers.
    async fn every_address(&self) -> Result<Reached, Why> {
        let gateway = &self.0.config.gateway;
        let addresses = resolve(gateway).await?;
        let mut last = Why::Lost(format!("{gateway} has no address"));
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            let dialling = with_one_retry(|exchange| dial(self.0, address, exchange));
            match tokio::time::timeout(DIAL, dialling).await {
                Ok(Ok((endpoint, connection))) => {
                    return Ok(Reached {
                        endpoint,
                        connection,
                        transport: Transport::Quic,
                        way: None,
                    });
                }
                // The one failure that is worth more words than the others.
                _ if matches!(last, Why::Final(Final::WrongKey)) => {}
                Ok(Err(why)) => last = why,
                Err(_) => last = Why::Lost(format!("{address} does not answer")),
            }
        }
        Err(last)
    }
}

pub(super) async fn resolve(gateway: &str) -> Result<Vec<SocketAddr>, Why> {
    match tokio::net::lookup_host(gateway).await {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(Why::Lost(format!("{gateway} cannot be looked up: {error}"))),
    }
}

pub(crate) fn any_port_towards(gateway: SocketAddr) -> SocketAddr {
    if gateway.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    }
}

/// Dials one address over UDP.
pub(super) async fn dial(
    gateway: &Gateway<'_>,
    address: SocketAddr,
    exchange: KeyExchange,
) -> Result<(Endpoint, Connection), Why> {
    let config = gateway.config;
    let no_socket = |error: std::io::Error| Why::Lost(format!("no UDP socket: {error}"));
    let (socket, _) = quic::bind_udp(any_port_towards(address), config.socket_buffer).map_err(no_socket)?;
    let endpoint = quic::endpoint(socket, None).map_err(no_socket)?;
    let transport = quic::agent_transport(config.gso);
    let connection = connect(gateway, &endpoint, address, transport, exchange).await?;
    Ok((endpoint, connection))
}

pub(super) async fn connect(
    gateway: &Gateway<'_>,
    endpoint: &Endpoint,
    address: SocketAddr,
    transport: quinn::TransportConfig,
    exchange: KeyExchange,
) -> Result<Connection, Why> {
    let (client, mismatch) = gateway.client(exchange)?;
    let crypto = QuicClientConfig::try_from(client).map_err(|error| tls_error(&error))?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(transport));
    let connecting = endpoint
        .connect_with(client, address, SERVER_NAME)
        .map_err(|error| Why::Lost(error.to_string()))?;
    match connecting.await {
        Ok(connection) => Ok(connection),
        Err(_) if mismatch.load(Ordering::Relaxed) => Err(Why::Final(Final::WrongKey)),
        Err(error) => Err(why_ended(&error)),
    }
}

impl Carrier for Dialler {
    fn dial(&self) -> Dialling<'_> {
        Box::pin(async {
            let dialling = self.session();
            match tokio::time::timeout(DIAL_TLS, dialling).await {
                Ok(reached) => reached,
                Err(_) => Err(Why::Lost(format!("{} does not answer", self.target()))),
            }
        })
    }
}

impl Dialler {
    /// A first connection, then QUIC in it; more connections follow.
    async fn session(&self) -> Result<Reached, Why> {
        let (first, peer) = self.connect().await?;
        let way = Way::new(peer);
        let held = self.hold(Arc::clone(&way), first);
        let no_endpoint = |error: std::io::Error| Why::Lost(error.to_string());
        let endpoint = quic::endpoint_in(way, None).map_err(no_endpoint)?;
        let connecting = endpoint
            .connect_with(self.quic(), peer, SERVER_NAME)
            .map_err(|error| Why::Lost(error.to_string()))?;
        let connection = connecting.await.map_err(|error| why_ended(&error))?;
        Ok(Reached {
            endpoint,
            connection,
            transport: Transport::Tls,
            way: Some(held),
        })
    }
}

/// What worked last in which network. A network is told by our own address in it: good enough to try the right way first.
#[derive(Default)]
pub(super) struct Networks(Mutex<HashMap<String, Transport>>);

impl Networks {
    pub(super) fn new(known: impl IntoIterator<Item = (String, Transport)>) -> Self {
        Self(Mutex::new(known.into_iter().take(MAX_NETWORKS).collect()))
    }

    fn best(&self, network: Option<&str>) -> Transport {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let best = network.and_then(|network| known.get(network));
        best.copied().unwrap_or(Transport::Quic)
    }

    fn note(&self, network: Option<String>, transport: Transport) {
        let Some(network) = network else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // UDP is what is tried first anyway.
        if transport == Transport::Quic {
            known.remove(&network);
        } else if known.len() < MAX_NETWORKS || known.contains_key(&network) {
            known.insert(network, transport);
        }
    }

    /// All that is not tried first anyway.
    pub(super) fn all(&self) -> Vec<(String, Transport)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = known.iter().map(|(name, kind)| (name.clone(), *kind)).collect();
        all.sort();
        all
    }
}

/// The network from which packets for the gateway leave: our own address there, to /24 or /64.
async fn network_towards(gateway: &str) -> Option<String> {
    let address = *resolve(gateway).await.ok()?.first()?;
    let socket = UdpSocket::bind(any_port_towards(address)).ok()?;
    // Sends nothing.
    socket.connect(address).ok()?;
    Some(match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(own) => {
            let [a, b, c, _] = own.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        std::net::IpAddr::V6(own) => {
            let [a, b, c, d, ..] = own.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lost() -> Result<u8, Why> {
        Err(Why::Lost("lost".to_owned()))
    }

    async fn never() -> Result<u8, Why> {
        std::future::pending().await
    }

    async fn must_not_begin() -> Result<u8, Why> {
        unreachable!("it was not needed")
    }

    #[tokio::test]
    async fn the_second_way_begins_apart_and_the_first_to_stand_wins() {
        let long = Duration::from_secs(3600);
        assert!(matches!(
            first_of(async { Ok(1) }, long, true, must_not_begin()).await,
            Ok(1)
        ));
        assert!(matches!(
            first_of(never(), Duration::ZERO, true, async { Ok(2) }).await,
            Ok(2)
        ));
        assert!(matches!(
            first_of(async { lost() }, long, true, async { Ok(2) }).await,
            Ok(2)
        ));
        assert!(
            first_of(async { lost() }, long, false, must_not_begin())
                .await
                .is_err()
        );
        let (tell, told) = tokio::sync::oneshot::channel();
        let late = async { told.await.map_err(|_| Why::Shutdown) };
        let failing = async {
            tell.send(1).unwrap();
            lost()
        };
        assert!(matches!(
            first_of(late, Duration::ZERO, true, failing).await,
            Ok(1)
        ));
    }

    #[tokio::test]
    async fn a_swallowed_handshake_is_tried_once_more_without_the_post_quantum_part() {
        let tried = Mutex::new(Vec::new());
        let dial = |exchange| {
            tried.lock().unwrap().push(exchange);
            async move {
                match exchange {
                    KeyExchange::Hybrid => never().await,
                    KeyExchange::Classic => Ok(7),
                }
            }
        };
        assert!(matches!(with_one_retry(dial).await, Ok(7)));
        assert_eq!(
            *tried.lock().unwrap(),
            [KeyExchange::Hybrid, KeyExchange::Classic]
        );
    }

    #[test]
    fn a_network_remembers_only_what_is_not_tried_first_anyway() {
        let networks = Networks::new([("10.0.0.0/24".to_owned(), Transport::Tls)]);
        assert_eq!(networks.best(Some("10.0.0.0/24")), Transport::Tls);
        assert_eq!(networks.best(Some("10.0.1.0/24")), Transport::Quic);
        assert_eq!(networks.best(None), Transport::Quic);
        networks.note(Some("10.0.0.0/24".to_owned()), Transport::Quic);
        assert_eq!(networks.all(), []);
        for number in 0..2 * MAX_NETWORKS {
            networks.note(Some(number.to_string()), Transport::Tls);
        }
        assert_eq!(networks.all().len(), MAX_NETWORKS, "bounded");
    }
}
