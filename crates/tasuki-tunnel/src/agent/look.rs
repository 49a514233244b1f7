//! What packets meet on the way to the gateway: loss, size, address translation, and how far the clocks are apart.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, Endpoint, SendStream};
use tasuki_core::clock::Clock;
use tasuki_proto::tunnel::{CloseCode, Datagram, FromAgent, FromGateway, encode_frame};
use tokio::time::{Instant, MissedTickBehavior};

use super::dial::{self, Gateway, any_port_towards};
use crate::frames::read_frame;
use crate::quic;

/// Packets that are sent to see how many arrive, how large, and how far apart: as a player's.
const PACKETS: u32 = 200;
const ZEROS: usize = 60;
const APART: Duration = Duration::from_millis(5);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// A little longer than a session ever leaves its path silent.
const SILENCE: Duration = quic::KEEP_ALIVE.saturating_add(Duration::from_secs(1));

/// What packets meet on the way to the gateway.
#[derive(Clone, Debug)]
pub struct PathReport {
    /// Round trip.
    pub rtt: Duration,
    /// The largest UDP payload that passes, in bytes; it was tried up to 1452.
    pub payload_bytes: u16,
    /// Packets that were sent.
    pub sent: u64,
    /// Those of them that did not arrive.
    pub lost: u64,
    /// Where they leave here.
    pub own: SocketAddr,
    /// What the gateway says of us. `None` if it does not: its program is older.
    pub seen: Option<Seen>,
}

/// How the gateway sees us.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Where our packets come from.
    pub address: SocketAddr,
    /// How far its clock is ahead of ours, in milliseconds.
    pub ahead_ms: i64,
    /// Where packets from the same port came from after a silence as long as a session's; looked at only where addresses
    /// are translated.
    pub after_silence: Option<SocketAddr>,
}

/// Looks along a connection, which ends with that, and at how long its address holds.
pub(super) async fn along(gateway: &Gateway<'_>, endpoint: &Endpoint, connection: Connection) -> PathReport {
    let peer = connection.remote_address();
    let own = own_address(endpoint, peer);
    // The gateway ends a connection whose stream has ended.
    let (seen, _stream) = ask(&connection).await.unzip();
    send_packets(&connection).await;
    let path = connection.stats().path;
    leave(endpoint, &connection).await;
    let mut report = PathReport {
        rtt: path.rtt,
        payload_bytes: path.current_mtu,
        sent: path.sent_packets,
        lost: path.lost_packets,
        own,
        seen,
    };
    if let Some(seen) = &mut report.seen
        && seen.address != own
    {
        tokio::time::sleep(SILENCE).await;
        let again = dial::with_one_retry(|exchange| {
            let transport = quic::agent_transport(gateway.config.gso);
            dial::connect(gateway, endpoint, peer, transport, exchange)
        });
        if let Ok(Ok(connection)) = tokio::time::timeout(PATIENCE + dial::SWALLOWED, again).await {
            seen.after_silence = ask(&connection).await.map(|(seen, _)| seen.address);
            leave(endpoint, &connection).await;
        }
    }
    report
}

/// Ends a connection that was only for looking.
pub(super) async fn leave(endpoint: &Endpoint, connection: &Connection) {
    connection.close(quinn::VarInt::from_u32(CloseCode::Done.code()), b"only a look");
    let _ = tokio::time::timeout(PATIENCE, endpoint.wait_idle()).await;
}

/// The address from which packets leave for `peer`.
fn own_address(endpoint: &Endpoint, peer: SocketAddr) -> SocketAddr {
    let port = endpoint.local_addr().map_or(0, |address| address.port());
    let towards = || {
        let socket = UdpSocket::bind(any_port_towards(peer))?;
        // Sends nothing.
        socket.connect(peer)?;
        socket.local_addr()
    };
    let ip = towards().map_or_else(|_| any_port_towards(peer).ip(), |address| address.ip());
    SocketAddr::new(ip, port)
}

/// Asks how the gateway sees us; the stream on which it was asked.
async fn ask(connection: &Connection) -> Option<(Seen, SendStream)> {
    let asking = async {
        let (mut send, mut receive) = connection.open_bi().await.ok()?;
        let clock = Clock::system();
        let began = (clock.wall(), Instant::now());
        send.write_all(&encode_frame(&FromAgent::Look).ok()?).await.ok()?;
        match read_frame::<FromGateway>(&mut receive, &mut BytesMut::new()).await {
            Ok(Some(FromGateway::Seen { address, time_ms })) => {
                // Half of the time that it took was on the way back.
                let here = began.0.plus(began.1.elapsed() / 2);
                let seen = Seen {
                    address,
                    ahead_ms: time_ms.saturating_sub(here.0),
                    after_silence: None,
                };
                Some((seen, send))
            }
            _ => None,
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.ok()?
}

/// Sends small packets, and waits until it is known of each whether it arrived. Meanwhile quinn finds the largest size.
async fn send_packets(connection: &Connection) {
    let packet = Datagram::Padding { zeros: ZEROS }.encode();
    let mut apart = tokio::time::interval(APART);
    // After a pause of ours no two at once: they would share a packet.
    apart.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let room = connection.datagram_send_buffer_space();
    let until = Instant::now() + APART * PACKETS + PATIENCE;
    for _ in 0..PACKETS {
        apart.tick().await;
        // Nor does the next share one with a packet that has not left yet.
        while connection.datagram_send_buffer_space() < room && Instant::now() < until {
            apart.tick().await;
        }
        if connection.send_datagram(packet.clone()).is_err() {
            return;
        }
    }
    tokio::time::sleep((connection.rtt() * 4).clamp(Duration::from_millis(200), PATIENCE)).await;
}
