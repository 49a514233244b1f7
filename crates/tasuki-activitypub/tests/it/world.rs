//! A relay in this process and small instances around it, all on loopback.

mod instance;
mod letter;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tasuki_activitypub::{Engine, FediConfig, Handle};
use tasuki_core::accounts::Accounts;
use tasuki_core::acl::Acl;
use tasuki_core::bans::Bans;
use tasuki_core::budget::Budget;
use tasuki_core::clock::Clock;
use tasuki_core::events::EventBus;
use tasuki_core::health::Health;
use tasuki_core::ids::{Epoch, NodeId};
use tasuki_core::limits::Limits;
use tasuki_core::metrics::Metrics;
use tasuki_core::net::ClientAddr;
use tasuki_core::pool::CpuPool;
use tasuki_core::seal::Secrets;
use tasuki_core::shutdown::{Drained, Shutdown};
use tasuki_core::store::{BanStore, FediStore, SecretStore};
use tasuki_core::tls::{Tls, TlsConfig, install_provider};
use tasuki_core::{Deps, EngineKind, Shared};
use tokio::net::TcpListener;

pub(crate) use self::instance::{Answer, Instance, Mood, Received};
pub(crate) use self::letter::Letter;
use crate::accounts::NoAccounts;
use crate::memory::Memory;

/// The longest that any test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Everything that an engine's life leaves behind for the next.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) fedi: Arc<dyn FediStore>,
    pub(crate) secrets: Arc<dyn SecretStore>,
    pub(crate) bans: Arc<dyn BanStore>,
    pub(crate) keys: Arc<tempfile::TempDir>,
}

impl Ground {
    pub(crate) fn memory() -> (Self, Arc<Memory>) {
        let memory = Arc::new(Memory::default());
        let ground = Self {
            fedi: Arc::clone(&memory) as _,
            secrets: Arc::clone(&memory) as _,
            bans: Arc::clone(&memory) as _,
            keys: Arc::new(tempfile::tempdir().unwrap()),
        };
        (ground, memory)
    }

    /// The sealed secrets, under the key that relays here have.
    pub(crate) fn secrets(&self) -> Secrets {
        Secrets::new(Arc::clone(&self.secrets), [7; 32])
    }

    /// The real store on SQLite.
    pub(crate) async fn sqlite() -> Self {
        let keys = Arc::new(tempfile::tempdir().unwrap());
        let store = tasuki_store::open(tasuki_store::DEFAULT_URL, keys.path())
            .await
            .unwrap();
        let (node, _) = store.join("test").await.unwrap();
        assert_eq!(node, NodeId(1));
        Self {
            fedi: Arc::clone(&store) as _,
            secrets: Arc::clone(&store) as _,
            bans: store as _,
            keys,
        }
    }
}

/// How a relay is started.
pub(crate) struct Setup {
    pub(crate) config: FediConfig,
    /// `None`: the loopback address that it listens on.
    pub(crate) public_url: Option<Option<String>>,
    pub(crate) budget: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: FediConfig {
                danger_allow_private_addresses: true,
                author_per_hour: 0,
                new_author_per_hour: 0,
                host_per_minute: 0,
                new_host_per_minute: 0,
                connect_timeout: Duration::from_secs(1),
                request_timeout: Duration::from_secs(3),
                retry: vec![Duration::from_millis(200)],
                ..FediConfig::default()
            },
            public_url: None,
            budget: 64 << 20,
        }
    }
}

/// A running relay.
pub(crate) struct RelayUnderTest {
    pub(crate) addr: SocketAddr,
    pub(crate) acl: Acl,
    pub(crate) handle: Handle,
    pub(crate) metrics: Metrics,
    pub(crate) budget: Budget,
    pub(crate) health: Health,
    shutdown: Shutdown,
    engine: tokio::task::JoinHandle<Drained>,
    /// Its own, so that a test can take away all of it at once.
    runtime: Option<tokio::runtime::Runtime>,
    /// Keeps the directory.
    _ground: Ground,
}

impl Drop for RelayUnderTest {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl RelayUnderTest {
    pub(crate) async fn start(ground: &Ground, setup: Setup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_on(ground, setup, listener).await
    }

    pub(crate) async fn start_on(ground: &Ground, setup: Setup, listener: TcpListener) -> Self {
        install_provider();
        let addr = listener.local_addr().unwrap();
        let clock = Clock::system();
        let events = EventBus::new(clock.clone());
        let bans = Bans::new(Arc::clone(&ground.bans), clock.clone(), events.clone());
        // As in the gateway: the machine itself is never banned.
        bans.set_exempt(["127.0.0.0/8".parse::<ipnet::IpNet>().unwrap()]);
        let pool = CpuPool::new(2, 1024).unwrap();
        let metrics = Metrics::new();
        let acl = Acl::new();
        let budget = Budget::new(setup.budget);
        let health = Health::default();
        let tls = Tls::load(
            &TlsConfig::default(),
            ground.keys.path(),
            None,
            clock.clone(),
            events.clone(),
        )
        .unwrap();
        let deps = Deps {
            sockets: Default::default(),
            store: Arc::clone(&ground.fedi),
            node: (NodeId(1), Epoch(1)),
            accounts: Accounts::new(
                Arc::new(NoAccounts),
                bans.clone(),
                pool.clone(),
                clock.clone(),
                events.clone(),
            ),
            acl: acl.clone(),
            limits: Limits::new(clock.clone()),
            bans,
            budget: budget.clone(),
            pool,
            clock,
            events,
            metrics: metrics.engine(EngineKind::Fediverse),
            secrets: ground.secrets(),
            tls,
            health: health.clone(),
            shared: Arc::new(Shared {
                public_url: setup.public_url.unwrap_or_else(|| Some(format!("http://{addr}"))),
                ..Shared::default()
            }),
        };
        let engine = Engine::build(setup.config, deps).await.unwrap();
        let web = engine.web();
        let handle = engine.handle();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = listener.into_std().unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let web = Arc::clone(&web);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let web = Arc::clone(&web);
                        async move { Ok::<_, std::convert::Infallible>(web.call(request, ClientAddr(peer)).await) }
                    });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let shutdown = Shutdown::new(Duration::from_secs(10));
        Self {
            addr,
            acl,
            handle,
            metrics,
            budget,
            health,
            engine: runtime.spawn(engine.run(shutdown.clone())),
            shutdown,
            runtime: Some(runtime),
            _ground: ground.clone(),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Closes the house in good order.
    pub(crate) async fn stop(mut self) -> Drained {
        self.shutdown.begin();
        let drained = tokio::time::timeout(PATIENCE, &mut self.engine)
            .await
            .unwrap()
            .unwrap();
        // The port is free again when this returns.
        self.kill().await;
        drained
    }

    /// The power goes: no checkpoint, no goodbye.
    pub(crate) async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE))
            .await
            .unwrap();
    }

    /// The value of a counter, summed over its labels.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let prefix = format!("tasuki_fediverse_{name}");
        self.metrics
            .encode()
            .lines()
            .filter(|line| line.starts_with(&prefix) && !line.starts_with('#'))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .map(|value| value as u64)
            .sum()
    }
}

/// The public key of everybody here.
pub(crate) fn pem() -> String {
    letter::pem(letter::key())
}

pub(crate) fn client() -> reqwest::Client {
    install_provider();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .unwrap()
}
