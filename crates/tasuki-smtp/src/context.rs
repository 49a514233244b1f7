//! What all tasks of the engine share.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use ipnet::IpNet;
use tasuki_core::{
    Deps,
    budget::BudgetPermit,
    clock::Timestamp,
    ids::MailIds,
    store::{
        MailStore, StoreError, StoreResult,
        mail::{BodyPlace, Held, StoredBody},
    },
};
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Settings, daily::Daily, dkim::Dkim, dns::Resolver, guard::Guard, lanes::Lanes, members::Members,
    metrics::Metrics, nat::Crowds, oauth::Tokens, orders::Pauses, port25::Port25, recipients::CallOuts,
    release::Releases, schedule::NextLook, settle::Report, suppress::Suppressions, tls_policy::Sts,
    tls_report::Sessions, trust::BrokenTls,
};

/// Bodies to this size are kept in the store's row.
pub(crate) const INLINE_MAX: usize = 16 * 1024;

/// Shared by sessions, workers, settler and scheduler.
pub(crate) struct Context {
    pub(crate) deps: Deps<dyn MailStore>,
    pub(crate) settings: ArcSwap<Settings>,
    pub(crate) metrics: Metrics,
    pub(crate) ids: MailIds,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) server_tls: Arc<rustls::ServerConfig>,
    /// The same, asking clients for a certificate.
    pub(crate) asking_tls: Arc<rustls::ServerConfig>,
    /// Accepts any certificate: for opportunistic TLS, which protects against listeners only (RFC 7435).
    pub(crate) any_tls: Arc<rustls::ClientConfig>,
    pub(crate) broken_tls: BrokenTls,
    pub(crate) sts: Sts,
    pub(crate) tls_sessions: Sessions,
    pub(crate) dkim: Dkim,
    pub(crate) members: Members,
    pub(crate) port25: Port25,
    pub(crate) releases: Releases,
    pub(crate) tokens: Tokens,
    pub(crate) lanes: Lanes,
    pub(crate) pauses: Pauses,
    pub(crate) suppressions: Suppressions,
    pub(crate) reports: mpsc::Sender<Report>,
    /// Wakes the scheduler: something may be due, or a lane has room.
    pub(crate) wake: Notify,
    pub(crate) next_look: NextLook,
    /// No new sessions and attempts.
    pub(crate) closing: CancellationToken,
    /// The time to finish is over.
    pub(crate) cut: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) started: Timestamp,
    /// Outcomes that are on their way to the store.
    pub(crate) unsettled: AtomicUsize,
    pub(crate) all_settled: Notify,
    pub(crate) finished_in_drain: AtomicU64,
    pub(crate) sessions: PerAddress,
    pub(crate) daily: Daily,
    pub(crate) guard: Guard,
    pub(crate) crowds: Crowds,
    pub(crate) call_outs: CallOuts,
    /// Our listeners' addresses, so that mail is not sent to ourselves.
    pub(crate) own: Vec<std::net::SocketAddr>,
}

impl Context {
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    pub(crate) fn note_finished(&self) {
        if self.is_closing() {
            self.finished_in_drain.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Stores a body that is in memory.
    pub(crate) async fn store_body(&self, body: Bytes) -> StoreResult<StoredBody> {
        if body.len() <= INLINE_MAX {
            return Ok(StoredBody {
                len: body.len() as u64,
                place: BodyPlace::Inline(body),
            });
        }
        let mut sink = self.deps.store.open_body(Some(body.len() as u64)).await?;
        sink.write(body).await?;
        sink.finish().await
    }
}

/// A delivery that this node may try, with its body where that is in memory.
pub(crate) struct Job {
    pub(crate) held: Held,
    pub(crate) body: Option<Arc<KeptBody>>,
}

/// A body in memory, shared by the deliveries of its mail, with its share of the byte budget.
pub(crate) struct KeptBody {
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) _permit: Option<BudgetPermit>,
}

impl Job {
    /// The body's first octets, enough for its header section.
    pub(crate) async fn head(&self, store: &dyn MailStore) -> Result<Bytes, StoreError> {
        if let Some(first) = self.body.as_ref().and_then(|b| b.pieces.first()) {
            return Ok(first.clone());
        }
        let mut source = store.body(&self.held.body).await?;
        Ok(source.next().await?.unwrap_or_default())
    }
}

/// Counts open sessions by address (/32, /64) and by prefix (/24, /48). Bounded by the number of connections.
#[derive(Default)]
pub(crate) struct PerAddress(Arc<Mutex<HashMap<IpNet, usize>>>);

/// One counted session.
pub(crate) struct CountedAddress {
    counts: Arc<Mutex<HashMap<IpNet, usize>>>,
    nets: [IpNet; 2],
}

impl PerAddress {
    /// Counts one more session from here, unless the address has `most.0` or its prefix `most.1` already.
    pub(crate) fn enter(&self, from: IpAddr, most: (usize, usize)) -> Option<CountedAddress> {
        let nets = [tasuki_core::net::single(from), tasuki_core::net::prefix(from)];
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = nets.map(|net| counts.get(&net).copied().unwrap_or(0));
        if open[0] >= most.0 || open[1] >= most.1 {
            return None;
        }
        for net in nets {
            *counts.entry(net).or_insert(0) += 1;
        }
        Some(CountedAddress {
            counts: Arc::clone(&self.0),
            nets,
        })
    }
}

impl Drop for CountedAddress {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for net in &self.nets {
            if let Some(count) = counts.get_mut(net) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(net);
                }
            }
        }
    }
}
