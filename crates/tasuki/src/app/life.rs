//! The life of a gateway from the first listener to the end: a stop, or another process that goes on.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tasuki_core::handover::Item;
use tasuki_core::metrics::House;
use tasuki_core::shutdown::{Drained, Shutdown};
use tasuki_core::sockets::{Bound, Purpose};
use tasuki_core::{EngineKind, Snapshot};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::engines::{self, Running};
use super::predecessor::Predecessor;
use super::start::{self, Start};
use super::successor::{Order, Successor, Upgraded};
use super::work::{self, Signals, Turn, Work};
use super::{Core, store_failed};
use crate::admin::{self, Admin};
use crate::backup;
use crate::config::Loaded;
use crate::data::AddressFile;
use crate::exit::{Fail, Outcome};
use crate::first_start;
use crate::log::LogHandle;
use crate::notify;
use crate::reload::Live;

/// Requests at the web ports have so long to finish before an upgrade: those that take longer last as long as something
/// moves, and cannot be waited for.
const WEB_DRAIN: Duration = Duration::from_secs(3);
/// How long the last requests of the admin API may take.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// How a life ended.
pub(super) enum Ended {
    /// The process can end.
    Stopped,
    /// An upgrade failed: the gateway goes on in this process, with what it had given.
    TakenBack(Box<TakenBack>),
}

pub(super) struct TakenBack {
    pub(super) loaded: Loaded,
    pub(super) start: Start,
    pub(super) undone: Undone,
}

/// An upgrade that failed, to be told when the gateway serves again.
pub(super) struct Undone {
    order: Order,
    why: Fail,
}

/// What runs.
struct Serving {
    admin: Arc<Admin>,
    doors: AdminDoors,
    work: Work,
    front: Option<JoinHandle<Drained>>,
    engines: Vec<Running>,
    /// None where it could not be written.
    addresses: Option<AddressFile>,
    shutdown: Shutdown,
    /// Of everything but the tunnel, whose visitors stay while the rest finishes.
    others: Shutdown,
}

/// Where the admin API is served.
struct AdminDoors {
    tasks: [JoinHandle<()>; 2],
    shutdown: Shutdown,
}

impl AdminDoors {
    /// Lets the last requests end. One that takes longer is cut: a backup streams as long as somebody reads it.
    async fn close(self) {
        self.shutdown.begin();
        let last = async {
            futures_util::future::join_all(self.tasks).await;
            self.shutdown.drained().await;
        };
        let _ = tokio::time::timeout(LAST_REQUESTS, last).await;
    }
}

impl Core {
    /// The whole life of the gateway. `predecessor` is the process that still serves; `undone` is an upgrade that failed.
    pub(super) async fn serve(
        self,
        log: LogHandle,
        signals: &mut Signals,
        predecessor: Option<&Predecessor>,
        undone: Option<Undone>,
    ) -> Outcome<Ended> {
        let (orders, mut ordered) = mpsc::channel(1);
        let serving = self.begin(log, predecessor, orders).await?;
        if let Some(undone) = undone {
            undone.tell(&self).await;
        }
        let upgrade = loop {
            let order = match signals.next(&serving.admin, &mut ordered).await {
                Turn::End => break None,
                Turn::Upgrade(order) => order,
            };
            let started = tokio::select! {
                started = self.prepare(&order) => started,
                () = signals.end() => break None,
            };
            match started {
                Ok(successor) => break Some((order, successor)),
                Err(fail) => {
                    tracing::error!("the upgrade failed: {fail}");
                    order.answer(Err(fail));
                }
            }
        };
        match upgrade {
            None => {
                self.stop(serving, signals).await;
                Ok(Ended::Stopped)
            }
            Some((order, successor)) => self.hand_over(serving, order, successor, signals).await,
        }
    }

    /// Builds everything, and starts it.
    async fn begin(
        &self,
        log: LogHandle,
        predecessor: Option<&Predecessor>,
        orders: mpsc::Sender<Order>,
    ) -> Outcome<Serving> {
        let new_host = self.check_host().await?;
        backup::write::clear_scratch(&self.data);
        if let Some(taken_at) = backup::restore::restored_of(&self.data)? {
            backup::restore::hold(self.store.as_ref(), &self.data, &taken_at, self.clock.wall())
                .await
                .map_err(|e| store_failed(&e))?;
        }
        let first = self.ensure_admin().await?;
        let shutdown = Shutdown::new(self.config().server.grace);
        let others = shutdown.child();
        let front = self.front_door()?;
        let shared = self.shared(front.as_ref());
        if let Some(front) = &front {
            // Only now is it known under which URL the door is reached.
            front.apply(&Snapshot {
                shared: Arc::clone(&shared),
                engine: self.config().front.clone(),
            });
        }
        let engines = engines::build(self, &shared, front.as_ref()).await?;
        // What an engine that does not run any more left: nobody would ever come for it.
        drop(self.start.take_items());
        self.metrics.register_house(House {
            data_dir: self.data.path().to_owned(),
            store: Arc::clone(&self.store) as _,
            budget: self.budget.clone(),
            tls: self.tls.clone(),
            health: self.health.clone(),
            clock: self.clock.clone(),
            runtimes: engines.runtimes(),
        });
        let admin_door = self.admin_door()?;
        let (socket, noted) = self.control_socket()?;
        let listeners = self.listeners(front.as_ref(), &engines, &admin_door);
        let live = Arc::new(ArcSwap::from_pointee(Live::new(
            self.loaded.clone(),
            Arc::clone(&shared),
        )));
        let admin = self.admin(log, &front, &engines, &live, &listeners, &shutdown);
        let admin = Arc::new(Admin { orders, ..admin });
        let work = work::start(self, &admin, &shutdown).await?;

        // Where another process stands ready to serve, all that may fail does so before it has given everything up.
        let early = match predecessor {
            Some(predecessor) => {
                let addresses = AddressFile::write(&self.data, &listeners)?;
                // Nothing has been accepted, sent or moved here so far.
                predecessor.commit().await?;
                Some(addresses)
            }
            None => None,
        };
        if let Some(host) = new_host {
            match (self.keep_host(host).await, predecessor) {
                // Too late to give up: the next start asks the same again.
                (Err(fail), Some(_)) => tracing::error!("the name {host} could not be written down: {fail}"),
                (kept, _) => kept?,
            }
        }
        let router = admin::router(Arc::clone(&admin));
        let admin_shutdown = shutdown.child();
        let serving_socket = admin::serve_socket(socket, router.clone(), admin_shutdown.clone());
        let tasks = [
            tokio::spawn(async move {
                serving_socket.await;
                drop(noted);
            }),
            tokio::spawn(admin::serve_tcp(admin_door, router, admin_shutdown.clone())),
        ];
        let front = front.map(|front| tokio::spawn(front.run(others.child())));
        let engines = engines.run(&shutdown, &others);

        if !self.start.goes_on {
            let url = shared.public_url.as_deref();
            let banner = first_start::banner(self.config(), &listeners, url, &self.data);
            for line in first_start::password_lines(&first).into_iter().chain(banner) {
                crate::cli::output::line(line);
            }
        }
        for warning in admin.warnings().await {
            tracing::warn!("{warning}");
        }
        // Last of all: whoever sees this file finds everything listening, and everything said.
        let addresses = match early {
            Some(addresses) => Some(addresses),
            None => match AddressFile::write(&self.data, &listeners) {
                Ok(addresses) => Some(addresses),
                // An upgrade failed, perhaps because nothing can be written here: no reason to end.
                Err(fail) if self.start.goes_on => {
                    tracing::error!("the addresses cannot be written down: {fail}");
                    None
                }
                Err(fail) => return Err(fail),
            },
        };
        // What nobody asked for is closed: the configuration may be another one.
        let has_agents = self.config().has(EngineKind::Tunnel);
        let may_be_claimed = |purpose: &Purpose| has_agents && tasuki_tunnel::is_agents_port(purpose);
        self.start.sockets.close_unclaimed(may_be_claimed);
        match predecessor {
            Some(predecessor) => {
                predecessor.serving();
                tracing::info!(pid = std::process::id(), "this process has taken over");
            }
            None => notify::ready(),
        }
        Ok(Serving {
            admin,
            doors: AdminDoors {
                tasks,
                shutdown: admin_shutdown,
            },
            work,
            front,
            engines,
            addresses,
            shutdown,
            others,
        })
    }

    /// Finishes what is under way, and everything.
    async fn stop(self, serving: Serving, signals: &mut Signals) {
        let shutdown = serving.shutdown;
        tracing::info!(grace = ?shutdown.grace(), "stopping: finishing what is under way");
        notify::stopping();
        shutdown.begin();
        drop(serving.addresses);
        let drain = drain(serving.engines, serving.front, Duration::MAX);
        tokio::select! {
            () = drain => {}
            () = signals.end() => tracing::warn!("stopped at once by a second signal"),
        }
        serving.doors.close().await;
        serving.work.end().await;
        self.store.close().await;
        let _ = std::fs::remove_file(self.data.socket());
        tracing::info!("stopped");
        drop(self.start);
    }

    /// Starts the process that is to go on. Nothing changes here meanwhile.
    async fn prepare(&self, order: &Order) -> Outcome<Successor> {
        let binary = order.binary.display().to_string();
        tracing::info!(binary, "an upgrade begins");
        let successor = Successor::start(&order.binary).await?;
        let detail = format!(
            "version {} in process {}, after {} in process {}",
            successor.version,
            successor.pid(),
            env!("CARGO_PKG_VERSION"),
            std::process::id()
        );
        let entry = order.caller.audit(self.clock.wall(), "upgrade", binary, detail);
        self.store.note(entry).await.map_err(|e| store_failed(&e))?;
        Ok(successor)
    }

    /// Hands everything over, or takes it back.
    async fn hand_over(
        self,
        serving: Serving,
        order: Order,
        successor: Successor,
        signals: &mut Signals,
    ) -> Outcome<Ended> {
        tracing::info!(pid = successor.pid(), drain = ?order.drain, "finishing what is under way before another process goes on");
        // From here on nobody is refused, whoever accepts them: connections wait in the kernel.
        let sockets = self.start.sockets.hand_over();
        serving.others.begin_within(order.drain);
        serving.doors.shutdown.begin();
        let (tunnel, engines): (Vec<_>, Vec<_>) = serving.engines.into_iter().partition(Running::is_tunnel);
        drain(engines, serving.front, order.drain.min(WEB_DRAIN)).await;
        let rests_since = Instant::now();
        let given = match &serving.admin.engines.tunnel {
            Some(tunnel) => tunnel.hand_over().await,
            None => Vec::new(),
        };
        drop(tunnel);
        serving.shutdown.begin();
        serving.work.end().await;
        self.store.close().await;

        let (listeners, connections) = (sockets.len(), given.len().saturating_sub(1));
        let done = match self.all_items(sockets, given) {
            Ok(items) => successor.give(items, start::is_left_after_the_commit).await,
            Err(fail) => Err((Vec::new(), fail)),
        };
        // The files are the next one's, whoever that is.
        if let Some(addresses) = serving.addresses {
            addresses.leave();
        }
        let (items, why) = match done {
            Ok(mut successor) => {
                let pid = successor.pid();
                notify::main_process(pid);
                let doubt = successor.doubt.take();
                order.answer(doubt.map_or(Ok(()), Err).map(|()| Upgraded {
                    from_pid: std::process::id(),
                    from_version: env!("CARGO_PKG_VERSION"),
                    pid,
                    version: successor.version.clone(),
                    listeners,
                    connections,
                    rested_ms: u64::try_from(rests_since.elapsed().as_millis()).unwrap_or(u64::MAX),
                }));
                serving.doors.close().await;
                if signals.end().now_or_never().is_some() {
                    // Meant for the gateway, whoever that is by now.
                    successor.stop();
                }
                tracing::info!(pid, "another process goes on; this one ends");
                return Ok(Ended::Stopped);
            }
            Err(failed) => failed,
        };
        tracing::error!("the upgrade failed, the gateway goes on in this process: {why}");
        let loaded = serving.admin.live.load().loaded.clone();
        let start = Start::from_items(items, &self.data)?;
        let undone = Undone { order, why };
        Ok(Ended::TakenBack(Box::new(TakenBack {
            loaded,
            start,
            undone,
        })))
    }

    fn all_items(&self, sockets: Vec<Bound>, engines: Vec<Item>) -> Outcome<Vec<Item>> {
        start::to_items(&self.start.lock, sockets, engines)
    }
}

impl Undone {
    /// The gateway serves again: the command is answered, and the audit has a line.
    async fn tell(self, core: &Core) {
        let Self { order, why } = self;
        let object = order.binary.display().to_string();
        let entry = order
            .caller
            .audit(core.clock.wall(), "upgrade.undone", object, why.message.as_str());
        if let Err(error) = core.store.note(entry).await {
            tracing::warn!(%error, "the audit has no line about the upgrade that failed");
        }
        order.answer(Err(why));
    }
}

/// Waits until all have drained in their grace. The web ports are cut after `web_limit`.
async fn drain(engines: Vec<Running>, front: Option<JoinHandle<Drained>>, web_limit: Duration) {
    let front = async {
        if let Some(mut front) = front
            && tokio::time::timeout(web_limit, &mut front).await.is_err()
        {
            front.abort();
        }
    };
    let engines = futures_util::future::join_all(engines.into_iter().map(Running::drained));
    tokio::join!(front, engines);
}
