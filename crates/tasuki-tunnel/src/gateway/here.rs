//! Who is here now: every connection and every flow of datagrams, as commands show them while bytes move.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tasuki_core::clock::Timestamp;
use tasuki_proto::minecraft::Edition;
use tasuki_proto::tunnel::{FlowNumber, FromGateway};
use tokio::net::TcpStream;

use super::Inner;
use super::flow::Visit;
use super::round_trip::Kernel;
use super::visitors::Visitors;
use crate::handle::Handle;
use crate::metrics::Door;
use crate::splice::Meter;

/// How often agents are told how far their players are.
const TELL: Duration = Duration::from_secs(2);
/// Players in one frame: a few kilobytes.
const IN_A_FRAME: usize = 500;

/// Whose visitors, and how far they are: the flows' numbers with microseconds.
type ToTell = (Arc<Visitors>, Vec<(u64, u32)>);

/// One visitor of an agent.
#[derive(Clone, Debug, Serialize)]
pub struct VisitorLine {
    /// The name that a Minecraft client claims; none for others and for a look at the server list.
    pub player: Option<String>,
    /// Where the visitor is.
    pub address: SocketAddr,
    /// The agent's name.
    pub agent: String,
    /// The agent's own name for the endpoint.
    pub endpoint: String,
    /// `minecraft`, `tcp`, `udp`, `https` or `http`.
    pub door: &'static str,
    /// The host name that the visitor came by.
    pub host: Option<String>,
    /// Which Minecraft the visitor plays, if it is one.
    pub edition: Option<Edition>,
    /// Since when.
    pub since: Timestamp,
    /// Round trip between visitor and gateway, in microseconds, as TCP measures it. None for datagrams, for visitors behind a
    /// proxy and for requests at the front door.
    pub visitor_rtt_us: Option<u64>,
    /// Round trip between gateway and agent, in microseconds; none while the agent is lost.
    pub agent_rtt_us: Option<u64>,
    /// Bytes from the visitor so far.
    pub bytes_in: u64,
    /// Bytes to the visitor so far.
    pub bytes_out: u64,
}

/// How a visitor's bytes come to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By a TCP connection of the visitor's own, between these addresses.
    Tcp { local: SocketAddr, peer: SocketAddr },
    /// By datagrams.
    Datagrams,
    /// By somebody else's connection.
    Indirect,
}

impl Way {
    /// How somebody came by this socket.
    pub(crate) fn of(socket: &TcpStream, visit: &Visit) -> Self {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        match (socket.local_addr(), socket.peer_addr()) {
            // Of one whom a proxy names, only the way to the proxy could be measured.
            (Ok(local), Ok(peer)) if canonical(peer) == canonical(visit.from) => Self::Tcp {
                local: canonical(local),
                peer: canonical(peer),
            },
            _ => Self::Indirect,
        }
    }
}

/// Somebody who is joined with an agent.
pub(crate) struct Coming<'a> {
    pub(crate) agent: &'a Arc<str>,
    pub(crate) label: &'a Arc<str>,
    pub(crate) visit: &'a Visit,
    pub(crate) visitors: &'a Arc<Visitors>,
    /// The flow's number, if the agent knows it too.
    pub(crate) flow: Option<FlowNumber>,
    pub(crate) way: Way,
    pub(crate) meter: Meter,
    pub(crate) since: Timestamp,
}

/// Somebody who is here.
pub(crate) struct Guest {
    number: u64,
    agent: Arc<str>,
    label: Arc<str>,
    visit: Visit,
    visitors: Arc<Visitors>,
    flow: Option<FlowNumber>,
    way: Way,
    speaks_raknet: AtomicBool,
    since: Timestamp,
    pub(crate) meter: Meter,
}

/// The table. As bounded as the agents' places are.
#[derive(Default)]
pub(crate) struct Here {
    last: AtomicU64,
    by_number: Mutex<HashMap<u64, Arc<Guest>>>,
}

/// A guest's place in the table; left when dropped.
pub(crate) struct Entered {
    here: Arc<Here>,
    guest: Arc<Guest>,
}

impl Here {
    pub(crate) fn enter(self: &Arc<Self>, coming: Coming<'_>) -> Entered {
        let guest = Arc::new(Guest {
            number: self.last.fetch_add(1, Ordering::Relaxed) + 1,
            agent: Arc::clone(coming.agent),
            label: Arc::clone(coming.label),
            visit: coming.visit.clone(),
            visitors: Arc::clone(coming.visitors),
            flow: coming.flow,
            way: coming.way,
            speaks_raknet: AtomicBool::new(false),
            since: coming.since,
            meter: coming.meter,
        });
        self.lock().insert(guest.number, Arc::clone(&guest));
        Entered {
            here: Arc::clone(self),
            guest,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Guest>>> {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who are meant, the first one first.
    fn all(&self, is_meant: impl Fn(&Guest) -> bool) -> Vec<Arc<Guest>> {
        let mut all: Vec<Arc<Guest>> = {
            let table = self.lock();
            table.values().filter(|guest| is_meant(guest)).cloned().collect()
        };
        all.sort_by_key(|guest| guest.number);
        all
    }

    /// How far the players are whose flows their agents know: microseconds, with the agents' visitors. Asks the kernel for
    /// each.
    fn round_trips(&self) -> Vec<ToTell> {
        let players = self.all(|guest| guest.visit.is_player && guest.flow.is_some());
        let mut told: Vec<ToTell> = Vec::new();
        let mut place_by_agent: HashMap<*const Visitors, usize> = HashMap::new();
        let mut kernel = Kernel::default();
        for player in players {
            let (Some(flow), Some(us)) = (player.flow, player.rtt_us(&mut kernel)) else {
                continue;
            };
            let place = *place_by_agent
                .entry(Arc::as_ptr(&player.visitors))
                .or_insert_with(|| {
                    told.push((Arc::clone(&player.visitors), Vec::new()));
                    told.len() - 1
                });
            told[place]
                .1
                .push((flow.0, u32::try_from(us).unwrap_or(u32::MAX)));
        }
        told
    }
}

impl Guest {
    /// The datagrams began as RakNet's do.
    pub(crate) fn speaks_raknet(&self) {
        self.speaks_raknet.store(true, Ordering::Relaxed);
    }

    fn edition(&self) -> Option<Edition> {
        match self.visit.door {
            Door::Minecraft => Some(Edition::Java),
            Door::Udp if self.speaks_raknet.load(Ordering::Relaxed) => Some(Edition::Bedrock),
            _ => None,
        }
    }

    fn rtt_us(&self, kernel: &mut Kernel) -> Option<u64> {
        match self.way {
            Way::Tcp { local, peer } => kernel.rtt_us(local, peer).map(u64::from),
            Way::Datagrams | Way::Indirect => None,
        }
    }

    fn line(&self, kernel: &mut Kernel) -> VisitorLine {
        let session = self.visitors.session();
        let rtt = session.map(|session| session.connection.rtt());
        VisitorLine {
            player: self.visit.player.clone(),
            address: self.visit.from,
            agent: self.agent.to_string(),
            endpoint: self.label.to_string(),
            door: self.visit.door.name(),
            host: self.visit.name.as_ref().map(|name| name.as_str().to_owned()),
            edition: self.edition(),
            since: self.since,
            visitor_rtt_us: self.rtt_us(kernel),
            agent_rtt_us: rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            bytes_in: self.meter.to_stream(),
            bytes_out: self.meter.to_tcp(),
        }
    }
}

impl Deref for Entered {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.here.lock().remove(&self.guest.number);
    }
}

impl Handle {
    /// Who visits the agent of this name, or all of them; the first who came first. Asks the kernel for each, so it is not
    /// for a thread on which players wait.
    #[must_use]
    pub fn visitors(&self, agent: Option<&str>) -> Vec<VisitorLine> {
        let all = self
            .inner
            .here
            .all(|guest| agent.is_none_or(|name| *guest.agent == *name));
        let mut kernel = Kernel::default();
        all.iter().map(|guest| guest.line(&mut kernel)).collect()
    }
}

/// Tells agents how far their players are, until the engine closes.
pub(crate) async fn tell_agents(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TELL) => {}
            () = inner.closing.cancelled() => return,
        }
        let here = Arc::clone(&inner.here);
        // It fails only with the runtime.
        let told = tokio::task::spawn_blocking(move || here.round_trips()).await;
        for (visitors, flows) in told.unwrap_or_default() {
            let Some(session) = visitors.session() else {
                continue;
            };
            for flows in flows.chunks(IN_A_FRAME) {
                // A full outbox is of an agent that reads nothing now; the next time will do.
                let _ = session.outbox.try_send(FromGateway::RoundTrips {
                    flows: flows.to_vec(),
                });
            }
        }
    }
}
