//! Mail: envelopes, bodies, lanes, settlements.
//!
//! A mail has one or more **deliveries**, one for each lane (next hop) it goes to. Fresh mail is born held by the node
//! that took it and is tried by it from memory; nothing is read back. A delivery that is deferred moves into its lane
//! in the store, where the lane's owner finds it when it is due. The happy path of a mail with one lane costs one
//! insert and one delete.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tasuki_proto::names::{Domain, Mailbox, ReversePath};

use super::trail::{Received, Story};
use super::{AuditEntry, Sharing, StoreResult, SuppressionStore, TlsStore, TrailStore};
use crate::clock::Timestamp;
use crate::ids::{DeliverySeq, Epoch, LaneId, MailId, NodeId, PrincipalId};

/// A next hop's name, for example `mx:example.com` or `via:office365`. At most 300 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaneKey(pub String);

impl LaneKey {
    /// What a pause of all lanes is kept under; no lane has this name.
    pub const ALL: &str = "*";
}

/// RFC 3461 RET: what a DSN about this mail returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Ret {
    /// The whole message. Tasuki's own reports hold headers only; the value is passed on.
    Full,
    /// The headers.
    Hdrs,
}

/// RFC 3461 NOTIFY: of what the sender wants to hear. All false with `never` false means that nothing was asked for,
/// which is: failures and delays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notify {
    /// Nothing at all.
    pub never: bool,
    /// Deliveries.
    pub success: bool,
    /// Failures.
    pub failure: bool,
    /// Delays.
    pub delay: bool,
}

/// Where a recipient's copy goes, and what the sender wants to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// The address as it goes on the wire.
    pub mailbox: Mailbox,
    /// NOTIFY.
    #[serde(default)]
    pub notify: Notify,
    /// ORCPT as received (`rfc822;user+40example.com`), at most 500 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orcpt: Option<String>,
    /// The address as the client wrote it, where an alias exchanged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Mailbox>,
}

/// What an accepted mail carries besides its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// Who handed it in; `None` for mail to a relay domain and for our own DSNs.
    pub principal: Option<PrincipalId>,
    /// ENVID as received (xtext), at most 100 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envid: Option<String>,
    /// RET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ret: Option<Ret>,
    /// The mail needs a next hop with SMTPUTF8.
    #[serde(default)]
    pub smtputf8: bool,
    /// The body has octets above 127.
    #[serde(default)]
    pub eight_bit: bool,
    /// This mail is a DSN of ours: it never causes another one.
    #[serde(default)]
    pub is_dsn: bool,
    /// It goes only over verified TLS, to next hops that promise the same (RFC 8689).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_tls: bool,
    /// Whose turn comes first.
    #[serde(default, skip_serializing_if = "Class::is_transactional")]
    pub class: Class,
    /// How it came to us; `None` for mail that an earlier version took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Box<Received>>,
}

/// What kind of mail it is, as its sender's principal says. Within a lane transactional mail goes before bulk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Somebody waits for it: logins, receipts, people's own mail.
    #[default]
    Transactional,
    /// Newsletters and the like.
    Bulk,
}

impl Class {
    /// Whether it is [`Class::Transactional`].
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        *self == Self::Transactional
    }
}

/// Where a body's bytes are. Opaque to engines except for `Inline`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyPlace {
    /// In the row itself (to about 16 KiB).
    Inline(Bytes),
    /// In an append-only segment file.
    Segment {
        /// The segment's number.
        segment: u64,
        /// Where the body begins in it.
        offset: u64,
        /// CRC-32C of the body's bytes.
        checksum: u32,
    },
    /// In chunk rows under this id.
    Chunks {
        /// The chunks' common id.
        body: i64,
    },
}

/// A body that was written, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBody {
    /// Its length in bytes.
    pub len: u64,
    /// Where it is.
    pub place: BodyPlace,
}

/// Takes a body's bytes while they arrive. Dropping it without [`BodySink::finish`] discards them.
#[async_trait]
pub trait BodySink: Send {
    /// Appends `chunk`.
    async fn write(&mut self, chunk: Bytes) -> StoreResult<()>;
    /// Ends the body. It becomes durable with the mail's [`MailStore::enqueue`], not before.
    async fn finish(self: Box<Self>) -> StoreResult<StoredBody>;
}

/// Gives a body's bytes back in order.
#[async_trait]
pub trait BodySource: Send {
    /// The next piece, at most 256 KiB; `None` at the end.
    async fn next(&mut self) -> StoreResult<Option<Bytes>>;
}

/// One delivery of a new mail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDelivery {
    /// Its lane.
    pub lane: LaneKey,
    /// Its recipients, at least one.
    pub recipients: Vec<Recipient>,
}

/// A mail to be accepted.
#[derive(Clone, Debug)]
pub struct NewMail {
    /// Its id, from [`crate::ids::MailIds`].
    pub id: MailId,
    /// Its envelope.
    pub envelope: Envelope,
    /// Its body.
    pub body: StoredBody,
    /// Its deliveries, at least one; [`DeliverySeq`] is the index here.
    pub deliveries: Vec<NewDelivery>,
    /// When it was taken.
    pub accepted_at: Timestamp,
    /// When trying ends.
    pub expires_at: Timestamp,
}

/// How a delivery is held by the one who tries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Fresh: held by the node's life that took or adopted it.
    Fresh(Epoch),
    /// Deferred: held through its lane.
    Lane(LaneId, Epoch),
}

/// A delivery that this node may try now.
#[derive(Clone, Debug)]
pub struct Held {
    /// The mail.
    pub mail: MailId,
    /// Which of its deliveries.
    pub delivery: DeliverySeq,
    /// How it is held; goes back with the [`Outcome`].
    pub hold: Hold,
    /// Its lane.
    pub lane: LaneKey,
    /// The mail's envelope.
    pub envelope: Envelope,
    /// The recipients that are still open.
    pub recipients: Vec<Recipient>,
    /// The body.
    pub body: StoredBody,
    /// Attempts made so far.
    pub attempts: u32,
    /// When the mail was taken.
    pub accepted_at: Timestamp,
    /// When trying ends.
    pub expires_at: Timestamp,
    /// Whether the sender was told of the delay.
    pub delay_reported: bool,
    /// The last failure in the peer's words.
    pub last_error: Option<String>,
    /// What an operator has ordered meanwhile.
    pub orders: Orders,
}

/// What became of a held delivery.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The mail.
    pub mail: MailId,
    /// Which delivery.
    pub delivery: DeliverySeq,
    /// How it was held.
    pub hold: Hold,
    /// What became of it.
    pub settlement: Settlement,
    /// DSNs that this outcome causes; committed in the same transaction or not at all.
    pub follow_up: Vec<NewMail>,
    /// What the trail keeps of it. It is written with the settlement, unless there is no room for it.
    pub story: Option<Arc<Story>>,
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Every recipient is delivered, bounced or dropped by policy. With its last delivery the mail is gone.
    Finished,
    /// Some recipients wait.
    Deferred {
        /// The lane they wait in (a re-route changes it).
        lane: LaneKey,
        /// Those that wait.
        recipients: Vec<Recipient>,
        /// Attempts made so far.
        attempts: u32,
        /// When to try again.
        due: Timestamp,
        /// The failure in the peer's words, at most 1,000 bytes.
        last_error: String,
        /// Whether the sender was told of the delay.
        delay_reported: bool,
    },
}

/// What a settlement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is stored (or rides in the next commit, at most 100 ms later).
    Done,
    /// The hold was over: somebody else tries this delivery. Nothing was changed.
    LaneLost,
}

/// A lane that this node owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Its number.
    pub id: LaneId,
    /// Its next hop.
    pub key: LaneKey,
    /// The owner's epoch, for [`MailStore::due`] and settlements.
    pub epoch: Epoch,
    /// When its first delivery is due.
    pub next_due: Timestamp,
}

pub use super::queue::{
    Attempt, Changed, DeliveryState, Order, Orders, Paused, QueueFilter, QueueMatch, QueueState,
};

/// One waiting delivery, for people.
#[derive(Clone, Debug, Serialize)]
pub struct QueueRow {
    /// The mail.
    pub mail: MailId,
    /// Which of its deliveries.
    pub delivery: DeliverySeq,
    /// Its lane.
    pub lane: LaneKey,
    /// What it waits for.
    pub state: QueueState,
    /// Whether an operator chose its lane.
    pub rerouted: bool,
    /// Who handed it in.
    pub principal: Option<PrincipalId>,
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// How the mail came; only when one mail is asked for.
    #[serde(skip)]
    pub received: Option<Box<Received>>,
    /// Open recipients.
    pub recipients: Vec<Mailbox>,
    /// Body length in bytes.
    pub size_bytes: u64,
    /// When it was taken.
    pub accepted_at: Timestamp,
    /// When trying ends.
    pub expires_at: Timestamp,
    /// Attempts made.
    pub attempts: u32,
    /// When it is tried next; `None` for fresh mail, which is being tried.
    pub next_try: Option<Timestamp>,
    /// The last failure.
    pub last_error: Option<String>,
    /// The attempts so far; only when one mail is asked for.
    pub history: Vec<Attempt>,
}

/// The queue in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueCounts {
    /// Mails stored.
    pub mails: u64,
    /// Deliveries deferred in lanes.
    pub deferred: u64,
    /// When the oldest waiting mail was taken.
    pub oldest: Option<Timestamp>,
}

/// Verbs for mail.
#[async_trait]
pub trait MailStore: TlsStore + TrailStore + SuppressionStore + Sharing {
    /// Begins a body. `size_hint` is the client's SIZE, if it named one.
    async fn open_body(&self, size_hint: Option<u64>) -> StoreResult<Box<dyn BodySink>>;
    /// Stores mails held by `node`; returns after the commit and the body's sync. A bad one fails the call it came
    /// with, not the others that share the commit.
    async fn enqueue(&self, node: NodeId, epoch: Epoch, batch: Vec<NewMail>) -> StoreResult<Vec<MailId>>;
    /// Opens a stored body for reading.
    async fn body(&self, body: &StoredBody) -> StoreResult<Box<dyn BodySource>>;
    /// Takes over up to `n` fresh deliveries whose holder is dead or an earlier life of this node.
    async fn adopt(&self, node: NodeId, epoch: Epoch, n: usize) -> StoreResult<Vec<Held>>;
    /// Owns up to `n` lanes that have something due by `now` and nobody to care for it, for `hold`; also renews those
    /// named in `renew`. Holds end by the store's clock.
    async fn claim_lanes(
        &self,
        node: NodeId,
        now: Timestamp,
        hold: Duration,
        n: usize,
        renew: &[(LaneId, Epoch)],
    ) -> StoreResult<Vec<Lane>>;
    /// Gives lanes back.
    async fn release_lanes(&self, lanes: &[(LaneId, Epoch)]) -> StoreResult<()>;
    /// Up to `n` deliveries of an owned lane that are due at `now`, oldest first, without those in `in_flight`.
    /// `StaleEpoch` if the lane is lost.
    async fn due(
        &self,
        lane: LaneId,
        epoch: Epoch,
        now: Timestamp,
        n: usize,
        in_flight: &[(MailId, DeliverySeq)],
    ) -> StoreResult<Vec<Held>>;
    /// Stores outcomes, in order; one answer each. Outcomes never ask for a sync at once: they share that of an enqueue, or
    /// get one within 100 ms. Outcomes without `follow_up` may return before it if a crash of the store ends this gateway
    /// too, so that its next life finds the mail again at once; else, and with `follow_up`, it returns after its commit.
    async fn settle(&self, node: NodeId, outcomes: Vec<Outcome>) -> StoreResult<Vec<Settled>>;
    /// When the next delivery is due in any lane that is free or owned by `node`; `None` if nothing waits.
    async fn next_due(&self, node: NodeId) -> StoreResult<Option<Timestamp>>;
    /// Lists waiting deliveries, oldest mail first.
    async fn queue(&self, filter: &QueueFilter, limit: usize) -> StoreResult<Vec<QueueRow>>;
    /// Whether this address is in the table of known recipients; local parts are compared without case.
    async fn is_recipient(&self, mailbox: &Mailbox) -> StoreResult<bool>;
    /// Adds known recipients and removes some; what is there already, or is not there, is left as it is.
    async fn change_recipients(
        &self,
        add: Vec<Mailbox>,
        remove: Vec<Mailbox>,
        audit: AuditEntry,
    ) -> StoreResult<()>;
    /// Local parts of the known recipients of exactly this domain, in order, after this one.
    async fn recipients(&self, domain: &Domain, after: &str, limit: usize) -> StoreResult<Vec<String>>;
    /// Adds recipients that principals sent to on a day (days since 1970, UTC); returns the day's sums, in order. Sums older
    /// than the day before are forgotten.
    async fn add_sent(&self, day: i64, sent: Vec<(PrincipalId, u64)>) -> StoreResult<Vec<u64>>;
    /// Counts them.
    async fn queue_counts(&self) -> StoreResult<QueueCounts>;
    /// How much of the queue matches; reads all of it.
    async fn queue_match(&self, filter: &QueueFilter) -> StoreResult<QueueMatch>;
    /// Gives an order to the deferred deliveries that match, mails in the order of their ids, about `limit` of them; go on
    /// after [`Changed::after`]. Fresh deliveries are being tried and are only counted. The audit line is written if
    /// anything changed, with the number before its detail.
    async fn order(
        &self,
        filter: &QueueFilter,
        order: &Order,
        now: Timestamp,
        limit: usize,
        audit: AuditEntry,
    ) -> StoreResult<Changed>;
    /// Nothing is sent to this lane from now on, until it is resumed; replaces an earlier pause.
    async fn pause_lane(&self, paused: Paused, audit: AuditEntry) -> StoreResult<()>;
    /// Ends a pause. `NotFound` if there is none.
    async fn resume_lane(&self, lane: &LaneKey, audit: AuditEntry) -> StoreResult<()>;
    /// All pauses, by lane.
    async fn paused_lanes(&self) -> StoreResult<Vec<Paused>>;
}
