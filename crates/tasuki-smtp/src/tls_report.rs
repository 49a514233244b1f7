//! TLS reporting (RFC 8460): counts how the TLS of sessions with domains' servers ended, keeps the counts in the store, and
//! sends them to the domains that ask for them.
//!
//! Counts are added to the store's sums within seconds, so that gateways on one store share a report; a crash forgets the
//! last seconds. **Invariant:** nothing here decides about a mail; what is not counted is delivered all the same.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use tasuki_core::{clock::Timestamp, events::What, store::tls::DayTally};
use tasuki_proto::{
    names::Domain,
    smtp::tlsrpt::{FailureDetail, PolicyType, SessionPolicy, Tally},
};
use tokio::sync::Notify;

use crate::{context::Context, counts, tls_policy::Watched};

mod listing;
mod outcome;
mod send;

pub use listing::{TlsDay, TlsDayError, TlsReportFile};
pub(crate) use outcome::note;
pub(crate) use send::keeper as reporter;

pub(crate) const DAY_MS: i64 = 86_400_000;
/// Most different kinds of sessions in memory; they are in the store within seconds.
const MAX_KINDS: usize = 10_000;
/// Most servers that are known to fail, for `status`.
const MAX_FAILING: usize = 1000;

pub(crate) fn day_of(now: Timestamp) -> i64 {
    now.0.div_euclid(DAY_MS)
}

/// Sessions alike: day, recipients' domain, policy, failure.
type Kind = (i64, Domain, SessionPolicy, Option<FailureDetail>);

/// What was counted and is not in the store yet, and who fails now.
#[derive(Default)]
pub(crate) struct Sessions {
    pending: Mutex<HashMap<Kind, u64>>,
    counted: Notify,
    /// By recipients' domain and server.
    failing: Mutex<BTreeMap<(Domain, String), TlsFailing>>,
    /// Wakes the reporter.
    pub(crate) look: Notify,
}

/// A server whose TLS is not what its domain's policy asks.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TlsFailing {
    /// The recipients' domain.
    pub domain: String,
    /// The server.
    pub host: String,
    /// The result type of RFC 8460.
    pub result: &'static str,
    /// More of it.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

impl Sessions {
    /// Counts one session with a server, or a failure to find out what it must be.
    pub(crate) fn note(
        &self,
        context: &Context,
        watched: &Watched,
        host: &str,
        failure: Option<FailureDetail>,
    ) {
        let now = context.deps.clock.wall();
        let result = failure
            .as_ref()
            .map_or("success", |failure| failure.result_type.name());
        context.metrics.tls_session(watched.policy.policy_type, result);
        if watched.policy.policy_type != PolicyType::NoPolicyFound {
            self.tell(
                context,
                (watched.domain.clone(), host.to_owned()),
                failure.as_ref(),
                now,
            );
        }
        let kind = (
            day_of(now),
            watched.domain.clone(),
            watched.policy.clone(),
            failure,
        );
        {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            if pending.len() >= MAX_KINDS && !pending.contains_key(&kind) {
                drop(pending);
                context.metrics.tls_uncounted.inc();
                return;
            }
            *pending.entry(kind).or_default() += 1;
        }
        self.counted.notify_one();
    }

    /// A server that worked and fails, or the other way round, is news. Each server is told of by itself, or a domain with
    /// a good and a bad one would be news with every mail.
    fn tell(
        &self,
        context: &Context,
        key: (Domain, String),
        failure: Option<&FailureDetail>,
        now: Timestamp,
    ) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let (domain, host) = (key.0.as_str().to_owned(), key.1.clone());
        let Some(failure) = failure else {
            if failing.remove(&key).is_some() {
                context.deps.events.emit(What::TlsWorks { domain, host });
            }
            return;
        };
        if failing.contains_key(&key) || failing.len() >= MAX_FAILING {
            return;
        }
        let news = TlsFailing {
            domain,
            host,
            result: failure.result_type.name(),
            reason: failure.failure_reason_code.clone().unwrap_or_default(),
            since: now,
        };
        context.deps.events.emit(What::TlsFailing {
            domain: news.domain.clone(),
            host: news.host.clone(),
            result: news.result,
            reason: news.reason.clone(),
        });
        failing.insert(key, news);
    }

    /// Who fails now.
    pub(crate) fn failing(&self) -> Vec<TlsFailing> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.values().cloned().collect()
    }
}

/// Brings counts into the store until the engine closes.
pub(crate) async fn keeper(context: Arc<Context>) {
    counts::keep(&context, &context.tls_sessions.counted, || flush(&context)).await;
}

/// Brings counts into the store now.
pub(crate) async fn flush(context: &Context) {
    let sessions = &context.tls_sessions;
    let taken = {
        let mut pending = sessions.pending.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *pending)
    };
    if taken.is_empty() {
        return;
    }
    let tally = |((day, domain, policy, failure), sessions): (&Kind, &u64)| DayTally {
        day: *day,
        domain: domain.clone(),
        tally: Tally {
            policy: policy.clone(),
            failure: failure.clone(),
            sessions: *sessions,
        },
    };
    let tallies = taken.iter().map(tally).collect();
    if let Err(error) = context.deps.store.add_tls_sessions(tallies).await {
        tracing::warn!(%error, "counts of TLS sessions cannot be stored, they are kept and tried again");
        let mut pending = sessions.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, count) in taken {
            if pending.len() < MAX_KINDS || pending.contains_key(&kind) {
                *pending.entry(kind).or_default() += count;
            }
        }
        drop(pending);
        sessions.counted.notify_one();
    }
}
