//! A new key for the relay, without a moment in which a host cannot verify what it gets.
//!
//! Hosts keep the key that they fetched, under its id, and most ask again when a signature does not verify. The id is
//! `ACTOR#main-key` for every key (Pleroma compares it with the actor's), and the actor shows one key (Misskey reads no list),
//! so the new one takes the place of the old one at once, as in Mastodon's own rotation: an Update of the actor that holds the
//! new key, signed with the old one, goes to all subscribers. Until a host took it, it is sent what the old key signs; what it
//! refuses is sent at once under the other key. After [`KEEP`] the old key is gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use roaring::RoaringBitmap;
use serde::Serialize;
use tasuki_core::clock::Timestamp;
use tasuki_core::failure::BoxError;
use tasuki_core::shutdown::Shutdown;
use tasuki_core::store::AuditEntry;
use tasuki_core::store::fedi::{EntryKind, NewEntry, Via};
use tasuki_proto::activitypub::topic::Topic;

use crate::engine::Inner;
use crate::handle::{Handle, HandleError};
use crate::signer::{PREVIOUS_KEY, RELAY_KEY, Signer, is_over, kept_until, make_key};
use crate::unique;

/// How long the old key still signs for hosts that have not heard: longer than anything waits for a host.
const KEEP: Duration = Duration::from_secs(7 * 86_400);
/// How often the store is looked at for an old key whose time is over.
const LOOK: Duration = Duration::from_secs(3600);

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyRotation {
    /// The id of the key: the same as before.
    pub key_id: String,
    /// Length of the new key in bits.
    pub key_bits: usize,
    /// Until when the old key still signs where the new one is not known; `None` when it is gone at once.
    pub old_key_until: Option<Timestamp>,
    /// Hosts that are told.
    pub told: u64,
}

impl Handle {
    /// Gives the relay a new key. With `compromised` the old one signs nothing any more: hosts find the new one when a
    /// signature does not verify.
    ///
    /// # Errors
    /// [`HandleError`]: without a name of the relay, or while the last change is not over.
    pub async fn rotate_key(
        &self,
        compromised: bool,
        (who, from): (&str, &str),
    ) -> Result<KeyRotation, HandleError> {
        let inner = &self.inner;
        let relay = inner.relay.as_ref().ok_or(HandleError::NoHost)?;
        let failed = |error: &dyn std::fmt::Display| HandleError::Key(error.to_string());
        let secrets = &inner.deps.secrets;
        inner.signer.reload(secrets).await.map_err(|e| failed(&e))?;
        if let (Some(until), false) = (inner.signer.previous_until(), compromised) {
            return Err(HandleError::KeyChanging(until.to_string()));
        }
        let made = inner.deps.pool.run(make_key).await.map_err(|e| failed(&e))?;
        let made = made.ok_or_else(|| failed(&"no key was made"))?;
        let (_, key_bits) = Signer::public_of(&made).map_err(|e| failed(&e))?;
        let old = secrets.load(RELAY_KEY).await.map_err(|e| failed(&e))?;
        let until = inner.deps.clock.wall().plus(KEEP);
        let line =
            |detail: &str| self.audit("fedi.rotate-key", relay.key_id(), detail.to_owned(), (who, from));
        // The old key first: a fault between the two leaves it as both.
        let kept = match old {
            Some(old) if !compromised => kept_until(&old, until),
            _ => zeroize::Zeroizing::new(Vec::new()),
        };
        let before = match compromised {
            true => "the old key is dropped",
            false => "the old key is kept for a week",
        };
        let replaced = secrets.replace(PREVIOUS_KEY, &kept, line(before)).await;
        replaced.map_err(|e| failed(&e))?;
        let replaced = secrets.replace(RELAY_KEY, &made, line("a new key")).await;
        replaced.map_err(|e| failed(&e))?;
        inner.signer.reload(secrets).await.map_err(|e| failed(&e))?;
        // Other gateways of the store look at the keys when anything changes.
        inner.store.announce_change().await?;
        let told = inner.tell_of_key().await?;
        Ok(KeyRotation {
            key_id: relay.key_id(),
            key_bits,
            old_key_until: (!compromised).then_some(until),
            told,
        })
    }
}

/// Removes the old key when its time is over: at its end, at the start, and now and then for one that another gateway kept.
pub(crate) async fn run(inner: Arc<Inner>, shutdown: Shutdown) {
    loop {
        inner.drop_old_key().await;
        let now = inner.deps.clock.wall();
        let end = inner.signer.previous_until().map(|until| until.since(now));
        // A moment later, so that it is over.
        let pause = end.map_or(LOOK, |rest| rest.min(LOOK) + Duration::from_millis(10));
        tokio::select! {
            () = shutdown.begun() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Inner {
    async fn drop_old_key(&self) {
        let now = self.deps.clock.wall();
        let line = AuditEntry {
            at: now,
            who: "gateway".to_owned(),
            from: "tasuki".to_owned(),
            action: "fedi.rotate-key".to_owned(),
            object: PREVIOUS_KEY.to_owned(),
            detail: "the old key's time is over: it is removed".to_owned(),
        };
        let secrets = &self.deps.secrets;
        let dropped = async {
            let is_gone = secrets
                .remove_if(PREVIOUS_KEY, |kept| is_over(kept, now), line)
                .await?;
            if is_gone {
                tracing::info!("the relay's old key is removed");
                self.signer.reload(secrets).await?;
            }
            Ok::<_, BoxError>(())
        };
        if let Err(error) = dropped.await {
            tracing::warn!(error = %error, "the relay's old key was not looked at");
        }
    }

    /// An Update of each of the relay's actors to all who joined it.
    async fn tell_of_key(&self) -> Result<u64, HandleError> {
        let relay = self.relay.as_ref().ok_or(HandleError::NoHost)?;
        self.subscribers.refresh().await?;
        let receivers = self.subscribers.receivers(&self.config.load_full());
        for (topic, hosts) in receivers.actors().filter(|(_, hosts)| !hosts.is_empty()) {
            let relay = relay.at(topic);
            let (name, summary) = self.words_of(topic);
            let actor = relay.actor(&name, &summary, &self.signer.public_pem());
            let document = relay.update_of_actor(&unique(), actor);
            let via = match topic {
                Topic::All => Via::new(),
                topic => vec![(topic.to_string(), hosts.clone())],
            };
            self.store
                .append(NewEntry {
                    kind: EntryKind::Control,
                    object: relay.actor_id(),
                    actor: String::new(),
                    dedupe: unique(),
                    body: Bytes::from(document.to_string()),
                    announce: None,
                    audience: hosts.clone(),
                    announce_to: RoaringBitmap::new(),
                    via,
                    if_known: RoaringBitmap::new(),
                    at: self.deps.clock.wall(),
                })
                .await?;
        }
        Ok((&receivers.forward | &receivers.announce).len())
    }

    /// Takes up keys that another gateway of the store changed; whether they could be read.
    pub(crate) async fn follow_keys(&self) -> bool {
        match self.signer.reload(&self.deps.secrets).await {
            Ok(true) => tracing::info!("the relay's key was changed"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = %error, "the relay's key was not read again");
                return false;
            }
        }
        true
    }
}
