//! What is in force now, and how something else comes into force: validate, compile one snapshot, hand it to everybody.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tasuki_core::budget::Budget;
use tasuki_core::events::{EventBus, What};
use tasuki_core::front::FrontDoor;
use tasuki_core::tls::Tls;
use tasuki_core::{Applied, Shared, Snapshot};

use crate::admin::Engines;
use crate::config::{Config, Loaded};
use crate::exit::{self, Fail, chain};
use crate::log::LogHandle;

/// The configuration in force.
pub(crate) struct Live {
    /// As in the file.
    pub(crate) config: Config,
    /// With its origin.
    pub(crate) loaded: Loaded,
    /// The part that every engine reads.
    pub(crate) shared: Arc<Shared>,
}

impl Live {
    pub(crate) fn new(loaded: Loaded, shared: Arc<Shared>) -> Self {
        Self {
            config: loaded.config.clone(),
            loaded,
            shared,
        }
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.loaded.warnings()
    }
}

/// Everybody who is told of a new configuration, beside the engines.
pub(crate) struct Reloader {
    pub(crate) log: LogHandle,
    pub(crate) budget: Budget,
    pub(crate) tls: Tls,
    pub(crate) front: Option<FrontDoor>,
    pub(crate) events: EventBus,
    /// One reload at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

impl Reloader {
    /// Reads the file again and puts it in force. A mistake changes nothing: everything is read and checked before the
    /// first part is told.
    pub(crate) async fn reload(&self, live: &ArcSwap<Live>, engines: &Engines) -> Result<Applied, Fail> {
        let _turn = self.turn.lock().await;
        let before = live.load_full();
        let loaded = before.loaded.again()?;
        let new = &loaded.config;
        let old = &before.config;
        if new.server.host != old.server.host {
            return Err(Fail::new(
                exit::CONFIG,
                "server.host cannot change while the gateway runs: its actor, its certificates and its greeting carry the name; restart it",
            ));
        }
        let mut applied = Applied::default();
        // The certificate files are the only part that can still fail, so they come first.
        let host = new.server.host.as_ref().map(|h| h.as_str());
        let tls = self
            .tls
            .apply(&new.tls, host)
            .map_err(|e| Fail::new(exit::CONFIG, format!("nothing was changed: {}", chain(&e))))?;
        merge(&mut applied, tls);
        let shared = Arc::new(Shared {
            trusted_proxies: new.server.trusted_proxies.clone(),
            ..(*before.shared).clone()
        });
        self.log.apply(&new.log);
        self.budget.set_limit(new.memory.budget);
        merge(&mut applied, own_part(old, new));
        if let Some(front) = &self.front {
            merge(&mut applied, front.apply(&snapshot(&shared, &new.front)));
        }
        if let Some(mail) = &engines.mail {
            merge(&mut applied, mail.apply(&snapshot(&shared, &new.mail)));
        }
        if let Some(fediverse) = &engines.fediverse {
            merge(&mut applied, fediverse.apply(&snapshot(&shared, &new.fediverse)));
        }
        if let Some(tunnel) = &engines.tunnel {
            merge(&mut applied, tunnel.apply(&snapshot(&shared, &new.tunnel)));
        }
        live.store(Arc::new(Live::new(loaded, shared)));
        self.events.emit(What::Reloaded {
            changed: applied.changed.clone(),
            needs_restart: applied.needs_restart.clone(),
        });
        Ok(applied)
    }
}

fn snapshot<C: Clone>(shared: &Arc<Shared>, engine: &C) -> Snapshot<C> {
    Snapshot {
        shared: Arc::clone(shared),
        engine: engine.clone(),
    }
}

fn merge(all: &mut Applied, part: Applied) {
    all.changed.extend(part.changed);
    all.needs_restart.extend(part.needs_restart);
}

/// The keys that belong to no engine.
fn own_part(old: &Config, new: &Config) -> Applied {
    let live = [
        ("memory.budget", old.memory != new.memory),
        ("log.level", old.log.level != new.log.level),
        (
            "server.trusted_proxies",
            old.server.trusted_proxies != new.server.trusted_proxies,
        ),
        ("acl", old.acl != new.acl),
    ];
    let restart = [
        ("engines", old.engines != new.engines),
        ("server.data", old.server.data != new.server.data),
        ("server.grace", old.server.grace != new.server.grace),
        (
            "server.cpu_threads",
            old.server.cpu_threads != new.server.cpu_threads,
        ),
        (
            "server.danger_public_url",
            old.server.danger_public_url != new.server.danger_public_url,
        ),
        ("store.url", old.store != new.store),
        ("admin", old.admin != new.admin),
        ("log.format", old.log.format != new.log.format),
    ];
    let named = |list: &[(&str, bool)]| {
        list.iter()
            .filter(|(_, changed)| *changed)
            .map(|(key, _)| (*key).to_owned())
            .collect()
    };
    Applied {
        changed: named(&live),
        needs_restart: named(&restart),
    }
}
