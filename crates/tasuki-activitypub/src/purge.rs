//! Taking out of all lanes what waits there: of an account, of a host, or by a pattern.
//!
//! Deletes and Undos stay, and go to everybody who got the post: taking them out would keep alive what should be gone.

use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;
use serde::Serialize;
use tasuki_core::ids::{HostNo, LogSeq};
use tasuki_core::store::fedi::{Entry, EntryKind, HostProgress, ModerationEffect, ModerationRule, Progress};
use tasuki_core::store::{AuditEntry, StoreError};
use tasuki_proto::activitypub::activity::Kind;
use tasuki_proto::activitypub::ids::{ActorId, Authority, ObjectId};
use tasuki_proto::activitypub::words::Words;

use crate::engine::Inner;
use crate::handle::{Handle, HandleError};
use crate::moderation::{Moderation, pattern};
use crate::subscribe::Asker;

/// Entries and bytes read at once.
const READ: usize = 64;
const READ_BYTES: u64 = 4 << 20;
/// Objects named in a report.
const MAX_SHOWN: usize = 20;

/// What is taken out.
#[derive(Clone, Debug)]
pub enum Purge {
    /// What this account did.
    Actor(ActorId),
    /// What comes from this host, or one below it.
    Host(Authority),
    /// Posts whose words, tags, id or author match.
    Matching(Box<Regex>),
    /// What comes from one of these hosts, or from one below them.
    Hosts(Vec<Authority>),
    /// Posts that a rule silences.
    Silenced(Arc<Silencer>),
}

/// A rule about words, ready to be asked.
#[derive(Debug)]
pub struct Silencer {
    subject: String,
    moderation: Moderation,
}

impl Purge {
    /// By a rule about words; `None` if it is about something else.
    pub(crate) fn silenced(rule: &ModerationRule) -> Option<Self> {
        (rule.effect == ModerationEffect::Silence).then(|| {
            Self::Silenced(Arc::new(Silencer {
                subject: rule.subject.clone(),
                moderation: Moderation::compile(vec![rule.clone()]),
            }))
        })
    }

    /// By the id of an account.
    ///
    /// # Errors
    /// [`HandleError::NotARule`].
    pub fn actor(text: &str) -> Result<Self, HandleError> {
        let actor = ActorId::parse(text.trim());
        actor.map(Self::Actor).map_err(|error| {
            HandleError::NotARule(format!(
                "{text:?} is not an account: name it by its id, such as https://example.org/users/name ({error})"
            ))
        })
    }

    /// By a host.
    ///
    /// # Errors
    /// [`HandleError::NotAHost`].
    pub fn host(text: &str) -> Result<Self, HandleError> {
        let host = Authority::parse(text.trim());
        host.map(Self::Host)
            .map_err(|_| HandleError::NotAHost(text.chars().take(100).collect()))
    }

    /// By a regular expression, in any case.
    ///
    /// # Errors
    /// [`HandleError::NotARule`].
    pub fn matching(text: &str) -> Result<Self, HandleError> {
        let pattern = pattern(text).map(Box::new);
        pattern
            .map(Self::Matching)
            .map_err(|error| HandleError::NotARule(format!("{text:?} is not a regular expression: {error}")))
    }

    fn matches(&self, entry: &Entry) -> bool {
        let author = ActorId::parse(&entry.actor).ok();
        match self {
            Self::Actor(actor) => author.is_some_and(|author| author == *actor),
            Self::Host(host) => is_of(std::slice::from_ref(host), entry, author.as_ref()),
            Self::Hosts(hosts) => is_of(hosts, entry, author.as_ref()),
            Self::Silenced(silencer) => {
                words_of(entry).is_some_and(|words| silencer.moderation.silences(&words).is_some())
            }
            Self::Matching(pattern) => {
                let words = words_of(entry);
                pattern.is_match(&entry.object)
                    || pattern.is_match(&entry.actor)
                    || words.is_some_and(|words| {
                        pattern.is_match(&words.text) || words.tags.iter().any(|tag| pattern.is_match(tag))
                    })
            }
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Actor(actor) => format!("actor {actor}"),
            Self::Host(host) => format!("host {host}"),
            Self::Hosts(hosts) => {
                let hosts: Vec<&str> = hosts.iter().take(MAX_SHOWN).map(Authority::as_str).collect();
                format!("hosts {}", hosts.join(", "))
            }
            Self::Matching(pattern) => format!("matching {}", pattern.as_str()),
            Self::Silenced(silencer) => format!("silenced {}", silencer.subject),
        }
    }
}

/// Whether an entry, or what it is about, comes from one of these hosts, or from one below them.
fn is_of(hosts: &[Authority], entry: &Entry, author: Option<&ActorId>) -> bool {
    let object = ObjectId::parse(&entry.object).ok();
    let sources = [
        author.map(ActorId::authority),
        object.as_ref().map(ObjectId::authority),
    ];
    sources.into_iter().flatten().any(|one| {
        hosts
            .iter()
            .any(|host| one == host || one.is_within(host.as_str()))
    })
}

/// What a post says; what is only announced has no words here.
fn words_of(entry: &Entry) -> Option<Words> {
    let document = serde_json::from_slice(&entry.body).ok()?;
    Some(Words::of(&document))
}

/// What was taken out, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PurgeReport {
    /// Activities.
    pub activities: u64,
    /// Deliveries of these that had not happened yet.
    pub deliveries: u64,
    /// What some of them are about.
    pub objects: Vec<String>,
}

impl Handle {
    /// Takes out what waits, or says what would be.
    ///
    /// # Errors
    /// [`HandleError::Store`].
    pub async fn purge(
        &self,
        what: &Purge,
        dry_run: bool,
        (who, from): (&str, &str),
    ) -> Result<PurgeReport, HandleError> {
        let detail = what.in_words();
        let audit = (!dry_run).then(|| self.audit("fedi.purge", detail, String::new(), (who, from)));
        Ok(self.inner.purge(what, audit).await?)
    }
}

impl Inner {
    /// Takes out what waits of subscribers that a rule removed.
    pub(crate) async fn purge_removed(&self, removed: &[String], asker: &Asker) -> Result<(), StoreError> {
        let hosts: Vec<Authority> = removed
            .iter()
            .filter_map(|host| Authority::parse(host).ok())
            .collect();
        if hosts.is_empty() {
            return Ok(());
        }
        let what = Purge::Hosts(hosts);
        let audit = AuditEntry {
            at: self.deps.clock.wall(),
            who: asker.who.clone(),
            from: asker.from.clone(),
            action: "fedi.purge".to_owned(),
            object: what.in_words(),
            detail: String::new(),
        };
        self.purge(&what, Some(audit)).await.map(drop)
    }

    /// Without an audit line it only counts.
    pub(crate) async fn purge(
        &self,
        what: &Purge,
        audit: Option<AuditEntry>,
    ) -> Result<PurgeReport, StoreError> {
        let progress = self.store.progress().await?;
        let mut report = PurgeReport::default();
        let mut places = Vec::new();
        // What everybody has is before this place.
        let mut after = progress
            .behind
            .iter()
            .map(|host| host.up_to)
            .chain(progress.all_up_to)
            .min();
        loop {
            let read = self.store.entries(after, READ, READ_BYTES).await?;
            let Some(last) = read.last() else { break };
            after = Some(last.seq);
            for entry in &read {
                let is_empty = entry.body.is_empty() && entry.announce.is_none();
                let is_relayed = matches!(entry.kind, EntryKind::Activity | EntryKind::Change);
                if !is_relayed || is_empty || !what.matches(entry) || takes_back(entry) {
                    continue;
                }
                let waiting = waiting(entry, &progress);
                if waiting == 0 {
                    continue;
                }
                report.activities += 1;
                report.deliveries += waiting;
                if report.objects.len() < MAX_SHOWN {
                    report.objects.push(entry.object.clone());
                }
                places.push(entry.seq);
            }
        }
        if let Some(mut audit) = audit {
            audit.detail = format!(
                "{} activities, {} deliveries",
                report.activities, report.deliveries
            );
            self.store.purge(&places, Some(audit)).await?;
            self.log.forget(&places);
        }
        Ok(report)
    }
}

/// Whether an entry ends something that was published before. It goes out whatever became of its author.
pub(crate) fn takes_back(entry: &Entry) -> bool {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "type")]
        kind: String,
    }
    let is_undo =
        || serde_json::from_slice::<Typed>(&entry.body).is_ok_and(|typed| typed.kind == Kind::Undo.as_str());
    entry.kind == EntryKind::Delete || (entry.kind == EntryKind::Change && is_undo())
}

/// How many hosts of the audience do not have an entry, as of the last checkpoint.
fn waiting(entry: &Entry, progress: &Progress) -> u64 {
    let behind: HashMap<HostNo, &HostProgress> =
        progress.behind.iter().map(|host| (host.host, host)).collect();
    let common = progress.all_up_to.unwrap_or(LogSeq(0));
    let waits = |number: &u32| match behind.get(&HostNo(*number)) {
        None => entry.seq > common,
        Some(host) => !host.has(entry.seq),
    };
    entry.audience.iter().filter(waits).count() as u64
}
