//! Who owns which name and port: what is known of it here follows the store, and an endpoint is given up.
//!
//! Invariant: what is served without an owner is served no longer than until the owners are read again. Its session ends
//! then, and its agent has to ask the store for it like everybody else.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tasuki_core::ids::PrincipalId;
use tasuki_core::store::tunnel::Endpoint;
use tasuki_core::store::{AuditEntry, StoreError, StoreResult};
use tasuki_proto::tunnel::CloseCode;

use super::Inner;
use crate::handle::Handle;

/// How often the owners of names and ports are read again: another gateway or a command may have changed them.
const REFRESH: Duration = Duration::from_secs(15);
/// What an agent is told whose endpoint is not its own any more.
const ASK_AGAIN: &str = "one of the endpoints was released at the gateway";

/// Why an endpoint is not given up.
#[derive(Debug, thiserror::Error)]
pub enum NotReleased {
    /// The agent has none with this label.
    #[error("there is no such endpoint")]
    Missing,
    /// The agent serves it now, by this gateway.
    #[error("the endpoint is served now")]
    Served,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Handle {
    /// Gives up what the agent owns under this label. A name is kept for it for 30 days more.
    ///
    /// The store does not know what other gateways serve. If one of them serves the endpoint, it ends that when it reads
    /// the owners again, within 15 s, and the agent has to claim it anew.
    ///
    /// # Errors
    /// See [`NotReleased`].
    pub async fn release(
        &self,
        agent: PrincipalId,
        label: &str,
        entry: impl FnOnce(&Endpoint) -> AuditEntry,
    ) -> Result<(), NotReleased> {
        let (inner, store) = (&self.inner, &self.inner.deps.store);
        // From here on whoever declares it has to ask the store; who asked before is seen below, before or after.
        inner.registry.disown(agent, label);
        let released = async {
            let all = store.endpoints().await?;
            let endpoint = all
                .into_iter()
                .find(|has| has.agent == agent && has.label == label);
            let endpoint = endpoint.ok_or(NotReleased::Missing)?;
            if inner.registry.serves(agent, label) {
                return Err(NotReleased::Served);
            }
            let entry = entry(&endpoint);
            match store.release_endpoint(endpoint.id, entry.at, entry).await {
                // Another command was faster.
                Err(StoreError::NotFound(_)) => Err(NotReleased::Missing),
                other => Ok(other?),
            }
        };
        let released = released.await;
        // An answer of the store from before that brings it back no more.
        inner.registry.disown(agent, label);
        self.read_owners().await;
        released
    }

    /// Endpoints were changed in the store: what is known of their owners is read again. If that fails, it is done within
    /// seconds anyway.
    pub async fn read_owners(&self) {
        if let Err(error) = read(&self.inner).await {
            tracing::debug!(%error, "tunnel endpoints cannot be read now");
        }
    }
}

/// Reads the owners, and ends what is served without one.
async fn read(inner: &Inner) -> StoreResult<()> {
    // Claims that come in between are rare, and each is in the next answer.
    while !read_once(inner).await? {}
    Ok(())
}

/// False if an owner was noted or forgotten meanwhile: then nothing has changed.
async fn read_once(inner: &Inner) -> StoreResult<bool> {
    // Looked at before the owners: who comes to be served meanwhile may have an owner that is not among them.
    let (served, changed) = (inner.registry.served(), inner.registry.owners_changed());
    let owned = inner.deps.store.endpoints().await?;
    let known: HashSet<(PrincipalId, &str)> =
        owned.iter().map(|has| (has.agent, has.label.as_str())).collect();
    let without: Vec<_> = served
        .into_iter()
        .filter(|target| !known.contains(&(target.session.agent, &*target.label)))
        .collect();
    // First, so that the agent's new session does not find what was known before.
    if !inner.registry.set_owned(owned, changed) {
        return Ok(false);
    }
    inner.certify_names();
    for target in without {
        tracing::info!(tunnel.agent = %target.session.name, endpoint = %target.label, "served without an owner; the agent has to ask for it again");
        target.session.close(CloseCode::GoingAway, ASK_AGAIN);
    }
    Ok(true)
}

/// Reads the owners again and again until the engine closes.
pub(crate) async fn refresh(inner: Arc<Inner>) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            () = inner.closing.cancelled() => return,
        }
        note_regulars(&inner).await;
        match read(&inner).await {
            Ok(()) => failing = false,
            // The last answer stays good enough; say it once.
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(error = %error, "tunnel endpoints cannot be read; the last known ones stay in use");
            }
            Err(_) => {}
        }
    }
}

/// Writes down who has stayed. What cannot be written now is written the next time.
async fn note_regulars(inner: &Inner) {
    let fresh = inner.regulars.take_fresh();
    if fresh.is_empty() {
        return;
    }
    let now = inner.deps.clock.wall();
    let week = crate::gateway::regulars::WEEK;
    if let Err(error) = inner.deps.store.note_regulars(&fresh, now, now.minus(week)).await {
        tracing::debug!(error = %error, "regular visitors cannot be written down now");
        inner.regulars.give_back(fresh);
    }
}
