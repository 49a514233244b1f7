//! Mail that waits behind a route is released when what was wrong with the route may have changed: its settings, or the
//! secret of its login.
//!
//! The breaker of just that route opens, and what waits for it is due at once; other routes keep resting. Settings change
//! by a reload. A secret may change in the store by a command, or in its file; it is looked at after every reload and
//! command, and from time to time while its route is down, so that the other gateways on a common store notice too.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tasuki_core::store::{
    StoreError,
    audit::Actor,
    mail::{LaneKey, Order, QueueFilter},
};
use tokio::sync::Notify;

use crate::{
    config::{MailConfig, Settings, Smarthost},
    context::Context,
    deliver::login::secret,
    engine::Handle,
    orders::of_lane,
};

/// How often the secrets of routes that are down are looked at without any reason.
const LOOK: Duration = Duration::from_secs(20);
/// How long a store that does not answer is left alone.
const AGAIN: Duration = Duration::from_secs(2);

/// What waits to be released, and what the logins that failed were tried with.
#[derive(Default)]
pub(crate) struct Releases {
    pending: Mutex<Changed>,
    wanted: Notify,
    /// By smarthost, as a hash; as many as the configuration has had.
    failed_with: Mutex<HashMap<Arc<str>, [u8; 32]>>,
    count: AtomicU64,
}

/// What a new configuration changed of the routes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Which mail goes where.
    routes: bool,
    /// Smarthosts and groups.
    ways: BTreeSet<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Releases {
    /// Releases what these changes concern, soon.
    pub(crate) fn want(&self, changed: Changed) {
        let mut pending = lock(&self.pending);
        pending.routes |= changed.routes;
        pending.ways.extend(changed.ways);
        drop(pending);
        self.look();
    }

    /// Looks at the secrets, soon.
    pub(crate) fn look(&self) {
        self.wanted.notify_one();
    }

    /// How many releases there were, to tell whether an attempt began before one.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// A connection with this secret failed.
    pub(crate) fn failed_with(&self, smarthost: &Smarthost, secret: [u8; 32]) {
        lock(&self.failed_with).insert(Arc::clone(&smarthost.name), secret);
    }
}

/// What differs between two configurations, secrets included.
pub(crate) fn changed_ways(old: &MailConfig, new: &MailConfig) -> Changed {
    let mut changed = Changed {
        routes: old.routes != new.routes || old.default_route != new.default_route,
        ways: BTreeSet::new(),
    };
    let before: HashMap<_, _> = old.smarthosts.iter().map(|s| (&s.name, s)).collect();
    for smarthost in &new.smarthosts {
        if before.get(&smarthost.name) != Some(&smarthost) {
            changed.ways.insert(smarthost.name.clone());
        }
    }
    let before: HashMap<_, _> = old.smarthost_groups.iter().map(|g| (&g.name, g)).collect();
    for group in &new.smarthost_groups {
        if before.get(&group.name) != Some(&group) {
            changed.ways.insert(group.name.clone());
        }
    }
    let names = |config: &MailConfig| -> BTreeSet<String> {
        let smarthosts = config.smarthosts.iter().map(|s| s.name.clone());
        let groups = config.smarthost_groups.iter().map(|g| g.name.clone());
        smarthosts.chain(groups).collect()
    };
    // What waits for one that is gone finds its new way now.
    changed.ways.extend(names(old).difference(&names(new)).cloned());
    changed
}

/// The task that releases.
pub(crate) async fn keeper(handle: Handle) {
    let context = Arc::clone(&handle.context);
    let mut wait = LOOK;
    loop {
        tokio::select! {
            () = context.releases.wanted.notified() => {}
            () = tokio::time::sleep(wait) => {}
            () = context.closing.cancelled() => return,
        }
        let mut changed = std::mem::take(&mut *lock(&context.releases.pending));
        let settings = context.settings.load_full();
        changed.ways.extend(new_secrets(&context, &settings).await);
        wait = match release(&handle, &settings, &changed).await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::warn!(%error, "mail behind a changed route cannot be released yet");
                context.releases.want(changed);
                tokio::time::sleep(AGAIN).await;
                AGAIN
            }
        };
    }
}

/// Smarthosts that are down, and whose secret is not the one that failed.
async fn new_secrets(context: &Context, settings: &Settings) -> Vec<String> {
    let mut new = Vec::new();
    for smarthost in settings.ways.smarthosts() {
        let lane = LaneKey(format!("via:{}", smarthost.name));
        if !context.lanes.is_down(&lane) && !context.members.is_down(&smarthost.name) {
            continue;
        }
        // One that cannot be read is still wrong.
        let Ok(Some(now)) = secret(context, smarthost).await else {
            continue;
        };
        let now = now.fingerprint();
        let before = lock(&context.releases.failed_with).insert(Arc::clone(&smarthost.name), now);
        if before != Some(now) {
            new.push(smarthost.name.to_string());
        }
    }
    new
}

async fn release(handle: &Handle, settings: &Settings, changed: &Changed) -> Result<(), StoreError> {
    let context = &handle.context;
    if !changed.routes && changed.ways.is_empty() {
        return Ok(());
    }
    context.releases.count.fetch_add(1, Ordering::AcqRel);
    let mut lanes = BTreeSet::new();
    for way in &changed.ways {
        let through = settings.ways.ways_through(way);
        lanes.extend(through.iter().map(|name| format!("via:{name}")));
        lanes.insert(format!("via:{way}"));
        context.members.unblock_one(way);
        if settings.ways.members(way).is_none() {
            // Nothing goes that way any more, so nothing would take these back.
            for key in ["mail.route", "mail.smarthost"] {
                context.deps.health.set(&format!("{key}.{way}"), None);
            }
        }
    }
    let actor = Actor::gateway("mail");
    let now = context.deps.clock.wall();
    for lane in lanes.into_iter().map(LaneKey) {
        context.lanes.unblock_one(&lane);
        let audit = actor.entry(now, "mail.retry", &lane.0, "its settings or secret changed");
        let released = handle
            .order_quietly(&of_lane(lane.clone()), &Order::Retry, &audit)
            .await?;
        tracing::info!(lane = %lane.0, deliveries = released, "a route's settings or secret changed, its mail is tried now");
    }
    if changed.routes {
        context.lanes.unblock();
        let audit = actor.entry(now, "mail.retry", "all", "the routes changed");
        handle
            .order_quietly(&QueueFilter::default(), &Order::Retry, &audit)
            .await?;
    }
    context.wake.notify_one();
    Ok(())
}
