//! A UDP port of an agent: every visitor's address is a flow, every datagram one QUIC datagram.
//!
//! Nothing is sent to an address that did not send first, and little to one that has neither sent a few times nor has a
//! TCP connection to the same agent: a forged source must not make us flood somebody. Datagrams may be lost anywhere, as UDP is; none is sent twice.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tasuki_core::EngineKind;
use tasuki_core::events::What;
use tasuki_core::limits::{Rate, Who};
use tasuki_core::net::unmapped;
use tasuki_core::sockets::{Noted, Sockets};
use tasuki_core::store::tunnel::EndpointKind;
use tasuki_proto::minecraft::begins_raknet;
use tasuki_proto::tunnel::{Datagram, EndpointId, FlowId, StreamHeader, StreamKind};
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::counts::{Counted, PerAddress};
use super::flow::Visit;
use super::here::{self, Entered};
use super::registry::{Route, Target};
use super::session::Session;
use super::visitors::Place;
use super::{Inner, admit, handover};
use crate::config::for_prefix;
use crate::datagrams::MAX_PAYLOAD;
use crate::metrics;
use crate::splice::{End, Meter};

/// New visitors from one address.
const NEW_VISITORS: Rate = Rate {
    burst: 60,
    per_period: 10,
    period: Duration::from_secs(1),
};
/// A visitor who has sent this many datagrams is taken for real.
const PROVEN_AFTER: u32 = 4;
/// What one who is not yet may get: this many times what came, and a little more for a short first question.
const UNPROVEN_FACTOR: u64 = 3;
const UNPROVEN_MORE: u64 = 1200;
/// How often idle visitors are looked for, at most; with a shorter time to idle, four times in it.
const SWEEP: Duration = Duration::from_secs(5);
/// Datagrams above the agent's bandwidth go on as long as they would not come later than this; then they are lost, as on
/// any line that is full.
const LATE: Duration = Duration::from_millis(100);
/// After an error of the socket, so that one that stays does not spin.
const BACK_OFF: Duration = Duration::from_millis(10);
/// Socket buffers asked of the kernel.
const SOCKET_BUFFER: usize = 1 << 20;

/// The flows of a session, by the number that the agent knows. As bounded as the session's places are.
#[derive(Default)]
pub(crate) struct Flows(Mutex<Numbered>);

#[derive(Default)]
struct Numbered {
    last: u32,
    by_id: HashMap<FlowId, Arc<Flow>>,
}

/// One visitor.
struct Flow {
    id: FlowId,
    /// Where it leads; the endpoint's number as it was when the flow began.
    target: Target,
    socket: Arc<UdpSocket>,
    /// As the socket says it; the address that answers go to.
    visitor: SocketAddr,
    guest: Entered,
    /// Datagrams that came from the visitor.
    came: AtomicU32,
    /// The agent has answered, so it knows the flow.
    known: AtomicBool,
    _place: Place,
    _counted: Counted,
}

impl Flows {
    fn lock(&self) -> MutexGuard<'_, Numbered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn by_id(&self, id: FlowId) -> Option<Arc<Flow>> {
        self.lock().by_id.get(&id).cloned()
    }

    fn number(&self) -> FlowId {
        let mut flows = self.lock();
        loop {
            flows.last = flows.last.wrapping_add(1);
            let id = FlowId(flows.last);
            if !flows.by_id.contains_key(&id) {
                return id;
            }
        }
    }
}

impl Flow {
    /// Whether the visitor may get this many bytes more.
    fn may_send(&self, more: usize) -> bool {
        self.came.load(Ordering::Relaxed) >= PROVEN_AFTER
            || self.guest.meter.to_tcp() + more as u64
                <= self.guest.meter.to_stream() * UNPROVEN_FACTOR + UNPROVEN_MORE
    }
}

/// Binds a port. Both families where the address says so.
pub(crate) fn bind(sockets: &Sockets, addr: SocketAddr) -> io::Result<(UdpSocket, Option<Noted>)> {
    let (socket, _, noted) = handover::udp_socket(sockets, handover::PORT, addr, SOCKET_BUFFER)?;
    Ok((UdpSocket::from_std(socket)?, noted))
}

/// Sends what is queued for the agent, and gives visitors what comes from it, until the session ends.
pub(crate) async fn carry(inner: Arc<Inner>, session: Arc<Session>) {
    let to_agent = session.datagrams.pump(&session.connection);
    let to_visitors = async {
        let unproven = inner.metrics.datagrams_dropped("unproven");
        let socket_full = inner.metrics.datagrams_dropped("socket");
        let too_many = inner.metrics.datagrams_dropped("bandwidth");
        let shaping = &session.visitors.shaping;
        while let Ok(bytes) = session.connection.read_datagram().await {
            match Datagram::decode(bytes) {
                Ok(Datagram::Data { flow, payload }) => {
                    let Some(flow) = session.udp.by_id(flow) else {
                        continue;
                    };
                    flow.known.store(true, Ordering::Relaxed);
                    if !flow.may_send(payload.len()) && !session.visitors.proven.has(flow.visitor.ip()) {
                        unproven.inc();
                    } else if !shaping.to_socket.fits(payload.len(), LATE, Instant::now()) {
                        too_many.inc();
                    } else if flow.socket.try_send_to(&payload, flow.visitor).is_ok() {
                        flow.guest.meter.add_to_tcp(payload.len());
                    } else {
                        socket_full.inc();
                    }
                }
                Ok(Datagram::Unknown { flow }) => {
                    if let Some(flow) = session.udp.by_id(flow) {
                        flow.known.store(false, Ordering::Relaxed);
                    }
                }
                // A newer kind, or nonsense: as good as lost.
                Ok(Datagram::Open { .. } | Datagram::Padding { .. }) | Err(_) => {}
            }
        }
    };
    tokio::join!(to_agent, to_visitors);
}

/// One door's visitors, by address.
struct Visitors {
    inner: Arc<Inner>,
    socket: Arc<UdpSocket>,
    kind: EndpointKind,
    local: SocketAddr,
    counts: PerAddress,
    table: HashMap<SocketAddr, (Arc<Flow>, Instant)>,
}

/// Carries visitors' datagrams until `token` fires.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    socket: Arc<UdpSocket>,
    kind: EndpointKind,
    token: CancellationToken,
) {
    let Ok(local) = socket.local_addr() else {
        return;
    };
    let mut sweep = tokio::time::interval(sweep_every(inner.config().udp.idle_timeout));
    let mut visitors = Visitors {
        inner,
        socket: Arc::clone(&socket),
        kind,
        local,
        counts: PerAddress::default(),
        table: HashMap::new(),
    };
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut changes = visitors.inner.changes.subscribe();
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                // One that fills the buffer was cut, and fits into no packet anyway.
                Ok((length, _)) if length == MAX_PAYLOAD => {
                    visitors.inner.metrics.datagrams_dropped("too_large").inc();
                }
                Ok((length, from)) => visitors.take(&buffer[..length], from),
                Err(_) => tokio::time::sleep(BACK_OFF).await,
            },
            _ = sweep.tick() => visitors.forget_idle(),
            Ok(()) = changes.changed() => visitors.forget_banished(),
            () = token.cancelled() => return visitors.forget_all(),
        }
    }
}

fn sweep_every(idle: Duration) -> Duration {
    (idle / 4).clamp(Duration::from_millis(10), SWEEP)
}

impl Visitors {
    fn take(&mut self, payload: &[u8], from: SocketAddr) {
        let now = Instant::now();
        // A flow ends with its session; the next datagram begins another, perhaps with another agent.
        let is_over = |flow: &Flow| flow.target.session.connection.close_reason().is_some();
        if self.table.get(&from).is_some_and(|(flow, _)| is_over(flow)) {
            self.forget(End::Clean, |visitor, _, _| *visitor == from);
        }
        let flow = match self.table.get_mut(&from) {
            Some((flow, last)) => {
                *last = now;
                Arc::clone(flow)
            }
            None => match self.welcome(from) {
                Ok(flow) => {
                    self.table.insert(from, (Arc::clone(&flow), now));
                    flow
                }
                Err(reason) => return self.inner.metrics.refused(reason),
            },
        };
        if flow.came.fetch_add(1, Ordering::Relaxed) < PROVEN_AFTER && begins_raknet(payload) {
            flow.guest.speaks_raknet();
        }
        let shaping = &flow.target.session.visitors.shaping;
        if !shaping.to_stream.fits(payload.len(), LATE, now) {
            self.inner.metrics.datagrams_dropped("bandwidth").inc();
            return;
        }
        flow.guest.meter.add_to_stream(payload.len());
        let payload = Bytes::copy_from_slice(payload);
        let datagram = if flow.known.load(Ordering::Relaxed) {
            Datagram::Data {
                flow: flow.id,
                payload,
            }
        } else {
            let header = StreamHeader {
                kind: StreamKind::Udp,
                endpoint: self.endpoint_of(&flow),
                visitor: from,
                door: self.local,
                player: None,
                flow: None,
            };
            Datagram::Open {
                flow: flow.id,
                header,
                payload,
            }
        };
        flow.target.session.datagrams.send(flow.id, &datagram);
    }

    /// The agent's number for the endpoint; a new declaration may have changed it.
    fn endpoint_of(&self, flow: &Flow) -> EndpointId {
        let session = &flow.target.session;
        let same = |target: &Target| Arc::ptr_eq(&target.session, session);
        match self.inner.registry.route(&self.kind) {
            Route::Live(targets) => targets.into_iter().find(same),
            Route::Away | Route::Unknown => None,
        }
        .map_or(flow.target.endpoint, |target| target.endpoint)
    }

    /// A new visitor, or the reason for a metric why not.
    fn welcome(&mut self, from: SocketAddr) -> Result<Arc<Flow>, &'static str> {
        let inner = &self.inner;
        let (config, ip) = (inner.config(), unmapped(from.ip()));
        if inner.closing.is_cancelled() {
            return Err("closing");
        }
        admit::may_visit(inner, ip, None)?;
        let limits = &inner.deps.limits;
        limits
            .take(EngineKind::Tunnel, "udp_visitor", Who::Address(ip), NEW_VISITORS)
            .and_then(|()| {
                limits.take(
                    EngineKind::Tunnel,
                    "udp_visitor",
                    Who::Prefix(ip),
                    for_prefix(NEW_VISITORS),
                )
            })
            .map_err(|_| "too_many")?;
        if self.table.len() >= config.udp.max_visitors {
            return Err("full");
        }
        let counted = self
            .counts
            .enter(ip, config.udp.max_visitors_per_address)
            .ok_or("address_full")?;
        let target = match inner.registry.route(&self.kind) {
            Route::Live(mut targets) => targets.swap_remove(0),
            Route::Away | Route::Unknown => return Err("agent_away"),
        };
        let session = Arc::clone(&target.session);
        let place = session
            .visitors
            .enter(config.agents.max_connections)
            .ok_or("full")?;
        let guest = inner.here.enter(here::Coming {
            agent: &session.name.as_str().into(),
            label: &target.label,
            visit: &Visit {
                door: metrics::Door::Udp,
                from: SocketAddr::new(ip, from.port()),
                name: None,
                player: None,
                is_player: false,
            },
            visitors: &session.visitors,
            flow: None,
            way: here::Way::Datagrams,
            meter: Meter::new(Some(inner.metrics.totals.clone())),
            since: inner.deps.clock.wall(),
        });
        let flow = Arc::new(Flow {
            id: session.udp.number(),
            socket: Arc::clone(&self.socket),
            target: target.clone(),
            visitor: from,
            guest,
            came: AtomicU32::new(0),
            known: AtomicBool::new(false),
            _place: place,
            _counted: counted,
        });
        session.udp.lock().by_id.insert(flow.id, Arc::clone(&flow));
        inner.metrics.opened(metrics::Door::Udp);
        inner.deps.events.emit(What::VisitorJoined {
            agent: session.agent,
            endpoint: target.label.to_string(),
            from: ip,
            player: None,
        });
        Ok(flow)
    }

    fn forget_idle(&mut self) {
        let limit = self.inner.config().udp.idle_timeout;
        let now = Instant::now();
        self.forget(End::Clean, |_, _, last| {
            now.saturating_duration_since(last) >= limit
        });
    }

    fn forget_banished(&mut self) {
        let inner = Arc::clone(&self.inner);
        self.forget(End::Denied, |from, _, _| {
            admit::may_visit(&inner, unmapped(from.ip()), None).is_err()
        });
    }

    fn forget_all(&mut self) {
        self.forget(End::Clean, |_, _, _| true);
    }

    fn forget(&mut self, end: End, gone: impl Fn(&SocketAddr, &Flow, Instant) -> bool) {
        let inner = &self.inner;
        self.table.retain(|from, (flow, last)| {
            if !gone(from, flow, *last) {
                return true;
            }
            let Target { session, label, .. } = &flow.target;
            session.udp.lock().by_id.remove(&flow.id);
            inner.metrics.closed(metrics::Door::Udp, end);
            inner.deps.events.emit(What::VisitorLeft {
                agent: session.agent,
                endpoint: label.to_string(),
                from: unmapped(from.ip()),
                player: None,
                bytes_in: flow.guest.meter.to_stream(),
                bytes_out: flow.guest.meter.to_tcp(),
            });
            false
        });
    }
}
