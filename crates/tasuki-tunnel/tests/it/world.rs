//! A running gateway, agents that dial it, and small local servers.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tasuki_core::accounts::{Accounts, Grant};
use tasuki_core::acl::{Acl, Origin, RuleSpec};
use tasuki_core::bans::Bans;
use tasuki_core::budget::Budget;
use tasuki_core::clock::Clock;
use tasuki_core::events::EventBus;
use tasuki_core::front::{FrontConfig, FrontDeps, FrontDoor};
use tasuki_core::handover::{Item, Link};
use tasuki_core::health::Health;
use tasuki_core::ids::PrincipalId;
use tasuki_core::limits::Limits;
use tasuki_core::metrics::Metrics;
use tasuki_core::pool::CpuPool;
use tasuki_core::seal::Secrets;
use tasuki_core::shutdown::{Drained, Shutdown};
use tasuki_core::sockets::{Bound, Sockets};
use tasuki_core::store::audit::Actor;
use tasuki_core::store::{Store, TunnelStore};
use tasuki_core::tls::{Tls, TlsConfig};
use tasuki_core::{Deps, EngineKind, Shared};
use tasuki_proto::tunnel::{ALPN, EndpointState};
use tasuki_tunnel::agent::{Agent, AgentConfig, AgentKey, Control, Final, LocalDoor, LocalEndpoint, Notice};
use tasuki_tunnel::{Engine, Fingerprint, Handle, NotReleased, PortRange, TunnelConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Fails a test that hangs.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took too long"),
    }
}

/// Ports of one world: tests run side by side, and so may other programs' tests.
const RANGE: u16 = 16;

/// A range that nobody has now and that no other world of this process gets. Below the ports that the kernel gives away
/// by itself, and within ANY_PORT.
fn free_range() -> PortRange {
    const FIRST: u16 = 20_000;
    const RANGES: u32 = 625;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..RANGES {
        let place = (std::process::id().wrapping_mul(97) + NEXT.fetch_add(1, Ordering::Relaxed)) % RANGES;
        let from = FIRST + place as u16 * RANGE;
        let to = from + RANGE - 1;
        if (from..=to).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return PortRange { from, to };
        }
    }
    panic!("no range of free ports is left");
}

pub(crate) struct World {
    pub(crate) quic: SocketAddr,
    /// The front door, in TLS.
    pub(crate) front: SocketAddr,
    pub(crate) players: SocketAddr,
    pub(crate) pin: Fingerprint,
    pub(crate) handle: Handle,
    pub(crate) metrics: Metrics,
    pub(crate) events: EventBus,
    pub(crate) settings: TunnelConfig,
    pub(crate) budget: Budget,
    pub(crate) acl: Acl,
    pub(crate) clock: Clock,
    accounts: Accounts,
    store: Arc<dyn Store>,
    sockets: Sockets,
    shutdown: Shutdown,
    task: JoinHandle<Drained>,
    dir: TempDir,
}

/// A world whose gateway does not run; its directory and addresses are kept.
pub(crate) struct Asleep {
    settings: TunnelConfig,
    dir: TempDir,
}

impl Asleep {
    /// As if somebody had stayed in a game.
    pub(crate) async fn note_regular(&self, ip: std::net::IpAddr) {
        let store = tasuki_store::open(tasuki_store::DEFAULT_URL, self.dir.path())
            .await
            .unwrap();
        let now = Clock::system().wall();
        store
            .note_regulars(&[ip], now, now.minus(Duration::from_secs(1)))
            .await
            .unwrap();
        store.close().await;
    }

    pub(crate) async fn wake(self) -> World {
        World::build(self.settings, self.dir).await
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A gateway of its own at this address.
    pub(crate) async fn on(quic: SocketAddr) -> Self {
        Self::with(|config| config.quic.listen = quic).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut TunnelConfig)) -> Self {
        let mut config = TunnelConfig::default();
        config.quic.listen = "127.0.0.1:0".parse().unwrap();
        config.minecraft.listen = "127.0.0.1:0".parse().unwrap();
        config.tcp.ports = free_range();
        change(&mut config);
        Self::build(config, tempfile::tempdir().unwrap()).await
    }

    async fn build(settings: TunnelConfig, dir: TempDir) -> Self {
        Self::build_from(settings, dir, Vec::new(), Vec::new()).await
    }

    async fn build_from(settings: TunnelConfig, dir: TempDir, sockets: Vec<Bound>, given: Vec<Item>) -> Self {
        Self::build_under(Vec::new(), settings, dir, sockets, given).await
    }

    /// With these rules from the beginning.
    async fn build_under(
        rules: Vec<(Origin, RuleSpec)>,
        settings: TunnelConfig,
        dir: TempDir,
        sockets: Vec<Bound>,
        given: Vec<Item>,
    ) -> Self {
        tasuki_core::tls::install_provider();
        let clock = Clock::adjustable();
        let events = EventBus::new(clock.clone());
        let store = tasuki_store::open(tasuki_store::DEFAULT_URL, dir.path())
            .await
            .unwrap();
        let node = store.join("test").await.unwrap();
        let bans = Bans::new(Arc::clone(&store) as _, clock.clone(), events.clone());
        let pool = CpuPool::new(1, 16).unwrap();
        let tls = Tls::load(
            &TlsConfig::default(),
            dir.path(),
            None,
            clock.clone(),
            events.clone(),
        )
        .unwrap();
        let accounts = Accounts::new(
            Arc::clone(&store) as _,
            bans.clone(),
            pool.clone(),
            clock.clone(),
            events.clone(),
        );
        let metrics = Metrics::new();
        let budget = Budget::new(64 << 20);
        let acl = Acl::new();
        acl.replace(rules);
        let deps: Deps<dyn TunnelStore> = Deps {
            sockets: Sockets::inherited(sockets),
            store: Arc::clone(&store) as _,
            node,
            accounts: accounts.clone(),
            acl: acl.clone(),
            limits: Limits::new(clock.clone()),
            bans,
            budget: budget.clone(),
            pool,
            clock: clock.clone(),
            events: events.clone(),
            metrics: metrics.engine(EngineKind::Tunnel),
            health: Health::new(),
            secrets: Secrets::new(Arc::clone(&store) as _, [7; 32]),
            tls,
            shared: Arc::new(Shared::default()),
        };
        let front = FrontDoor::build(
            FrontConfig {
                listen: Vec::new(),
                tls_listen: vec!["127.0.0.1:0".parse().unwrap()],
                ..FrontConfig::default()
            },
            FrontDeps {
                tls: deps.tls.clone(),
                bans: deps.bans.clone(),
                metrics: metrics.core("front"),
                shared: Arc::clone(&deps.shared),
                sockets: deps.sockets.clone(),
            },
        )
        .unwrap();
        let sockets = deps.sockets.clone();
        let engine = Engine::build_from(settings.clone(), deps, given).await.unwrap();
        front.routes().set_raw_alpn(ALPN, engine.tls_door());
        let (addrs, pin, handle) = (engine.addrs(), engine.fingerprint(), engine.handle());
        let shutdown = Shutdown::new(Duration::from_secs(2));
        let task = tokio::spawn(engine.run(shutdown.clone()));
        let front_addr = front.addrs().tls[0];
        tokio::spawn(front.run(shutdown.child()));
        let players = addrs.minecraft.unwrap();
        Self {
            quic: addrs.quic,
            front: front_addr,
            players,
            pin,
            handle,
            metrics,
            events,
            settings,
            budget,
            acl,
            clock,
            accounts,
            store,
            sockets,
            shutdown,
            task,
            dir,
        }
    }

    /// Gives up all endpoints, as another gateway of the same store would: their numbers.
    pub(crate) async fn release_elsewhere(&self) -> Vec<i64> {
        let mut released = Vec::new();
        for endpoint in self.store.endpoints().await.unwrap() {
            let now = self.clock.wall();
            let entry = Actor::gateway("other").entry(now, "tunnel.release", "", "");
            self.store
                .release_endpoint(endpoint.id, now, entry)
                .await
                .unwrap();
            released.push(endpoint.id.0);
        }
        released
    }

    /// The numbers of all endpoints that have an owner.
    pub(crate) async fn owned(&self) -> Vec<i64> {
        let all = self.store.endpoints().await.unwrap();
        all.iter().map(|endpoint| endpoint.id.0).collect()
    }

    /// Gives up an endpoint of the agent, by this gateway.
    pub(crate) async fn release(&self, agent: PrincipalId, label: &str) -> Result<(), NotReleased> {
        let now = self.clock.wall();
        let entry = |_: &_| Actor::gateway("test").entry(now, "tunnel.release", label, "");
        self.handle.release(agent, label, entry).await
    }

    /// Waits until the metrics have this line.
    pub(crate) async fn counted(&self, line: &str) {
        soon(line, async {
            while !self.metrics.encode().lines().any(|have| have == line) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    pub(crate) async fn code(&self, name: &str, grants: &[&str]) -> String {
        let grants: Vec<Grant> = grants.iter().map(|grant| grant.parse().unwrap()).collect();
        let actor = Actor::gateway("test");
        let made = self
            .accounts
            .create_agent_code(name, grants, Duration::from_secs(600), &actor)
            .await
            .unwrap();
        made.secret.expose().to_owned()
    }

    pub(crate) fn config(&self, endpoints: Vec<LocalEndpoint>) -> AgentConfig {
        AgentConfig {
            gateway: self.quic.to_string(),
            tls: Some(self.front.to_string()),
            transport: None,
            proxy: None,
            networks: Vec::new(),
            pin: self.pin,
            gso: true,
            socket_buffer: 1 << 20,
            max_connections: 1000,
            connect_timeout: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(30),
            drain: Duration::ZERO,
            endpoints,
        }
    }

    /// An agent with these grants that serves these endpoints.
    pub(crate) async fn agent(&self, grants: &[&str], endpoints: Vec<LocalEndpoint>) -> Running {
        let code = self.code("home", grants).await;
        Running::start(self.config(endpoints), new_key(), Some(code))
    }

    /// Stops the gateway and keeps what it needs to come back.
    pub(crate) async fn pause(mut self) -> Asleep {
        self.settings.quic.listen = self.quic;
        self.settings.minecraft.listen = self.players;
        self.shutdown.begin();
        soon("the drain", self.task).await.unwrap();
        Asleep {
            settings: self.settings,
            dir: self.dir,
        }
    }

    /// Another gateway goes on with everything, as another process would: what it gets has gone over a link. The second value
    /// is how many things that were.
    pub(crate) async fn hand_over(self) -> (Self, usize) {
        self.hand_over_under(Vec::new()).await
    }

    /// The same to one that has other rules.
    pub(crate) async fn hand_over_under(self, rules: Vec<(Origin, RuleSpec)>) -> (Self, usize) {
        let sockets = self.sockets.hand_over();
        let items = self.handle.hand_over().await;
        soon("the engine's end", self.task).await.unwrap();
        self.store.close().await;
        let count = items.len();
        let (ours, theirs) = Link::pair().unwrap();
        let giving = tokio::task::spawn_blocking(move || ours.give(&items).unwrap());
        let theirs = Link::from_fd(theirs).unwrap();
        let taking =
            tokio::task::spawn_blocking(move || theirs.take(count as u64, Duration::from_secs(20)).unwrap());
        giving.await.unwrap();
        let given = taking.await.unwrap();
        let next = Self::build_under(rules, self.settings, self.dir, sockets, given).await;
        assert_eq!((next.quic, next.players), (self.quic, self.players));
        (next, count)
    }

    /// Begins the shutdown and waits for its end.
    pub(crate) async fn stop(self) -> Drained {
        self.shutdown.begin();
        soon("the drain", self.task).await.unwrap()
    }
}

pub(crate) fn new_key() -> AgentKey {
    AgentKey::from_pkcs8(&AgentKey::generate()).unwrap()
}

pub(crate) struct Running {
    pub(crate) control: Control,
    notices: mpsc::UnboundedReceiver<Notice>,
    task: JoinHandle<Result<(), Final>>,
    shutdown: Shutdown,
}

impl Running {
    pub(crate) fn start(config: AgentConfig, key: AgentKey, code: Option<String>) -> Self {
        Self::run(Agent::new(config, key, code))
    }

    /// An agent that met its gateway in an earlier run.
    pub(crate) fn start_met(config: AgentConfig, key: AgentKey) -> Self {
        Self::run(Agent::new(config, key, None).met_before(true))
    }

    fn run(agent: Agent) -> Self {
        let control = agent.control();
        let (sender, notices) = mpsc::unbounded_channel();
        let shutdown = Shutdown::new(Duration::from_secs(2));
        let signal = shutdown.clone();
        let task = tokio::spawn(async move {
            // Nobody reads the notices of an agent whose test is over.
            agent.run(signal, move |notice| drop(sender.send(notice))).await
        });
        Self {
            control,
            notices,
            task,
            shutdown,
        }
    }

    /// The next notice that `choose` takes.
    pub(crate) async fn notice<T>(&mut self, what: &str, mut choose: impl FnMut(Notice) -> Option<T>) -> T {
        soon(what, async {
            loop {
                let notice = self.notices.recv().await.expect("the agent ended");
                if let Some(chosen) = choose(notice) {
                    return chosen;
                }
            }
        })
        .await
    }

    /// How its next endpoint stands.
    pub(crate) async fn endpoint(&mut self) -> EndpointState {
        self.notice("an endpoint", |notice| match notice {
            Notice::Endpoint { state, .. } => Some(state),
            _ => None,
        })
        .await
    }

    /// The address of its next TCP port.
    pub(crate) async fn open_port(&mut self) -> SocketAddr {
        match self.endpoint().await {
            EndpointState::Open { port: Some(port), .. } => ([127, 0, 0, 1], port).into(),
            other => panic!("not open: {other:?}"),
        }
    }

    /// How it ended by itself.
    pub(crate) async fn ended(self) -> Result<(), Final> {
        soon("the agent's end", self.task).await.unwrap()
    }

    /// Tells it to stop, and does not wait.
    pub(crate) fn begin_to_stop(self) -> Self {
        self.shutdown.begin();
        self
    }

    pub(crate) async fn stop(self) {
        self.shutdown.begin();
        self.ended().await.unwrap();
    }

    /// Stops it; all it told that nobody has read yet.
    pub(crate) async fn stop_and_tell(mut self) -> Vec<Notice> {
        self.shutdown.begin();
        soon("the agent's end", self.task).await.unwrap().unwrap();
        std::iter::from_fn(|| self.notices.try_recv().ok()).collect()
    }
}

pub(crate) const ANY_PORT: &str = "tunnel:port:20000-29999";

pub(crate) fn tcp_to(target: SocketAddr) -> LocalEndpoint {
    LocalEndpoint::new("tcp", LocalDoor::Tcp(0), target.to_string())
}

pub(crate) fn minecraft_to(name: Option<&str>, target: SocketAddr) -> LocalEndpoint {
    let name = name.map(|name| name.parse().unwrap());
    LocalEndpoint::new("mc", LocalDoor::Minecraft(name), target.to_string())
}

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// A local server that sends everything back, and ends its direction when the visitor ends the other.
pub(crate) async fn echo() -> SocketAddr {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    addr
}

/// Where nobody listens.
pub(crate) async fn nowhere() -> SocketAddr {
    listener().await.1
}

/// Sends `bytes`, ends the direction, and returns everything that comes back.
pub(crate) async fn exchange(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    soon("an exchange", async {
        let mut socket = TcpStream::connect(to).await.unwrap();
        let (mut read, mut write) = socket.split();
        let mut back = Vec::new();
        let (sent, received) = tokio::join!(
            async {
                write.write_all(bytes).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut back)
        );
        sent.unwrap();
        received.unwrap();
        back
    })
    .await
}
