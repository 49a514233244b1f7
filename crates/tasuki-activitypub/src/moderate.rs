//! What an operator orders about moderation, and asks about judgements.

use serde::Serialize;
use tasuki_core::store::fedi::{ModerationEffect, ModerationKind, ModerationRule};
use tasuki_core::store::{AuditEntry, StoreError};
use tasuki_proto::activitypub::blocklist::{self, Listed, Severity};
use tasuki_proto::activitypub::ids::Authority;
use tasuki_proto::activitypub::topic::Topic;

use crate::engine::Inner;
use crate::filters::FilterStatus;
use crate::handle::{Handle, HandleError, SubscriberStatus, asker};
use crate::moderation::subject_of;
use crate::policy::{Verdict, Wish, decide};
use crate::purge::Purge;
use crate::subscribe::Asker;
use crate::trail::{Judged, Line};

/// Judgements shown for one question.
const MAX_SHOWN: usize = 50;

/// What an import of a list of hosts did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockListReport {
    /// Rules that are new.
    pub added: Vec<ModerationRule>,
    /// Hosts with a rule of the same effect already.
    pub known: usize,
    /// Hosts whose present rule is kept, because it is harder or the operator's own.
    pub kept: usize,
    /// Subscribers that are removed by it.
    pub removed_subscribers: Vec<String>,
    /// Lines that cannot be used: number and reason.
    pub skipped: Vec<(usize, String)>,
}

/// What is known about an id, a URL or a host.
#[derive(Clone, Debug, Serialize)]
pub struct Why {
    /// The host's subscription with its deliveries, for a host.
    pub subscriber: Option<SubscriberStatus>,
    /// What it leaves out, if it has a filter.
    pub filter: Option<FilterStatus>,
    /// What else it joined.
    pub further: Vec<SubscriberStatus>,
    /// Why the host may not receive or publish, if so.
    pub verdicts: Vec<String>,
    /// The last judgements, newest first.
    pub judged: Vec<Judged>,
}

impl Handle {
    /// All rules of moderation.
    ///
    /// # Errors
    /// [`HandleError::Store`].
    pub async fn rules(&self) -> Result<Vec<ModerationRule>, HandleError> {
        Ok(self.inner.store.moderation().await?)
    }

    /// Adds a rule, and removes the subscribers that it blocks; says which.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn moderate(
        &self,
        effect: ModerationEffect,
        kind: ModerationKind,
        subject: &str,
        reason: &str,
        (who, from): (&str, &str),
    ) -> Result<Vec<String>, HandleError> {
        let subject = subject_of(effect, kind, subject)?;
        let rule = ModerationRule {
            effect,
            kind,
            subject: subject.clone(),
            reason: reason.chars().take(300).collect(),
            at: self.inner.deps.clock.wall(),
        };
        let detail = format!("{kind:?}: {}", rule.reason).to_lowercase();
        let action = match effect {
            ModerationEffect::OptOut => "fedi.opt_out".to_owned(),
            effect => format!("fedi.{effect:?}").to_lowercase(),
        };
        let audit = self.audit(&action, subject, detail, (who, from));
        let what = match (effect, kind) {
            (ModerationEffect::Block, ModerationKind::Host) | (ModerationEffect::OptOut, _) => {
                Some(Purge::host(&rule.subject)?)
            }
            (ModerationEffect::Block, ModerationKind::Actor) => Some(Purge::actor(&rule.subject)?),
            _ => Purge::silenced(&rule),
        };
        self.inner.store.moderate(vec![rule], Some(audit)).await?;
        let removed = self.inner.enforce(asker(who, from)).await?;
        // What the blocked one, or who opted out, published goes no further, nor what is silenced, from now on and also after
        // the rule is taken back.
        match what {
            Some(what) => drop(self.purge(&what, false, (who, from)).await?),
            None => self.inner.purge_removed(&removed, &asker(who, from)).await?,
        }
        Ok(removed)
    }

    /// Takes a rule back. Hosts that it removed have to subscribe again.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn lift(
        &self,
        kind: ModerationKind,
        subject: &str,
        (who, from): (&str, &str),
    ) -> Result<(), HandleError> {
        let is_filter = matches!(
            kind,
            ModerationKind::Tag | ModerationKind::Keyword | ModerationKind::Regex
        );
        let effect = match kind {
            ModerationKind::OptOut => ModerationEffect::OptOut,
            _ if is_filter => ModerationEffect::Silence,
            _ => ModerationEffect::Block,
        };
        let subject = subject_of(effect, kind, subject)?;
        let detail = format!("{kind:?}").to_lowercase();
        let audit = self.audit("fedi.lift", subject.clone(), detail, (who, from));
        match self.inner.store.unmoderate(kind, &subject, Some(audit)).await {
            Err(StoreError::NotFound(_)) => return Err(HandleError::NoSuchRule(subject)),
            other => other?,
        }
        self.inner.subscribers.refresh().await?;
        Ok(())
    }

    /// Takes over a list of hosts. What an operator decided here stays: a host with a rule keeps it.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn import_blocklist(
        &self,
        text: &str,
        dry_run: bool,
        (who, from): (&str, &str),
    ) -> Result<BlockListReport, HandleError> {
        let (listed, skipped) = blocklist::read(text);
        let known = self.inner.store.moderation().await?;
        let at = self.inner.deps.clock.wall();
        let mut report = BlockListReport {
            skipped: skipped.into_iter().map(|one| (one.line, one.why)).collect(),
            ..BlockListReport::default()
        };
        for Listed {
            host,
            severity,
            comment,
        } in listed
        {
            let effect = match severity {
                Severity::Suspend => ModerationEffect::Block,
                Severity::Silence => ModerationEffect::Limit,
            };
            let is_of_host =
                |rule: &&ModerationRule| rule.kind == ModerationKind::Host && rule.subject == host;
            match known.iter().chain(&report.added).find(is_of_host) {
                Some(rule) if rule.effect == effect => report.known += 1,
                Some(_) => report.kept += 1,
                None => report.added.push(ModerationRule {
                    effect,
                    kind: ModerationKind::Host,
                    subject: host,
                    reason: comment,
                    at,
                }),
            }
        }
        let blocks = |host: &Authority| {
            let blocked = report
                .added
                .iter()
                .filter(|rule| rule.effect == ModerationEffect::Block);
            blocked.into_iter().any(|rule| host.is_within(&rule.subject))
        };
        let table = self.inner.subscribers.table();
        let gone = table.by_host.keys().filter(|host| blocks(host));
        report.removed_subscribers = gone.map(ToString::to_string).collect();
        report.removed_subscribers.sort_unstable();
        if !dry_run && !report.added.is_empty() {
            let what = format!("{} hosts", report.added.len());
            let audit = self.audit("fedi.blocklist", what, String::new(), (who, from));
            self.inner
                .store
                .moderate(report.added.clone(), Some(audit))
                .await?;
            let asker = asker(who, from);
            report.removed_subscribers = self.inner.enforce(asker.clone()).await?;
            self.inner
                .purge_removed(&report.removed_subscribers, &asker)
                .await?;
        }
        Ok(report)
    }

    /// The rules about hosts, in the form in which instances exchange them.
    ///
    /// # Errors
    /// [`HandleError::Store`].
    pub async fn export_blocklist(&self) -> Result<String, HandleError> {
        let rules = self.inner.store.moderation().await?;
        let listed: Vec<Listed> = rules
            .into_iter()
            .filter(|rule| rule.kind == ModerationKind::Host)
            .map(|rule| Listed {
                host: rule.subject,
                severity: match rule.effect {
                    ModerationEffect::Limit => Severity::Silence,
                    _ => Severity::Suspend,
                },
                comment: rule.reason,
            })
            .collect();
        Ok(blocklist::write(&listed))
    }

    /// Why something was relayed, not relayed or refused.
    ///
    /// # Errors
    /// [`HandleError`].
    pub async fn why(&self, about: &str) -> Result<Why, HandleError> {
        let about = about.trim();
        let mut why = Why {
            subscriber: None,
            further: Vec::new(),
            filter: None,
            verdicts: Vec::new(),
            judged: Vec::new(),
        };
        if about.contains("://") {
            why.judged = self.inner.trail.about(about, MAX_SHOWN);
            return Ok(why);
        }
        let host =
            Authority::parse(about).map_err(|_| HandleError::NotAHost(about.chars().take(100).collect()))?;
        why.judged = self.inner.trail.about(host.as_str(), MAX_SHOWN);
        let mut own = self.subscribers().await?;
        own.retain(|one| one.host == host.as_str());
        let mut own = own.into_iter();
        why.subscriber = own.next();
        why.further = own.collect();
        why.filter = self
            .inner
            .subscribers
            .filters()
            .host(&host)
            .map(FilterStatus::from);
        for topic in why.subscriber.iter().chain(&why.further).map(|one| &one.topic) {
            let topic = Topic::parse(topic).unwrap_or(Topic::All);
            if let Err(reason) = self.inner.opens(&topic) {
                why.verdicts
                    .push(format!("gets nothing of what it joined: {reason}"));
            }
        }
        if let Some(rule) = self.inner.subscribers.moderation().opt_out(&host) {
            why.verdicts.push(format!(
                "is not relayed: it opted out ({}: {})",
                rule.subject, rule.reason
            ));
        }
        let software = why.subscriber.as_ref().and_then(|one| one.software.clone());
        let subscribed = self.inner.subscribers.table().is_active(&host);
        let moderation = self.inner.subscribers.moderation();
        for wish in [
            Wish::Subscribe,
            Wish::Publish {
                subscribed,
                principal: None,
            },
        ] {
            let rules = self.inner.rules(&moderation);
            if let Verdict::No(reason) = decide(rules, &host, software.as_deref(), None, wish) {
                let what = if matches!(wish, Wish::Subscribe) {
                    "receive"
                } else {
                    "publish"
                };
                let rule = moderation
                    .host(&host)
                    .or_else(|| moderation.software(software.as_deref()));
                let note = rule.map(|rule| format!(" ({}: {})", rule.subject, rule.reason));
                why.verdicts
                    .push(format!("may not {what}: {reason}{}", note.unwrap_or_default()));
            }
        }
        Ok(why)
    }

    /// What happens with a host, from line `after` on; ask again with the number that is given back.
    ///
    /// # Errors
    /// [`HandleError::NotAHost`].
    pub fn follow(&self, host: &str, after: Option<u64>) -> Result<(Vec<Line>, u64), HandleError> {
        let host = Authority::parse(host.trim())
            .map_err(|_| HandleError::NotAHost(host.chars().take(100).collect()))?;
        let now = self.inner.deps.clock.wall();
        Ok(self.inner.trail.follow(host.as_str(), after, now))
    }

    pub(crate) fn audit(
        &self,
        action: &str,
        object: String,
        detail: String,
        (who, from): (&str, &str),
    ) -> AuditEntry {
        AuditEntry {
            at: self.inner.deps.clock.wall(),
            who: who.to_owned(),
            from: from.to_owned(),
            action: action.to_owned(),
            object,
            detail,
        }
    }
}

impl Inner {
    /// Removes the subscribers that a rule of moderation blocks now, with a Reject to each.
    pub(crate) async fn enforce(&self, asker: Asker) -> Result<Vec<String>, StoreError> {
        self.subscribers.refresh().await?;
        let Some(relay) = self.relay.as_ref() else {
            return Ok(Vec::new());
        };
        let (table, moderation) = (self.subscribers.table(), self.subscribers.moderation());
        let mut removed = Vec::new();
        for subscriber in table.by_host.values() {
            let rules = [
                moderation.host(&subscriber.authority),
                moderation.software(subscriber.software.as_deref()),
            ];
            if rules
                .into_iter()
                .flatten()
                .any(|rule| rule.effect == ModerationEffect::Block)
            {
                self.reject(relay, subscriber, None, asker.clone()).await?;
                removed.push(subscriber.authority.to_string());
            }
        }
        removed.sort_unstable();
        Ok(removed)
    }
}
