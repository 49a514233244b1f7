//! Taking over another relay: its key, its subscribers, its blocks. Under the same name nobody has to do anything: actor id,
//! inbox, key id and key stay as they are.

use serde::Serialize;
use tasuki_core::store::fedi::{
    ForeignRelay, ForeignSubscriber, ModerationRule, NewSubscription, SubscriptionState, SubscriptionStyle,
};
use tasuki_proto::activitypub::ids::{ActorId, InboxUrl};

use crate::handle::{Handle, HandleError};
use crate::moderation::subject_of;
use crate::signer::{RELAY_KEY, Signer, read_private_pem};

/// What became of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyOutcome {
    /// There was none.
    #[default]
    None,
    /// It is in use here already.
    Same,
    /// It is the relay's from now on.
    Taken,
}

/// What was taken over, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TakeoverReport {
    /// The relay's actor, as it is here.
    pub actor: String,
    /// What became of the key.
    pub key: KeyOutcome,
    /// Its length in bits.
    pub key_bits: Option<usize>,
    /// Hosts that are subscribers now.
    pub added: Vec<String>,
    /// Hosts that were subscribers already.
    pub known: usize,
    /// What cannot be used, and why.
    pub skipped: Vec<(String, String)>,
    /// Rules of moderation that are new.
    pub rules: usize,
}

impl Handle {
    /// Takes over what another relay knew. Subscribers and rules that are here stay as they are.
    ///
    /// # Errors
    /// [`HandleError`]: without a name of the relay, with a key that is none, or another key than the one that subscribers
    /// here know.
    pub async fn take_over(
        &self,
        foreign: &ForeignRelay,
        dry_run: bool,
        (who, from): (&str, &str),
    ) -> Result<TakeoverReport, HandleError> {
        let inner = &self.inner;
        let relay = inner.relay.as_ref().ok_or(HandleError::NoHost)?;
        inner.subscribers.refresh().await?;
        let table = inner.subscribers.table();
        let mut report = TakeoverReport {
            actor: relay.actor_id(),
            ..TakeoverReport::default()
        };
        let mut new_key = None;
        if let Some(pem) = &foreign.key_pem {
            let refuse = |why: &str| HandleError::NotARule(format!("the private key cannot be used: {why}"));
            let der =
                read_private_pem(pem).ok_or_else(|| refuse("not an RSA key in PEM (PKCS#8 or PKCS#1)"))?;
            let (public, bits) = Signer::public_of(&der).map_err(|error| refuse(&error.to_string()))?;
            report.key_bits = Some(bits);
            report.key = KeyOutcome::Same;
            if public != inner.signer.public_pem() {
                if !table.by_host.is_empty() {
                    return Err(HandleError::KeyInUse);
                }
                report.key = KeyOutcome::Taken;
                new_key = Some(der);
            }
        }
        let at = inner.deps.clock.wall();
        let mut news: Vec<NewSubscription> = Vec::new();
        for one in &foreign.subscribers {
            match subscription_of(one) {
                Err(why) => report.skipped.push((one.inbox.clone(), why)),
                Ok((host, new)) => {
                    if table.by_host.keys().any(|known| known.as_str() == host)
                        || report.added.contains(&host)
                    {
                        report.known += 1;
                    } else {
                        report.added.push(host);
                        news.push(NewSubscription { at, ..new });
                    }
                }
            }
        }
        let known = inner.store.moderation().await?;
        let mut rules: Vec<ModerationRule> = Vec::new();
        for (effect, kind, subject, reason) in &foreign.rules {
            match subject_of(*effect, *kind, subject) {
                Err(error) => report.skipped.push((subject.clone(), error.to_string())),
                Ok(subject) => {
                    let is_same = |rule: &ModerationRule| rule.kind == *kind && rule.subject == subject;
                    if !known.iter().chain(&rules).any(is_same) {
                        rules.push(ModerationRule {
                            effect: *effect,
                            kind: *kind,
                            subject,
                            reason: reason.chars().take(300).collect(),
                            at,
                        });
                    }
                }
            }
        }
        report.rules = rules.len();
        if dry_run {
            return Ok(report);
        }
        let audit = |action: &str, object: String| self.audit(action, object, String::new(), (who, from));
        if let Some(der) = new_key {
            let line = audit(
                "fedi.key",
                format!("{} bits", report.key_bits.unwrap_or_default()),
            );
            let replaced = inner.deps.secrets.replace(RELAY_KEY, &der, line).await;
            replaced.map_err(|error| HandleError::Key(error.to_string()))?;
            let changed = inner.signer.change_key(&der);
            changed.map_err(|error| HandleError::Key(error.to_string()))?;
        }
        for new in news {
            let line = audit("fedi.import", new.host.clone());
            inner.store.subscribe(new, Vec::new(), Some(line)).await?;
        }
        if !rules.is_empty() {
            let line = audit("fedi.blocklist", format!("{} rules", rules.len()));
            inner.store.moderate(rules, Some(line)).await?;
        }
        if report.key == KeyOutcome::Taken {
            // Other gateways of the store look at the key when anything changes.
            inner.store.announce_change().await?;
        }
        inner.subscribers.refresh().await?;
        inner.suspects.wake();
        Ok(report)
    }
}

fn subscription_of(one: &ForeignSubscriber) -> Result<(String, NewSubscription), String> {
    let actor = ActorId::parse(&one.actor).map_err(|error| format!("the actor {:?}: {error}", one.actor))?;
    let inbox = InboxUrl::parse(&one.inbox).map_err(|error| format!("the inbox: {error}"))?;
    if inbox.authority() != actor.authority() {
        return Err("actor and inbox are on different hosts".to_owned());
    }
    let host = actor.authority().to_string();
    let new = NewSubscription {
        host: host.clone(),
        topic: String::new(),
        actor: actor.as_str().to_owned(),
        inbox: inbox.as_str().to_owned(),
        style: one.style.unwrap_or(SubscriptionStyle::Mastodon),
        state: if one.is_pending {
            SubscriptionState::Pending
        } else {
            SubscriptionState::Active
        },
        follow_id: one.follow_id.clone().unwrap_or_default(),
        software: None,
        at: tasuki_core::clock::Timestamp(0),
    };
    Ok((host, new))
}
