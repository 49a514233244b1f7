//! The trail of mail that is gone: where it came from, and what became of each of its recipients.
//!
//! Each settlement that ends something for a recipient brings a [`Story`]; the store writes the stories of a commit
//! together, into that same commit. So the trail knows exactly what the queue knows: what a crash takes back of one, it
//! takes back of the other, and the delivery that is then repeated tells its own story.

use std::net::SocketAddr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tasuki_proto::names::{Mailbox, ReversePath};

use super::mail::{Attempt, Envelope, LaneKey};
use super::{AuditEntry, StoreResult};
use crate::clock::Timestamp;
use crate::ids::{DeliverySeq, MailId, NodeId, PrincipalId};
use crate::store::queue::{Order, QueueFilter};

/// How a mail came to us. Names are short where they are stored, because each mail carries them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The client's address; `None` for mail of our own.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// The name that the client gave itself, at most 255 bytes.
    #[serde(rename = "h", default, skip_serializing_if = "String::is_empty")]
    pub helo: String,
    /// Version, cipher and key exchange of its connection; `None` for a plain one.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// The name of the principal that handed it in, as it was then.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Whether that one had logged in; else its network or device vouched for it.
    #[serde(rename = "l", default, skip_serializing_if = "std::ops::Not::not")]
    pub login: bool,
    /// The Message-ID field without its angle brackets, at most 250 bytes.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The sender as the client wrote it, where a table changed it.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<Mailbox>,
    /// The mail that this one is a notice of ours about.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub notice_about: Option<MailId>,
}

/// A server that was talked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its name.
    #[serde(rename = "h")]
    pub host: String,
    /// Its address; `None` if there was no connection.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<SocketAddr>,
    /// Version, cipher and key exchange, and whether the certificate was verified; `None` for a plain connection.
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
}

/// How it ended for a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// A mail store took it.
    Delivered,
    /// Another server took it and carries it on.
    Relayed,
    /// It failed for good.
    Bounced,
    /// It was tried until its time was over.
    Expired,
    /// An operator deleted it.
    Deleted,
}

/// What became of some recipients of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fate {
    /// Those recipients, as they went on the wire.
    #[serde(rename = "r")]
    pub recipients: Vec<Mailbox>,
    /// How it ended.
    #[serde(rename = "e")]
    pub end: End,
    /// In the words of the server, where it said any; at most 1,000 bytes.
    #[serde(rename = "w", default, skip_serializing_if = "String::is_empty")]
    pub words: String,
    /// The server.
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
}

/// What a notice of ours tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoticeKind {
    /// It failed.
    Failed,
    /// It is late.
    Delayed,
    /// It went on to a server that sends no notices.
    Relayed,
    /// It was delivered.
    Delivered,
}

/// A notice that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeSent {
    /// The notice's own id.
    #[serde(rename = "i")]
    pub mail: MailId,
    /// To whom.
    #[serde(rename = "o")]
    pub to: Mailbox,
    /// What it tells.
    #[serde(rename = "k")]
    pub kind: NoticeKind,
}

/// One settlement of a delivery, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// The mail.
    #[serde(rename = "i")]
    pub mail: MailId,
    /// Which of its deliveries.
    #[serde(rename = "d")]
    pub delivery: DeliverySeq,
    /// When the mail was taken.
    #[serde(rename = "a")]
    pub accepted_at: Timestamp,
    /// MAIL FROM as it went on.
    #[serde(rename = "f")]
    pub reverse_path: ReversePath,
    /// Who handed it in.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<PrincipalId>,
    /// The body's length.
    #[serde(rename = "z")]
    pub size_bytes: u64,
    /// How it came.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Box<Received>>,
    /// When this was settled.
    #[serde(rename = "t")]
    pub at: Timestamp,
    /// In which attempt.
    #[serde(rename = "n")]
    pub attempt: u32,
    /// Through which lane.
    #[serde(rename = "l")]
    pub lane: LaneKey,
    /// What became of its recipients.
    #[serde(rename = "e")]
    pub fates: Vec<Fate>,
    /// Recipients that an alias exchanged: as the client wrote them, and what they became.
    #[serde(rename = "x", default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<(Mailbox, Mailbox)>,
    /// The notices that it caused.
    #[serde(rename = "o", default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<NoticeSent>,
}

/// A story as the store gives it back, with what the queue knew of the delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldStory {
    /// The story.
    #[serde(rename = "s")]
    pub story: Story,
    /// The attempts that failed for now, of a delivery that had been deferred.
    #[serde(rename = "h", default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Attempt>,
    /// The operator whose order it followed.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    pub ordered_by: Option<String>,
}

/// By what a mail is looked for in the trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Traced {
    /// The id that its sender was told.
    Mail(MailId),
    /// One of its recipients, as written by the client or as on the wire; without regard to case.
    Recipient(Mailbox),
    /// Its Message-ID, with or without angle brackets.
    MessageId(String),
}

impl Traced {
    /// Whether this story is of a mail that is looked for.
    #[must_use]
    pub fn is_told_by(&self, story: &Story) -> bool {
        match self {
            Self::Mail(mail) => story.mail == *mail,
            Self::Recipient(mailbox) => {
                let wanted = folded(mailbox);
                story.mailboxes().any(|mailbox| folded(mailbox) == wanted)
            }
            Self::MessageId(id) => story.message_id() == Some(bare_message_id(id)),
        }
    }

    /// Its fingerprint, as in [`Story::fingerprints`].
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::Mail(mail) => of_mail(*mail),
            Self::Recipient(mailbox) => of_recipient(mailbox),
            Self::MessageId(id) => of_message_id(bare_message_id(id)),
        }
    }
}

/// Four bytes by which a story can be found among many. Two different things may have the same.
pub type Fingerprint = [u8; 4];

impl Story {
    /// Everything that the mail can be looked for by.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        let message_id = self.message_id().map(of_message_id);
        std::iter::once(of_mail(self.mail))
            .chain(message_id)
            .chain(self.mailboxes().map(of_recipient))
    }

    fn mailboxes(&self) -> impl Iterator<Item = &Mailbox> {
        let fates = self.fates.iter().flat_map(|fate| &fate.recipients);
        fates.chain(self.aliases.iter().map(|(written, _)| written))
    }

    fn message_id(&self) -> Option<&str> {
        self.received.as_ref()?.message_id.as_deref()
    }
}

/// A Message-ID without its angle brackets and the space around them.
#[must_use]
pub fn bare_message_id(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix('<').and_then(|text| text.strip_suffix('>'));
    inner.unwrap_or(text)
}

fn folded(mailbox: &Mailbox) -> String {
    mailbox.to_string().to_lowercase()
}

fn of_mail(mail: MailId) -> Fingerprint {
    fingerprint(b'i', &mail.0.to_be_bytes())
}

fn of_recipient(mailbox: &Mailbox) -> Fingerprint {
    fingerprint(b'r', folded(mailbox).as_bytes())
}

fn of_message_id(id: &str) -> Fingerprint {
    fingerprint(b'm', id.as_bytes())
}

/// FNV-1a with 64 bits, folded. It is stored, so it never changes.
fn fingerprint(kind: u8, bytes: &[u8]) -> Fingerprint {
    let hash = std::iter::once(&kind)
        .chain(bytes)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    [a ^ e, b ^ f, c ^ g, d ^ h]
}

impl Envelope {
    /// The Message-ID of the mail, where it is known.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        self.received.as_ref()?.message_id.as_deref()
    }
}

/// What the other gateways of a common store have to hear of: an order reaches the mail that they have in memory only
/// through them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Which mail it is about.
    pub filter: QueueFilter,
    /// What is ordered; `None` means that pauses of lanes have changed.
    pub order: Option<Order>,
    /// Who ordered it.
    pub audit: AuditEntry,
}

/// An announcement as another gateway reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Its number.
    pub id: i64,
    /// When it was made, by the store's clock.
    pub at: Timestamp,
    /// What it says.
    pub announcement: Announcement,
}

/// How many gateways have done what was announced, and how many deliveries that changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Gateways that are alive, beside the one that announced it.
    pub expected: u64,
    /// Those that have answered.
    pub answered: u64,
    /// Deliveries that they changed.
    pub deliveries: u64,
}

/// Verbs for what is gone, and for what gateways tell each other about the queue.
#[async_trait]
pub trait TrailStore: Send + Sync {
    /// The stories of the last `mails` mails that are looked for, all of each, in the order in which they were settled.
    async fn trail(&self, traced: &Traced, mails: usize) -> StoreResult<Vec<ToldStory>>;
    /// Forgets up to `n` batches of stories, the oldest first: those written before `before`, and others while all of the
    /// trail takes more than `max_bytes`. Returns how many; fewer than `n` means that nothing more is to be forgotten.
    async fn prune_trail(&self, before: Timestamp, max_bytes: u64, n: usize) -> StoreResult<usize>;
    /// Tells the other gateways; returns the announcement's number.
    async fn announce(&self, node: NodeId, announcement: &Announcement) -> StoreResult<i64>;
    /// What other gateways announced in the last minute or two, in their order.
    async fn announced(&self, node: NodeId) -> StoreResult<Vec<Announced>>;
    /// This gateway did what was announced.
    async fn answer(&self, announcement: i64, deliveries: u64) -> StoreResult<()>;
    /// Who has answered.
    async fn answers(&self, node: NodeId, announcement: i64) -> StoreResult<Answers>;
}

#[cfg(test)]
mod tests;
