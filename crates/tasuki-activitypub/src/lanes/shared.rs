//! One signature for many hosts: over `date` and `digest` alone, it says nothing about the host it is sent to.
//!
//! A signature with an RSA key costs more than all the rest of a delivery. Mastodon's family asks of a POST that `digest` and
//! `date` are signed, nothing else, so the same signature serves all of them for the time of their clock window.
//!
//! What is given up is the target: whoever receives the request can send it on to another server of that family, as the
//! relay's, for about an hour. So it is used only for what such a server may have anyway: other people's public activities,
//! believed by their authors' own signatures, and the relay's Announces of public posts; only while the relay is open to
//! everybody; and never to a host that a rule is about or that has a filter. A replay then tells its receiver what the relay tells it too, or what
//! is public; what concerns a subscription (Follow, Accept, Reject, Undo) is always signed for its one receiver.
//!
//! **Invariant:** a shared signature is at most [`MAX_AGE`] old when it is sent, also when a delivery is tried again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tasuki_core::clock::Timestamp;

use crate::signer::{KeyChoice, SignError, Signer};

/// When it is made anew: far within the hour that receivers allow, and their clocks may differ.
const MAX_AGE: Duration = Duration::from_secs(60);
/// Signatures kept for one body: one for each actor of the relay that sends it.
const MAX_KEPT: usize = 16;

/// The headers of a request with a shared signature.
#[derive(Debug)]
pub(crate) struct SharedHeaders {
    pub(crate) date: HeaderValue,
    pub(crate) digest: HeaderValue,
    pub(crate) signature: HeaderValue,
    key_id: Arc<str>,
    /// Which of the relay's keys made it.
    serial: u64,
    made_at: Timestamp,
}

/// The shared signatures of one body.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    kept: Mutex<Vec<Arc<SharedHeaders>>>,
    /// Held while one is made: the others wait for it, they do not make their own.
    making: tokio::sync::Mutex<()>,
}

impl Shared {
    /// A signature that is fresh enough; made if there is none.
    pub(crate) async fn headers(
        &self,
        signer: &Signer,
        key: KeyChoice,
        key_id: &Arc<str>,
        digest: &Arc<str>,
    ) -> Result<Arc<SharedHeaders>, SignError> {
        if let Some(fresh) = self.fresh(signer, key, key_id) {
            return Ok(fresh);
        }
        let _one = self.making.lock().await;
        if let Some(fresh) = self.fresh(signer, key, key_id) {
            return Ok(fresh);
        }
        let serial = signer.serial(key);
        let made_at = signer.now();
        let signed = signer
            .sign_shared(key, Arc::clone(key_id), Arc::clone(digest))
            .await?;
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| SignError::Key);
        let made = Arc::new(SharedHeaders {
            date: value(&signed.date)?,
            digest: value(digest)?,
            signature: value(&signed.signature)?,
            key_id: Arc::clone(key_id),
            serial,
            made_at,
        });
        let mut kept = self.lock();
        kept.retain(|one| one.key_id != made.key_id || one.serial != made.serial);
        if kept.len() >= MAX_KEPT {
            kept.remove(0);
        }
        kept.push(Arc::clone(&made));
        Ok(made)
    }

    fn fresh(&self, signer: &Signer, key: KeyChoice, key_id: &Arc<str>) -> Option<Arc<SharedHeaders>> {
        let (now, serial) = (signer.now(), signer.serial(key));
        let kept = self.lock();
        let found = kept.iter().find(|one| {
            // A clock that was set back makes it anew, too.
            let is_fresh = now >= one.made_at && now.since(one.made_at) <= MAX_AGE;
            is_fresh && one.serial == serial && one.key_id == *key_id
        });
        found.cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<SharedHeaders>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
