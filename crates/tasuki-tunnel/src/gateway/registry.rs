//! The table of live agents, and of who owns which name and port.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tasuki_core::ids::PrincipalId;
use tasuki_core::store::tunnel::{Endpoint, EndpointKind};
use tasuki_proto::names::Domain;
use tasuki_proto::tunnel::EndpointId;
use tokio::sync::Notify;

use super::grants::Wire;
use super::session::Session;
use super::visitors::Visitors;

/// Where a door leads now.
pub(crate) enum Route {
    /// To agents that are here, the one with the fewest visitors first.
    Live(Vec<Target>),
    /// To an agent that is not here.
    Away,
    /// Nowhere.
    Unknown,
}

/// A live agent's endpoint.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) session: Arc<Session>,
    pub(crate) endpoint: EndpointId,
    pub(crate) label: Arc<str>,
}

/// The table. Owners are a copy of the store's, refreshed now and then; live routes are of this process.
#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<Tables>,
    /// Routes were set.
    changed: Notify,
}

#[derive(Default)]
struct Tables {
    sessions: HashMap<PrincipalId, Arc<Session>>,
    /// Of agents that are here, and of those whose visitors wait for them.
    visitors: HashMap<PrincipalId, Arc<Visitors>>,
    /// What the agents that are here serve. Several agents share a door if they are one owner.
    live: HashMap<EndpointKind, Vec<Target>>,
    owned: HashMap<(PrincipalId, String), Endpoint>,
    /// How often single owners were noted or forgotten: what was read of the store before that is out of date.
    owners_changed: u64,
    /// How many endpoints are this door.
    known: HashMap<EndpointKind, u32>,
    /// Where the next of those with equally few visitors begins.
    turn: usize,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a session in; the one that it replaces comes back. `Err` if there are `max` others.
    pub(crate) fn insert(&self, session: &Arc<Session>, max: usize) -> Result<Option<Arc<Session>>, ()> {
        let mut tables = self.lock();
        if tables.sessions.len() >= max && !tables.sessions.contains_key(&session.agent) {
            return Err(());
        }
        let old = tables.sessions.insert(session.agent, Arc::clone(session));
        tables.forget_targets(|target| target.session.agent == session.agent);
        Ok(old)
    }

    /// Takes a session out, unless a newer one of the same agent stands there.
    pub(crate) fn remove(&self, session: &Arc<Session>) {
        let mut tables = self.lock();
        if tables
            .sessions
            .get(&session.agent)
            .is_some_and(|here| Arc::ptr_eq(here, session))
        {
            tables.sessions.remove(&session.agent);
        }
        tables.forget_targets(|target| Arc::ptr_eq(&target.session, session));
    }

    /// The visitors of an agent whose program started as `incarnation` says: those who wait for it, or none yet. The visitors
    /// of an earlier start have to go: their other ends went with it.
    pub(crate) fn visitors_of(
        &self,
        agent: PrincipalId,
        incarnation: Option<u64>,
        make: impl FnOnce() -> Arc<Visitors>,
    ) -> Arc<Visitors> {
        let mut tables = self.lock();
        match tables.visitors.get(&agent) {
            Some(known) if known.go_on_with(incarnation) => return Arc::clone(known),
            Some(known) => known.gone.cancel(),
            None => {}
        }
        let visitors = make();
        tables.visitors.insert(agent, Arc::clone(&visitors));
        visitors
    }

    /// Nobody waits for the agent any more.
    pub(crate) fn forget_visitors(&self, agent: PrincipalId, visitors: &Arc<Visitors>) {
        visitors.gone.cancel();
        let mut tables = self.lock();
        if tables
            .visitors
            .get(&agent)
            .is_some_and(|known| Arc::ptr_eq(known, visitors))
        {
            tables.visitors.remove(&agent);
        }
    }

    /// The visitors of all agents.
    pub(crate) fn all_visitors(&self) -> Vec<Arc<Visitors>> {
        self.lock().visitors.values().cloned().collect()
    }

    /// All sessions.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.values().cloned().collect()
    }

    /// The session of an agent.
    pub(crate) fn session(&self, agent: PrincipalId) -> Option<Arc<Session>> {
        self.lock().sessions.get(&agent).cloned()
    }

    /// Replaces a session's routes. A session that was replaced meanwhile changes nothing.
    pub(crate) fn set_routes(&self, session: &Arc<Session>, routes: Vec<(EndpointKind, Target)>) {
        let mut tables = self.lock();
        if !tables
            .sessions
            .get(&session.agent)
            .is_some_and(|here| Arc::ptr_eq(here, session))
        {
            return;
        }
        tables.forget_targets(|target| Arc::ptr_eq(&target.session, session));
        for (kind, target) in routes {
            tables.live.entry(kind).or_default().push(target);
        }
        self.changed.notify_waiters();
    }

    /// Waits until the door leads to somebody.
    pub(crate) async fn leads_somewhere(&self, kind: &EndpointKind) {
        loop {
            // Taken before the look, so that nothing is missed in between.
            let changed = self.changed.notified();
            if self.lock().live.contains_key(kind) {
                return;
            }
            changed.await;
        }
    }

    /// Where a door leads.
    pub(crate) fn route(&self, kind: &EndpointKind) -> Route {
        let mut tables = self.lock();
        tables.turn = tables.turn.wrapping_add(1);
        let Some(targets) = tables.live.get(kind) else {
            return match tables.known.contains_key(kind) {
                true => Route::Away,
                false => Route::Unknown,
            };
        };
        let mut targets = targets.clone();
        // The sort is stable: those with equally few visitors take turns.
        let first = tables.turn % targets.len();
        targets.rotate_left(first);
        targets.sort_by_key(|target| target.session.visitors.count());
        Route::Live(targets)
    }

    /// Where a Minecraft client goes that has typed a name. A name that somebody owns leads to its owner or nowhere, never
    /// to the default: it could be a stranger's world.
    pub(crate) fn route_player(&self, name: Option<Domain>) -> Route {
        let named = name.is_some();
        match self.route(&EndpointKind::Minecraft { name }) {
            Route::Unknown if named => self.route(&EndpointKind::Minecraft { name: None }),
            route => route,
        }
    }

    /// What a host name of the web ports is.
    pub(crate) fn web(&self, name: &Domain) -> Option<EndpointKind> {
        let tables = self.lock();
        let kinds = [
            EndpointKind::Https { name: name.clone() },
            EndpointKind::Http { name: name.clone() },
        ];
        kinds.into_iter().find(|kind| tables.known.contains_key(kind))
    }

    /// The host names whose TLS ends here.
    pub(crate) fn http_names(&self) -> Vec<Domain> {
        let tables = self.lock();
        let names = tables.known.keys().filter_map(|kind| match kind {
            EndpointKind::Http { name } => Some(name.clone()),
            _ => None,
        });
        let mut names: Vec<Domain> = names.collect();
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names
    }

    /// How often single owners were noted or forgotten.
    pub(crate) fn owners_changed(&self) -> u64 {
        self.lock().owners_changed
    }

    /// Replaces the owners by what the store says, unless one was noted or forgotten since that was asked.
    pub(crate) fn set_owned(&self, endpoints: Vec<Endpoint>, changed: u64) -> bool {
        let mut tables = self.lock();
        if tables.owners_changed != changed {
            return false;
        }
        tables.owned.clear();
        tables.known.clear();
        for endpoint in endpoints {
            tables.own(endpoint);
        }
        true
    }

    /// Notes one claim that the store has committed.
    pub(crate) fn own(&self, endpoint: Endpoint) {
        let mut tables = self.lock();
        tables.owners_changed += 1;
        tables.own(endpoint);
    }

    /// Forgets that the agent owns this: the store is asked when it is declared next. The door stays known.
    pub(crate) fn disown(&self, agent: PrincipalId, label: &str) {
        let mut tables = self.lock();
        tables.owners_changed += 1;
        tables.owned.remove(&(agent, label.to_owned()));
    }

    /// Whether visitors come to this endpoint of the agent.
    pub(crate) fn serves(&self, agent: PrincipalId, label: &str) -> bool {
        let tables = self.lock();
        let mut targets = tables.live.values().flatten();
        targets.any(|target| target.session.agent == agent && &*target.label == label)
    }

    /// All endpoints to which visitors come.
    pub(crate) fn served(&self) -> Vec<Target> {
        self.lock().live.values().flatten().cloned().collect()
    }

    /// What the agent owns under this label.
    pub(crate) fn owned(&self, agent: PrincipalId, label: &str) -> Option<Endpoint> {
        self.lock().owned.get(&(agent, label.to_owned())).cloned()
    }

    /// Whether an endpoint other than this agent's `label` has the port. The other half of an own port is free.
    pub(crate) fn port_is_taken(&self, wire: Wire, port: u16, agent: PrincipalId, label: &str) -> bool {
        self.lock().owned.values().any(|has| match Wire::of(&has.kind) {
            Some((its_wire, its_port)) if its_port == port => {
                has.agent != agent || (its_wire == wire && has.label != label)
            }
            _ => false,
        })
    }

    /// The ports of an agent on this wire.
    pub(crate) fn ports_of(&self, agent: PrincipalId, wire: Wire) -> Vec<u16> {
        let tables = self.lock();
        let ports = tables
            .owned
            .values()
            .filter(|has| has.agent == agent)
            .filter_map(|has| Wire::of(&has.kind))
            .filter(|(its_wire, _)| *its_wire == wire)
            .map(|(_, port)| port);
        let mut ports: Vec<u16> = ports.collect();
        ports.sort_unstable();
        ports
    }
}

impl Tables {
    fn forget_targets(&mut self, is_meant: impl Fn(&Target) -> bool) {
        self.live.retain(|_, targets| {
            targets.retain(|target| !is_meant(target));
            !targets.is_empty()
        });
    }

    fn own(&mut self, endpoint: Endpoint) {
        let key = (endpoint.agent, endpoint.label.clone());
        if let Some(before) = self.owned.remove(&key)
            && let Some(count) = self.known.get_mut(&before.kind)
        {
            *count -= 1;
            if *count == 0 {
                self.known.remove(&before.kind);
            }
        }
        *self.known.entry(endpoint.kind.clone()).or_default() += 1;
        self.owned.insert(key, endpoint);
    }
}

#[cfg(test)]
mod tests {
    use tasuki_core::clock::Timestamp;
    use tasuki_core::ids::EndpointId;

    use super::*;

    #[test]
    fn owners_read_before_a_claim_or_a_release_do_not_undo_it() {
        let (agent, registry) = (PrincipalId(7), Registry::default());
        let endpoint = |label: &str, port| Endpoint {
            id: EndpointId(i64::from(port)),
            agent,
            label: label.to_owned(),
            kind: EndpointKind::Tcp { port },
            since: Timestamp(0),
            group: None,
        };
        let read = vec![endpoint("old", 1)];
        assert!(registry.set_owned(read.clone(), registry.owners_changed()));
        let before = registry.owners_changed();
        registry.own(endpoint("new", 2));
        assert!(!registry.set_owned(read.clone(), before));
        assert!(registry.owned(agent, "new").is_some());
        let before = registry.owners_changed();
        registry.disown(agent, "old");
        assert!(!registry.set_owned(read, before));
        assert!(registry.owned(agent, "old").is_none());
        assert!(registry.set_owned(Vec::new(), registry.owners_changed()));
        assert!(registry.owned(agent, "new").is_none());
    }
}
