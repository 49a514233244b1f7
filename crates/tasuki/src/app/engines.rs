//! The chosen engines, each on a runtime of its own, so that load on one never delays another.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tasuki_core::front::{FrontDoor, Route};
use tasuki_core::shutdown::{Drained, Shutdown};
use tasuki_core::{BuildError, Deps, EngineKind, Shared};
use tokio::runtime::{Builder, Handle, Runtime};

use super::{Core, name_all};
use crate::admin::Engines;
use crate::exit::{Fail, Outcome};

/// Engines that are bound and do not run yet.
pub(super) struct Built {
    mail: Option<(tasuki_smtp::Engine, OwnRuntime)>,
    fediverse: Option<(tasuki_activitypub::Engine, OwnRuntime)>,
    tunnel: Option<(tasuki_tunnel::Engine, OwnRuntime)>,
}

/// A runtime that can be dropped anywhere.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn new(engine: EngineKind) -> Outcome<Self> {
        Builder::new_multi_thread()
            .thread_name(engine.name())
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
            .map_err(|e| Fail::io(format!("cannot start the runtime of the {engine} engine"), &e))
    }

    /// Runs `task` on this runtime and waits for it here.
    async fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Option<T> {
        self.0.as_ref()?.spawn(task).await.ok()
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Builds the chosen engines: reads, binds, starts nothing.
pub(super) async fn build(core: &Core, shared: &Arc<Shared>, front: Option<&FrontDoor>) -> Outcome<Built> {
    let config = core.config();
    let mut built = Built {
        mail: None,
        fediverse: None,
        tunnel: None,
    };
    if config.has(EngineKind::Mail) {
        let (config, deps) = (
            config.mail.clone(),
            deps(core, shared, EngineKind::Mail, Arc::clone(&core.store) as _),
        );
        built.mail =
            Some(on_own_runtime(core, EngineKind::Mail, tasuki_smtp::Engine::build(config, deps)).await?);
    }
    if config.has(EngineKind::Fediverse) {
        let (config, deps) = (
            config.fediverse.clone(),
            deps(core, shared, EngineKind::Fediverse, Arc::clone(&core.store) as _),
        );
        let (engine, runtime) = on_own_runtime(
            core,
            EngineKind::Fediverse,
            tasuki_activitypub::Engine::build(config, deps),
        )
        .await?;
        if let Some(front) = front {
            front.routes().set_own(Route {
                service: engine.web(),
                engine: EngineKind::Fediverse,
            });
        }
        built.fediverse = Some((engine, runtime));
    }
    if config.has(EngineKind::Tunnel) {
        let (config, deps) = (
            config.tunnel.clone(),
            deps(core, shared, EngineKind::Tunnel, Arc::clone(&core.store) as _),
        );
        let building = tasuki_tunnel::Engine::build_from(config, deps, core.start.take_items());
        let (engine, runtime) = on_own_runtime(core, EngineKind::Tunnel, building).await?;
        if let Some(front) = front {
            engine.open_web(front);
            // Agents whose network lets no UDP out.
            front
                .routes()
                .set_raw_alpn(tasuki_proto::tunnel::ALPN, engine.tls_door());
        }
        built.tunnel = Some((engine, runtime));
    }
    Ok(built)
}

async fn on_own_runtime<E: Send + 'static>(
    core: &Core,
    engine: EngineKind,
    build: impl Future<Output = Result<E, BuildError>> + Send + 'static,
) -> Outcome<(E, OwnRuntime)> {
    let runtime = OwnRuntime::new(engine)?;
    match runtime.run(build).await {
        Some(Ok(built)) => Ok((built, runtime)),
        Some(Err(error)) => Err(core.not_built(&error)),
        None => Err(Fail::new(
            crate::exit::SOFTWARE,
            format!("the {engine} engine could not be built; the log says more"),
        )),
    }
}

fn deps<S: ?Sized>(core: &Core, shared: &Arc<Shared>, engine: EngineKind, store: Arc<S>) -> Deps<S> {
    Deps {
        store,
        node: core.node,
        accounts: core.accounts.clone(),
        acl: core.acl.clone(),
        limits: core.limits.clone(),
        bans: core.bans.clone(),
        budget: core.budget.clone(),
        pool: core.pool.clone(),
        clock: core.clock.clone(),
        events: core.events.for_engine(engine),
        metrics: core.metrics.engine(engine),
        secrets: core.secrets.clone(),
        tls: core.tls.clone(),
        health: core.health.clone(),
        shared: Arc::clone(shared),
        sockets: core.start.sockets.clone(),
    }
}

impl Built {
    /// What the admin API asks of the engines.
    pub(super) fn handles(&self) -> Engines {
        Engines {
            mail: self.mail.as_ref().map(|(engine, _)| engine.handle()),
            fediverse: self.fediverse.as_ref().map(|(engine, _)| engine.handle()),
            tunnel: self.tunnel.as_ref().map(|(engine, _)| engine.handle()),
        }
    }

    /// The core's runtime, which this is called on, and the engines' own, for their figures.
    pub(super) fn runtimes(&self) -> Vec<(&'static str, Handle)> {
        let mail = self.mail.as_ref().map(|(_, own)| (EngineKind::Mail, own));
        let fediverse = self
            .fediverse
            .as_ref()
            .map(|(_, own)| (EngineKind::Fediverse, own));
        let tunnel = self.tunnel.as_ref().map(|(_, own)| (EngineKind::Tunnel, own));
        let engines = [mail, fediverse, tunnel].into_iter().flatten();
        let engines =
            engines.filter_map(|(engine, own)| Some((engine.name(), own.0.as_ref()?.handle().clone())));
        std::iter::once(("core", Handle::current()))
            .chain(engines)
            .collect()
    }

    /// Adds the engines' listeners to the list.
    pub(super) fn name_listeners(&self, all: &mut BTreeMap<String, SocketAddr>) {
        if let Some((mail, _)) = &self.mail {
            let addrs = mail.addrs();
            name_all(all, "mail.relay", &addrs.relay);
            name_all(all, "mail.submission", &addrs.submission);
            name_all(all, "mail.submissions", &addrs.submissions);
            name_all(all, "mail.devices", &addrs.devices);
            name_all(all, "mail.devices_tls", &addrs.devices_tls);
        }
        if let Some((tunnel, _)) = &self.tunnel {
            let addrs = tunnel.addrs();
            name_all(all, "tunnel.quic", &[addrs.quic]);
            name_all(all, "tunnel.minecraft", addrs.minecraft.as_slice());
        }
    }

    /// Starts the engines. `others` is for all but the tunnel.
    pub(super) fn run(self, shutdown: &Shutdown, others: &Shutdown) -> Vec<Running> {
        let mut running = Vec::new();
        if let Some((engine, runtime)) = self.mail {
            running.extend(Running::start(EngineKind::Mail, runtime, others, |s| {
                engine.run(s)
            }));
        }
        if let Some((engine, runtime)) = self.fediverse {
            running.extend(Running::start(EngineKind::Fediverse, runtime, others, |s| {
                engine.run(s)
            }));
        }
        if let Some((engine, runtime)) = self.tunnel {
            running.extend(Running::start(EngineKind::Tunnel, runtime, shutdown, |s| {
                engine.run(s)
            }));
        }
        running
    }
}

/// A running engine.
pub(super) struct Running {
    engine: EngineKind,
    task: tokio::task::JoinHandle<Drained>,
    shutdown: Shutdown,
    _runtime: OwnRuntime,
}

impl Running {
    fn start<F>(
        engine: EngineKind,
        runtime: OwnRuntime,
        shutdown: &Shutdown,
        run: impl FnOnce(Shutdown) -> F,
    ) -> Option<Self>
    where
        F: Future<Output = Drained> + Send + 'static,
    {
        let task = runtime.0.as_ref()?.spawn(run(shutdown.child()));
        Some(Self {
            engine,
            task,
            shutdown: shutdown.clone(),
            _runtime: runtime,
        })
    }

    /// Its visitors go on in another process.
    pub(super) fn is_tunnel(&self) -> bool {
        self.engine == EngineKind::Tunnel
    }

    /// Waits until the engine has drained. It keeps its own grace; a little more is for one that does not.
    pub(super) async fn drained(self) {
        let engine = self.engine;
        let limit = self.shutdown.grace().saturating_add(Duration::from_secs(5));
        match tokio::time::timeout(limit, self.task).await {
            Ok(Ok(drained)) => tracing::info!(
                %engine,
                finished = drained.finished,
                handed_back = drained.handed_back,
                late = drained.late,
                "engine stopped"
            ),
            Ok(Err(error)) => tracing::error!(%engine, %error, "the engine ended by a fault"),
            Err(_) => tracing::error!(%engine, "the engine did not end in time and was cut"),
        }
    }
}
