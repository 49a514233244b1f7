//! Notices when our access provider blocks outbound port 25 (OP25B), which is usual for homes and offices in Japan.
//!
//! The mark of it: the mail ports of several unrelated sites do not answer at all, none did for a while, and the same
//! servers answer on another port. Then no mail can go directly, whatever it is and wherever to; `status` says so and
//! names the cure, and waiting uses up no attempts. The first mail port that answers ends it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tasuki_core::health::{Code, Condition};
use tokio::{net::TcpStream, time::timeout};

use crate::context::Context;

#[cfg(test)]
mod tests;

/// So many unrelated sites must be silent.
const SITES: usize = 3;
/// Most that are remembered.
const MAX_SITES: usize = 16;
/// How long a site's silence counts, and how long an answer speaks against a block.
const COUNTS_FOR: Duration = Duration::from_secs(3600);
const PROBE: Duration = Duration::from_secs(5);

/// What is known of the mail port.
#[derive(Default)]
pub(crate) struct Port25(Mutex<State>);

#[derive(Default)]
struct State {
    silent: HashMap<String, (SocketAddr, Instant)>,
    answered_at: Option<Instant>,
    blocked: bool,
    probing: bool,
}

impl Port25 {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.lock().blocked
    }

    /// A mail port answered, whatever it said; whether that ends a block.
    fn answered(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.silent.clear();
        state.answered_at = Some(now);
        std::mem::take(&mut state.blocked)
    }

    /// A site's mail port did not answer. The servers to ask on other ports, when it is time to.
    fn silent(&self, site: &str, addr: SocketAddr, now: Instant) -> Option<Vec<SocketAddr>> {
        let mut state = self.lock();
        let counts = |since: Instant| now.saturating_duration_since(since) < COUNTS_FOR;
        state.silent.retain(|_, (_, at)| counts(*at));
        if state.silent.len() < MAX_SITES {
            state.silent.insert(site.to_owned(), (addr, now));
        }
        let answered = state.answered_at.is_some_and(counts);
        if state.blocked || state.probing || answered || state.silent.len() < SITES {
            return None;
        }
        state.probing = true;
        Some(state.silent.values().map(|(addr, _)| *addr).collect())
    }

    /// What the other ports said; whether that makes it a block.
    fn probed(&self, others_answer: bool) -> bool {
        let mut state = self.lock();
        state.probing = false;
        state.blocked |= others_answer && state.silent.len() >= SITES;
        state.blocked
    }
}

/// A direct connection came about, or was refused by its server.
pub(crate) fn note_answer(context: &Context) {
    if context.port25.answered(context.deps.clock.now()) {
        context.deps.health.set("mail.port25", None);
        context.deps.events.emit(tasuki_core::events::What::RouteUp {
            route: "outbound port 25".to_owned(),
        });
    }
}

/// A site's mail port did not answer in time.
pub(crate) async fn note_silence(context: &Context, site: &str, addr: SocketAddr) {
    let Some(servers) = context.port25.silent(site, addr, context.deps.clock.now()) else {
        return;
    };
    let others_answer = any_answers(&servers, &context.settings.load_full().delivery.probe_ports).await;
    if context.port25.probed(others_answer) {
        let reason = "the mail servers of several unrelated domains do not answer on port 25 but on other ports: our \
                      provider seems to block it (OP25B)";
        let sentence = format!(
            "{reason}; send through a smarthost on port 587 (mail.default_route), or ask the provider to open port 25"
        );
        context
            .deps
            .health
            .set("mail.port25", Some(Condition::warning(Code::RouteDown, sentence)));
        context.deps.events.emit(tasuki_core::events::What::RouteDown {
            route: "outbound port 25".to_owned(),
            reason: reason.to_owned(),
        });
    }
}

/// Whether one of the servers takes a connection on one of the ports.
async fn any_answers(servers: &[SocketAddr], ports: &[u16]) -> bool {
    let asked = servers
        .iter()
        .flat_map(|server| ports.iter().map(move |port| SocketAddr::new(server.ip(), *port)));
    let mut answers: FuturesUnordered<_> = asked
        .map(|addr| async move { matches!(timeout(PROBE, TcpStream::connect(addr)).await, Ok(Ok(_))) })
        .collect();
    while let Some(answer) = answers.next().await {
        if answer {
            return true;
        }
    }
    false
}
