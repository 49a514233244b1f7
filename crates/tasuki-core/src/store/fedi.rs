//! The fediverse: subscriptions, the log of activities with their audience, progress of hosts, known keys.
//!
//! Everything that goes out is a log entry with an audience, also an Accept for one host: so the lanes have one
//! mechanism for order, retries and restart.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{AuditEntry, Sharing, StoreResult};
use crate::clock::Timestamp;
use crate::ids::{Epoch, HostNo, LogSeq, NodeId};

/// How a host subscribed, which decides what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionStyle {
    /// Follow of the Public collection: Mastodon, Misskey and forks.
    Mastodon,
    /// Follow of the relay actor, with a follow back: Pleroma, Akkoma.
    LitePub,
}

/// Where a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionState {
    /// Waits for the operator.
    Pending,
    /// Receives and may publish.
    Active,
}

/// The form in which a host is sent other people's activities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryForm {
    /// The received bytes, believed by the Linked Data signature in them.
    Forward,
    /// An Announce of the object, which the host fetches.
    Announce,
}

impl DeliveryForm {
    /// Its name, as in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Announce => "announce",
        }
    }
}

/// How a host wants requests signed, where its answers taught something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearntSignature {
    /// One signature for each request: it refused one that serves several hosts.
    Full,
    /// By RFC 9421: it refused the older draft.
    Message,
}

/// What a rule of moderation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModerationEffect {
    /// Neither receives nor publishes.
    Block,
    /// Receives, and may not publish.
    Limit,
    /// What matches is not relayed.
    Silence,
    /// Is not relayed, by its own wish.
    OptOut,
}

/// What a rule of moderation looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModerationKind {
    /// A host and all below it.
    Host,
    /// One account, by the id of its actor.
    Actor,
    /// The software that a host runs, by its name in NodeInfo.
    Software,
    /// A hashtag, without `#`.
    Tag,
    /// Words in a post, in any case.
    Keyword,
    /// A regular expression over the words of a post.
    Regex,
    /// A domain and all below it that does not want to be relayed, subscribed or not.
    OptOut,
}

/// A rule of moderation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModerationRule {
    /// What it does.
    pub effect: ModerationEffect,
    /// What it looks at.
    pub kind: ModerationKind,
    /// Which; one rule for each of a kind.
    pub subject: String,
    /// Why, for the operator.
    pub reason: String,
    /// Since when.
    pub at: Timestamp,
}

/// What the emergency brake does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrakeMode {
    /// Activities are taken and wait; nothing is sent.
    Hold,
    /// Activities are put off to their senders, and nothing is sent.
    Refuse,
}

/// The emergency brake, pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brake {
    /// What it does.
    pub mode: BrakeMode,
    /// Why, for the operator.
    pub reason: String,
    /// Since when.
    pub at: Timestamp,
}

/// What the operator ordered for the whole relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// The brake, if it is pulled.
    pub brake: Option<Brake>,
    /// How often waiting entries were taken out: copies in memory from before are stale.
    pub purges: u64,
    /// How many dead hosts were removed on which day.
    pub pruned: Pruned,
    /// For how long what waits did not grow old, because the fault was ours.
    pub standstill: Standstill,
}

/// Time in which what waits did not grow old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standstill {
    /// Since when our fault lasts, if it does.
    pub since: Option<Timestamp>,
    /// How long it lasted before, in milliseconds.
    pub span_ms: u64,
    /// Until when that counts: all that waited then is gone by then.
    pub until: Option<Timestamp>,
}

/// Dead hosts removed on one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// The day, counted from 1970 (UTC).
    pub day: i64,
    /// How many.
    pub hosts: u32,
}

/// Where a host stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLife {
    /// The host.
    pub host: HostNo,
    /// Since when nothing reaches it.
    pub failing_since: Option<Timestamp>,
    /// Since when it gets nothing new because of that.
    pub suspended_at: Option<Timestamp>,
}

/// A subscriber of another relay program, to be taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForeignSubscriber {
    /// The actor that followed.
    pub actor: String,
    /// Where it takes deliveries.
    pub inbox: String,
    /// How it subscribed, if that is known.
    #[serde(default)]
    pub style: Option<SubscriptionStyle>,
    /// The Follow's id, if that is known.
    #[serde(default)]
    pub follow_id: Option<String>,
    /// It waited for the operator.
    #[serde(default)]
    pub is_pending: bool,
}

/// What another relay program knew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForeignRelay {
    /// Its private key in PEM, PKCS#8 or PKCS#1.
    #[serde(default)]
    pub key_pem: Option<String>,
    /// Its subscribers.
    #[serde(default)]
    pub subscribers: Vec<ForeignSubscriber>,
    /// Whom it blocked and limited: effect, kind, subject, reason.
    #[serde(default)]
    pub rules: Vec<(ModerationEffect, ModerationKind, String, String)>,
}

/// What was found out about a subscribed host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Where its actor takes deliveries now, if that was asked.
    pub inbox: Option<String>,
    /// Software and version from its NodeInfo, if it answered. Another one than before makes forget what was learnt.
    pub software: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// A subscription of a host to one of the relay's actors. What is known of the host itself is the same in all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Lower-case punycode authority (with a non-default port).
    pub host: String,
    /// Which actor: a topic by its name, or nothing for the whole relay.
    pub topic: String,
    /// Its bit in audiences; never used again for another host.
    pub host_no: HostNo,
    /// The actor that followed.
    pub actor: String,
    /// Where it takes deliveries.
    pub inbox: String,
    /// How it subscribed.
    pub style: SubscriptionStyle,
    /// Where it stands.
    pub state: SubscriptionState,
    /// The id of the last Follow. A bearer secret: never shown.
    #[serde(skip_serializing)]
    pub follow_id: String,
    /// Software and version from its NodeInfo, if read.
    pub software: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// The form that the operator chose.
    pub chosen_form: Option<DeliveryForm>,
    /// Why it is sent Announces, if it refused a forward: what it answered, at most 300 bytes.
    pub refused_forward: Option<String>,
    /// How it wants requests signed, if it refused the usual way.
    pub learnt_signature: Option<LearntSignature>,
    /// What it answered then, at most 300 bytes.
    pub signature_answer: Option<String>,
    /// When its facts were last asked for.
    pub looked_at: Option<Timestamp>,
    /// Since when nothing reaches it, if so.
    pub failing_since: Option<Timestamp>,
    /// Since when it gets nothing new because of that.
    pub suspended_at: Option<Timestamp>,
}

/// A host that subscribes. Again from the same host to the same topic replaces actor, inbox, style and follow id.
#[derive(Clone, Debug)]
pub struct NewSubscription {
    /// Authority.
    pub host: String,
    /// To which of the relay's actors: a topic by its name, or nothing for the whole relay.
    pub topic: String,
    /// The actor that followed.
    pub actor: String,
    /// Where it takes deliveries.
    pub inbox: String,
    /// How it subscribed.
    pub style: SubscriptionStyle,
    /// Where it stands.
    pub state: SubscriptionState,
    /// The Follow's id.
    pub follow_id: String,
    /// Software and version.
    pub software: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// What a log entry is; decides how it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// The received bytes go out unchanged to hosts that take forwards; `announce` goes to the others, if there is one.
    Activity,
    /// Like `Activity`, about something that was published before: an edit, a boost, a move. It does not overtake.
    Change,
    /// Like `Activity`; also blanks what waits of the same object.
    Delete,
    /// A document of the relay itself for single hosts: Accept, Reject, Follow.
    Control,
}

/// Which hosts get an entry from a topic's actor: the topic's name, and hosts. All others get it from the whole relay's.
pub type Via = Vec<(String, RoaringBitmap)>;

/// A list of the operator's, with an actor of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicList {
    /// Its name, as in `/list/NAME`.
    pub name: String,
    /// What it is, for people.
    pub title: String,
    /// Hashtags, without `#`.
    pub tags: Vec<String>,
    /// Hosts.
    pub instances: Vec<String>,
    /// Languages.
    pub languages: Vec<String>,
}

/// What a host leaves out of what it is sent; the default leaves nothing out. Deletes always go out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostFilter {
    /// Only posts in these languages; `und` are those that do not say theirs. Empty for all.
    pub languages: Vec<String>,
    /// Only posts with one of these hashtags. Empty for all.
    pub tags_in: Vec<String>,
    /// No posts with one of these hashtags.
    pub tags_out: Vec<String>,
    /// No posts of bots.
    pub no_bots: bool,
    /// No answers to other posts.
    pub no_replies: bool,
    /// Only posts with pictures, sound or film.
    pub media_only: bool,
    /// No posts that are marked as sensitive.
    pub no_sensitive: bool,
    /// At most so many posts a minute; 0 for no limit.
    pub per_minute: u32,
}

/// Who set a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterBy {
    /// The relay's operator: the instance does not change it.
    Operator,
    /// The instance, which proved itself.
    Instance,
}

/// A host's filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFilter {
    /// Authority.
    pub host: String,
    /// What it leaves out.
    pub filter: HostFilter,
    /// Who set it.
    pub by: FilterBy,
    /// When.
    pub at: Timestamp,
}

/// An entry to append.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// What it is.
    pub kind: EntryKind,
    /// The object the activity is about; entries of one object keep their order in a lane. At most 2,048 bytes.
    pub object: String,
    /// Who did it; empty for the relay's own documents.
    pub actor: String,
    /// Equal keys are one entry: object, type and update time. Kept for the retention time at least.
    pub dedupe: String,
    /// The bytes to forward, exactly as received; empty if nothing is forwarded.
    pub body: Bytes,
    /// The relay's own Announce for hosts that take no forward.
    pub announce: Option<Bytes>,
    /// The hosts that get it.
    pub audience: RoaringBitmap,
    /// Of these, the hosts that get `announce` in place of `body`.
    pub announce_to: RoaringBitmap,
    /// Of these, the hosts that get it from a topic's actor. In a control entry for one host the topic alone counts.
    pub via: Via,
    /// Hosts that get it if they got the object before, from the actor from which they had it. A Delete goes to all who got
    /// the object, whatever is here.
    pub if_known: RoaringBitmap,
    /// When it was accepted.
    pub at: Timestamp,
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Stored at this place; committed.
    Stored(LogSeq),
    /// The same was stored before.
    Duplicate,
    /// Nobody gets it: only the key is noted.
    Nobody,
}

/// A stored entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its place.
    pub seq: LogSeq,
    /// What it is.
    pub kind: EntryKind,
    /// The object.
    pub object: String,
    /// Who did it; empty for the relay's own documents.
    pub actor: String,
    /// The bytes to forward; empty if blanked by a Delete.
    pub body: Bytes,
    /// The relay's Announce; `None` also if blanked.
    pub announce: Option<Bytes>,
    /// The hosts that get it.
    pub audience: RoaringBitmap,
    /// Of these, the ones that get the Announce.
    pub announce_to: RoaringBitmap,
    /// Of these, the ones that get it from a topic's actor.
    pub via: Via,
    /// When it was accepted.
    pub at: Timestamp,
}

/// How far one host is, if it is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProgress {
    /// The host.
    pub host: HostNo,
    /// It has everything up to here.
    pub up_to: LogSeq,
    /// Spans of entries after `up_to` that it has already (several are in flight, and new ones overtake a backlog): first and
    /// last; what lies between and is for this host, it has.
    pub also: Vec<(LogSeq, LogSeq)>,
    /// Entries set aside after repeated failures, with the number of attempts.
    pub parked: Vec<(LogSeq, u32)>,
    /// Failures in a row of the host itself.
    pub failures: u32,
    /// When the host is tried next, if it failed.
    pub next_try: Option<Timestamp>,
    /// The last failure, at most 500 bytes.
    pub last_error: Option<String>,
}

impl HostProgress {
    /// Whether the host has an entry that is for it. Parked entries count as had.
    pub fn has(&self, seq: LogSeq) -> bool {
        seq <= self.up_to
            || self
                .also
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&seq))
    }
}

/// All hosts' progress.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Every host without a row in `behind` has everything up to here.
    pub all_up_to: Option<LogSeq>,
    /// The hosts that are behind.
    pub behind: Vec<HostProgress>,
    /// The newest entry of the log.
    pub newest: Option<LogSeq>,
}

/// What a cut of the log took away.
#[derive(Clone, Debug, Default)]
pub struct CutReport {
    /// Entries removed.
    pub removed: u64,
    /// Entries that a host lost by it.
    pub lost: Vec<(HostNo, u64)>,
}

/// A remembered key of an actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActorKey {
    /// The key's id as in signatures.
    pub key_id: String,
    /// The actor that owns it.
    pub owner: String,
    /// SPKI or PKCS#1 PEM.
    pub pem: String,
    /// The actor's inbox (shared if it has one).
    pub inbox: Option<String>,
    /// When it was fetched.
    pub fetched_at: Timestamp,
}

/// Verbs for the fediverse engine.
#[async_trait]
pub trait FediStore: Sharing {
    /// Stores a subscription and, in the same transaction, appends the relay's answers to it (their audience is this
    /// host, which the store fills in).
    async fn subscribe(
        &self,
        new: NewSubscription,
        answers: Vec<NewEntry>,
        audit: Option<AuditEntry>,
    ) -> StoreResult<Subscription>;
    /// Removes a host's subscription to a topic; `farewell` (a Reject) still goes to it. `NotFound` if there is none.
    async fn unsubscribe(
        &self,
        host: &str,
        topic: &str,
        farewell: Option<NewEntry>,
        audit: Option<AuditEntry>,
    ) -> StoreResult<Subscription>;
    /// All subscriptions, by host, and of each host in the order in which it joined.
    async fn subscriptions(&self) -> StoreResult<Vec<Subscription>>;
    /// Notes what was found out about a subscribed host. A moved inbox counts from then on for what waits, too.
    async fn note_facts(&self, host: &str, facts: HostFacts) -> StoreResult<()>;
    /// The operator's choice of the form for a host; `None` leaves it to the gateway, and forgets what was learnt.
    /// `NotFound` if it is not subscribed.
    async fn choose_form(
        &self,
        host: &str,
        form: Option<DeliveryForm>,
        audit: Option<AuditEntry>,
    ) -> StoreResult<()>;
    /// A host refused a forward, with these words: it is sent Announces from now on.
    async fn note_refused_forward(&self, host: HostNo, answer: &str) -> StoreResult<()>;
    /// How a host wants requests signed, learnt from this answer to a request that was signed in another way; `None` forgets
    /// it.
    async fn note_signature(
        &self,
        host: HostNo,
        learnt: Option<LearntSignature>,
        answer: &str,
    ) -> StoreResult<()>;
    /// All rules of moderation, by kind and subject.
    async fn moderation(&self) -> StoreResult<Vec<ModerationRule>>;
    /// Adds rules, in place of those of the same kind and subject.
    async fn moderate(&self, rules: Vec<ModerationRule>, audit: Option<AuditEntry>) -> StoreResult<()>;
    /// Takes a rule back. `NotFound` if there is none.
    async fn unmoderate(
        &self,
        kind: ModerationKind,
        subject: &str,
        audit: Option<AuditEntry>,
    ) -> StoreResult<()>;
    /// All filters, by host.
    async fn filters(&self) -> StoreResult<Vec<KeptFilter>>;
    /// Sets a host's filter in place of the one before, or takes it away (`NotFound` if there is none).
    async fn set_filter(
        &self,
        host: &str,
        filter: Option<KeptFilter>,
        audit: Option<AuditEntry>,
    ) -> StoreResult<()>;
    /// The operator's lists, by name.
    async fn topic_lists(&self) -> StoreResult<Vec<TopicList>>;
    /// Makes a list, or changes the one of that name.
    async fn put_topic_list(&self, list: TopicList, audit: Option<AuditEntry>) -> StoreResult<()>;
    /// Removes a list. `NotFound` if there is none.
    async fn remove_topic_list(&self, name: &str, audit: Option<AuditEntry>) -> StoreResult<()>;
    /// What the operator ordered for the whole relay.
    async fn orders(&self) -> StoreResult<Orders>;
    /// Pulls or releases the brake.
    async fn set_brake(&self, brake: Option<Brake>, audit: Option<AuditEntry>) -> StoreResult<()>;
    /// Empties the entries of these places that wait, as a Delete does: nobody gets them any more. Deletes and the relay's
    /// own documents stay. Says how many were emptied.
    async fn purge(&self, places: &[LogSeq], audit: Option<AuditEntry>) -> StoreResult<u64>;
    /// Notes where hosts stand in their lives, in one transaction.
    async fn note_lives(&self, lives: Vec<HostLife>) -> StoreResult<()>;
    /// Notes how many dead hosts were removed on a day.
    async fn note_pruned(&self, pruned: Pruned) -> StoreResult<()>;
    /// Notes for how long what waits did not grow old.
    async fn note_standstill(&self, standstill: Standstill) -> StoreResult<()>;
    /// The number of a host, made if new, with its inbox for control entries (a host that is refused gets one too).
    async fn host_no(&self, host: &str, inbox: &str) -> StoreResult<HostNo>;
    /// Authority and inbox of every numbered host, subscribed or not.
    async fn hosts(&self) -> StoreResult<Vec<(HostNo, String, String)>>;
    /// A number that grows with every change of subscriptions or hosts, by any gateway; cheap to read.
    async fn subscriptions_version(&self) -> StoreResult<i64>;
    /// Raises that number: something else changed that gateways keep in memory.
    async fn announce_change(&self) -> StoreResult<()>;
    /// Changes after each commit of this gateway that may have raised the version; those of other gateways are found by
    /// asking for it.
    fn subscription_news(&self) -> watch::Receiver<()>;
    /// Changes after each commit of this gateway that may have appended to the log; what other gateways append is found by
    /// reading on.
    fn log_news(&self) -> watch::Receiver<()>;
    /// Appends an entry; returns after the commit. A [`EntryKind::Delete`] blanks what waits of its object, and its
    /// audience becomes the union of `audience` and all hosts that got the object in the last 30 days.
    async fn append(&self, entry: NewEntry) -> StoreResult<Appended>;
    /// Entries after `after`, oldest first: at most `n`, and no more than `max_bytes` of bodies (at least one entry).
    async fn entries(&self, after: Option<LogSeq>, n: usize, max_bytes: u64) -> StoreResult<Vec<Entry>>;
    /// The entries of these places that still exist.
    async fn entries_at(&self, places: &[LogSeq]) -> StoreResult<Vec<Entry>>;
    /// All hosts' progress.
    async fn progress(&self) -> StoreResult<Progress>;
    /// Stores progress in one transaction: `all_up_to`, the changed rows of `behind`, and the hosts that caught up.
    /// Call it at most once a second. `StaleEpoch` if this node does not own the fan-out.
    async fn checkpoint(
        &self,
        node: NodeId,
        epoch: Epoch,
        all_up_to: Option<LogSeq>,
        behind: &[HostProgress],
        caught_up: &[HostNo],
    ) -> StoreResult<()>;
    /// Owns (or goes on owning) the fan-out for `hold`; one gateway of a store sends at a time. `None` if another does.
    async fn claim_fanout(&self, node: NodeId, hold: Duration) -> StoreResult<Option<Epoch>>;
    /// Gives the fan-out back.
    async fn release_fanout(&self, node: NodeId, epoch: Epoch) -> StoreResult<()>;
    /// Removes entries that every host has, that are older than `before`, or that exceed `max_bytes` of bodies
    /// (oldest first); says what hosts lost by it.
    async fn cut(&self, before: Timestamp, max_bytes: u64) -> StoreResult<CutReport>;
    /// Remembers keys; rides in a later commit.
    async fn remember_key(&self, key: ActorKey) -> StoreResult<()>;
    /// A remembered key.
    async fn key(&self, key_id: &str) -> StoreResult<Option<ActorKey>>;
}
