//! The emergency brake: a spam wave, a mistake, a disk that fills. It is in the store, so it holds for all gateways and over
//! a restart.
//!
//! The relay's own letters (Accept, Reject) go out also with the brake pulled: instances can join and leave.

use tasuki_core::health::{Code, Condition};
use tasuki_core::store::fedi::{Brake, BrakeMode};

use crate::engine::Inner;
use crate::handle::{Handle, HandleError};

impl Handle {
    /// The brake, if it is pulled.
    pub fn brake(&self) -> Option<Brake> {
        self.inner.subscribers.orders().brake.clone()
    }

    /// Pulls the brake, or changes what it does.
    ///
    /// # Errors
    /// [`HandleError::Store`].
    pub async fn pause(
        &self,
        mode: BrakeMode,
        reason: &str,
        (who, from): (&str, &str),
    ) -> Result<Brake, HandleError> {
        let brake = Brake {
            mode,
            reason: reason.chars().take(300).collect(),
            at: self
                .brake()
                .map_or(self.inner.deps.clock.wall(), |known| known.at),
        };
        let name = match mode {
            BrakeMode::Hold => "hold",
            BrakeMode::Refuse => "refuse",
        };
        let audit = self.audit("fedi.pause", name.to_owned(), brake.reason.clone(), (who, from));
        self.inner
            .store
            .set_brake(Some(brake.clone()), Some(audit))
            .await?;
        self.inner.subscribers.refresh().await?;
        self.inner.show_brake();
        Ok(brake)
    }

    /// Releases the brake; what waits is sent. Says whether it was pulled.
    ///
    /// # Errors
    /// [`HandleError::Store`].
    pub async fn resume(&self, (who, from): (&str, &str)) -> Result<bool, HandleError> {
        self.inner.subscribers.refresh().await?;
        if self.brake().is_none() {
            return Ok(false);
        }
        let audit = self.audit("fedi.resume", String::new(), String::new(), (who, from));
        self.inner.store.set_brake(None, Some(audit)).await?;
        self.inner.subscribers.refresh().await?;
        self.inner.show_brake();
        self.inner.lanes.wake_all();
        Ok(true)
    }
}

impl Inner {
    /// A pulled brake is easily forgotten: `status` says so until it is released.
    pub(crate) fn show_brake(&self) {
        let condition = self.subscribers.orders().brake.as_ref().map(|brake| {
            let reason = match brake.reason.as_str() {
                "" => String::new(),
                reason => format!(" ({reason})"),
            };
            let sentence = format!(
                "the fediverse relay is stopped by an operator since {}{reason}: `tasuki fedi resume` lets it go on",
                brake.at
            );
            Condition::warning(Code::Paused, sentence)
        });
        self.deps.health.set("fediverse.brake", condition);
    }
}
