//! The home side: dials out, proves its key, declares endpoints, joins every stream with a local server.
//!
//! [`Agent::run`] goes on by itself: a lost session is dialled again with growing, jittered waits. It ends when the
//! shutdown begins, or when the gateway refuses in a way that only a person can change ([`Final`]). A wrong key ends it
//! only at first contact: later it may be somebody else who got the gateway's old address for a while.
//!
//! **Invariant:** the agent dials only the targets in its own configuration. What a gateway asks for beyond that is
//! refused on the stream, and nothing on the home network is touched.

mod control;
mod dial;
mod flow;
mod lan;
mod look;
mod probe;
mod returning;
mod rules;
mod session;
#[cfg(test)]
mod tests;
mod tls_line;
mod udp;
mod visitors;
mod wake;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tasuki_core::shutdown::Shutdown;
use tasuki_proto::backoff::Backoff;
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::{CloseCode, Declared, EndpointId, EndpointKind, EndpointState, HttpProxy};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::flows::{Book, MAX_OF_AGENT, Room};
use crate::pool::Pool;
use crate::quic;
use crate::splice::Patience;
use crate::tls::{BadKey, Fingerprint, Identity};
use crate::transport::Transport;

pub use control::{Control, ServedLine, Status, VisitorLine};
pub(crate) use dial::any_port_towards;
pub use look::{PathReport, Seen};
pub use probe::{
    GatewayProbe, LocalProbe, front_door as probe_front_door, gateway as probe_gateway, local as probe_local,
};
use returning::Returning;
pub use rules::{NotAnybody, Rules, Who};

/// Waits between attempts; the last one repeats.
const RETRY: [Duration; 7] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
];
/// The longest wait while visitors are on: they stay if a session comes within 12 s.
const RETRY_WITH_VISITORS: Duration = Duration::from_secs(1);
/// The wait when the gateway said that it is there again.
const AT_ONCE: Duration = Duration::from_millis(20);
/// A session that lasted this long was a good one: the next wait is short again.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// What an agent needs to know.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// `HOST:PORT` of the gateway's tunnel (UDP).
    pub gateway: String,
    /// `HOST:PORT` of the gateway's front door (TCP), for networks that let no UDP out. `None`: the gateway's host, port
    /// 443.
    pub tls: Option<String>,
    /// How to travel; `None` takes what works, UDP rather than TLS.
    pub transport: Option<Transport>,
    /// The network's HTTP proxy, for TLS.
    pub proxy: Option<HttpProxy>,
    /// Networks in which something else than UDP worked last.
    pub networks: Vec<(String, Transport)>,
    /// The gateway's key.
    pub pin: Fingerprint,
    /// Sends packets in batches (UDP GSO).
    pub gso: bool,
    /// Socket buffers asked of the kernel, in bytes for each direction.
    pub socket_buffer: usize,
    /// Visitors' connections at once.
    pub max_connections: u32,
    /// How long a local server may take to accept.
    pub connect_timeout: Duration,
    /// A connection that takes no bytes for this long is cut.
    pub stall_timeout: Duration,
    /// How long visitors may stay after the agent was told to stop; new ones go elsewhere at once.
    pub drain: Duration,
    /// What is served.
    pub endpoints: Vec<LocalEndpoint>,
}

/// One local server and the door it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// The agent's own name for it, stable over restarts: the gateway keeps name or port under it.
    pub label: String,
    /// The door.
    pub door: LocalDoor,
    /// `HOST:PORT` of the local server.
    pub target: String,
    /// Sends the visitor's address to the local server by PROXY protocol version 2. For UDP before the first datagram of a
    /// visitor (as Geyser wants it), or before each.
    pub proxy_protocol: bool,
    /// With `proxy_protocol` on a UDP endpoint: before each datagram.
    pub proxy_each_datagram: bool,
    /// Where programs of the home network come in that send no PROXY header: the agent adds it.
    pub lan_listen: Option<SocketAddr>,
    /// How a Minecraft server that sleeps is started.
    pub start: Option<Start>,
}

impl LocalEndpoint {
    /// An endpoint with nothing special about it.
    #[must_use]
    pub fn new(label: impl Into<String>, door: LocalDoor, target: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            door,
            target: target.into(),
            proxy_protocol: false,
            proxy_each_datagram: false,
            lan_listen: None,
            start: None,
        }
    }
}

/// How a local server is started when a player joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Program and arguments, from the agent's own file and from nowhere else.
    pub command: Vec<String>,
    /// The players who may wake it, in any case of letters; empty means all who may join.
    pub wake_for: Vec<String>,
}

/// The door that an endpoint asks for at the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDoor {
    /// A TCP port; 0 lets the gateway choose one of the granted ports.
    Tcp(u16),
    /// A UDP port; 0 lets the gateway choose, best the number of a TCP port of this agent.
    Udp(u16),
    /// A name on the shared Minecraft port; without one, the default route.
    Minecraft(Option<Domain>),
    /// A host name whose TLS is the local server's own.
    Https(Domain),
    /// A host name whose TLS is the gateway's.
    Http(Domain),
}

/// An agent's private key with its public fingerprint.
pub struct AgentKey(Identity);

impl AgentKey {
    /// A new key as PKCS #8, to be kept where only the agent can read it.
    #[must_use]
    pub fn generate() -> Vec<u8> {
        Identity::generate()
    }

    /// Reads a kept key.
    ///
    /// # Errors
    /// The bytes are not a key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, BadKey> {
        Identity::from_pkcs8(der).map(Self)
    }

    /// The fingerprint under which the gateway knows this agent.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint()
    }
}

/// What happens, for whoever shows it to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Dialling begins.
    Connecting,
    /// The gateway accepted; `enrolled` says that the code was spent just now.
    Connected {
        /// This agent's name at the gateway.
        agent: String,
        /// The gateway's program.
        software: String,
        /// The key is enrolled from now on.
        enrolled: bool,
        /// How the packets travel.
        transport: Transport,
    },
    /// How an endpoint stands at the gateway.
    Endpoint {
        /// Its label.
        label: String,
        /// Open or refused.
        state: EndpointState,
    },
    /// The session is over or was not reached; dialled again after the wait.
    Lost {
        /// Why, for a person.
        reason: String,
        /// The wait.
        retry_in: Duration,
    },
    /// The gateway leaves us unanswered while visitors are on, as after a change of network: the session goes on from a
    /// new local port, or over TLS in new connections.
    PathSilent,
    /// The gateway stops; running connections may end within this time.
    GoingAway {
        /// Seconds.
        grace_s: u32,
    },
    /// A local server began to refuse connections or to leave them unanswered. Said once, until it is [`Notice::LocalUp`].
    LocalDown {
        /// The endpoint's label.
        label: String,
        /// `HOST:PORT` of the server.
        target: String,
        /// Why, for a person.
        reason: String,
    },
    /// A local server takes connections again.
    LocalUp {
        /// The endpoint's label.
        label: String,
        /// `HOST:PORT` of the server.
        target: String,
    },
}

/// Where notices go; visitors' tasks have some too.
type Tell = Arc<dyn Fn(Notice) + Send + Sync>;

/// Why trying again cannot help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Final {
    /// The gateway refuses this agent.
    #[error("the gateway refuses this agent: {text}")]
    Refused {
        /// The kind of refusal.
        code: CloseCode,
        /// The gateway's words.
        text: String,
    },
    /// What answered holds another key than the pinned one.
    #[error(
        "the gateway shows another key than the pinned one; ask its operator for a new command if it was set up anew"
    )]
    WrongKey,
    /// TLS cannot be set up on this machine.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// An endpoint and how its local server stands.
struct Served {
    endpoint: LocalEndpoint,
    /// Why it takes no connections, if it takes none.
    down: Mutex<Option<String>>,
    waking: Arc<wake::Waking>,
}

impl Served {
    /// Notes that the local server took a connection, or why it did not; tells only what is new.
    fn note(&self, outcome: Result<(), String>, tell: &Tell) {
        if outcome.is_ok() {
            self.waking.is_up();
        }
        let (label, target) = (self.endpoint.label.clone(), self.endpoint.target.clone());
        let was_down = {
            let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *down, outcome.clone().err()).is_some()
        };
        if was_down == outcome.is_err() {
            return;
        }
        tell(match outcome {
            Ok(()) => Notice::LocalUp { label, target },
            Err(reason) => Notice::LocalDown {
                label,
                target,
                reason,
            },
        });
    }

    fn problem(&self) -> Option<String> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What all parts of an agent share.
struct Inner {
    config: AgentConfig,
    endpoints_by_id: HashMap<EndpointId, Served>,
    pool: Pool,
    patience: Patience,
    flows: AtomicU32,
    visitors: visitors::Visitors,
    /// Flows with the gateway, over all sessions.
    book: Arc<Book>,
    /// Streams in a new session for flows that are there.
    offers: flow::Offers,
    /// This start of the program.
    incarnation: u64,
    /// The gateway waits while a server is started.
    gateway_holds: AtomicBool,
    networks: dial::Networks,
    returning: Returning,
    lineage: Mutex<Lineage>,
    standing: control::Standing,
    tasks: TaskTracker,
}

/// Which start of the gateway's program the flows belong to.
#[derive(Default)]
struct Lineage {
    gateway: Option<u64>,
    /// Fires when they have to go, all of them.
    gone: CancellationToken,
}

impl Inner {
    /// Nobody visits.
    fn is_alone(&self) -> bool {
        self.flows.load(Ordering::Relaxed) == 0
    }

    fn lineage(&self) -> MutexGuard<'_, Lineage> {
        self.lineage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flows of another start of the gateway's program have no other end any more.
    fn accepted_by(&self, gateway: Option<u64>) {
        let mut lineage = self.lineage();
        if lineage.gateway != gateway {
            std::mem::take(&mut lineage.gone).cancel();
            lineage.gateway = gateway;
        }
    }

    fn declared(&self) -> Vec<Declared> {
        let mut declared: Vec<Declared> = self
            .endpoints_by_id
            .iter()
            .map(|(id, served)| {
                let endpoint = &served.endpoint;
                let (kind, name, port) = match &endpoint.door {
                    LocalDoor::Tcp(port) => (EndpointKind::Tcp, None, Some(*port)),
                    LocalDoor::Udp(port) => (EndpointKind::Udp, None, Some(*port)),
                    LocalDoor::Minecraft(name) => (
                        EndpointKind::Minecraft,
                        name.as_ref().map(ToString::to_string),
                        None,
                    ),
                    LocalDoor::Https(name) => (EndpointKind::Https, Some(name.to_string()), None),
                    LocalDoor::Http(name) => (EndpointKind::Http, Some(name.to_string()), None),
                };
                Declared {
                    id: *id,
                    label: endpoint.label.clone(),
                    kind,
                    name,
                    port,
                }
            })
            .collect();
        declared.sort_by_key(|endpoint| endpoint.id);
        declared
    }
}

/// An agent that is ready to run.
pub struct Agent {
    inner: Arc<Inner>,
    key: AgentKey,
    code: Option<String>,
    /// The pinned key was shown by the gateway before.
    met: bool,
}

impl Agent {
    /// An agent with this key; `code` enrols the key on first contact.
    #[must_use]
    pub fn new(config: AgentConfig, key: AgentKey, code: Option<String>) -> Self {
        let endpoints_by_id = (1..)
            .map(EndpointId)
            .zip(config.endpoints.iter().cloned())
            .map(|(id, endpoint)| {
                let served = Served {
                    endpoint,
                    down: Mutex::default(),
                    waking: Arc::default(),
                };
                (id, served)
            })
            .collect();
        let inner = Inner {
            patience: Patience::new(
                config.stall_timeout,
                quic::AGENT_STREAM_WINDOW,
                quic::SESSION_WINDOW,
            ),
            endpoints_by_id,
            networks: dial::Networks::new(config.networks.clone()),
            returning: Returning::default(),
            config,
            pool: Pool::default(),
            flows: AtomicU32::new(0),
            visitors: visitors::Visitors::default(),
            book: Book::new(Room::new(MAX_OF_AGENT)),
            offers: flow::Offers::default(),
            incarnation: rand::random(),
            gateway_holds: AtomicBool::new(false),
            lineage: Mutex::default(),
            standing: control::Standing::default(),
            tasks: TaskTracker::new(),
        };
        Self {
            inner: Arc::new(inner),
            key,
            code,
            met: false,
        }
    }

    /// Says whether the gateway with this pin was met in an earlier run: then another key is no reason to give up.
    #[must_use]
    pub fn met_before(mut self, met: bool) -> Self {
        self.met = met;
        self
    }

    /// For the home host's own commands.
    #[must_use]
    pub fn control(&self) -> Control {
        Control {
            inner: Arc::clone(&self.inner),
        }
    }

    /// Serves until the shutdown begins (then `Ok`) or the gateway refuses for good.
    ///
    /// # Errors
    /// See [`Final`].
    pub async fn run(
        mut self,
        shutdown: Shutdown,
        tell: impl Fn(Notice) + Send + Sync + 'static,
    ) -> Result<(), Final> {
        let inner = Arc::clone(&self.inner);
        let tell: Tell = Arc::new(move |notice| {
            inner.standing.note(&notice);
            tell(notice);
        });
        let _lan = lan::open(&self.inner, &tell);
        let backoff = Backoff::try_new(RETRY, 20).expect("the table has delays above zero");
        let mut failures = 0_u32;
        loop {
            tell(Notice::Connecting);
            let ended = session::hold(&self.inner, &self.key.0, self.code.as_deref(), &shutdown, &tell).await;
            let session::Ended {
                lasted,
                enrolled,
                at_once,
                why,
            } = ended;
            if enrolled {
                self.code = None;
                self.met = true;
            }
            let reason = match why {
                session::Why::Shutdown => return self.close(Ok(())).await,
                session::Why::Final(Final::WrongKey) if self.met => format!(
                    "what answers at {} shows another key than the pinned one: not our gateway, or one that was set up \
                     anew (then ask its operator for a new command)",
                    self.inner.config.gateway
                ),
                session::Why::Final(reason) => return self.close(Err(reason)).await,
                session::Why::Lost(reason) => reason,
            };
            failures = if lasted >= GOOD_SESSION {
                1
            } else {
                failures.saturating_add(1)
            };
            let mut retry_in = backoff.delay(failures, rand::random());
            if self.inner.flows.load(Ordering::Relaxed) > 0 {
                retry_in = retry_in.min(RETRY_WITH_VISITORS);
            }
            if at_once {
                retry_in = AT_ONCE;
            }
            tell(Notice::Lost { reason, retry_in });
            tokio::select! {
                () = tokio::time::sleep(retry_in) => {}
                () = shutdown.begun() => return self.close(Ok(())).await,
            }
        }
    }

    /// Waits for the connections' tasks: without a session they end at once.
    async fn close(self, result: Result<(), Final>) -> Result<(), Final> {
        self.inner.accepted_by(None);
        self.inner.lineage().gone.cancel();
        self.inner.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(2), self.inner.tasks.wait()).await;
        result
    }
}
