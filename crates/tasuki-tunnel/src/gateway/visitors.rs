//! The visitors of one agent. They outlive its sessions: when one is lost, each waits for the next and goes on in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tasuki_core::store::accounts::Principal;
use tasuki_proto::tunnel::{CloseCode, FlowNumber, OpenReply, Resume};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::counts::PerAddress;
use super::session::Session;
use crate::flows::{Book, Flow, Room};
use crate::metrics::Metrics;
use crate::shaper::Shaping;
use crate::splice::{Link, Outgoing, Patience, Relink};

/// Everybody who visits one start of an agent's program.
pub(crate) struct Visitors {
    /// Which start it is; `None` for an agent that cannot go on with flows.
    incarnation: Option<u64>,
    /// Connections now.
    count: AtomicU32,
    /// Addresses that have a TCP connection now: theirs is no forged source.
    pub(crate) proven: PerAddress,
    pub(crate) patience: Patience,
    pub(crate) book: Arc<Book>,
    /// The agent's bandwidth.
    pub(crate) shaping: Shaping,
    /// The agent's own limit of connections; 0 is none.
    max: AtomicU32,
    session: watch::Sender<Option<Arc<Session>>>,
    /// They go on in another process: no session is theirs here any more.
    leave: AtomicBool,
    /// Fires when they have to go, all of them.
    pub(crate) gone: CancellationToken,
}

/// What agents read when another process takes over.
pub(crate) const HANDED_OVER: &str = "the gateway goes on in another process";

/// One visitor's place.
pub(crate) struct Place(Arc<Visitors>);

impl Visitors {
    pub(crate) fn new(incarnation: Option<u64>, patience: Patience, memory: Arc<Room>) -> Arc<Self> {
        Arc::new(Self {
            incarnation,
            count: AtomicU32::new(0),
            proven: PerAddress::default(),
            patience,
            book: Book::new(memory),
            shaping: Shaping::default(),
            max: AtomicU32::new(0),
            session: watch::Sender::default(),
            leave: AtomicBool::new(false),
            gone: CancellationToken::new(),
        })
    }

    /// Whether a session of this start of the agent may go on with them.
    pub(crate) fn go_on_with(&self, incarnation: Option<u64>) -> bool {
        incarnation.is_some() && self.incarnation == incarnation && !self.gone.is_cancelled()
    }

    /// Takes the limits of the agent's grants, now and whenever they may have changed.
    pub(crate) fn set_scope(&self, agent: &Principal) {
        self.shaping.set_rate(agent.bandwidth());
        self.max
            .store(agent.max_connections().unwrap_or(0), Ordering::Relaxed);
    }

    /// A place for one more, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, max: usize) -> Option<Place> {
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        let max = match self.max.load(Ordering::Relaxed) {
            0 => max,
            own => max.min(own),
        };
        let entered = self
            .count
            .try_update(Ordering::AcqRel, Ordering::Relaxed, |count| {
                (count < max).then_some(count + 1)
            });
        entered.is_ok().then(|| Place(Arc::clone(self)))
    }

    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// A number for a new flow, if flows can go on. `last` is of the whole process: no number ever comes twice.
    pub(crate) fn number(&self, last: &AtomicU64) -> Option<FlowNumber> {
        self.incarnation
            .map(|_| FlowNumber(last.fetch_add(1, Ordering::Relaxed) + 1))
    }

    /// Which start of the agent's program they visit.
    pub(crate) fn incarnation(&self) -> Option<u64> {
        self.incarnation
    }

    /// The session that they travel in, if the agent has one now.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        self.session.borrow().clone()
    }

    /// They go on in another process.
    pub(crate) fn leave(&self) {
        self.leave.store(true, Ordering::Release);
    }

    /// Whether the agent has no session now.
    pub(crate) fn wait_for_agent(&self) -> bool {
        self.session.borrow().is_none()
    }

    /// The agent is here: those who wait go on.
    pub(crate) fn arrived(&self, session: &Arc<Session>) {
        if self.leave.load(Ordering::Acquire) {
            return session.close(CloseCode::HandedOver, HANDED_OVER);
        }
        self.session.send_replace(Some(Arc::clone(session)));
    }

    /// The session is over; true if there is no newer one.
    pub(crate) fn left(&self, session: &Arc<Session>) -> bool {
        self.session.send_if_modified(|here| {
            let is_same = here.as_ref().is_some_and(|here| Arc::ptr_eq(here, session));
            if is_same {
                *here = None;
            }
            is_same
        });
        self.session.borrow().is_none()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One visitor's way from session to session.
pub(crate) struct Sessions<'a> {
    pub(crate) visitors: Arc<Visitors>,
    /// The one that it travels in or was lost with; none yet for a visitor from another process.
    pub(crate) last: Option<Arc<Session>>,
    pub(crate) metrics: &'a Metrics,
}

impl Relink for Sessions<'_> {
    async fn relink(&mut self, flow: &Flow) -> Option<Link> {
        let mut sessions = self.visitors.session.subscribe();
        loop {
            let next = {
                let last = &self.last;
                let is_new =
                    |session: &Arc<Session>| last.as_ref().is_none_or(|last| !Arc::ptr_eq(session, last));
                let next = sessions.wait_for(|session| session.as_ref().is_some_and(is_new));
                next.await.ok()?.clone()?
            };
            self.last = Some(Arc::clone(&next));
            // Broken again: another session may come.
            let Some((link, reply)) = ask(&next, flow).await else {
                continue;
            };
            let [status, taken @ ..] = reply;
            if OpenReply::from_byte(status) != OpenReply::Connected {
                return None;
            }
            flow.rewind(u64::from_be_bytes(taken)).ok()?;
            self.metrics.resumed.inc();
            return Some(link);
        }
    }
}

/// Opens a stream for the flow, and reads what the agent says of it.
async fn ask(session: &Session, flow: &Flow) -> Option<(Link, [u8; Resume::REPLY_LENGTH])> {
    let (send, mut incoming) = session.connection.open_bi().await.ok()?;
    let mut outgoing = Outgoing::new(send);
    let resume = Resume {
        flow: flow.number(),
        taken: flow.taken(),
    };
    outgoing.write_all(&resume.encode()).await.ok()?;
    let mut reply = [0; Resume::REPLY_LENGTH];
    incoming.read_exact(&mut reply).await.ok()?;
    let link = Link {
        outgoing,
        incoming,
        session: session.connection.clone(),
    };
    Some((link, reply))
}
