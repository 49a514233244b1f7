//! Visitors who go on in another process of the gateway: what is given of them, and how they are taken up there.
//!
//! For the agents it is a lost session: they come back, to the other process, and say how far their sockets are. So all
//! that has to be given is what this side of a flow knows, and the visitor's socket. Sessions of QUIC are not given.
//!
//! Invariant: while a flow rests, nothing is read from its socket or written to it; what was read is in its state, and what
//! was written is counted there.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tasuki_core::accept::Acceptor;
use tasuki_core::failure::BoxError;
use tasuki_core::handover::Item;
use tasuki_core::ids::PrincipalId;
use tasuki_core::sockets::{Noted, Purpose, Sockets, Wire};
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::{CloseCode, FlowNumber, Kept, RESUME_WITHIN};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::flow::{self, Joined, Visit};
use super::visitors::{HANDED_OVER, Visitors};
use crate::config::TunnelConfig;
use crate::flows::FlowState;
use crate::handle::Handle;
use crate::metrics::Door;
use crate::quic;
use crate::splice::{Meter, Patience};

/// The name of a socket of an agent's port, among those that are handed over.
pub(crate) const PORT: &str = "tunnel.port";
const ENGINE: &str = "tunnel.engine";
const FLOW: &str = "tunnel.flow";

/// How long visitors who are just being joined may take for it.
const SETTLING: Duration = Duration::from_secs(3);
/// How long flows may take until they rest: it is a matter of one poll each.
const RESTING: Duration = Duration::from_secs(5);
/// How long the last words to agents may take.
const FAREWELL: Duration = Duration::from_millis(50);
/// How long new players wait for agents that were here in the other process.
const AGENTS_BACK: Duration = Duration::from_secs(5);
/// How often is looked whether one of these is over.
const LOOK: Duration = Duration::from_millis(5);

/// What the engine keeps for its own end in this process.
#[derive(Default)]
pub(crate) struct Handing {
    /// Flows that both ends know of.
    settled: Arc<AtomicUsize>,
    freeze: CancellationToken,
    /// Fires when nothing is left to be said to agents, and when their socket is read no more.
    said: CancellationToken,
    silent: CancellationToken,
    flows: Mutex<Vec<HandedFlow>>,
    held: Mutex<Vec<Noted>>,
}

/// While it lives, a flow counts as settled.
pub(crate) struct Settled(Arc<AtomicUsize>);

impl Drop for Settled {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A flow that rests.
pub(crate) struct HandedFlow {
    pub(crate) agent: PrincipalId,
    pub(crate) agent_name: Arc<str>,
    pub(crate) incarnation: Option<u64>,
    pub(crate) label: Arc<str>,
    pub(crate) visit: Visit,
    pub(crate) flow: FlowState,
    pub(crate) socket: TcpStream,
    pub(crate) to_stream: u64,
    pub(crate) to_tcp: u64,
    pub(crate) stayed: Duration,
}

/// What another process gave of the engine.
#[derive(Default)]
pub(crate) struct Given {
    /// What agents know this gateway's life by; new in a process that was given nothing.
    pub(crate) incarnation: Option<u64>,
    pub(crate) last_flow: u64,
    /// Who was connected.
    agents: Vec<PrincipalId>,
    flows: Vec<(FlowRecord, Item)>,
}

#[derive(Serialize, Deserialize)]
struct EngineRecord {
    incarnation: u64,
    last_flow: u64,
    agents: Vec<PrincipalId>,
}

#[derive(Serialize, Deserialize)]
struct FlowRecord {
    agent: PrincipalId,
    agent_name: String,
    incarnation: u64,
    label: String,
    door: String,
    from: SocketAddr,
    name: Option<String>,
    is_player: bool,
    #[serde(default)]
    player: Option<String>,
    number: u64,
    taken: u64,
    has_end: bool,
    start: u64,
    furthest: u64,
    fin: bool,
    fin_taken: bool,
    to_stream: u64,
    to_tcp: u64,
    stayed_ms: u64,
}

impl Handing {
    /// Counts a flow that both ends know of.
    pub(crate) fn settled(&self) -> Settled {
        self.settled.fetch_add(1, Ordering::AcqRel);
        Settled(Arc::clone(&self.settled))
    }

    /// Resolves when flows have to rest.
    pub(crate) fn frozen(&self) -> impl Future<Output = ()> + '_ {
        self.freeze.cancelled()
    }

    /// Takes a flow that rests.
    pub(crate) fn take(&self, flow: HandedFlow) {
        self.flows().push(flow);
    }

    /// Resolves when another process is to read the socket; then [`Handing::fall_silent`] is due.
    pub(crate) fn said(&self) -> impl Future<Output = ()> + '_ {
        self.said.cancelled()
    }

    /// Reads nothing more from the socket of `endpoint`: what comes now is for another process.
    pub(crate) fn fall_silent(&self, endpoint: &quinn::Endpoint) {
        // An endpoint goes on reading the socket that it had before this one, but not the one before that.
        for _ in 0..2 {
            let elsewhere = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0));
            if let Err(error) = elsewhere.and_then(|socket| endpoint.rebind(socket)) {
                tracing::warn!(%error, "the tunnel's socket cannot be let go before the process ends");
            }
        }
        self.silent.cancel();
    }

    /// Keeps the engine's own socket among those that can be given.
    pub(crate) fn hold(&self, noted: Option<Noted>) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(noted);
    }

    fn flows(&self) -> MutexGuard<'_, Vec<HandedFlow>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Ends the engine's work in this process so that another one can go on with it: no new visitors and agents, agents
    /// are sent away and come back at once, everybody who visits by TCP rests. What is left of the engine serves nobody.
    ///
    /// What rests is in the items. Visitors who could not be given have been cut: those of agents that know nothing of
    /// flows, and those whose server at home had not answered yet.
    pub async fn hand_over(&self) -> Vec<Item> {
        let inner = &self.inner;
        inner.closing.cancel();
        until(SETTLING, || {
            inner.flows.len() <= inner.handing.settled.load(Ordering::Acquire)
        })
        .await;
        for visitors in inner.registry.all_visitors() {
            visitors.leave();
        }
        let sessions = inner.registry.sessions();
        for session in &sessions {
            session.close(CloseCode::HandedOver, HANDED_OVER);
        }
        inner.handing.freeze.cancel();
        until(RESTING, || inner.handing.settled.load(Ordering::Acquire) == 0).await;
        // The words to the agents leave meanwhile.
        tokio::time::sleep(FAREWELL).await;
        inner.handing.said.cancel();
        let _ = tokio::time::timeout(RESTING, inner.handing.silent.cancelled()).await;
        let engine = EngineRecord {
            incarnation: inner.incarnation,
            last_flow: inner.last_flow.load(Ordering::Relaxed),
            agents: sessions.iter().map(|session| session.agent).collect(),
        };
        let flows = std::mem::take(&mut *inner.handing.flows());
        let given = flows.len();
        let flows = flows.into_iter().filter_map(|flow| {
            let agent = flow.agent;
            flow.into_item()
                .inspect_err(
                    |error| tracing::warn!(tunnel.agent = %agent, %error, "a visitor cannot be handed over"),
                )
                .ok()
        });
        let mut items: Vec<Item> = Item::new(ENGINE, &engine).into_iter().collect();
        items.extend(flows);
        tracing::info!(
            connections = given,
            agents = sessions.len(),
            "visitors rest until another process goes on"
        );
        items
    }
}

impl HandedFlow {
    fn into_item(self) -> Result<Item, BoxError> {
        let FlowState {
            number,
            taken,
            has_end,
            kept,
        } = self.flow;
        let record = FlowRecord {
            agent: self.agent,
            agent_name: self.agent_name.to_string(),
            incarnation: self.incarnation.ok_or("its agent cannot go on with flows")?,
            label: self.label.to_string(),
            door: self.visit.door.name().to_owned(),
            from: self.visit.from,
            name: self.visit.name.map(|name| name.as_str().to_owned()),
            is_player: self.visit.is_player,
            player: self.visit.player,
            number: number.0,
            taken,
            has_end,
            start: kept.start,
            furthest: kept.furthest,
            fin: kept.fin,
            fin_taken: kept.fin_taken,
            to_stream: self.to_stream,
            to_tcp: self.to_tcp,
            stayed_ms: u64::try_from(self.stayed.as_millis()).unwrap_or(u64::MAX),
        };
        let socket = self.socket.into_std()?;
        Ok(Item::new(FLOW, &record)?.with_bytes(kept.bytes).with_fd(socket))
    }
}

impl Given {
    /// Reads what is the tunnel's of all that was given.
    ///
    /// # Errors
    /// The engine's own record cannot be read. A flow that cannot is cut, and said.
    pub(crate) fn read(items: Vec<Item>) -> Result<Self, BoxError> {
        let mut given = Self::default();
        for item in items {
            match item.what.as_str() {
                ENGINE => {
                    let record: EngineRecord = item.read()?;
                    given.incarnation = Some(record.incarnation);
                    given.last_flow = record.last_flow;
                    given.agents = record.agents;
                }
                FLOW => match item.read() {
                    Ok(record) => given.flows.push((record, item)),
                    Err(error) => {
                        tracing::warn!(%error, "a visitor from the other process cannot be taken up");
                    }
                },
                _ => {}
            }
        }
        Ok(given)
    }

    /// Takes everybody up: they wait for their agents. Must be called on the engine's runtime.
    pub(crate) fn take_up(self, inner: &Arc<Inner>, players: Option<&Acceptor>) -> Vec<PrincipalId> {
        let mut waiting: Vec<(PrincipalId, Arc<Visitors>)> = Vec::new();
        for (record, item) in self.flows {
            let agent = record.agent;
            match take_up(inner, record, item) {
                Ok(joined) => {
                    waiting.push((agent, Arc::clone(&joined.visitors)));
                    let of_task = Arc::clone(inner);
                    let held = (joined.visit.door == Door::Minecraft).then(|| {
                        let counted = inner.players.enter(joined.visit.from.ip(), usize::MAX);
                        (counted, players.and_then(Acceptor::admit))
                    });
                    inner.flows.spawn(async move {
                        let _ = flow::carry(&of_task, joined, None).await;
                        drop(held);
                    });
                }
                Err(error) => {
                    tracing::warn!(tunnel.agent = %agent, %error, "a visitor from the other process cannot be taken up");
                }
            }
        }
        let of_task = Arc::clone(inner);
        inner.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(RESUME_WITHIN + Duration::from_secs(1)) => {}
                () = of_task.closing.cancelled() => return,
            }
            // Nobody serves the port of an agent that did not come: who visits it is to hear so.
            let sockets = &of_task.deps.sockets;
            sockets.close_unclaimed(|purpose| !is_agents_port(purpose));
            // Nobody waits any more for an agent that did not come.
            for (agent, visitors) in waiting {
                if visitors.wait_for_agent() {
                    of_task.registry.forget_visitors(agent, &visitors);
                }
            }
        });
        self.agents
    }
}

fn take_up(inner: &Inner, record: FlowRecord, item: Item) -> Result<Joined, BoxError> {
    let config = inner.config();
    let visitors = inner
        .registry
        .visitors_of(record.agent, Some(record.incarnation), || {
            Visitors::new(
                Some(record.incarnation),
                patience(&config),
                Arc::clone(&inner.memory),
            )
        });
    let fd = item.fd.ok_or("its socket is missing")?;
    let socket = std::net::TcpStream::from(fd);
    socket.set_nonblocking(true)?;
    let flow = visitors.book.go_on(FlowState {
        number: FlowNumber(record.number),
        taken: record.taken,
        has_end: record.has_end,
        kept: Kept {
            start: record.start,
            bytes: item.bytes,
            furthest: record.furthest,
            fin: record.fin,
            fin_taken: record.fin_taken,
        },
    })?;
    let place = visitors.enter(usize::MAX).ok_or("there is no place")?;
    let name = record.name.map(|name| Domain::parse(&name)).transpose();
    let visit = Visit {
        door: Door::by_name(&record.door).ok_or("it came through an unknown door")?,
        from: record.from,
        name: name.map_err(|_| "its host name is none")?,
        player: record.player,
        is_player: record.is_player,
    };
    Ok(Joined {
        visitors,
        agent: record.agent,
        agent_name: record.agent_name.into(),
        label: record.label.into(),
        visit,
        socket: TcpStream::from_std(socket)?,
        flow,
        place,
        meter: Meter::going_on(inner.metrics.totals.clone(), record.to_stream, record.to_tcp),
        stayed: Duration::from_millis(record.stayed_ms),
        link: None,
    })
}

/// Whether a socket that was handed over is an agent's port: the agent has to come back before anybody claims it.
#[must_use]
pub fn is_agents_port(purpose: &Purpose) -> bool {
    purpose.name == PORT
}

/// How long flows of one agent may be blocked.
pub(crate) fn patience(config: &TunnelConfig) -> Patience {
    Patience::new(
        config.stall_timeout,
        quic::GATEWAY_STREAM_WINDOW,
        quic::SESSION_WINDOW,
    )
}

/// Waits until agents that were here in the other process serve again, but not for ever: a player who joins meanwhile
/// waits with them, in place of reading that nobody is at home.
pub(crate) async fn agents_are_back(inner: &Inner, agents: &[PrincipalId]) {
    let serves = |agent: &PrincipalId| {
        let session = inner.registry.session(*agent);
        session.is_some_and(|session| {
            let state = session.state.lock().unwrap_or_else(PoisonError::into_inner);
            !state.lines.is_empty()
        })
    };
    until(AGENTS_BACK, || agents.iter().all(serves)).await;
}

async fn until(limit: Duration, is_over: impl Fn() -> bool) {
    let look = async {
        while !is_over() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(limit, look).await;
}

/// A UDP socket, the one that another process gave for this or a new one; how many bytes it has room for.
pub(crate) fn udp_socket(
    sockets: &Sockets,
    name: &str,
    addr: SocketAddr,
    buffer_bytes: usize,
) -> io::Result<(UdpSocket, usize, Option<Noted>)> {
    let purpose = Purpose::new(name, Wire::Udp, addr);
    let (socket, granted) = match sockets.claim(&purpose) {
        Some(fd) => {
            let socket = UdpSocket::from(fd);
            socket.set_nonblocking(true)?;
            let granted = SockRef::from(&socket).recv_buffer_size()?;
            (socket, granted)
        }
        None => quic::bind_udp(addr, buffer_bytes)?,
    };
    let noted = sockets.note(purpose, &socket);
    Ok((socket, granted, noted))
}
