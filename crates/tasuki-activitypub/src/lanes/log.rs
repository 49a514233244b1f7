//! The newest entries of the log in memory, each once for all hosts, with its digest.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tasuki_core::ids::LogSeq;
use tasuki_core::store::fedi::{Entry, EntryKind};
use tasuki_core::store::{FediStore, StoreError};
use tasuki_proto::activitypub::activity::Activity;
use tasuki_proto::activitypub::cavage;
use tasuki_proto::activitypub::documents::Relay;
use tasuki_proto::activitypub::json::Limits;
use tasuki_proto::activitypub::topic::Topic;

use super::shared::Shared;
use crate::time::system_time;
use crate::unique;

/// Bytes of bodies kept; older ones are read again from the store when a slow host needs them.
const MAX_BYTES: usize = 32 << 20;

/// A body with the value of its `Digest` header.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    pub(crate) body: Bytes,
    pub(crate) digest: Arc<str>,
    /// The signatures over it that serve several hosts.
    pub(super) shared: Arc<Shared>,
}

impl Payload {
    fn of(body: &Bytes) -> Option<Self> {
        (!body.is_empty()).then(|| Self {
            body: body.clone(),
            digest: cavage::digest_header(body).into(),
            shared: Arc::default(),
        })
    }
}

/// What a body is, as far as it decides how it may be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    /// A public activity by somebody else, or the relay's Announce of a public post: one signature may serve several hosts.
    Public,
    /// For this host alone: Follow, Accept, Reject, Undo, and whatever is not surely public.
    Personal,
    /// The relay's Update of its own actor, with a new key.
    KeyNews,
}

/// An entry ready to be sent to any host.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) entry: Entry,
    forward: Option<Payload>,
    announce: Option<Payload>,
    /// What the body is, read when somebody asks.
    letter: OnceLock<Letter>,
    /// The Announce by topics' actors, each made when the first host needs it.
    by_topics: Mutex<HashMap<Topic, Payload>>,
}

impl Ready {
    fn of(entry: Entry) -> Self {
        Self {
            forward: Payload::of(&entry.body),
            announce: entry.announce.as_ref().and_then(Payload::of),
            letter: OnceLock::new(),
            by_topics: Mutex::default(),
            entry,
        }
    }

    /// Whose actor sends it to a host.
    pub(crate) fn topic_for(&self, host: u32) -> Topic {
        let via = self.entry.via.iter().find(|(_, hosts)| hosts.contains(host));
        via.and_then(|(topic, _)| Topic::parse(topic).ok())
            .unwrap_or(Topic::All)
    }

    /// What a host gets, written by `relay` where the relay writes; `None` when a Delete blanked it, or the host takes
    /// announces and there is none.
    pub(crate) fn payload_for(&self, host: u32, relay: &Relay) -> Option<Payload> {
        if self.entry.announce_to.contains(host) {
            self.announce_by(relay)
        } else {
            self.forward.clone()
        }
    }

    /// Whether a host gets somebody else's bytes by it.
    pub(crate) fn is_forward_for(&self, host: u32) -> bool {
        self.entry.kind != EntryKind::Control && !self.entry.announce_to.contains(host)
    }

    /// What it is, for the signature.
    pub(crate) fn letter(&self, is_forward: bool) -> Letter {
        match self.entry.kind {
            EntryKind::Control => *self
                .letter
                .get_or_init(|| match has_type(&self.entry.body, "Update") {
                    true => Letter::KeyNews,
                    false => Letter::Personal,
                }),
            _ if !is_forward => Letter::Public,
            _ => *self.letter.get_or_init(|| {
                let limits = Limits {
                    bytes: self.entry.body.len(),
                    ..Limits::default()
                };
                match Activity::read(&self.entry.body, &limits) {
                    Ok(activity) if activity.may_share_signature() => Letter::Public,
                    _ => Letter::Personal,
                }
            }),
        }
    }

    /// The Announce by one of the relay's actors: the same at each attempt.
    fn announce_by(&self, relay: &Relay) -> Option<Payload> {
        let announce = self.announce.as_ref()?;
        if *relay.topic() == Topic::All {
            return Some(announce.clone());
        }
        let mut made = self.by_topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(relay.topic()) {
            return Some(known.clone());
        }
        let written = serde_json::from_slice(&announce.body).ok()?;
        let payload = Payload::of(&Bytes::from(relay.announce_as(&written)?.to_string()))?;
        made.insert(relay.topic().clone(), payload.clone());
        Some(payload)
    }

    /// The Announce in place of the forward, made now if nobody needed one when the entry was accepted; `None` for what cannot
    /// be announced.
    pub(crate) fn announced(&self, relay: &Relay) -> Option<Payload> {
        if self.announce.is_some() || !matches!(self.entry.kind, EntryKind::Activity | EntryKind::Change) {
            return self.announce_by(relay);
        }
        if !has_type(&self.entry.body, "Create") {
            return None;
        }
        let document = relay.announce(&unique(), &self.entry.object, system_time(self.entry.at));
        Payload::of(&Bytes::from(document.to_string()))
    }

    fn size_bytes(&self) -> usize {
        // The bitmaps and the bookkeeping weigh something too, and so does an Announce of each topic.
        1024 * (1 + self.entry.via.len())
            + self.entry.body.len()
            + self.entry.announce.as_ref().map_or(0, Bytes::len)
    }
}

fn has_type(body: &[u8], wanted: &str) -> bool {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    document.get("type").and_then(serde_json::Value::as_str) == Some(wanted)
}

#[derive(Default)]
struct Window {
    entries: HashMap<LogSeq, Arc<Ready>>,
    order: VecDeque<LogSeq>,
    bytes: usize,
}

/// Reads the log through a window of what is newest.
pub(crate) struct Log {
    store: Arc<dyn FediStore>,
    window: Mutex<Window>,
}

impl Log {
    pub(crate) fn new(store: Arc<dyn FediStore>) -> Self {
        Self {
            store,
            window: Mutex::default(),
        }
    }

    /// The entries after `after`, into the window.
    pub(crate) async fn read_on(
        &self,
        after: Option<LogSeq>,
        n: usize,
        max_bytes: u64,
    ) -> Result<Vec<Arc<Ready>>, StoreError> {
        let entries = self.store.entries(after, n, max_bytes).await?;
        let ready: Vec<Arc<Ready>> = entries
            .into_iter()
            .map(|entry| Arc::new(Ready::of(entry)))
            .collect();
        let mut window = self.lock();
        for one in &ready {
            if one.entry.kind == EntryKind::Delete {
                window.forget_object(&one.entry.object, one.entry.seq);
            }
            window.insert(Arc::clone(one));
        }
        Ok(ready)
    }

    /// The entries after `after`, past the window: for a host that is far behind.
    pub(crate) async fn peek(
        &self,
        after: Option<LogSeq>,
        n: usize,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, StoreError> {
        self.store.entries(after, n, max_bytes).await
    }

    /// One entry; `None` when it was cut.
    pub(crate) async fn entry(&self, seq: LogSeq) -> Result<Option<Arc<Ready>>, StoreError> {
        if let Some(known) = self.lock().entries.get(&seq) {
            return Ok(Some(Arc::clone(known)));
        }
        let found = self.store.entries_at(&[seq]).await?;
        let Some(entry) = found.into_iter().next() else {
            return Ok(None);
        };
        let ready = Arc::new(Ready::of(entry));
        self.lock().insert(Arc::clone(&ready));
        Ok(Some(ready))
    }

    /// An operator took these out: copies from before must not be sent.
    pub(crate) fn forget(&self, places: &[LogSeq]) {
        let mut window = self.lock();
        places.iter().for_each(|place| window.remove(*place));
    }

    /// Another gateway took something out.
    pub(crate) fn forget_all(&self) {
        *self.lock() = Window::default();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn insert(&mut self, ready: Arc<Ready>) {
        let seq = ready.entry.seq;
        if self.entries.contains_key(&seq) {
            return;
        }
        self.bytes += ready.size_bytes();
        self.entries.insert(seq, ready);
        self.order.push_back(seq);
        while self.bytes > MAX_BYTES {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, seq: LogSeq) {
        if let Some(gone) = self.entries.remove(&seq) {
            self.bytes -= gone.size_bytes();
        }
    }

    /// The store blanked what waits of a deleted object: copies from before must not be sent.
    fn forget_object(&mut self, object: &str, before: LogSeq) {
        let stale: Vec<LogSeq> = self
            .entries
            .values()
            .filter(|ready| ready.entry.seq < before && ready.entry.object == object)
            .map(|ready| ready.entry.seq)
            .collect();
        for seq in stale {
            self.remove(seq);
        }
    }
}
