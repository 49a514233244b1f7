//! Principals that the gateway switches off by itself, because what is done in their name looks like the work of a thief.

use super::{Accounts, Principal};
use crate::events::What;
use crate::store::accounts::Locked;
use crate::store::{Actor, StoreError};

impl Accounts {
    /// Switches a principal off and says why, in the audit, as an event and in `status`; `user enable` undoes it. Nothing
    /// happens if it is off already.
    ///
    /// # Errors
    /// The store's.
    pub async fn lock(&self, principal: &Principal, reason: &str) -> Result<(), StoreError> {
        let now = self.inner.clock.wall();
        let audit = Actor::gateway("guard").entry(now, "user.lock", principal.name.as_str(), reason);
        if !self
            .inner
            .store
            .lock_principal(principal.id, reason, audit)
            .await?
        {
            return Ok(());
        }
        self.changed();
        self.inner.events.emit(What::PrincipalLocked {
            principal: principal.id,
            name: principal.name.clone(),
            reason: reason.to_owned(),
        });
        Ok(())
    }

    /// Who is locked, the oldest lock first.
    ///
    /// # Errors
    /// The store's.
    pub async fn locks(&self) -> Result<Vec<Locked>, StoreError> {
        self.inner.store.locks().await
    }
}
