//! The engine as the composition root sees it: build, hand out its web side, run until the shutdown.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::sync::Cache;
use tasuki_core::clock::Timestamp;
use tasuki_core::engine::EngineKind;
use tasuki_core::front::WebService;
use tasuki_core::shutdown::{Drained, Shutdown};
use tasuki_core::store::FediStore;
use tasuki_core::{Applied, BuildError, Deps, Snapshot};
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::ids::Authority;
use tasuki_proto::activitypub::topic::Topic;
use tokio::sync::{Notify, Semaphore};
use url::Url;

use crate::config::FediConfig;
use crate::fetch::Fetcher;
use crate::filters::Sampler;
use crate::guard::Guard;
use crate::handle::Handle;
use crate::keys::Keys;
use crate::lanes::{Common, Fanout, Lanes, Log, Sender};
use crate::life;
use crate::metrics::Metrics;
use crate::moderation::Moderation;
use crate::outage::Outage;
use crate::policy::Rules;
use crate::rotate;
use crate::routes::Web;
use crate::scout::{self, Suspects};
use crate::selfservice::{Prover, Txt};
use crate::signer::Signer;
use crate::subscribers::Subscribers;
use crate::trail::Trail;

/// How long a request's signature is remembered against repetition: the window of signed times, both ways.
const REPLAY_WINDOW: Duration = Duration::from_secs(3600 + 300);
/// Signatures remembered at most.
const MAX_REPLAYS: u64 = 200_000;
/// Topics that ended lately.
const MAX_ENDED: u64 = 1_000;
/// News known in memory; the store knows all within the retention time.
const MAX_RECENT_NEWS: u64 = 50_000;
/// How often the store is asked whether another gateway changed subscriptions, if there may be one; also the pause after
/// the store did not answer.
const REFRESH: Duration = Duration::from_secs(2);

/// Keys of the configuration that are read once, at the start.
const NEEDS_RESTART: [&str; 7] = [
    "dns_server",
    "host_concurrency",
    "backlog_per_second",
    "max_deliveries",
    "connect_timeout",
    "request_timeout",
    "retry",
];

/// The fediverse engine has no listener of its own: the front door has the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addrs;

/// What all parts of the engine share.
pub(crate) struct Inner {
    pub(crate) deps: Deps<dyn FediStore>,
    pub(crate) store: Arc<dyn FediStore>,
    pub(crate) config: Arc<ArcSwap<FediConfig>>,
    /// The relay's names; `None` without `server.host`.
    pub(crate) relay: Option<Relay>,
    pub(crate) signer: Signer,
    pub(crate) guard: Guard,
    pub(crate) keys: Arc<Keys>,
    pub(crate) subscribers: Arc<Subscribers>,
    pub(crate) metrics: Metrics,
    pub(crate) trail: Arc<Trail>,
    pub(crate) log: Arc<Log>,
    pub(crate) outage: Arc<Outage>,
    pub(crate) recent_news: Cache<String, ()>,
    pub(crate) replays: Cache<[u8; 32], ()>,
    /// Topics from which somebody was removed: their actors are served until the Reject has arrived.
    pub(crate) ended: Cache<Topic, ()>,
    pub(crate) lanes: Arc<Lanes>,
    /// The shares of hosts that take so many posts a minute, by host number.
    pub(crate) samplers: Mutex<HashMap<u32, Sampler>>,
    /// How instances prove themselves.
    pub(crate) prover: Prover,
    pub(crate) txt: Txt,
    /// Hosts to be looked at.
    pub(crate) suspects: Arc<Suspects>,
    /// When this engine was built: its counters begin there.
    pub(crate) since: Timestamp,
}

/// The fediverse engine.
pub struct Engine {
    inner: Arc<Inner>,
    fanout: Fanout,
}

impl Engine {
    /// Takes or makes the relay's key, reads the subscriptions, starts nothing.
    ///
    /// # Errors
    /// [`BuildError`] names the key of the configuration, or what was missing.
    pub async fn build(config: FediConfig, deps: Deps<dyn FediStore>) -> Result<Self, BuildError> {
        config.validate()?;
        let other = |what: &'static str| move |source| BuildError::Other { what, source };
        let relay = relay_of(
            deps.shared.public_url.as_deref(),
            config.danger_allow_private_addresses,
        )?;
        let signer = Signer::load(&deps.secrets, deps.pool.clone(), deps.clock.clone())
            .await
            .map_err(other("the fediverse relay's key"))?;
        let key_id: Arc<str> = relay.as_ref().map(Relay::key_id).unwrap_or_default().into();
        let guard = Guard::new(config.danger_allow_private_addresses);
        let tls = deps.tls.client();
        let metrics = Metrics::register(&deps.metrics);
        let fetcher = Fetcher::new(
            guard.clone(),
            signer.clone(),
            key_id,
            &tls,
            config.connect_timeout,
            config.request_timeout,
        )
        .map_err(other("the client for fetches"))?;
        let sender = Sender::new(&config, guard.clone(), signer.clone(), &tls, deps.clock.clone());
        let store = Arc::clone(&deps.store);
        let subscribers = Arc::new(Subscribers::new(
            Arc::clone(&store),
            relay.clone(),
            deps.acl.clone(),
        ));
        subscribers
            .refresh()
            .await
            .map_err(|e| other("the subscriptions in the store")(e.into()))?;
        let suspects = Arc::new(Suspects::default());
        let log = Arc::new(Log::new(Arc::clone(&store)));
        let trail = Arc::new(Trail::default());
        let outage = Arc::new(Outage::default());
        let (max_deliveries, backlog_per_second) = (config.max_deliveries, config.backlog_per_second);
        let config = Arc::new(ArcSwap::from_pointee(config));
        let keys = Arc::new(Keys::new(
            Arc::clone(&store),
            fetcher,
            deps.limits.clone(),
            deps.clock.clone(),
            metrics.keys_fetched.clone(),
        ));
        let common = Common {
            keys: Arc::clone(&keys),
            store: Arc::clone(&store),
            config: Arc::clone(&config),
            relay: relay.clone(),
            suspects: Arc::clone(&suspects),
            subscribers: Arc::clone(&subscribers),
            log: Arc::clone(&log),
            trail: Arc::clone(&trail),
            outage: Arc::clone(&outage),
            sender,
            metrics: metrics.clone(),
            events: deps.events.for_engine(EngineKind::Fediverse),
            clock: deps.clock.clone(),
            backlog_per_second,
            places: Arc::new(Semaphore::new(max_deliveries)),
            progressed: Notify::new(),
        };
        let lanes = Arc::new(Lanes::default());
        let fanout = Fanout {
            store: Arc::clone(&store),
            node: deps.node.0,
            config: Arc::clone(&config),
            common: Arc::new(common),
            lanes: Arc::clone(&lanes),
        };
        let retention = config.load().retention;
        let prover = Prover::load(&deps.secrets)
            .await
            .map_err(other("the key for proofs"))?;
        let inner = Inner {
            samplers: Mutex::default(),
            prover,
            txt: Txt::new(&config.load()),
            keys,
            store,
            config,
            relay,
            signer,
            guard,
            subscribers,
            metrics,
            trail,
            outage,
            log,
            recent_news: Cache::builder()
                .max_capacity(MAX_RECENT_NEWS)
                .time_to_live(retention)
                .build(),
            ended: Cache::builder()
                .max_capacity(MAX_ENDED)
                .time_to_live(retention)
                .build(),
            replays: Cache::builder()
                .max_capacity(MAX_REPLAYS)
                .time_to_live(REPLAY_WINDOW)
                .build(),
            lanes,
            suspects,
            since: deps.clock.wall(),
            deps,
        };
        Ok(Self {
            inner: Arc::new(inner),
            fanout,
        })
    }

    /// Nothing: the front door has the ports.
    pub fn addrs(&self) -> Addrs {
        Addrs
    }

    /// What the front door asks for requests to the gateway's own name.
    pub fn web(&self) -> Arc<dyn WebService> {
        Arc::new(Web::new(Arc::clone(&self.inner)))
    }

    /// For the command line and `status`.
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.inner))
    }

    /// A reload. An invalid configuration changes nothing.
    pub fn apply(&self, snapshot: &Snapshot<FediConfig>) -> Applied {
        self.handle().apply(snapshot)
    }

    /// Delivers until the shutdown begins, finishes what is under way, and notes how far everybody is.
    pub async fn run(self, shutdown: Shutdown) -> Drained {
        let inner = Arc::clone(&self.inner);
        shutdown.spawn(follow_store(Arc::clone(&inner), shutdown.clone()));
        shutdown.spawn(scout::run(Arc::clone(&inner), shutdown.clone()));
        shutdown.spawn(rotate::run(Arc::clone(&inner), shutdown.clone()));
        shutdown.spawn(life::run(inner, shutdown.clone()));
        shutdown.spawn(self.fanout.run(shutdown.clone()));
        shutdown.begun().await;
        let late = shutdown.drained().await;
        Drained {
            finished: 0,
            handed_back: 0,
            late: late as u64,
        }
    }
}

impl Inner {
    /// What decides now, with the rules of moderation that the caller holds.
    pub(crate) fn rules<'a>(&'a self, moderation: &'a Moderation) -> Rules<'a> {
        Rules {
            acl: &self.deps.acl,
            moderation,
            mode: self.config.load().mode,
        }
    }

    /// Takes over what may change while running.
    pub(crate) fn apply(&self, snapshot: &Snapshot<FediConfig>) -> Applied {
        let mut applied = Applied::default();
        let new = &snapshot.engine;
        if new.validate().is_err() {
            return applied;
        }
        let old = self.config.load_full();
        for key in changed_keys(&old, new) {
            let list = match NEEDS_RESTART.contains(&key.as_str()) {
                true => &mut applied.needs_restart,
                false => &mut applied.changed,
            };
            list.push(format!("fediverse.{key}"));
        }
        if snapshot.shared.public_url != self.deps.shared.public_url {
            applied.needs_restart.push("server.host".to_owned());
        }
        self.guard.set_allow_private(new.danger_allow_private_addresses);
        self.config.store(Arc::new(new.clone()));
        applied
    }
}

/// Reads subscriptions and moderation anew after each change: this gateway's are told by the store, those of others are
/// asked for.
async fn follow_store(inner: Arc<Inner>, shutdown: Shutdown) {
    let mut news = inner.store.subscription_news();
    news.mark_changed();
    let mut ask_again = false;
    // Lanes and commands read anew too, so that it is not always seen here that something changed.
    let mut keys_of = None;
    loop {
        tokio::select! {
            () = shutdown.begun() => return,
            Ok(()) = news.changed() => {}
            () = tokio::time::sleep(REFRESH), if ask_again => {}
        }
        let refreshed = inner.subscribers.refresh().await;
        let version = inner.subscribers.known_version().await;
        if version != keys_of && inner.store.is_shared() && inner.follow_keys().await {
            keys_of = version;
        }
        ask_again = refreshed.is_err() || inner.store.is_shared();
        if let Err(error) = refreshed {
            tracing::debug!(error = %error, "the subscriptions were not read");
        }
        inner.show_brake();
        let active = inner.subscribers.table().active_hosts().len();
        inner
            .metrics
            .subscribers
            .set(i64::try_from(active).unwrap_or(i64::MAX));
    }
}

fn relay_of(public_url: Option<&str>, allow_http: bool) -> Result<Option<Relay>, BuildError> {
    let Some(text) = public_url else { return Ok(None) };
    let refuse = |problem: &str| BuildError::Config {
        key: "server.danger_public_url".to_owned(),
        problem: problem.to_owned(),
    };
    let url = Url::parse(text).map_err(|_| refuse("is not a URL"))?;
    let authority = Authority::of(&url).ok_or_else(|| refuse("has no host"))?;
    match url.scheme() {
        "https" => {}
        "http" if allow_http => {}
        _ => {
            return Err(refuse(
                "must be https, or http together with fediverse.danger_allow_private_addresses",
            ));
        }
    }
    Ok(Some(Relay::new(url.scheme(), authority.as_str())))
}

/// The keys whose values differ, as named in the file.
fn changed_keys(old: &FediConfig, new: &FediConfig) -> Vec<String> {
    let as_map = |config: &FediConfig| match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let old = as_map(old);
    as_map(new)
        .into_iter()
        .filter(|(key, value)| old.get(key) != Some(value))
        .map(|(key, _)| key)
        .collect()
}
