//! Visitors of UDP endpoints at home: each has a socket of its own, so the local server sees them apart.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use quinn::Connection;
use tasuki_proto::minecraft::begins_raknet;
use tasuki_proto::proxy_protocol;
use tasuki_proto::tunnel::{Datagram, FlowId, StreamHeader};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::flow::Place;
use super::visitors::Coming;
use super::{Inner, LocalDoor, Tell};
use crate::datagrams::{Datagrams, MAX_PAYLOAD};

/// A flow in which nothing moves is forgotten after this: later than the gateway does by default, and if it does not, it
/// is told and begins the flow anew.
const IDLE: Duration = Duration::from_secs(75);
/// Datagrams of one visitor that wait for the local socket; more are dropped.
const WAITING: usize = 128;

/// Flows of this session by number; each is a task that ends when its sender goes.
type Flows = Mutex<HashMap<FlowId, mpsc::Sender<Bytes>>>;

/// What the tasks of a session's flows share.
struct Ways {
    inner: Arc<Inner>,
    tell: Tell,
    datagrams: Datagrams,
    flows: Flows,
}

/// Carries datagrams both ways until the session ends; its flows end with it.
pub(super) async fn carry(inner: Arc<Inner>, tell: Tell, connection: Connection) {
    let ways = Arc::new(Ways {
        inner,
        tell,
        datagrams: Datagrams::new(Counter::default()),
        flows: Flows::default(),
    });
    let mut tasks = JoinSet::new();
    let incoming = async {
        while let Ok(bytes) = connection.read_datagram().await {
            while tasks.try_join_next().is_some() {}
            match Datagram::decode(bytes) {
                Ok(Datagram::Data { flow, payload }) => {
                    if !ways.hand_on(flow, payload) {
                        ways.datagrams.send(flow, &Datagram::Unknown { flow });
                    }
                }
                Ok(Datagram::Open {
                    flow,
                    header,
                    payload,
                }) => {
                    if let Some(payloads) = ways.begin(flow, payload) {
                        tasks.spawn(serve(Arc::clone(&ways), flow, header, payloads));
                    }
                }
                // A newer kind, or nonsense: as good as lost.
                Ok(Datagram::Unknown { .. } | Datagram::Padding { .. }) | Err(_) => {}
            }
        }
    };
    tokio::join!(incoming, ways.datagrams.pump(&connection));
}

impl Ways {
    /// Gives a payload to a flow that is there; false if it is not.
    fn hand_on(&self, flow: FlowId, payload: Bytes) -> bool {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let known = flows.get(&flow);
        if let Some(sender) = known {
            // Full: the local socket does not keep up, and a datagram may be lost.
            let _ = sender.try_send(payload);
        }
        known.is_some()
    }

    /// Makes a flow with its first payload; `None` if it is there already.
    fn begin(&self, flow: FlowId, payload: Bytes) -> Option<mpsc::Receiver<Bytes>> {
        if self.hand_on(flow, payload.clone()) {
            return None;
        }
        let max = usize::try_from(self.inner.config.max_connections).unwrap_or(usize::MAX);
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        if flows.len() >= max {
            return None;
        }
        let (sender, payloads) = mpsc::channel(WAITING);
        let _ = sender.try_send(payload);
        flows.insert(flow, sender);
        Some(payloads)
    }
}

/// Serves one visitor, then forgets the flow.
async fn serve(ways: Arc<Ways>, flow: FlowId, header: StreamHeader, payloads: mpsc::Receiver<Bytes>) {
    if let Some(_place) = Place::take(&ways.inner) {
        exchange(&ways, flow, &header, payloads).await;
    }
    let mut flows = ways.flows.lock().unwrap_or_else(PoisonError::into_inner);
    flows.remove(&flow);
}

/// Carries datagrams between the flow and a declared UDP endpoint's local server; of no other.
async fn exchange(ways: &Ways, flow: FlowId, header: &StreamHeader, mut payloads: mpsc::Receiver<Bytes>) {
    let Some(served) = ways.inner.endpoints_by_id.get(&header.endpoint) else {
        return;
    };
    if !matches!(served.endpoint.door, LocalDoor::Udp(_)) {
        return;
    }
    let visitors = &ways.inner.visitors;
    let coming = Coming {
        endpoint: &served.endpoint,
        from: header.visitor,
        player: None,
        flow: None,
        is_at_home: false,
    };
    let Some(visitor) = visitors.enter(&coming) else {
        return;
    };
    let limit = ways.inner.config.connect_timeout;
    let socket = match tokio::time::timeout(limit, connect(&served.endpoint.target)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return served.note(Err(error.to_string()), &ways.tell),
        Err(_) => return served.note(Err("its name cannot be looked up".into()), &ways.tell),
    };
    let endpoint = &served.endpoint;
    let mut head = endpoint
        .proxy_protocol
        .then(|| proxy_protocol::encode_v2_udp(header.visitor, header.door));
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut idle_at = Instant::now() + IDLE;
    loop {
        tokio::select! {
            payload = payloads.recv() => {
                let Some(payload) = payload else { return };
                if begins_raknet(&payload) {
                    visitor.speaks_raknet();
                }
                // An error here is of an earlier datagram, and told below.
                let _ = match &head {
                    Some(head) => socket.send(&[head, &payload[..]].concat()).await,
                    None => socket.send(&payload).await,
                };
                // A server that takes it once takes it for the visitor's address from then on.
                head = head.filter(|_| endpoint.proxy_each_datagram);
                visitor.meter.add_to_tcp(payload.len());
            }
            received = socket.recv(&mut buffer) => match received {
                Ok(length) => {
                    served.note(Ok(()), &ways.tell);
                    if length < MAX_PAYLOAD {
                        visitor.meter.add_to_stream(length);
                        let payload = Bytes::copy_from_slice(&buffer[..length]);
                        ways.datagrams.send(flow, &Datagram::Data { flow, payload });
                    }
                }
                // Nobody listens there now; the visitor's next datagram may find somebody.
                Err(error) => served.note(Err(error.to_string()), &ways.tell),
            },
            () = visitor.cut.cancelled() => return,
            () = tokio::time::sleep_until(idle_at) => return,
        }
        idle_at = Instant::now() + IDLE;
    }
}

async fn connect(target: &str) -> io::Result<UdpSocket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host(target).await? {
        let own: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(own).await?;
        match socket.connect(address).await {
            Ok(()) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}
