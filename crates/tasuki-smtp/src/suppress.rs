//! Addresses that a principal's mail does not go to: refused at RCPT, so that the application learns at once and nothing
//! that was accepted is lost. Strangers' mail, mail without a sender and mail to postmasters is never concerned.
//!
//! An entry comes by itself when a server says plainly that there is no such mailbox ([`judge`]), and goes when a server
//! takes mail for it. The list is in the store. In memory there are only its hashes, so that a recipient that is not on it
//! costs no reading; a hash that is found is asked for in the store, whose word decides. So what is taken off the list
//! counts at once, and what another gateway enters counts a second later.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, PoisonError, RwLock},
    time::Duration,
};

use tasuki_core::{
    clock::Timestamp,
    events::What,
    ids::PrincipalId,
    store::{
        AuditEntry, StoreError,
        suppress::{Entered, Subject, Suppressed, SuppressedFilter},
    },
};
use tasuki_proto::{
    names::{Mailbox, ReversePath},
    smtp::Reply,
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use crate::{
    config::Settings,
    context::{Context, Job},
    deliver,
    engine::Handle,
    policy,
    settle::Attempted,
};

pub(crate) mod judge;

/// How often a gateway looks for what others entered.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which what has ended is forgotten.
const PRUNE: u32 = 600;
/// Entries read at once, words written at once, and words that may wait; more are left unheard, for the next refusal says
/// them again.
const PAGE: usize = 10_000;
const BATCH: usize = 256;
const QUEUE: usize = 4096;
/// Addresses that exist, kept until the next look; more are left unheard, for their next mail says it again.
const MAX_FOUND: usize = 4096;
/// How much of a reason is told to a client, in bytes: a reply line has 512.
const TOLD: usize = 120;

/// What a next hop's reply says about an address.
enum Word {
    Gone(Suppressed),
    Exists(Subject),
}

/// See the module.
pub(crate) struct Suppressions {
    known: RwLock<Known>,
    words: mpsc::Sender<Word>,
    waiting: Mutex<Option<mpsc::Receiver<Word>>>,
    hashes: RandomState,
}

#[derive(Default)]
struct Known {
    /// Of (domain, local part) of each entry, of entries that are gone too until all are read again.
    hashes: HashSet<u64>,
    /// The same without those, while all are read again.
    anew: Option<HashSet<u64>>,
    /// The number of the last entry that was read.
    last: i64,
    /// All were read once.
    complete: bool,
}

impl Known {
    fn begin_anew(&mut self) {
        self.anew = Some(HashSet::new());
        (self.last, self.complete) = (0, false);
    }
}

/// What to ask the store before a recipient is taken.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    subject: Subject,
    principal: PrincipalId,
}

impl Default for Suppressions {
    fn default() -> Self {
        let (words, waiting) = mpsc::channel(QUEUE);
        Self {
            known: RwLock::default(),
            words,
            waiting: Mutex::new(Some(waiting)),
            hashes: RandomState::new(),
        }
    }
}

impl Suppressions {
    fn hash(&self, subject: &Subject) -> u64 {
        self.hashes.hash_one((subject.domain(), subject.local()))
    }

    fn is_empty(&self) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.hashes.is_empty()
    }

    fn may_have(&self, subject: &Subject) -> bool {
        let hash = self.hash(subject);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.hashes.contains(&hash)
    }

    fn learn<'a>(&self, subjects: impl IntoIterator<Item = &'a Subject>) {
        let hashes: Vec<u64> = subjects.into_iter().map(|subject| self.hash(subject)).collect();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(anew) = &mut known.anew {
            anew.extend(&hashes);
        }
        known.hashes.extend(hashes);
    }

    /// What is to be asked about a recipient; nothing, for nearly all.
    pub(crate) fn question(
        &self,
        settings: &Settings,
        client: &policy::Client<'_>,
        from: &ReversePath,
        to: &Mailbox,
    ) -> Option<Question> {
        let principal = client.principal?.id;
        if self.is_empty() || !settings.suppression.enforce || from.is_null() {
            return None;
        }
        let subject = Subject::of(to)?;
        let whole = Subject::whole(subject.domain().clone());
        (self.may_have(&subject) || self.may_have(&whole)).then_some(Question { subject, principal })
    }

    /// Hears what an attempt says of its recipients.
    pub(crate) fn hear(&self, settings: &Settings, job: &Job, attempted: &Attempted, now: Timestamp) {
        let held = &job.held;
        let listens = settings.suppression.automatic.covers(held.envelope.class)
            && !held.envelope.reverse_path.is_null()
            && !held.envelope.is_dsn;
        // A smarthost takes mail for anybody.
        let is_theirs = attempted.is_final || held.lane.0.starts_with("mx:");
        let knows_none = self.is_empty();
        for judged in &attempted.results {
            // What an alias put in the place of an address is not what the application wrote to.
            let subject =
                || Subject::of(&judged.recipient.mailbox).filter(|_| judged.recipient.written.is_none());
            let word = match (&judged.result, held.envelope.principal) {
                (Ok(_), _) if is_theirs && !knows_none => subject()
                    .filter(|subject| self.may_have(subject))
                    .map(Word::Exists),
                (Err(failure), Some(principal)) if judged.gone && listens => subject().map(|subject| {
                    Word::Gone(Suppressed {
                        subject,
                        principal: Some(principal),
                        reason: deliver::words(failure),
                        by: None,
                        since: now,
                        until: Some(now.plus(settings.suppression.keep)),
                    })
                }),
                _ => None,
            };
            if let Some(word) = word
                && self.words.try_send(word).is_err()
            {
                tracing::debug!("too many words about addresses at a time, one is left unheard");
            }
        }
    }

    /// The entry that a question is about.
    pub(crate) async fn ask(
        context: &Context,
        question: &Question,
    ) -> Result<Option<Suppressed>, StoreError> {
        let deps = &context.deps;
        let Question { subject, principal } = question;
        deps.store
            .suppression(subject, *principal, deps.clock.wall())
            .await
    }

    /// Reads what is new since the last time; everything, the first time.
    async fn refresh(&self, context: &Context, most: usize) -> Result<(), StoreError> {
        loop {
            let after = {
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                if known.hashes.len() > most.saturating_mul(2) && known.anew.is_none() {
                    known.begin_anew();
                }
                known.last
            };
            let filter = SuppressedFilter {
                after,
                ..SuppressedFilter::default()
            };
            let new = context.deps.store.suppressed(&filter, PAGE).await?;
            self.learn(new.iter().map(|(_, entry)| &entry.subject));
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if let Some((last, _)) = new.last() {
                known.last = *last;
            }
            if new.len() < PAGE {
                known.complete = true;
                if let Some(anew) = known.anew.take() {
                    known.hashes = anew;
                }
                return Ok(());
            }
        }
    }

    /// Forgets the hashes of what is gone.
    fn begin_anew(&self) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.begin_anew();
    }

    fn is_complete(&self) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).complete
    }
}

/// What a client hears of a recipient that is on the list.
pub(crate) fn refusal(entry: &Suppressed) -> Reply {
    let mut end = entry.reason.len().min(TOLD);
    while !entry.reason.is_char_boundary(end) {
        end -= 1;
    }
    let since = entry.since.to_string();
    let day = since.get(..10).unwrap_or(&since);
    let text = format!(
        "suppressed since {day}: {}; the operator ends it by: tasuki mail suppress remove '{}'",
        &entry.reason[..end],
        entry.subject
    );
    Reply::with_text(550, (5, 1, 1), text)
}

/// The task that keeps the list: writes what is heard, reads what others wrote, forgets what has ended.
pub(crate) async fn keeper(context: std::sync::Arc<Context>) {
    let list = &context.suppressions;
    let taken = list.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(mut words) = taken else { return };
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0_u32;
    let (mut batch, mut found) = (Vec::with_capacity(BATCH), HashSet::new());
    loop {
        tokio::select! {
            n = words.recv_many(&mut batch, BATCH) => {
                if n == 0 {
                    return;
                }
                hear_all(&context, &mut batch, &mut found).await;
            }
            _ = looks.tick() => {
                write_found(&context, &mut found).await;
                count = count.wrapping_add(1);
                look(&context, count.is_multiple_of(PRUNE)).await;
            }
            () = context.closing.cancelled() => break,
        }
    }
    while let Ok(word) = words.try_recv() {
        batch.push(word);
    }
    hear_all(&context, &mut batch, &mut found).await;
    write_found(&context, &mut found).await;
}

async fn look(context: &Context, prune: bool) {
    let (list, store) = (&context.suppressions, &context.deps.store);
    if prune {
        match store.prune_suppressed(context.deps.clock.wall()).await {
            // Hashes of what is gone cost a reading each time.
            Ok(_) => list.begin_anew(),
            Err(error) => {
                tracing::warn!(%error, "suppressed addresses whose time is over cannot be forgotten yet");
            }
        }
    }
    if list.is_complete() && !store.is_shared() {
        return;
    }
    let most = context.settings.load().suppression.max_entries;
    if let Err(error) = list.refresh(context, most).await {
        tracing::debug!(%error, "suppressed addresses cannot be read now");
    }
}

/// Enters at once what is gone; what exists is kept for [`write_found`]: each mail to an address that an operator entered
/// for others says so, and a transaction for each would be too dear. Of an address the last word counts.
async fn hear_all(context: &Context, batch: &mut Vec<Word>, found: &mut HashSet<Subject>) {
    let mut gone = Vec::new();
    for word in batch.drain(..) {
        match word {
            Word::Gone(entry) => {
                found.remove(&entry.subject);
                gone.push(entry);
            }
            Word::Exists(subject) if found.len() < MAX_FOUND => {
                found.insert(subject);
            }
            Word::Exists(_) => {}
        }
    }
    if !gone.is_empty() {
        enter(context, gone).await;
    }
}

async fn write_found(context: &Context, found: &mut HashSet<Subject>) {
    if found.is_empty() {
        return;
    }
    match context.deps.store.unsuppress(found.drain().collect()).await {
        Ok(0) => {}
        Ok(entries) => tracing::info!(entries, "addresses that take mail are suppressed no longer"),
        Err(error) => tracing::warn!(%error, "addresses that take mail stay suppressed for now"),
    }
}

async fn enter(context: &Context, gone: Vec<Suppressed>) {
    let most = context.settings.load().suppression.max_entries;
    let entered = match context.deps.store.suppress(gone.clone(), most).await {
        Ok(entered) => entered,
        Err(error) => {
            return tracing::warn!(%error, addresses = gone.len(), "addresses without a mailbox cannot be suppressed now");
        }
    };
    let mut no_room = 0;
    for (entry, entered) in gone.into_iter().zip(entered) {
        match entered {
            Entered::NoRoom => no_room += 1,
            Entered::Known => context.suppressions.learn([&entry.subject]),
            Entered::New => {
                context.suppressions.learn([&entry.subject]);
                context.metrics.suppressed.inc();
                let (address, reason) = (entry.subject.to_string(), entry.reason);
                let principal = entry.principal;
                context.deps.events.emit(What::AddressSuppressed {
                    address,
                    principal,
                    reason,
                });
            }
        }
    }
    if no_room > 0 {
        tracing::warn!(
            addresses = no_room,
            "the list of suppressed addresses is full (mail.suppression.max_entries)"
        );
    }
}

impl Handle {
    /// An operator's changes of the list; they count here when this returns, elsewhere a second later. Returns how many
    /// entries were added and removed.
    ///
    /// # Errors
    /// The store's; `Conflict` if the list has no room.
    pub async fn change_suppressed(
        &self,
        add: Vec<Suppressed>,
        remove: Vec<(Subject, Option<PrincipalId>)>,
        audit: AuditEntry,
    ) -> Result<(usize, usize), StoreError> {
        let context = &self.context;
        let most = context.settings.load().suppression.max_entries;
        let subjects: Vec<Subject> = add.iter().map(|entry| entry.subject.clone()).collect();
        let changed = context
            .deps
            .store
            .change_suppressed(add, remove, most, audit)
            .await?;
        context.suppressions.learn(&subjects);
        Ok(changed)
    }
}
