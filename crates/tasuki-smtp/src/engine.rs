//! The engine's face: build, addrs, apply, run; and a handle for status and commands.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tasuki_core::{
    Applied, BuildError, Deps, Snapshot,
    accept::Acceptor,
    ids::MailIds,
    shutdown::{Drained, Shutdown},
    store::{MailStore, audit::Actor},
};
use tasuki_proto::{names::Domain, smtp::dkim::Algorithm};
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    announce,
    config::{MailConfig, Role, Settings, differences},
    context::{Context, PerAddress},
    daily::{self, Daily},
    dkim::{Dkim, DkimError, DkimKey},
    dns::{Hickory, Resolver},
    guard::Guard,
    lanes::{LaneStatus, Lanes},
    members::Members,
    metrics::Metrics,
    nat::Crowds,
    oauth::Tokens,
    orders::Pauses,
    port25::Port25,
    recipients::CallOuts,
    release::{self, Releases},
    schedule::{self, NextLook},
    session, settle,
    suppress::{self, Suppressions},
    tls_policy::Sts,
    tls_report, trail,
    trust::{BrokenTls, any_certificate},
};

/// How long clients may take to hear that their mail is not taken any more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The mail engine. See the crate for what it does.
pub struct Engine {
    context: Arc<Context>,
    config: Arc<Mutex<MailConfig>>,
    acceptors: Vec<(Role, Acceptor)>,
    reports: mpsc::Receiver<settle::Report>,
    addrs: Addrs,
}

/// Where the engine listens; port 0 resolved. Empty lists are closed listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addrs {
    /// Port 25 in production.
    pub relay: Vec<SocketAddr>,
    /// Port 587.
    pub submission: Vec<SocketAddr>,
    /// Port 465.
    pub submissions: Vec<SocketAddr>,
    /// For devices; empty while none is listed.
    pub devices: Vec<SocketAddr>,
    /// The same with TLS from the first octet.
    pub devices_tls: Vec<SocketAddr>,
}

/// For status and commands while the engine runs; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) context: Arc<Context>,
    config: Arc<Mutex<MailConfig>>,
}

/// The engine in figures.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// Open SMTP sessions.
    pub sessions: i64,
    /// Connections to next hops.
    pub connections_out: i64,
    /// Jobs in memory that wait for a worker.
    pub queued: usize,
    /// Lanes with something to do, or a failure.
    pub lanes: Vec<LaneStatus>,
}

impl Engine {
    /// Binds the listeners and prepares everything; starts nothing. The tasks run on the runtime that
    /// [`Engine::run`] is called on; listeners belong to the one that this is called on.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build(config: MailConfig, deps: Deps<dyn MailStore>) -> Result<Self, BuildError> {
        let resolver = Hickory::new(&config.dns).map_err(|source| BuildError::Other {
            what: "the resolver",
            source: Box::new(source),
        })?;
        Self::build_with_resolver(config, deps, Arc::new(resolver)).await
    }

    /// As [`Engine::build`], with another source of names.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build_with_resolver(
        config: MailConfig,
        deps: Deps<dyn MailStore>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, BuildError> {
        let settings = Settings::new(&config, &deps.shared)?;
        let mut addrs = Addrs::default();
        let mut acceptors = Vec::new();
        let relay = (config.relay.listen.as_slice(), config.relay.max_connections);
        let submission = (
            config.submission.listen.as_slice(),
            config.submission.max_connections,
        );
        let submissions = (
            config.submissions.listen.as_slice(),
            config.submissions.max_connections,
        );
        let devices = &config.devices;
        let doors = |listen: &'_ [SocketAddr]| {
            if devices.is_open() {
                listen.to_vec()
            } else {
                Vec::new()
            }
        };
        let (plain, implicit) = (doors(&devices.listen), doors(&devices.listen_tls));
        for (role, key, (listen, max), bound) in [
            (Role::Relay, "mail.relay.listen", relay, &mut addrs.relay),
            (
                Role::Submission,
                "mail.submission.listen",
                submission,
                &mut addrs.submission,
            ),
            (
                Role::Submissions,
                "mail.submissions.listen",
                submissions,
                &mut addrs.submissions,
            ),
            (
                Role::Devices,
                "mail.devices.listen",
                (plain.as_slice(), devices.max_connections),
                &mut addrs.devices,
            ),
            (
                Role::DevicesTls,
                "mail.devices.listen_tls",
                (implicit.as_slice(), devices.max_connections),
                &mut addrs.devices_tls,
            ),
        ] {
            let named: Vec<_> = listen.iter().map(|addr| (key, *addr)).collect();
            let all = Acceptor::bind_all(&deps.sockets, &named, max)
                .map_err(|(addr, source)| BuildError::Bind { key, addr, source })?;
            bound.extend(all.iter().map(Acceptor::local_addr));
            acceptors.extend(all.into_iter().map(|acceptor| (role, acceptor)));
        }
        let (reports, receiver) = mpsc::channel(settle::QUEUE);
        let own = acceptors
            .iter()
            .map(|(_, acceptor)| acceptor.local_addr())
            .collect();
        let context = Context {
            metrics: Metrics::new(&deps.metrics),
            ids: MailIds::new(deps.node.0, deps.clock.clone()),
            server_tls: deps.tls.server(&[]),
            asking_tls: deps.tls.server_that_asks(&[]),
            any_tls: any_certificate(),
            broken_tls: BrokenTls::default(),
            sts: Sts::default(),
            tls_sessions: tls_report::Sessions::default(),
            dkim: Dkim::new(deps.secrets.clone(), deps.pool.clone()),
            lanes: Lanes::new(settings.delivery.max_connections),
            pauses: Pauses::default(),
            suppressions: Suppressions::default(),
            members: Members::default(),
            port25: Port25::default(),
            releases: Releases::default(),
            tokens: Tokens::default(),
            settings: ArcSwap::from_pointee(settings),
            resolver,
            reports,
            wake: Notify::new(),
            next_look: NextLook::default(),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
            tracker: TaskTracker::new(),
            started: deps.clock.wall(),
            unsettled: AtomicUsize::new(0),
            all_settled: Notify::new(),
            finished_in_drain: AtomicU64::new(0),
            sessions: PerAddress::default(),
            daily: Daily::default(),
            guard: Guard::default(),
            crowds: Crowds::default(),
            call_outs: CallOuts::default(),
            own,
            deps,
        };
        Ok(Self {
            context: Arc::new(context),
            config: Arc::new(Mutex::new(config)),
            acceptors,
            reports: receiver,
            addrs,
        })
    }

    /// Where it listens.
    pub fn addrs(&self) -> Addrs {
        self.addrs.clone()
    }

    /// A handle that outlives [`Engine::run`]'s start.
    pub fn handle(&self) -> Handle {
        Handle {
            context: Arc::clone(&self.context),
            config: Arc::clone(&self.config),
        }
    }

    /// Takes a new configuration; see [`Handle::apply`].
    pub fn apply(&self, snapshot: &Snapshot<MailConfig>) -> Applied {
        self.handle().apply(snapshot)
    }

    /// Takes mail and delivers it until the shutdown; then finishes what is under way within the grace, and leaves the
    /// rest in the store.
    pub async fn run(self, shutdown: Shutdown) -> Drained {
        let handle = self.handle();
        let Self {
            context,
            acceptors,
            reports,
            ..
        } = self;
        if let Err(error) = context.refresh_pauses().await {
            tracing::warn!(%error, "which destinations are paused cannot be read yet");
        }
        let settler = tokio::spawn(settle::settler(Arc::clone(&context), reports));
        let scheduler = tokio::spawn(schedule::scheduler(Arc::clone(&context)));
        context.tracker.spawn(daily::keeper(Arc::clone(&context)));
        context.tracker.spawn(tls_report::keeper(Arc::clone(&context)));
        context.tracker.spawn(tls_report::reporter(Arc::clone(&context)));
        context.tracker.spawn(trail::keeper(Arc::clone(&context)));
        context.tracker.spawn(suppress::keeper(Arc::clone(&context)));
        context.tracker.spawn(announce::listener(handle.clone()));
        context.tracker.spawn(release::keeper(handle));
        for (role, acceptor) in acceptors {
            let task = accept(Arc::clone(&context), role, acceptor);
            context.tracker.spawn(task);
        }
        shutdown.begun().await;
        context.closing.cancel();
        context.tracker.close();
        let in_time = tokio::time::timeout(shutdown.grace(), context.tracker.wait())
            .await
            .is_ok();
        let late = if in_time { 0 } else { context.tracker.len() as u64 };
        if !in_time {
            context.cut.cancel();
            let _ = tokio::time::timeout(LAST_WORDS, context.tracker.wait()).await;
        }
        let _ = scheduler.await;
        daily::flush(&context).await;
        tls_report::flush(&context).await;
        // Outcomes that are on their way are settled; late tasks may still hold senders, so the settler is not awaited
        // by its channel's end.
        context.settled().await;
        schedule::release(&context).await;
        settler.abort();
        Drained {
            finished: context.finished_in_drain.load(Ordering::Relaxed),
            handed_back: context.lanes.queued() as u64,
            late,
        }
    }
}

impl Handle {
    /// Takes a new configuration: at once for everything but listeners and the resolver. What is wrong changes nothing
    /// (and was told by [`MailConfig::validate`] before).
    pub fn apply(&self, snapshot: &Snapshot<MailConfig>) -> Applied {
        let settings = match Settings::new(&snapshot.engine, &snapshot.shared) {
            Ok(settings) => settings,
            Err(error) => {
                tracing::error!(%error, "the mail configuration is not applied");
                return Applied::default();
            }
        };
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let (changed, needs_restart) = differences(&config, &snapshot.engine);
        let released = release::changed_ways(&config, &snapshot.engine);
        *config = snapshot.engine.clone();
        self.context.settings.store(Arc::new(settings));
        self.context.releases.want(released);
        Applied {
            changed,
            needs_restart,
        }
    }

    /// A secret in the store changed: mail that waits because of the old one is tried at once.
    pub fn secrets_changed(&self) {
        self.context.releases.look();
    }

    /// Looks at the queue now: what was made due by a command is tried at once, and resting lanes too; TLS reports that are
    /// due are sent.
    pub fn retry_now(&self) {
        self.context.lanes.unblock();
        self.context.members.unblock();
        self.context.wake.notify_one();
        self.context.tls_sessions.look.notify_one();
    }

    /// Makes the first DKIM keys of a domain; its mail is signed with them from now on.
    ///
    /// # Errors
    /// See [`DkimError`].
    pub async fn dkim_add(
        &self,
        domain: Domain,
        algorithms: &[Algorithm],
        selector: Option<&str>,
        actor: &Actor,
    ) -> Result<Vec<DkimKey>, DkimError> {
        let now = self.context.deps.clock.wall();
        let made = self
            .context
            .dkim
            .add(domain, algorithms, selector, now, actor)
            .await?;
        self.retry_now();
        Ok(made)
    }

    /// Makes the next keys of a domain, or changes over to them; see the command's help.
    ///
    /// # Errors
    /// See [`DkimError`].
    pub async fn dkim_rotate(
        &self,
        domain: Domain,
        force: bool,
        actor: &Actor,
    ) -> Result<Vec<DkimKey>, DkimError> {
        let now = self.context.deps.clock.wall();
        let published = async |key: DkimKey| self.is_published(&key).await == Some(true);
        self.context
            .dkim
            .rotate(domain, force, now, actor, published)
            .await
    }

    /// Takes the DKIM keys of a domain away.
    ///
    /// # Errors
    /// See [`DkimError`].
    pub async fn dkim_remove(&self, domain: &Domain, actor: &Actor) -> Result<(), DkimError> {
        let now = self.context.deps.clock.wall();
        self.context.dkim.remove(domain, now, actor).await
    }

    /// All DKIM keys, and whether the DNS shows each of them; `None` when it does not answer.
    ///
    /// # Errors
    /// See [`DkimError`].
    pub async fn dkim_list(&self) -> Result<Vec<(DkimKey, Option<bool>)>, DkimError> {
        let mut all = Vec::new();
        for key in self.context.dkim.list().await? {
            let published = self.is_published(&key).await;
            all.push((key, published));
        }
        Ok(all)
    }

    async fn is_published(&self, key: &DkimKey) -> Option<bool> {
        // White space in p= is allowed (RFC 6376 3.6.1), and other tags may stand beside it.
        let value = |text: &str| {
            let tags = text.split(';');
            let tags = tags.filter_map(|tag| tag.split_once('='));
            let mut values = tags.filter(|(name, _)| name.trim() == "p");
            values
                .next()
                .map(|(_, value)| value.split_whitespace().collect::<String>())
        };
        let there = self.context.resolver.txt(&key.name).await.ok()?;
        let ours = value(&key.record);
        Some(ours.is_some() && there.iter().any(|text| value(text) == ours))
    }

    /// The engine in figures.
    pub fn status(&self) -> Status {
        Status {
            sessions: self.context.metrics.sessions_open.get(),
            connections_out: self.context.metrics.connections_open.get(),
            queued: self.context.lanes.queued(),
            lanes: self.with_rules(self.context.lanes.status(self.context.deps.clock.now())),
        }
    }
}

async fn accept(context: Arc<Context>, role: Role, acceptor: Acceptor) {
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.accept() => accepted,
            () = context.closing.cancelled() => return,
        };
        let task = session::serve(Arc::clone(&context), role, accepted);
        context.tracker.spawn(task);
    }
}
