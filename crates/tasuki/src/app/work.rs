//! What runs beside the engines as long as the gateway lives: heartbeat, events to log lines, fresh certificates, rules
//! that another gateway changed; and the signals.

use std::sync::Arc;
use std::time::Duration;

use tasuki_core::health::{self, Watched};
use tasuki_core::shutdown::Shutdown;
use tasuki_core::store::StoreError;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::{Core, Order, look};
use crate::admin::Admin;
use crate::exit::{Fail, Outcome, chain};

/// How often this gateway says that it lives, and without a word for how long others may take what it held.
const HEARTBEAT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// The same where nobody else could take anything.
const HEARTBEAT_ALONE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(86_400));
/// How often rules are compared with a store that other gateways change too.
const REFRESH: Duration = Duration::from_secs(5);

/// Tasks that end after the engines.
pub(super) struct Work {
    own: Shutdown,
}

impl Work {
    /// Ends them: the engines are done, nothing needs them any more.
    pub(super) async fn end(self) {
        self.own.begin();
        self.own.drained().await;
    }
}

/// Starts everything.
pub(super) async fn start(core: &Core, admin: &Arc<Admin>, shutdown: &Shutdown) -> Outcome<Work> {
    // Not a child: heartbeat and log go on while the engines drain.
    let own = Shutdown::new(Duration::from_secs(2));
    own.spawn(crate::log::read_events(core.events.clone(), own.clone()));
    own.spawn(heartbeat(
        Arc::clone(admin),
        core.node,
        own.clone(),
        shutdown.clone(),
    ));
    if core.store.is_shared() {
        own.spawn(refresh(Arc::clone(admin), own.clone()));
    }
    own.spawn(look::watch(Arc::clone(admin), core.events.clone(), own.clone()));
    let watched = Watched {
        data_dir: core.data.path().to_owned(),
        store: Arc::clone(&core.store) as _,
        tls: core.tls.clone(),
        clock: core.clock.clone(),
    };
    own.spawn(health::watch(core.health.clone(), watched, own.clone()));
    let (tls, tls_shutdown) = (core.tls.clone(), shutdown.child());
    own.spawn(async move { tls.keep_fresh(tls_shutdown).await });
    core.bans.start(&own).await.map_err(|e| super::store_failed(&e))?;
    Ok(Work { own })
}

async fn heartbeat(
    admin: Arc<Admin>,
    (node, epoch): (tasuki_core::ids::NodeId, tasuki_core::ids::Epoch),
    own: Shutdown,
    all: Shutdown,
) {
    let (every, dead_after) = if admin.store.is_shared() {
        HEARTBEAT
    } else {
        HEARTBEAT_ALONE
    };
    let mut failing = false;
    loop {
        match admin.store.heartbeat(node, epoch, dead_after).await {
            Ok(()) => failing = false,
            Err(StoreError::StaleEpoch) => {
                tracing::error!(
                    "another gateway has joined the store under this one's name (a copied data directory?); stopping, so that nothing is sent twice"
                );
                all.begin();
                return;
            }
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(error = %chain(&error), "the store takes no heartbeat; trying again");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = own.begun() => return,
        }
    }
}

async fn refresh(admin: Arc<Admin>, own: Shutdown) {
    let mut seen = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            () = own.begun() => return,
        }
        // A store that cannot be read now leaves everything as it is; the heartbeat has said so.
        let Ok(version) = admin.store.accounts_version().await else {
            continue;
        };
        if seen != Some(version) && admin.compile_rules().await.is_ok() {
            seen = Some(version);
        }
    }
}

/// What is wanted of a running gateway.
pub(super) enum Turn {
    End,
    Upgrade(Order),
}

/// The signals that the gateway obeys; taken before it says that it is ready.
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// From now on they no longer end the process by themselves.
    pub(super) fn take() -> Outcome<Self> {
        let take = |kind| signal(kind).map_err(|e| Fail::io("signals cannot be taken", &e));
        Ok(Self {
            term: take(SignalKind::terminate())?,
            int: take(SignalKind::interrupt())?,
            hup: take(SignalKind::hangup())?,
        })
    }

    /// SIGTERM or Ctrl-C.
    pub(super) async fn end(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }

    /// Waits until somebody wants the gateway to stop, or to go on in another process; meanwhile obeys SIGHUP.
    pub(super) async fn next(&mut self, admin: &Admin, orders: &mut mpsc::Receiver<Order>) -> Turn {
        loop {
            tokio::select! {
                _ = self.term.recv() => return Turn::End,
                _ = self.int.recv() => return Turn::End,
                () = admin.shutdown.begun() => return Turn::End,
                Some(order) = orders.recv() => return Turn::Upgrade(order),
                _ = self.hup.recv() => match admin.reload().await {
                    Ok(_) => {}
                    Err(fail) => tracing::error!("the configuration stays as it was: {fail}"),
                },
            }
        }
    }
}
