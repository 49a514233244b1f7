//! The composition root: what the gateway is made of, in the order in which it is put together.
//!
//! data directory -> store -> core -> front door -> engines, one runtime each -> admin -> work -> drain.

mod engines;
mod life;
mod look;
mod predecessor;
mod start;
mod successor;
mod work;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tasuki_core::accept::Acceptor;
use tasuki_core::accounts::Accounts;
use tasuki_core::acl::Acl;
use tasuki_core::bans::Bans;
use tasuki_core::budget::Budget;
use tasuki_core::clock::Clock;
use tasuki_core::events::EventBus;
use tasuki_core::front::{FrontDeps, FrontDoor};
use tasuki_core::health::Health;
use tasuki_core::ids::{Epoch, NodeId};
use tasuki_core::limits::Limits;
use tasuki_core::metrics::Metrics;
use tasuki_core::pool::CpuPool;
use tasuki_core::seal::Secrets;
use tasuki_core::shutdown::Shutdown;
use tasuki_core::sockets::{Noted, Purpose, Wire};
use tasuki_core::store::Store;
use tasuki_core::tls::Tls;
use tasuki_core::{BuildError, EngineKind, Shared};
use tasuki_proto::names::Domain;

use self::life::{Ended, Undone};
use self::start::Start;
use self::work::Signals;
use crate::admin::{self, Admin};
use crate::config::{Config, Loaded};
use crate::data;
use crate::exit::{self, Fail, Outcome, chain};
use crate::first_start::{self, FirstPassword};
use crate::log::{self, LogHandle};
use crate::place::DataDir;
use crate::reload::{Live, Reloader};

pub(crate) use self::predecessor::Predecessor;
pub(crate) use self::successor::Order;

/// The fact in the store by which name instances know the relay.
const HOST: &str = "server.host";
/// Jobs that the CPU pool holds at most, running ones included.
const CPU_QUEUE: usize = 4096;

/// `tasuki serve`: from the configuration to the end of the drain.
pub(crate) fn serve(loaded: Loaded) -> Outcome {
    let log = log::start(&loaded.config.log);
    tasuki_core::tls::install_provider();
    if let Err(error) = tasuki_core::accept::raise_open_files_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let predecessor = Predecessor::find();
    let served = serve_after(loaded, &log, predecessor.as_ref());
    if let (Err(fail), Some(predecessor)) = (&served, &predecessor) {
        predecessor.failed(fail);
    }
    served
}

fn serve_after(loaded: Loaded, log: &LogHandle, predecessor: Option<&Predecessor>) -> Outcome {
    let data = loaded.data_dir();
    if loaded.file.is_some() || predecessor.is_some() {
        data::require_furnished(&data)?;
    } else {
        data::furnish(&data)?;
    }
    let start = match predecessor {
        Some(predecessor) => predecessor.take(&data)?,
        None => Start::fresh(&data)?,
    };
    let runtime = runtime("core")?;
    let done = runtime.block_on(lives(loaded, log, start, predecessor));
    // Whatever still hangs on a peer was given its grace.
    runtime.shutdown_timeout(Duration::from_millis(200));
    done
}

/// One life after the other: another begins when an upgrade has failed.
async fn lives(
    mut loaded: Loaded,
    log: &LogHandle,
    mut start: Start,
    mut predecessor: Option<&Predecessor>,
) -> Outcome {
    let mut undone: Option<Undone> = None;
    // Of all lives: a signal that comes while one hands over ends the next.
    let mut signals = Signals::take()?;
    loop {
        let data = loaded.data_dir();
        let opening = Core::open(loaded, data, start, undone.is_some());
        let core = tokio::select! {
            core = opening => core?,
            // Nothing serves yet; a life that goes on is ended in good order instead.
            () = signals.end(), if undone.is_none() => return Ok(()),
        };
        let served = core.serve(log.clone(), &mut signals, predecessor.take(), undone.take());
        match served.await? {
            Ended::Stopped => return Ok(()),
            Ended::TakenBack(again) => {
                loaded = again.loaded;
                start = again.start;
                undone = Some(again.undone);
            }
        }
    }
}

/// `tasuki init`: everything that `serve` needs, and nothing that listens.
pub(crate) fn init(loaded: &Loaded) -> Outcome<FirstPassword> {
    tasuki_core::tls::install_provider();
    let data = loaded.data_dir();
    data::furnish(&data)?;
    let start = Start::fresh(&data)?;
    let runtime = runtime("core")?;
    runtime.block_on(async {
        let core = Core::open(loaded.clone(), data, start, false).await?;
        let first = core.ensure_admin().await?;
        core.store.close().await;
        Ok(first)
    })
}

fn runtime(name: &str) -> Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|e| Fail::io("cannot start the runtime", &e))
}

/// What the engines share.
struct Core {
    loaded: Loaded,
    data: DataDir,
    start: Start,
    clock: Clock,
    events: EventBus,
    metrics: Metrics,
    store: Arc<dyn Store>,
    node: (NodeId, Epoch),
    secrets: Secrets,
    pool: CpuPool,
    budget: Budget,
    tls: Tls,
    health: Health,
    acl: Acl,
    bans: Bans,
    limits: Limits,
    accounts: Accounts,
}

impl Core {
    /// Opens the store and everything that stands on it. Listens nowhere. `again` is a store that this program had open
    /// just now, and that a newer one may have prepared for itself meanwhile.
    async fn open(loaded: Loaded, data: DataDir, start: Start, again: bool) -> Outcome<Self> {
        let config = &loaded.config;
        let clock = Clock::system();
        let events = EventBus::new(clock.clone());
        let opened = match again {
            false => tasuki_store::open(config.store_url(), data.path()).await,
            true => tasuki_store::reopen(config.store_url(), data.path()).await,
        };
        let store = opened.map_err(|e| {
            Fail::new(
                exit::UNAVAILABLE,
                format!("the store cannot be opened: {}", chain(&e)),
            )
        })?;
        let node = store
            .join(&data::node_name(&data)?)
            .await
            .map_err(|e| store_failed(&e))?;
        let threads = match config.server.cpu_threads {
            0 => std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            n => n,
        };
        let pool = CpuPool::new(threads, CPU_QUEUE).map_err(|e| Fail::io("cannot start the CPU pool", &e))?;
        let host = config.server.host.as_ref().map(|h| h.as_str());
        let tls = Tls::load(&config.tls, &data.keys(), host, clock.clone(), events.clone())
            .map_err(|e| Fail::new(exit::CONFIG, chain(&e)))?;
        let acl = Acl::new();
        let stored = store.rules().await.map_err(|e| store_failed(&e))?;
        let rules = admin::compiled(&config.acl, stored);
        let bans = Bans::new(Arc::clone(&store) as _, clock.clone(), events.clone());
        bans.set_exempt(admin::exempt(config, &rules));
        acl.replace(rules);
        let accounts = Accounts::new(
            Arc::clone(&store) as _,
            bans.clone(),
            pool.clone(),
            clock.clone(),
            events.clone(),
        );
        Ok(Self {
            secrets: Secrets::new(Arc::clone(&store) as _, data::seal_key(&data)?),
            budget: Budget::new(config.memory.budget),
            limits: Limits::new(clock.clone()),
            metrics: Metrics::new(),
            loaded,
            data,
            start,
            clock,
            events,
            store,
            node,
            pool,
            tls,
            health: Health::new(),
            acl,
            bans,
            accounts,
        })
    }

    fn config(&self) -> &Config {
        &self.loaded.config
    }

    async fn ensure_admin(&self) -> Outcome<FirstPassword> {
        first_start::ensure_admin(&self.accounts, &self.data).await
    }

    /// Instances know the relay by its name: with another one they would all be lost without a word. Writes nothing; gives
    /// the name that is to be kept, if it is new here.
    async fn check_host(&self) -> Outcome<Option<&Domain>> {
        let server = &self.config().server;
        let Some(host) = &server.host else {
            return Ok(None);
        };
        let known = self.store.fact(HOST).await.map_err(|e| store_failed(&e))?;
        if known.as_deref() == Some(host.as_str()) {
            return Ok(None);
        }
        let subscribers = self
            .store
            .subscriptions()
            .await
            .map_err(|e| store_failed(&e))?
            .len();
        if let Some(known) = known
            && subscribers > 0
            && !server.danger_change_host
        {
            return Err(Fail::new(
                exit::CONFIG,
                format!(
                    "server.host is {host}, but {subscribers} instances have subscribed to {known} and would not find this \
                     relay again. Write host = \"{known}\", or accept their loss with danger_change_host = true"
                ),
            ));
        }
        Ok(Some(host))
    }

    async fn keep_host(&self, host: &Domain) -> Outcome {
        let kept = self.store.put_fact(HOST, host.as_str()).await;
        kept.map_err(|e| store_failed(&e))
    }

    /// The public web ports, if anybody needs them.
    fn front_door(&self) -> Outcome<Option<FrontDoor>> {
        let config = self.config();
        let is_needed = config.has(EngineKind::Fediverse) || config.has(EngineKind::Tunnel);
        if !is_needed && !config.tls.acme.enabled {
            return Ok(None);
        }
        let deps = FrontDeps {
            tls: self.tls.clone(),
            bans: self.bans.clone(),
            metrics: self.metrics.core("front"),
            shared: Arc::new(Shared {
                host: config.server.host.clone(),
                public_url: None,
                trusted_proxies: config.server.trusted_proxies.clone(),
            }),
            sockets: self.start.sockets.clone(),
        };
        FrontDoor::build(config.front.clone(), deps)
            .map(Some)
            .map_err(|e| self.not_built(&e))
    }

    /// A part that could not be built, with the exit code that tells why.
    fn not_built(&self, error: &BuildError) -> Fail {
        let code = match error {
            BuildError::Bind { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                exit::NO_PERMISSION
            }
            BuildError::Bind { .. } => exit::UNAVAILABLE,
            BuildError::Config { .. } => exit::USAGE,
            BuildError::Other { .. } => exit::SOFTWARE,
        };
        let mut message = chain(error);
        if code == exit::NO_PERMISSION {
            message.push_str(
                ". Ports below 1024 need a privilege: give it with `setcap cap_net_bind_service=+ep`, or start by the systemd \
                 unit",
            );
        }
        if let BuildError::Bind { key, addr, source } = error {
            message.push_str(&cure(key, *addr, source, self.start.goes_on));
        }
        Fail::new(code, message)
    }

    fn shared(&self, front: Option<&FrontDoor>) -> Arc<Shared> {
        let server = &self.config().server;
        let public_url = match &server.danger_public_url {
            Some(text) => {
                let bound = front.and_then(|front| front.addrs().plain.first().copied());
                Some(match (text.strip_suffix(":0"), bound) {
                    (Some(before), Some(bound)) => format!("{before}:{}", bound.port()),
                    _ => text.trim_end_matches('/').to_owned(),
                })
            }
            None => server.host.as_ref().map(|host| format!("https://{host}")),
        };
        Arc::new(Shared {
            host: server.host.clone(),
            public_url,
            trusted_proxies: server.trusted_proxies.clone(),
        })
    }

    fn admin_door(&self) -> Outcome<Acceptor> {
        let admin = &self.config().admin;
        let key = "admin.listen";
        Acceptor::bind_as(&self.start.sockets, key, admin.listen, admin.max_connections).map_err(|source| {
            self.not_built(&BuildError::Bind {
                key,
                addr: admin.listen,
                source,
            })
        })
    }

    /// The control socket, the one that another process gave or a new one.
    fn control_socket(&self) -> Outcome<(tokio::net::UnixListener, Option<Noted>)> {
        let path = self.data.socket();
        let purpose = Purpose {
            name: "control".to_owned(),
            wire: Wire::Unix,
            asked: path.display().to_string(),
        };
        let socket = match self.start.sockets.claim(&purpose) {
            Some(fd) => {
                let listener = std::os::unix::net::UnixListener::from(fd);
                listener
                    .set_nonblocking(true)
                    .and_then(|()| tokio::net::UnixListener::from_std(listener))
            }
            None => admin::bind_socket(&path),
        };
        let socket = socket.map_err(|e| {
            Fail::new(
                exit::CANT_CREATE,
                format!("the control socket {} cannot be made: {e}", path.display()),
            )
        })?;
        let noted = self.start.sockets.note(purpose, &socket);
        Ok((socket, noted))
    }

    /// Every bound listener by its name.
    fn listeners(
        &self,
        front: Option<&FrontDoor>,
        engines: &engines::Built,
        admin: &Acceptor,
    ) -> BTreeMap<String, SocketAddr> {
        let mut all = BTreeMap::new();
        if let Some(front) = front {
            let addrs = front.addrs();
            name_all(&mut all, "front.http", &addrs.plain);
            name_all(&mut all, "front.https", &addrs.tls);
        }
        engines.name_listeners(&mut all);
        name_all(&mut all, "admin", &[admin.local_addr()]);
        all
    }

    fn admin(
        &self,
        log: LogHandle,
        front: &Option<FrontDoor>,
        engines: &engines::Built,
        live: &Arc<ArcSwap<Live>>,
        listeners: &BTreeMap<String, SocketAddr>,
        shutdown: &Shutdown,
    ) -> Admin {
        Admin {
            store: Arc::clone(&self.store),
            store_kind: if self.config().store_url().starts_with("sqlite") {
                "sqlite"
            } else {
                "postgresql"
            },
            accounts: self.accounts.clone(),
            acl: self.acl.clone(),
            bans: self.bans.clone(),
            budget: self.budget.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            secrets: self.secrets.clone(),
            tls: self.tls.clone(),
            front: front.clone(),
            health: self.health.clone(),
            shutdown: shutdown.clone(),
            data: self.data.clone(),
            started_at: self.clock.wall(),
            listeners: listeners.clone(),
            live: Arc::clone(live),
            reloader: Reloader {
                log,
                budget: self.budget.clone(),
                tls: self.tls.clone(),
                front: front.clone(),
                events: self.events.clone(),
                turn: tokio::sync::Mutex::new(()),
            },
            engines: engines.handles(),
            orders: tokio::sync::mpsc::channel(1).0,
        }
    }
}

/// Names the first listener `name`, further ones `name.2`, `name.3`.
fn name_all(all: &mut BTreeMap<String, SocketAddr>, name: &str, addrs: &[SocketAddr]) {
    for (place, addr) in addrs.iter().enumerate() {
        let name = match place {
            0 => name.to_owned(),
            n => format!("{name}.{}", n + 1),
        };
        all.insert(name, *addr);
    }
}

fn store_failed(error: &tasuki_core::store::StoreError) -> Fail {
    Fail::new(exit::UNAVAILABLE, format!("the store: {}", chain(error)))
}

/// What helps against an address that cannot be had. `in_upgrade`: another gateway has its own listeners still.
fn cure(key: &str, addr: SocketAddr, source: &std::io::Error, in_upgrade: bool) -> String {
    match source.kind() {
        std::io::ErrorKind::AddrInUse if in_upgrade => format!(
            ". If the gateway has a listener there that overlaps (0.0.0.0 with one address of the machine, [::] with or without \
             IPv4), only a stop and a start change it, and no upgrade: `systemctl restart tasuki`. Otherwise another program \
             listens there (`ss -lntup 'sport = :{}'` names it): stop it, or choose another address or port in {key}",
            addr.port()
        ),
        std::io::ErrorKind::AddrInUse => format!(
            ". Another program listens there (`ss -lntup 'sport = :{}'` names it): stop it, or choose another address or port in {key}",
            addr.port()
        ),
        std::io::ErrorKind::AddrNotAvailable => format!(
            ". This machine does not have the address {}: `ip address` lists those that it has; correct {key}",
            addr.ip()
        ),
        _ => String::new(),
    }
}
