//! The typed event bus: engines say what happened and never know who listens.
//!
//! Readers are the log and the statistics. A slow reader loses events and is told how many; it never slows an engine.
//! Audit rows are not events: they commit with the change they describe (`store::audit`).

use std::net::IpAddr;
use std::time::Duration;

use tokio::{
    sync::broadcast::{
        self,
        error::{RecvError, TryRecvError},
    },
    time::Instant,
};

use crate::clock::{Clock, Timestamp};
use crate::engine::EngineKind;
use crate::ids::{MailId, PrincipalId};

/// Something that happened, once it is a fact.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// Which engine said so; `None` for the core itself.
    pub engine: Option<EngineKind>,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum What {
    /// A mail was committed and acknowledged.
    MailAccepted {
        mail: MailId,
        principal: Option<PrincipalId>,
        size_bytes: u64,
        recipients: usize,
    },
    /// A next hop took a mail for some recipients.
    MailDelivered {
        mail: MailId,
        recipients: usize,
        attempts: u32,
    },
    /// An attempt failed for now.
    MailDeferred {
        mail: MailId,
        recipients: usize,
        attempts: u32,
        reason: String,
    },
    /// Recipients failed for good; `reported` says whether a DSN was queued.
    MailBounced {
        mail: MailId,
        recipients: usize,
        reason: String,
        reported: bool,
    },
    /// A server said that there is no such mailbox: the principal's mail is not taken for it for a while.
    AddressSuppressed {
        address: String,
        principal: Option<PrincipalId>,
        reason: String,
    },
    /// A principal has sent to four fifths of the recipients that it may send to in a day, or (`used` = `cap`) to all.
    DailyCapNear {
        principal: PrincipalId,
        name: String,
        used: u64,
        cap: u64,
    },
    /// A principal did what a thief of its password does: it was switched off.
    PrincipalLocked {
        principal: PrincipalId,
        name: String,
        reason: String,
    },
    /// A host joined the relay.
    HostSubscribed { host: String },
    /// A host left the relay or was removed.
    HostUnsubscribed { host: String },
    /// Nothing reached a host for a long time: it gets nothing new until it is heard again.
    HostSuspended { host: String, failing_since: Timestamp },
    /// Many hosts fail together, or our clock is wrong: the fault is taken for ours, nobody is suspended or removed, and
    /// nothing that waits grows old.
    OutageBegan { reason: String },
    /// It is over.
    OutageEnded { lasted_s: u64 },
    /// An activity was committed for `hosts` hosts.
    ActivityRelayed { id: String, hosts: u64 },
    /// A host took an activity, or refused it for good.
    ActivityDelivered { host: String, taken: bool },
    /// An agent's session began.
    AgentUp { agent: PrincipalId, from: IpAddr },
    /// That session goes on with so many visitors of the one before.
    AgentResumed {
        agent: PrincipalId,
        from: IpAddr,
        visitors: u32,
    },
    /// An agent's session ended.
    AgentDown { agent: PrincipalId, reason: String },
    /// A visitor's connection was joined to an agent's local server.
    VisitorJoined {
        agent: PrincipalId,
        endpoint: String,
        from: IpAddr,
        /// The name that a Minecraft client claims, if it joins a game.
        player: Option<String>,
    },
    /// A visitor's connection ended.
    VisitorLeft {
        agent: PrincipalId,
        endpoint: String,
        from: IpAddr,
        /// As it joined.
        player: Option<String>,
        bytes_in: u64,
        bytes_out: u64,
    },
    /// A login or key was refused.
    LoginRefused {
        name: String,
        from: IpAddr,
        reason: &'static str,
    },
    /// A person's own password was checked and is right (not each time: successes are remembered for a while).
    PasswordUsed { name: String },
    /// An address was banned.
    Banned {
        net: ipnet::IpNet,
        reason: String,
        until: Timestamp,
    },
    /// A route (smarthost, provider, network) stopped or started working; `reason` in plain words.
    RouteDown { route: String, reason: String },
    /// See [`What::RouteDown`].
    RouteUp { route: String },
    /// A mail server's TLS is not what its domain's policy (DANE, MTA-STS) asks; `result` is a result type of RFC 8460. The
    /// mail waits, unless the policy is only tried out.
    TlsFailing {
        domain: String,
        host: String,
        result: &'static str,
        reason: String,
    },
    /// See [`What::TlsFailing`].
    TlsWorks { domain: String, host: String },
    /// A certificate was obtained or replaced.
    CertificateReplaced { names: Vec<String>, days_left: i64 },
    /// A certificate could not be obtained or read; the old one stays and it is tried again.
    CertificateFailed { names: Vec<String>, reason: String },
    /// The configuration was applied again.
    Reloaded {
        changed: Vec<String>,
        needs_restart: Vec<String>,
    },
}

/// Where events go; cheap to clone.
#[derive(Clone, Debug)]
pub struct EventBus {
    sender: broadcast::Sender<Event>,
    clock: Clock,
    engine: Option<EngineKind>,
}

/// How many events a reader may be behind before it loses the oldest.
const CAPACITY: usize = 4096;

impl EventBus {
    /// A bus without readers.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            sender: broadcast::Sender::new(CAPACITY),
            clock,
            engine: None,
        }
    }

    /// The same bus, speaking for `engine`.
    #[must_use]
    pub fn for_engine(&self, engine: EngineKind) -> Self {
        Self {
            engine: Some(engine),
            ..self.clone()
        }
    }

    /// Says that something happened. Never waits, never fails.
    pub fn emit(&self, what: What) {
        if self.sender.receiver_count() > 0 {
            let _ = self.sender.send(Event {
                at: self.clock.wall(),
                engine: self.engine,
                what,
            });
        }
    }

    /// A reader of everything from now on, for one who is in no hurry.
    #[must_use]
    pub fn reader(&self) -> EventReader {
        EventReader {
            receiver: self.sender.subscribe(),
            woken_at: None,
        }
    }

    /// A reader of everything from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}

/// How long a reader lets events gather after it was woken.
const GATHER: Duration = Duration::from_millis(20);

/// Reads the first event after a quiet time at once, and what follows in bunches: each mail is several events, and to wake
/// a thread for each of them costs more than the rest of their way.
#[derive(Debug)]
pub struct EventReader {
    receiver: broadcast::Receiver<Event>,
    woken_at: Option<Instant>,
}

impl EventReader {
    /// The next event. Cancel-safe.
    ///
    /// # Errors
    /// `Lagged` if the reader was too slow and events are lost; `Closed` when the bus is gone.
    pub async fn next(&mut self) -> Result<Event, RecvError> {
        loop {
            match self.receiver.try_recv() {
                Ok(event) => return Ok(event),
                Err(TryRecvError::Lagged(lost)) => return Err(RecvError::Lagged(lost)),
                Err(TryRecvError::Closed) => return Err(RecvError::Closed),
                Err(TryRecvError::Empty) => {}
            }
            match self.woken_at {
                Some(at) => {
                    tokio::time::sleep_until(at + GATHER).await;
                    self.woken_at = None;
                }
                None => {
                    let event = self.receiver.recv().await;
                    self.woken_at = Some(Instant::now());
                    return event;
                }
            }
        }
    }
}
